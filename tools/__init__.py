"""Scripts that make what the package contains."""
