"""Measurements of matrices, optimizer steps and the curvature of an objective; each returns its number with its error.

Public names are listed in `__init__.pyi` and loaded on first use, so that analysing logs needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
