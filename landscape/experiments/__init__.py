"""Experiments: listed arms with paired seeds, trained until every run is there."""
