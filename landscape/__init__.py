"""A run: recording it, storing it, reading it back."""
