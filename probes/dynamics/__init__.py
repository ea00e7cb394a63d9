"""Statistics of series over optimizer steps (torch-free)."""
