"""Gauge fixing: networks of the same function at a point that no rescaling can move."""
