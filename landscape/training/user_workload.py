"""User workload: a `Workload` returned by a function in the user's own file, `FILE.py:NAME`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.user_code import called, error_summary, own_streams
from lossscope.landscape.training.workloads import WORKLOADS, Workload

__all__ = ["absolute_place", "register_workload"]

_REGISTERED: Final[dict[str, Workload]] = {}  # by place


def register_workload(place: str) -> Workload:
    """Register the workload that the function NAME of FILE.py returns, once in each process, and return it.

    Network and examples are built once, so that errors of the user's code are reported before any training.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        ConfigError: The file or name does not exist, the code raises or returns something else, or the name of the
            workload is taken.
    """
    if place in _REGISTERED:
        return _REGISTERED[place]
    found, call = called(place, option="--workload", example="mine.py:workload")
    if not isinstance(found, Workload):
        raise ConfigError(
            f"{call} returned {type(found).__name__}, need a lossscope.landscape.training.workloads.Workload"
        )
    file = Path(place.rpartition(":")[0])
    made = replace(found, source=hashlib.sha256(file.read_bytes()).hexdigest())
    if made.name in WORKLOADS and WORKLOADS[made.name].source != made.source:
        raise ConfigError(f"{call} returned a workload named {made.name!r}, a name that is taken: choose another name")
    try:
        with own_streams():
            made.network()
            made.split(0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code may raise anything
        raise ConfigError(f"the workload of {call} cannot be built: {error_summary(error)}") from error
    WORKLOADS[made.name] = _REGISTERED[place] = made
    return made


def absolute_place(place: str) -> str:
    """Return a place with an absolute path, which a process in another folder reads."""
    file, colon, name = place.rpartition(":")
    return f"{Path(file).absolute()}{colon}{name}" if file and colon else place
