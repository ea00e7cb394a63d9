"""Run storage on disk: manifest, journal and tables."""
