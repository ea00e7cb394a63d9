"""Overview report."""
