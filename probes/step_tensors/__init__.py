"""Measures of the tensors of one optimizer step."""
