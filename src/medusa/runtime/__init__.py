"""Fast forwards: packed layers, captured and compiled functions. Knows layers and tensors alone."""
