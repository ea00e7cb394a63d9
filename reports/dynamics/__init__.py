"""The dynamics report."""
