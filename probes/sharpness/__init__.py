"""Sharpness and flatness measures of an objective."""
