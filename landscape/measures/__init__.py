"""Catalogue of measures, and one curvature evaluation of a loss at its present parameters."""
