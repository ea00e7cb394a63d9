"""Comparisons: pages of verdicts."""
