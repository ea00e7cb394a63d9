"""Measurement of checkpoints that other programs saved and nobody recorded."""
