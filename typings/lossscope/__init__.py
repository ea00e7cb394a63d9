"""Loss-landscape analysis: instrumented optimizers, curvature with error bars, recorded runs and reports.

The names that matter most, listed in `__init__.pyi` and loaded on first use: `Run` reads a log without torch.
"""

from typing import Any

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Return a public name, or the installed version; "unknown" in a source tree that was never installed."""
    if name != "__version__":
        return _attribute(name)
    from importlib.metadata import PackageNotFoundError, version  # takes as long to import as the whole command line

    try:
        return version("lossscope")
    except PackageNotFoundError:
        return "unknown"
