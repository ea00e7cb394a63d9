"""Loss-landscape analysis: instrumented optimizers, curvature with error bars, recorded runs and reports.

The names that matter most, listed in `__init__.pyi` and loaded on first use: `Run` reads a log without torch.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

try:
    __version__ = version("lossscope")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "unknown"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
