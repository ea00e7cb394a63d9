"""What recording costs, measured while it records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

__all__ = ["INSTRUMENTS", "Overhead"]

Kind = Literal["instruments", "spectra", "counterfactual", "minibatches", "layers", "curvature", "checkpoints"]
INSTRUMENTS: Final[dict[Kind, str]] = {
    "instruments": "rows and norms",
    "spectra": "singular spectra",
    "counterfactual": "updates without injection",
    "minibatches": "pairs of minibatches",
    "layers": "layers",
    "curvature": "curvature",
    "checkpoints": "checkpoints",
}


class Overhead:
    """The wall time of a run, and the part of it that recording took, by kind.

    Args:
        before: The summary of the sessions before this one, where the run is resumed.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        past = before or {}
        self._start = time.perf_counter() - past.get("wall_seconds", 0.0)
        self.seconds: dict[Kind, float] = {kind: past.get(f"{kind}_seconds", 0.0) for kind in INSTRUMENTS}

    @property
    def wall(self) -> float:
        """Seconds of recording sessions so far."""
        return max(time.perf_counter() - self._start, 1e-9)

    @property
    def training(self) -> float:
        """Seconds that were not spent on recording."""
        return self.wall - sum(self.seconds.values())

    @contextmanager
    def counted(self, kind: Kind) -> Iterator[None]:
        """Count the time of the block; blocks must not be nested."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - started

    def summary(self) -> dict[str, float]:
        """Seconds and shares of the wall time, in all and by kind."""
        wall, total = self.wall, sum(self.seconds.values())
        found = {"wall_seconds": wall, "seconds": total, "share": total / wall}
        for kind in INSTRUMENTS:
            found[f"{kind}_seconds"] = self.seconds[kind]
            found[f"{kind}_share"] = self.seconds[kind] / wall
        return found

    def sentence(self, steps: int) -> str:
        """One sentence for a person."""
        o = self.summary()
        shares = {words: 100 * o[f"{kind}_share"] for kind, words in INSTRUMENTS.items() if self.seconds[kind]}
        parts = ", ".join(f"{words} {share:.1f} %" for words, share in sorted(shares.items(), key=lambda one: -one[1]))
        return (
            f"{steps} steps in {o['wall_seconds']:.1f} s, of which recording took {100 * o['share']:.1f} %"
            f"{f' ({parts})' if parts else ''}"
        )
