"""Lines of a picture: their losses, evaluated by one or several processes and kept on disk as they are finished."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.surfaces.directions import relative_directions
from lossscope.landscape.surfaces.kept_cells import KeptCells
from lossscope.landscape.surfaces.pictures import Array
from lossscope.landscape.surfaces.ways import ALONE, Way, agree, chosen_way, line_losses
from lossscope.probes.eigenvalues.memory_plan import byte_count
from lossscope.probes.objective.objective import Objective

__all__ = ["CellOptions", "FanLines", "LineLosses", "Lines", "PlaneLines", "evaluated_lines"]

Progress: TypeAlias = Callable[[int], None]
Numbered: TypeAlias = tuple[int, Tensor, Tensor]  # number of a line, its point at 0, its direction

_MEMORY: Final = 2**28  # bytes of a block
_FEW: Final = 200  # losses below which no way is measured


@dataclass(frozen=True)
class CellOptions:
    """Evaluation of the losses of a picture: memory, processes, and the folder that keeps them.

    Attributes:
        memory: Bytes that a block of points may take, or text such as "1GB". Default: 256 MiB.
        folder: Folder in which finished lines are kept, so that a second call goes on where the first one stopped;
            None to keep none.
        jobs: Number of processes.
        remake: Returns the objective in another process, with the same weights and buffers; needed for several jobs.
        way: How points are evaluated. Default: the fastest, as measured on the first line.
    """

    memory: int | str = _MEMORY
    folder: Path | None = None
    jobs: int = 1
    remake: Callable[[], Objective] | None = None
    way: Way | None = None


@dataclass(frozen=True, eq=False)
class LineLosses:
    """Losses on lines.

    Attributes:
        losses: `(lines, k)`, nan where they are not finite.
        way: How points were evaluated.
        failed: True if that failed on some lines, whose points were then evaluated each alone.
        kept: Number of losses that an earlier call had left.
    """

    losses: Array
    way: Way
    failed: bool
    kept: int

    @property
    def evaluated(self) -> str:
        """The way in words."""
        return f"{self.way}, and each alone where that failed" if self.failed else str(self.way)


class Lines(Protocol):
    """Lines with points at the same multiples of their directions."""

    @property
    def places(self) -> Array:
        """`(k,)`, the multiples."""
        ...

    def __len__(self) -> int:
        """Return the number of lines."""
        ...

    def some(self, wanted: Collection[int]) -> Iterator[Numbered]:
        """Yield some of the lines, in ascending order."""
        ...

    def identity(self) -> bytes:
        """Return bytes that differ for other lines."""
        ...


@dataclass(frozen=True, eq=False)
class FanLines:
    """Random relative directions from one point."""

    theta: Tensor
    draws: int
    seed: int
    places: Array

    def __len__(self) -> int:
        """Return the number of lines."""
        return self.draws

    def some(self, wanted: Collection[int]) -> Iterator[Numbered]:
        """Yield some of the lines, in ascending order."""
        for number, direction in enumerate(relative_directions(self.theta, self.draws, self.seed)):
            if number in wanted:
                yield number, self.theta, direction

    def identity(self) -> bytes:
        """Return bytes that differ for other lines."""
        return f"relative {self.draws} {self.seed}".encode() + self.places.tobytes() + _bytes(self.theta)


@dataclass(frozen=True, eq=False)
class PlaneLines:
    """Lines of a plane along its first axis, one for each place on the second."""

    origin: Tensor
    axes: tuple[Tensor, Tensor]
    places: Array
    heights: Array

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self.heights)

    def some(self, wanted: Collection[int]) -> Iterator[Numbered]:
        """Yield some of the lines, in ascending order."""
        for number, height in enumerate(self.heights):
            if number in wanted:
                yield number, torch.add(self.origin, self.axes[1], alpha=float(height)), self.axes[0]

    def identity(self) -> bytes:
        """Return bytes that differ for other lines."""
        numbers = self.places.tobytes() + self.heights.tobytes()
        return b"plane" + numbers + b"".join(_bytes(one) for one in (self.origin, *self.axes))


@dataclass
class _Evaluator:
    """Losses of lines in one way, each line checked at one point; a way that fails is left for `ALONE`."""

    objective: Objective
    way: Way
    left: bool = field(default=False, init=False)  # True if the way failed

    def __call__(self, lines: Lines, numbered: Numbered) -> Array:
        """Return the losses of a line."""
        number, base, direction = numbered
        if self.way != ALONE:
            checked = number * 7 % len(lines.places)
            place = lines.places[checked : checked + 1]
            try:
                found = line_losses(self.objective, base, direction, lines.places, self.way)
                truth = line_losses(self.objective, base, direction, place, ALONE)
                if agree(found[checked : checked + 1], truth, self.objective):
                    return found
            except Exception:  # of vmap, or of the model itself, which then raises below
                pass
            self.way, self.left = ALONE, True
        return line_losses(self.objective, base, direction, lines.places, ALONE)


def evaluated_lines(objective: Objective, lines: Lines, options: CellOptions, progress: Progress) -> LineLosses:
    """Return the losses on lines.

    Args:
        objective: The loss, with the weights and buffers of the picture.
        lines: The lines.
        options: How they are evaluated.
        progress: Called with the number of losses evaluated since the last call.
    """
    shape = len(lines), len(lines.places)
    kept = KeptCells(options.folder, "" if options.folder is None else _key(objective, lines), shape)
    before = int(kept.done.sum()) * shape[1]
    missing = [int(one) for one in np.flatnonzero(~kept.done)]
    way = Way(kept.block) if kept.block is not None else options.way or _way(objective, lines, missing, options)
    kept.block, failed = way.block, False
    progress(before)
    with kept:
        for number, losses, left in _evaluated(objective, lines, missing, way, options):
            failed |= left
            kept.add(number, losses)
            progress(len(losses))
    return LineLosses(kept.losses, way, failed, before)


def _way(objective: Objective, lines: Lines, missing: Sequence[int], options: CellOptions) -> Way:
    """Return the way to evaluate lines, measured on the first of them."""
    if len(missing) * len(lines.places) < _FEW:
        return ALONE
    _, base, direction = next(lines.some(missing[:1]))
    return chosen_way(objective, base, direction, lines.places, byte_count(options.memory))


def _evaluated(
    objective: Objective, lines: Lines, missing: Sequence[int], way: Way, options: CellOptions
) -> Iterator[tuple[int, Array, bool]]:
    """Yield the number of each missing line with its losses, and True if the way failed."""
    if options.jobs > 1 and options.remake is not None and len(missing) > 1:
        yield from _by_processes(lines, missing, way, options.jobs, options.remake)
        return
    evaluator = _Evaluator(objective, way)
    with objective.evaluating():
        for numbered in lines.some(set(missing)):
            yield numbered[0], evaluator(lines, numbered), evaluator.left


_worker: tuple[_Evaluator, Lines] | None = None  # set in worker processes only


def _by_processes(
    lines: Lines, missing: Sequence[int], way: Way, jobs: int, remake: Callable[[], Objective]
) -> Iterator[tuple[int, Array, bool]]:
    """Yield the missing lines as worker processes finish them."""
    jobs = min(jobs, len(missing))
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (remake, lines, way, threads)) as pool:
        try:
            for done in as_completed([pool.submit(_line, number) for number in missing]):
                yield done.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise LandscapeError(
                    "a process that evaluated losses was killed, for memory perhaps: use fewer jobs, or less memory"
                ) from None
            raise


def _begin(remake: Callable[[], Objective], lines: Lines, way: Way, threads: int) -> None:
    """Prepare a worker process."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that collects is interrupted, and ends this one
    torch.set_num_threads(threads)
    _worker = _Evaluator(remake(), way), lines


def _line(number: int) -> tuple[int, Array, bool]:
    """Return a line in a worker process."""
    assert _worker is not None
    evaluator, lines = _worker
    return number, evaluator(lines, next(lines.some({number}))), evaluator.left


def _key(objective: Objective, lines: Lines) -> str:
    """Return a hash of all that the losses depend on: lines, weights, buffers, data, loss, its value, and dtype."""
    digest = hashlib.sha256(lines.identity())
    buffers = [one for module in (objective.model, *objective.reached.modules) for one in module.buffers()]
    for tensor in (*objective.vector.others().values(), *buffers):
        digest.update(_bytes(tensor))
    words = (objective.data_hash, objective.loss_kind, objective.mode, objective.dtype, repr(objective.value()))
    digest.update("|".join(map(str, words)).encode())
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
