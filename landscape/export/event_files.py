"""Runs as event files of TensorBoard, which other trackers import too."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.export.history import start_of, steps_of

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["event_file", "event_file_name"]

_VERSION: Final = "brain.Event:2"
_LARGEST: Final = 3.4028234e38  # of a float32, which the numbers of an event file are


def event_file_name(run: Run) -> str:
    """Return the name of a run's event file, the same at every export."""
    return f"events.out.tfevents.{int(start_of(run) or 0):010d}.lossscope"


def event_file(run: Run) -> bytes:
    """Return a run as an event file of TensorBoard, one scalar for each number of each step, in float32.

    The wall time of a step is that of its end, or that of the step before it where it has none. Text is left out, and
    so are numbers beyond the range of float32.

    Args:
        run: The run.

    Raises:
        LandscapeError: TensorBoard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise LandscapeError(
            "event files need tensorboard: install it with pip install 'lossscope[tensorboard]'"
        ) from error
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    begun = start_of(run) or 0.0
    writer.write(Event(wall_time=begun, file_version=_VERSION).SerializeToString())
    for step, seconds, numbers in _numbers(run):
        values = [Summary.Value(tag=name, simple_value=_single(one)) for name, one in numbers if abs(one) <= _LARGEST]
        writer.write(Event(wall_time=begun + seconds, step=step, summary=Summary(value=values)).SerializeToString())
    writer.flush()
    return buffer.getvalue()


def _numbers(run: Run) -> Iterator[tuple[int, float, list[tuple[str, float]]]]:
    """Yield each step with its time in seconds since the start, and its numbers by name; a flag is 0 or 1."""
    seconds = 0.0
    for step, found in steps_of(run):
        numbers = [(name, float(one)) for name, one in found.items() if not isinstance(one, str)]
        seconds = dict(numbers).get("seconds", seconds)
        if numbers:
            yield step, seconds, numbers


def _single(value: float) -> float:
    """Return a number rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
