"""The flatness report."""
