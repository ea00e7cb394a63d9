"""Pictures of the loss: fans of random directions, planes and paths."""
