"""Workloads and the training loop."""
