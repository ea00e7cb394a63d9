"""The overview report."""
