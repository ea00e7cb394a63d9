"""Diagnosis: declared rules over the series of a run, each with its null model and its rate of false alarms."""
