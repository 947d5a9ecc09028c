"""The trainer of the embedded model, and the texts it learns from."""
