"""Tables of runs and of probed checkpoints."""
