"""Verdicts: claims about arms, judged over paired seeds from recorded runs (torch-free)."""
