"""Measures of curvature, optimizer steps and training dynamics; each result has its error.

Public names are listed in `__init__.pyi` and loaded on first use, so that analyzing recorded runs needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
