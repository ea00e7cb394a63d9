"""Ends of runs whose recorder was not closed: at the end of the interpreter, by SIGTERM, or by a new recorder."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from lossscope.landscape.recording.faults import reason_of, say
from lossscope.landscape.recording.run_writer import RunWriter

__all__ = ["forget", "open_at", "stopped_at", "watch"]

_Handler = Callable[[int, FrameType | None], Any]

_OPEN: Final[dict[Path, RunWriter]] = {}
_LAST_ERROR: Final[dict[Path, int]] = {}  # the exception that was the last one when the run was last written
_SIGNALLED: Final[dict[Path, int]] = {}  # steps of a run when SIGTERM arrived and a handler of the user's took it


class _Process:
    """State of this process: registrations, and the handler of SIGTERM that was there before."""

    registered = False
    previous: Any = None
    installed = False
    held = False  # SIGTERM arrived while a file was being written


def watch(writer: RunWriter) -> None:
    """End a run at the end of the interpreter or by SIGTERM, unless `forget` is called before."""
    path = writer.path.resolve()
    _OPEN[path] = writer
    writer.when_idle = _act_on_held_signal
    _LAST_ERROR[path] = id(_last_error())
    if not _Process.registered:
        _Process.registered = True
        # after the store was made, whose own clean-up must run later
        atexit.register(_end_all)
        if multiprocessing.parent_process() is not None:  # a child of multiprocessing runs no atexit functions
            multiprocessing.util.Finalize(None, _end_all, exitpriority=100)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_all)
    _install()


def forget(writer: RunWriter) -> None:
    """Leave a run that has ended alone."""
    path = next((path for path, one in _OPEN.items() if one is writer), None)
    if path is not None:
        for known in (_OPEN, _LAST_ERROR, _SIGNALLED):
            known.pop(path, None)
    if not _OPEN:
        _uninstall()


def open_at(path: Path) -> RunWriter | None:
    """Return the run that this process is recording at a path; None if it records none there."""
    return _OPEN.get(path.resolve())


def stopped_at(writer: RunWriter, otherwise: str = "the loop ended") -> str:
    """Return how a run ended whose recorder was not closed."""
    if writer.planned is None or writer.steps >= writer.planned:
        return otherwise
    return f"stopped at {writer.steps} of {writer.planned}"


def _end_all() -> None:
    """End all open runs as finished, or as failed with the name of an exception that nothing caught."""
    for path, writer in list(_OPEN.items()):
        error = _uncaught(path)
        if error is not None:
            _end(writer, "failed", reason_of(error))
        elif path in _SIGNALLED:
            _end(writer, "stopped", f"SIGTERM arrived at step {_SIGNALLED[path]}; {_stop(writer)}")
        else:
            _end(writer, "finished", stopped_at(writer, "the program ended without recorder.close()"))


def _end(writer: RunWriter, status: Any, how: str) -> None:
    """End a run, whatever happens."""
    try:
        writer.end(status, how)
    except Exception as error:
        say(f"{writer.path}: the run could not be ended: {reason_of(error)}")
    forget(writer)


def _stop(writer: RunWriter) -> str:
    """Return the step at which a run was stopped."""
    return stopped_at(writer, f"stopped at {writer.steps}")


def _uncaught(path: Path) -> BaseException | None:
    """Return the exception by which the program ends; None if there is none."""
    passing = sys.exc_info()[1]  # in a child of multiprocessing the exception is still on its way
    if isinstance(passing, SystemExit) and passing.code in (None, 0):
        return None
    if passing is not None:
        return passing
    last = _last_error()
    return last if last is not None and id(last) != _LAST_ERROR.get(path) else None


def _last_error() -> BaseException | None:
    """Return the last exception that nothing caught, which the interpreter keeps for debuggers."""
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


def _forget_all() -> None:
    """Leave the runs of the parent alone (in a forked child)."""
    _OPEN.clear()
    _Process.held = False


# -- SIGTERM --------------------------------------------------------------------------------------------


def _install() -> None:
    """Handle SIGTERM, in the main thread. A handler of the user's is called after ours; an ignored signal stays so."""
    if _Process.installed or threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN or before is None or before is _on_sigterm:
        return
    _Process.previous, _Process.installed = before, True
    signal.signal(signal.SIGTERM, _on_sigterm)


def _uninstall() -> None:
    """Restore the handler of SIGTERM that was there before, unless the user has set another one since."""
    if not _Process.installed or threading.current_thread() is not threading.main_thread():
        return
    _Process.installed = False
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, _Process.previous)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Call the handler that was there before; without one, end the runs as stopped and then the process."""
    previous = _Process.previous
    if callable(previous):
        for path, writer in _OPEN.items():
            _SIGNALLED.setdefault(path, writer.steps)
        previous(number, frame)
        return
    if any(writer.busy for writer in _OPEN.values()):
        _Process.held = True  # handled when the file is written
        return
    for writer in list(_OPEN.values()):
        _end(writer, "stopped", f"SIGTERM: {_stop(writer)}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _act_on_held_signal() -> None:
    """Handle a SIGTERM that arrived while a file was being written."""
    if _Process.held and not any(writer.busy for writer in _OPEN.values()):
        _Process.held = False
        os.kill(os.getpid(), signal.SIGTERM)
