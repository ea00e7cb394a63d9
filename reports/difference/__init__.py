"""Difference of two runs or files of weights."""
