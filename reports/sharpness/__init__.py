"""The sharpness report."""
