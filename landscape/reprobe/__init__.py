"""Measurement of saved checkpoints after training."""
