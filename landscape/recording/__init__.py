"""The Recorder: schedule, step rows, checkpoints, metadata."""
