"""Workloads and the recorded training loop."""
