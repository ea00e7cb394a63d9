"""The spectral entropy report."""
