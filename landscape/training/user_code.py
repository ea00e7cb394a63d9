"""Code of the user's own: the result of a function in a file, named `FILE.py:NAME` on the command line."""

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

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.config import shown

__all__ = ["called", "error_summary", "own_streams"]

_DESCRIPTORS: Final = (1, 2)  # of standard output and standard error
_LONGEST: Final = 500  # characters of an error's message


def called(place: str, *, option: str, example: str) -> tuple[Any, str]:
    """Return what the function NAME of FILE.py returns when called without arguments, and the call in words.

    This runs the file, as an import would; meanwhile the file's folder is on the import path.

    Args:
        place: `FILE.py:NAME`.
        option: The option of the command line that named it, for messages.
        example: A place, for messages.

    Raises:
        ConfigError: The file or name does not exist, or the code raises.
    """
    file, colon, name = place.rpartition(":")
    if not colon or not file or not name:
        raise ConfigError(f"{option} {shown(place)} is not FILE.py:NAME, such as {example}")
    path = Path(file)
    if not _is_file(path):
        what = f"{path} is no regular file" if os.path.lexists(path) else f"there is no file {path}"
        raise ConfigError(f"{option}: {what}; check the path")
    with _import_path(path.parent), own_streams():
        module = _load(path, option)
        return _call(_member(module, name, path), f"{name}() of {path}"), f"{name}() of {path}"


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


def _load(path: Path, option: str) -> ModuleType:
    """Load the file as a module."""
    spec = importlib.util.spec_from_file_location(f"_lossscope_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option}: {path} is no Python file; give it the suffix .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code may raise anything
        raise ConfigError(f"{path} cannot be loaded: {error_summary(error)}") from error
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
        raise ConfigError(f"{what} raised {error_summary(error)}") from error


def error_summary(error: BaseException) -> str:
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
