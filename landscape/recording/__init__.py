"""The recorder: schedule, step rows, curvature evaluations, checkpoints and run metadata."""
