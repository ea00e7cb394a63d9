"""Recording overhead: wall time spent by each instrument, measured during the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

__all__ = ["INSTRUMENTS", "Kind", "Overhead"]

Kind = Literal["instruments", "ring", "spectra", "counterfactual", "minibatches", "layers", "curvature", "checkpoints"]
INSTRUMENTS: Final[dict[Kind, str]] = {
    "instruments": "rows and norms",
    "ring": "ring of norms",
    "spectra": "singular spectra",
    "counterfactual": "updates without injection",
    "minibatches": "pairs of minibatches",
    "layers": "layers",
    "curvature": "curvature",
    "checkpoints": "checkpoints",
}


class Overhead:
    """Wall time of a run and the time that recording took, by kind of instrument.

    Args:
        before: The summary of the earlier sessions of a resumed run.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        past = before or {}
        self._start = time.perf_counter() - past.get("wall_seconds", 0.0)
        self.latest: dict[Kind, float] = {}  # seconds of the last block of each kind
        self.seconds: dict[Kind, float] = {kind: past.get(f"{kind}_seconds", 0.0) for kind in INSTRUMENTS}

    @property
    def wall(self) -> float:
        """Seconds of all recording sessions so far."""
        return max(time.perf_counter() - self._start, 1e-9)

    @property
    def total(self) -> float:
        """Seconds of recording so far; those of a block that is running do not count yet."""
        return sum(self.seconds.values())

    @contextmanager
    def counted(self, kind: Kind) -> Iterator[None]:
        """Add the time of the block to a kind. Blocks must not be nested."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.latest[kind] = time.perf_counter() - started
            self.seconds[kind] += self.latest[kind]

    def summary(self) -> dict[str, float]:
        """Return seconds and shares of the wall time, in total and by kind."""
        wall, total = self.wall, self.total
        found = {"wall_seconds": wall, "seconds": total, "share": total / wall}
        for kind in INSTRUMENTS:
            found[f"{kind}_seconds"] = self.seconds[kind]
            found[f"{kind}_share"] = self.seconds[kind] / wall
        return found

    def sentence(self, steps: int) -> str:
        """Return one sentence for the user about the time of `steps` steps and the shares of recording."""
        o = self.summary()
        shares = {words: 100 * o[f"{kind}_share"] for kind, words in INSTRUMENTS.items() if self.seconds[kind]}
        parts = ", ".join(f"{words} {share:.1f} %" for words, share in sorted(shares.items(), key=lambda one: -one[1]))
        return (
            f"{steps} steps in {o['wall_seconds']:.1f} s, of which recording took {100 * o['share']:.1f} %"
            f"{f' ({parts})' if parts else ''}"
        )
