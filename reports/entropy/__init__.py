"""Spectral entropy report."""
