"""A run: recording it, storing it, reading it back.

Names are loaded when first used: `Run` reads a log without torch, `Recorder` and `train` bring it in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossscope.landscape.config import TrainConfig
    from lossscope.landscape.errors import LandscapeError
    from lossscope.landscape.milestone import first_step
    from lossscope.landscape.recorder import Recorder
    from lossscope.landscape.run import Run, open_runs
    from lossscope.landscape.training import train

_HOMES = {
    "LandscapeError": "errors",
    "Recorder": "recorder",
    "Run": "run",
    "TrainConfig": "config",
    "first_step": "milestone",
    "open_runs": "run",
    "train": "training",
}

__all__ = ["LandscapeError", "Recorder", "Run", "TrainConfig", "first_step", "open_runs", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lossscope.landscape.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
