"""User objective: an `Objective` returned by a function in the user's own file, `FILE.py:NAME`."""

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
    """Return the objective that the function NAME of FILE.py returns when called without arguments.

    This runs the file, as an import would; meanwhile the file's folder is on the import path.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        ConfigError: The file or name does not exist, the code raises, or it does not return an Objective.
    """
    file, colon, name = place.rpartition(":")
    if not colon or not file or not name:
        raise ConfigError(f"--objective {place!r} is not FILE.py:NAME, such as probes/mine.py:objective")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--objective: there is no file {path}; check the path")
    with _import_path(path.parent):
        module = _load(path)
        found = _call(_member(module, name, path), f"{name}() of {path}")
    if not isinstance(found, Objective):
        raise ConfigError(
            f"{name}() of {path} returned {type(found).__name__}, need a lossscope.probes.Objective: "
            "return Objective(model, loss_fn, batches)"
        )
    return found


def evaluated_once(objective: Objective, place: str, *, slope: bool) -> None:
    """Call the loss and its gradient once, so that errors of the user's code are reported before any measurement.

    A value that cannot be measured (not finite, say) passes: another checkpoint may have a finite one, and the
    measures report it.

    Args:
        objective: The objective from `place`, at the parameters of a checkpoint.
        place: `FILE.py:NAME`.
        slope: Whether derivatives are needed; a loss without derivatives is then rejected.

    Raises:
        ConfigError: The loss raised something, or does not depend on the parameters.
    """
    try:
        objective.value()
    except ProbeError:
        return
    except (Exception, SystemExit) as error:
        raise ConfigError(f"loss of {place} raised {_summary(error)}; it is called as loss_fn(model, batch)") from error
    if not slope:
        return
    try:
        objective.gradient()
    except ProbeError as error:
        raise ConfigError(f"loss of {place}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the gradient of the loss of {place} raised {_summary(error)}") from error


def _load(path: Path) -> ModuleType:
    """Load the file as a module."""
    spec = importlib.util.spec_from_file_location(f"_lossscope_objective_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--objective: {path} is no Python file; give it the suffix .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ConfigError(f"{path} cannot be loaded: {_summary(error)}") from error
    return module


def _member(module: ModuleType, name: str, path: Path) -> Any:
    """Return the attribute of the module with that name."""
    if not hasattr(module, name):
        own = [one for one, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        known = [one for one in own if callable(vars(module)[one]) and not one.startswith("_")]
        close = get_close_matches(name, known, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it defines {', '.join(known[:5]) or 'no function'}"
        raise ConfigError(f"{path} has no {name!r}; {hint}")
    return getattr(module, name)


def _call(function: Any, what: str) -> Any:
    """Return the result of calling the function."""
    if not callable(function):
        raise ConfigError(
            f"{what.replace('()', '', 1)} is {type(function).__name__}, need a function without arguments"
        )
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ConfigError(f"{what} raised {_summary(error)}") from error


def _summary(error: BaseException) -> str:
    """Return type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Make modules of the folder importable within the context."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
