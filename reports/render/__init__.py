"""Renderers: text, JSON, HTML and figures."""
