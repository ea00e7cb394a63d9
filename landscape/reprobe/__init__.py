"""Measures of saved checkpoints."""
