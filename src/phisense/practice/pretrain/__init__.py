"""Training of the practice parts from fixed seeds."""
