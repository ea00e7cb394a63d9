"""Flatness report."""
