"""User objective: an `Objective` returned by a function in the user's own file, `FILE.py:NAME`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from lossscope.errors import LossscopeError
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.config import shown
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective

__all__ = ["errors_of_loss", "evaluated_once", "objective_from"]

_DESCRIPTORS: Final = (1, 2)  # of standard output and standard error
_LONGEST: Final = 500  # characters of an error's message


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
        raise ConfigError(f"--objective {shown(place)} is not FILE.py:NAME, such as probes/mine.py:objective")
    path = Path(file)
    if not _is_file(path):
        what = f"{path} is no regular file" if os.path.lexists(path) else f"there is no file {path}"
        raise ConfigError(f"--objective: {what}; check the path")
    with _import_path(path.parent), own_streams():
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
        with errors_of_loss(place, "it is called as loss_fn(model, batch)"):
            objective.value()
    except ProbeError:
        return
    if not slope:
        return
    try:
        with errors_of_loss(place, of="the gradient of the loss"):
            objective.gradient()
    except ProbeError as error:
        raise ConfigError(f"loss of {place}: {error}") from error


@contextmanager
def errors_of_loss(place: str, hint: str = "", of: str = "loss") -> Iterator[None]:
    """Turn whatever the user's loss raises within the context into a ConfigError, and keep the standard streams.

    Errors of the probes pass, as does an interrupt.

    Args:
        place: `FILE.py:NAME`.
        hint: What the message adds.
        of: What raised, in words.

    Raises:
        ConfigError: The code raised something.
    """
    try:
        with own_streams():
            yield
    except (LossscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's own code may raise anything
        raise ConfigError(f"{of} of {place} raised {_summary(error)}{f'; {hint}' if hint else ''}") from error


@contextmanager
def own_streams() -> Iterator[None]:
    """Keep the standard streams of the process as they are, whatever the code within the context does to them.

    The code gets streams of its own, which it may close or replace; descriptors that it closes are opened again.
    """
    streams = sys.stdout, sys.stderr, sys.stdin
    saved = [_duplicate(number) for number in _DESCRIPTORS]
    try:
        sys.stdout, sys.stderr = (cast(Any, None if one is None else _Borrowed(one)) for one in streams[:2])
        yield
    finally:
        for number, copy in zip(_DESCRIPTORS, saved, strict=True):
            if copy is not None:
                os.dup2(copy, number)
                os.close(copy)
        sys.stdout, sys.stderr = map(_open_again, streams[:2], _DESCRIPTORS)
        sys.stdin = streams[2]


def _open_again(stream: Any, descriptor: int) -> Any:
    """Return the stream; a new one on its descriptor if it was closed."""
    if not getattr(stream, "closed", False):
        return stream
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", closefd=False)


class _Borrowed:
    """A stream whose closing closes nothing; its other attributes are those of the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        """Do nothing."""

    def detach(self) -> Any:
        """Return the stream below, which stays attached."""
        return self._stream

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream."""
        return getattr(self._stream, name)


def _duplicate(number: int) -> int | None:
    """Return a copy of an open file descriptor; None if it is not open."""
    try:
        return os.dup(number)
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    """Return True if there is a regular file at the path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _load(path: Path) -> ModuleType:
    """Load the file as a module."""
    spec = importlib.util.spec_from_file_location(f"_lossscope_objective_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--objective: {path} is no Python file; give it the suffix .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code may raise anything
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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code may raise anything
        raise ConfigError(f"{what} raised {_summary(error)}") from error


def _summary(error: BaseException) -> str:
    """Return type and first line of an error, also of one that cannot be printed."""
    try:
        lines = str(error).strip()[:_LONGEST].splitlines()
    except BaseException:  # the user's own code may raise anything
        lines = ["its message cannot be printed"]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Make modules of the folder importable within the context."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the user's code may have changed it
            sys.path.remove(entry)
