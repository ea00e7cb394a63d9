"""A run: recording it, storing it, reading it back.

Public names are listed in `__init__.pyi` and loaded on first use, so that `Run` reads a log without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
