"""Estimates, confidence intervals and error propagation."""
