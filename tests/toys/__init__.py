"""A toy implementation of each seam: one object in one file."""
