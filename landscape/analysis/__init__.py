"""Numbers out of recorded runs (torch-free)."""
