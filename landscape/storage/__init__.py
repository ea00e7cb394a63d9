"""A run on disk: manifest, journal, tables."""
