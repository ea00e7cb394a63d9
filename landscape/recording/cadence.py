"""When a recorder looks at what."""

from __future__ import annotations

import math
from typing import Final

from lossscope.landscape.recording.preset import Preset
from lossscope.landscape.recording.schedule import growing, log_spaced

__all__ = ["Cadence"]

_WINDOWS: Final = 10  # fewer make no interval to be trusted
_LAYER_LOOKS: Final = 20  # the first half of them tells what is usual
_APART: Final = 5  # steps between two windows, at least


def _windows_period(preset: Preset, planned: int | None) -> int | None:
    """Steps between the begins of two windows: the preset's, or fewer, for ten windows in a planned run; None: never.

    Windows never overlap, so a run of less than 275 steps has fewer.
    """
    if preset.windows_every is None or planned is None:
        return preset.windows_every
    return min(preset.windows_every, max(planned // (_WINDOWS + 1), preset.lags[-1] + _APART))


def _layers_period(preset: Preset, planned: int | None) -> int | None:
    """Steps between two looks at the layers: the preset's, or fewer, for twenty in a planned run; None: never."""
    if preset.layers_every is None or planned is None:
        return preset.layers_every
    return min(preset.layers_every, max(planned // _LAYER_LOOKS, 1))


class Cadence:
    """The steps at which each instrument is due.

    With a planned number of steps, curvature visits and checkpoints are log-spaced over them and all take
    place. Without one, visits grow apart by the preset's factor, and further where they would cost more than
    the preset's cap.

    Args:
        preset: How much to look at.
        planned: How many optimizer steps the run will take, where that is known.
        visits: Curvature visits: a number in place of the preset's; 0 for none.
        start: The step the recorder starts at.
        layers: Whether layers can be looked at.
    """

    def __init__(
        self, preset: Preset, planned: int | None, visits: int | None, start: int, *, layers: bool = True
    ) -> None:
        self._preset, self._planned = preset, planned
        count = preset.visits if visits is None else visits
        spaced = log_spaced(planned, count) if planned is not None else ()
        self._visits = frozenset(spaced)
        self._long = frozenset(spaced[::-1][:: preset.long_every])  # the last visit is one of them
        self._layers_every = _layers_period(preset, planned) if layers else None
        self._windows_every = _windows_period(preset, planned)
        self._made = 0
        self._saves = frozenset(log_spaced(planned, preset.checkpoints)) if planned is not None else frozenset()
        self._next_visit: float = start if count else math.inf

    def tensors(self, step: int) -> bool:
        """Whether norms, energies and shear are due."""
        return self._every(step, self._preset.tensors_every) or self.layers(step) or self.counterfactual(step)

    def spectra(self, step: int) -> bool:
        """Whether singular values are due."""
        return self._every(step, self._preset.spectra_every)

    def counterfactual(self, step: int) -> bool:
        """Whether the update without the injected shear is due."""
        every = self._preset.counterfactual_every
        return every is not None and step > 0 and step % every == 0

    def layers(self, step: int) -> bool:
        """Whether the layers' own remainders are due."""
        every = self._layers_every
        return every is not None and step > 0 and step % every == 0

    def window(self, step: int) -> tuple[int, int] | None:
        """The number of the window of minibatches that is open, and the lag that is due in it; 0 begins a window.

        None where nothing is due: no window, another lag, or one whose first lag the run would not reach.
        """
        every, lags = self._windows_every, self._preset.lags
        if every is None or step < every:
            return None
        number, lag = divmod(step, every)
        if self._planned is not None and number * every + lags[0] > self._planned:
            return None
        return (number, lag) if lag == 0 or lag in lags else None

    def visit(self, step: int) -> bool:
        """Whether a curvature visit is due."""
        return step in self._visits if self._planned is not None else step >= self._next_visit

    def long(self, step: int) -> bool:
        """Whether a visit is to measure the whole panel."""
        return step in self._long if self._planned is not None else self._made % self._preset.long_every == 0

    def checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is due."""
        return step in self._saves

    def visited(self, step: int, spent: float, wall: float, per_step: float) -> None:
        """Plan the next visit.

        Args:
            step: The step of the visit that was just made.
            spent: Seconds that all visits so far have taken.
            wall: Seconds since recording began.
            per_step: Seconds a step of the training takes.
        """
        self._made += 1
        if step == 0:
            self._next_visit = 1
            return
        # Steps until visits that cost as much again per visit fit under the cap.
        needed = (spent / self._preset.cap - wall) / max(per_step, 1e-9)
        self._next_visit = max(growing(step, self._preset.growth), step + math.ceil(needed))

    def _every(self, step: int, every: int | None) -> bool:
        return every is not None and (step % every == 0 or step == 1 or self.visit(step))
