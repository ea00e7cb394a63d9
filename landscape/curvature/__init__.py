"""Catalogue of measures and one curvature evaluation."""
