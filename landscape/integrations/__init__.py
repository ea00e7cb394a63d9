"""Recorders for the trainers of other packages: one file each, which needs the package and which nothing imports."""
