"""Dynamics report."""
