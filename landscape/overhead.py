"""What recording costs, measured while it records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

__all__ = ["Overhead"]

Kind = Literal["instruments", "curvature", "checkpoints"]
_KINDS: Final[tuple[Kind, ...]] = ("instruments", "curvature", "checkpoints")


class Overhead:
    """The wall time since construction, and the part of it that recording took, by kind."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: dict[Kind, float] = dict.fromkeys(_KINDS, 0.0)

    @property
    def wall(self) -> float:
        """Seconds since construction."""
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
        for kind in _KINDS:
            found[f"{kind}_seconds"] = self.seconds[kind]
            found[f"{kind}_share"] = self.seconds[kind] / wall
        return found

    def sentence(self, steps: int) -> str:
        """One sentence for a person."""
        o = self.summary()
        return (
            f"{steps} steps in {o['wall_seconds']:.1f} s, of which recording took {100 * o['share']:.1f} % "
            f"(curvature {100 * o['curvature_share']:.1f} %, step instruments {100 * o['instruments_share']:.1f} %)"
        )
