"""Scripts that make the data inside the package; they are not part of the wheel."""
