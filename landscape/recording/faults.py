"""Faults of instruments: a missing value with measure, step and reason in place of an exception in the training."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from lossscope.errors import LossscopeError
from lossscope.landscape.errors import RecordingWarning
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.precision import unreachable
from lossscope.landscape.storage.missing_values import label_of, named
from lossscope.landscape.storage.safe_text import printable

__all__ = ["MOST_LISTED", "Faults", "reason_of", "release", "say"]

MOST_LISTED: Final = 100  # missing values of one kind with an entry each; later ones are counted in the last entry
_MOST_TOLD: Final = 100  # warnings, which the manifest keeps
_LONGEST_REASON: Final = 1000  # characters of a reason; the manifest takes no longer texts than 10,000
_INSIDE: Final = frozenset({"lossscope", "torch", "contextlib"})  # packages whose lines no warning points at


class Faults:
    """Missing values of a recording, and the words about them.

    An exception of an instrument is caught, released with the tensors that its frames hold, and noted. Exceptions that
    end a program (KeyboardInterrupt, SystemExit, GeneratorExit) pass.

    Args:
        name: Name of the run in warnings.
        strict: Raise the exception instead.
        earlier: Missing values of the earlier sessions of a resumed run.

    Attributes:
        missing: One row for each missing value: step, instrument, measures if some of the instrument are meant, why.
        words: The warnings so far.
        limited: Rows whose bound more products would not meet.
        changed: True if one of these has changed since this was set to False.
    """

    def __init__(self, name: str, *, strict: bool = False, earlier: Sequence[Row] = ()) -> None:
        self.missing: list[Row] = list(earlier)
        self.words: list[str] = []
        self.limited: list[Row] = []
        self.changed = False
        self.strict = strict
        self._name = name
        self._kinds: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
        self._told: set[object] = set()

    @contextmanager
    def guarded(self, instrument: str, step: int, measures: Sequence[str] = ()) -> Iterator[None]:
        """Note an exception of the block as a missing value; the program continues after the block.

        Args:
            instrument: Name of the instrument that measures in the block.
            step: Steps taken so far.
            measures: What is missing if the block fails; empty for all that the instrument measures.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            known = isinstance(error, LossscopeError)
            why = reason_of(error)
            release(error)
            self.note(instrument, step, why, measures, topic=(instrument, known))

    def note(self, instrument: str, step: int, why: str, measures: Sequence[str] = (), *, topic: object = None) -> None:
        """Add a missing value, and warn about the first of its topic.

        Args:
            instrument: Name of the instrument.
            step: Steps taken so far.
            why: The reason.
            measures: What is missing; empty for all that the instrument measures.
            topic: Missing values of one topic warn once. Default: the instrument.
        """
        self._add(instrument, step, why, measures)
        what = f"{named(measures)} ({instrument})" if measures else instrument
        self.tell(
            f"{what} could not be recorded at step {step}: {why}; the training goes on",
            topic=instrument if topic is None else topic,
        )

    def note_limits(self, rows: Sequence[Row]) -> None:
        """Keep the rows whose bound more products would not meet, and warn about the first."""
        found = unreachable(rows)
        if found is not None:
            self.limited += [row for row in rows if row.get("cause")]
            self.tell(f"{found}", topic="precision")

    def _add(self, instrument: str, step: int, why: str, measures: Sequence[str]) -> None:
        """Add an entry, or count it in the last one where there are many."""
        entry: Row = {"step": step, "instrument": instrument, "why": why}
        if measures:
            entry["measures"] = list(measures)
        alike = self._kinds.setdefault((instrument, tuple(measures)), [])
        if len(alike) < MOST_LISTED:
            alike.append(entry)
            self.missing.append(entry)
        else:
            alike[-1].update(until=step, more=alike[-1].get("more", 0) + 1)
        self.changed = True

    def note_quietly(self, instrument: str, step: int, why: str, measures: Sequence[str]) -> None:
        """Add a missing value without a warning: it does not exist here, and nothing can be done about it."""
        self._add(instrument, step, why, measures)

    def note_once(self, instrument: str, step: int, why: str, measures: Sequence[str]) -> None:
        """Add a missing value that is missing at all later steps too, unless it was added before."""
        if (instrument, tuple(measures)) not in self._kinds:
            self.note(instrument, step, why, measures, topic=(instrument, *measures))

    def tell(self, text: str, *, topic: object) -> None:
        """Warn once about a topic. A warning that a filter turns into an exception is printed on stderr instead."""
        if topic in self._told or len(self._told) > _MOST_TOLD:
            return
        self._told.add(topic)
        if len(self._told) > _MOST_TOLD:
            text = f"more than {_MOST_TOLD} different warnings: the next ones are not given"
        self.words.append(text)
        self.changed = True
        text = printable(f"{self._name}: {text}")  # a name or a reason may hold escape sequences
        try:
            warnings.warn(text, RecordingWarning, stacklevel=_outside())
        except RecordingWarning:
            say(text)

    def in_words(self) -> str:
        """Return a clause for the closing line that names what is missing or imprecise, and why; "" if nothing is."""
        limits = unreachable(self.limited)
        return self._missing_in_words() + (f"; {limits}" if limits else "")

    def _missing_in_words(self) -> str:
        """Return a clause that names what is missing, and the first reason; "" if nothing is."""
        if not self.missing:
            return ""
        steps: dict[str, set[int]] = {}
        more: dict[str, int] = {}
        for one in self.missing:
            label = label_of(one)
            steps.setdefault(label, set()).add(one["step"])
            more[label] = more.get(label, 0) + int(one.get("more", 0))
        counts = {label: len(at) + more[label] for label, at in steps.items()}
        where = ", ".join(f"{label} at {count} step{'s' * (count > 1)}" for label, count in counts.items())
        return f"; not measured: {where}; first reason: {self.missing[0].get('why')}"


def reason_of(error: BaseException) -> str:
    """Return the reason that an exception gives, on one line; the class is named if the error is not lossscope's."""
    try:
        lines = str(error).splitlines()
    except Exception:  # an exception whose text cannot be made
        lines = []
    text = next((line.strip() for line in lines if line.strip()), "")[:_LONGEST_REASON]
    if isinstance(error, LossscopeError) and text:
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ")


def release(error: BaseException) -> None:
    """Release the tensors held by the frames of an exception and of those that led to it; free cached GPU memory."""
    exhausted = False
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        exhausted = exhausted or isinstance(one, torch.OutOfMemoryError)
        waiting += [one.__cause__, one.__context__]
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
    if exhausted and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def say(text: str) -> None:
    """Write a line on stderr, if there is one, without control characters."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{printable(text)}\n")


def _outside() -> int:
    """Return the stack level of the first caller outside this package and torch, as `warnings.warn` counts it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level
