"""Sharpness report."""
