"""Fast execution of PyTorch modules: packed weights, CUDA graphs and compiled programs.

This layer knows linear layers and tensors; it knows nothing of decoding heads or candidate trees.
"""
