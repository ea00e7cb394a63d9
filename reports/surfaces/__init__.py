"""Pictures of the loss around and between points."""
