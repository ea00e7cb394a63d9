"""Reports: findings, tables and figures as data, and a renderer per format.

Public names are listed in `__init__.pyi` and loaded on first use, so that a report imports only what it needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
