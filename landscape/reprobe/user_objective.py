"""An objective made by a function of the user's own, in a file of his own: `FILE.py:NAME`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from lossscope.landscape.errors import ConfigError
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective

__all__ = ["evaluated_once", "objective_from"]


def objective_from(place: str) -> Objective:
    """The objective that the function NAME of FILE.py returns when it is called without arguments.

    This runs the file, as importing it would; the file's folder is on the import path meanwhile.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        ConfigError: There is no such file or name, the code raises, or what it returns is no Objective.
    """
    file, colon, name = place.rpartition(":")
    if not colon or not file or not name:
        raise ConfigError(f"--objective {place!r} is not FILE.py:NAME, such as probes/mine.py:objective")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--objective: there is no file {path}; check the path")
    with _importable(path.parent):
        module = _loaded(path)
        found = _called(_member(module, name, path), f"{name}() of {path}")
    if not isinstance(found, Objective):
        raise ConfigError(
            f"{name}() of {path} returned {type(found).__name__}, need a lossscope.probes.Objective: "
            "return Objective(model, loss_fn, batches)"
        )
    return found


def evaluated_once(objective: Objective, place: str, *, slope: bool) -> None:
    """Call the loss once, and its gradient: what the user's own code raises is told before anything is measured.

    A value that cannot be measured (not finite, say) passes: another checkpoint may have one, and measures say so
    themselves.

    Args:
        objective: From `place`, at the parameters it is to be measured at.
        place: `FILE.py:NAME`.
        slope: Whether derivatives are asked for; a loss that has none is then refused.

    Raises:
        ConfigError: The loss raised something, or does not depend on the parameters.
    """
    try:
        objective.value()
    except ProbeError:
        return
    except (Exception, SystemExit) as error:
        raise ConfigError(f"loss of {place} raised {_said(error)}; it is called as loss_fn(model, batch)") from error
    if not slope:
        return
    try:
        objective.gradient()
    except ProbeError as error:
        raise ConfigError(f"loss of {place}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the gradient of the loss of {place} raised {_said(error)}") from error


def _loaded(path: Path) -> ModuleType:
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(f"_lossscope_objective_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--objective: {path} is no Python file; give it the suffix .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ConfigError(f"{path} cannot be loaded: {_said(error)}") from error
    return module


def _member(module: ModuleType, name: str, path: Path) -> Any:
    """What the module has under that name, if it can be called."""
    if not hasattr(module, name):
        own = [one for one, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        known = [one for one in own if callable(vars(module)[one]) and not one.startswith("_")]
        close = get_close_matches(name, known, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it defines {', '.join(known[:5]) or 'no function'}"
        raise ConfigError(f"{path} has no {name!r}; {hint}")
    return getattr(module, name)


def _called(function: Any, what: str) -> Any:
    """What the function returns."""
    if not callable(function):
        raise ConfigError(
            f"{what.replace('()', '', 1)} is {type(function).__name__}, need a function without arguments"
        )
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ConfigError(f"{what} raised {_said(error)}") from error


def _said(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A context in which modules of the folder can be imported."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
