"""When a recorder looks at what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from lossscope.landscape.errors import ConfigError

__all__ = ["PRESETS", "Cadence", "Preset", "growing", "log_spaced", "preset_of"]


def log_spaced(last: int, count: int) -> tuple[int, ...]:
    """`count` distinct steps from 0 to `last`, evenly spaced in log(step), fewer only where there are fewer.

    The smallest steps lie closer than one apart on that scale and move up to the next free step.
    """
    if count < 1 or last < 0:
        return ()
    if count == 1 or last == 0:
        return (last,) if count == 1 else (0,)
    if last < count:
        return tuple(range(last + 1))
    steps = [0]
    for i in range(1, count):
        # From the present step to the last one, in as many equal ratios as there are evaluations left.
        start, left = max(steps[-1], 1), count - i
        ratio = (last / start) ** (1 / left) if i > 1 else last ** (1 / (count - 1))
        steps.append(last if left == 1 else max(steps[-1] + 1, round(start * ratio)))
    return tuple(steps)


def growing(step: int, factor: float) -> int:
    """The next step to look at after `step`, where the end is unknown: about `factor` times as far."""
    return max(step + 1, math.ceil(step * factor))


@dataclass(frozen=True)
class Preset:
    """A cadence for each instrument. Every step has its row in `steps` whatever the preset."""

    name: str
    tensors_every: int  # steps between two looks at norms, energies and shear; curvature evaluations look too
    spectra_every: int | None  # the same for singular values; None: never
    evaluations: int  # log-spaced curvature evaluations, where the number of steps is known
    growth: float  # the next evaluation at this many times the step, where it is not
    cap: float  # share of the wall time that curvature may take, where the number of steps is not known
    checkpoints: int  # log-spaced checkpoints, where the number of steps is known
    products: int  # Hessian products that an evaluation may spend on the spectrum, and on each measure besides
    rel: float  # relative bound asked of eigenvalues
    trace_rel: float  # relative standard error asked of traces and of the norm
    top: int  # eigenvalues at the upper end
    tracked: bool  # whether the largest is followed from evaluation to evaluation, for a few products each
    long_every: int  # every so many evaluations, and at the last one, the whole panel is measured; the others are short
    counterfactual_every: int | None  # steps between two looks at the update without the injected shear
    layers_every: int | None  # steps between two looks at the layers' own Taylor remainders
    windows_every: int | None  # steps between two windows in which pairs of minibatches are sampled
    lags: tuple[int, ...]  # steps from a window's begin to its other samples; all shorter than `windows_every`


PRESETS: Final[dict[str, Preset]] = {
    "economy": Preset("economy", 100, None, 8, 2.0, 0.02, 3, 32, 0.03, 0.15, 1, True, 3, None, None, None, ()),
    "standard": Preset("standard", 10, 100, 20, 1.5, 0.10, 8, 64, 0.02, 0.05, 1, False, 1, 100, 600, 600, (1, 5, 20)),
    "full": Preset("full", 1, 10, 40, 1.2, 0.50, 20, 256, 0.01, 0.02, 5, False, 1, 10, 10, 40, (1, 2, 5, 10, 20)),
}


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: There is none; the nearest is told.
    """
    if name not in PRESETS:
        close = get_close_matches(name, list(PRESETS), n=1, cutoff=0.4) or list(PRESETS)
        raise ConfigError(f"there is no preset {name!r}; did you mean {' or '.join(close)}?")
    return PRESETS[name]


_WINDOWS: Final = 10  # fewer make no interval to be trusted
_LAYER_SAMPLES: Final = 20  # the first half of them tells what is usual
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
    return min(preset.layers_every, max(planned // _LAYER_SAMPLES, 1))


class Cadence:
    """The steps at which each instrument is due.

    With a planned number of steps, curvature evaluations and checkpoints are log-spaced over them and all take
    place. Without one, evaluations grow apart by the preset's factor, and further where they would cost more than
    the preset's cap.

    Args:
        preset: How much to look at.
        planned: How many optimizer steps the run will take, where that is known.
        evaluations: Curvature evaluations: a number in place of the preset's; 0 for none.
        start: The step the recorder starts at.
        layers: Whether layers can be sampled.
    """

    def __init__(
        self, preset: Preset, planned: int | None, evaluations: int | None, start: int, *, layers: bool = True
    ) -> None:
        self._preset, self._planned = preset, planned
        count = preset.evaluations if evaluations is None else evaluations
        spaced = log_spaced(planned, count) if planned is not None else ()
        self._evaluations = frozenset(spaced)
        self._long = frozenset(spaced[::-1][:: preset.long_every])  # the last evaluation is one of them
        self._layers_every = _layers_period(preset, planned) if layers else None
        self._windows_every = _windows_period(preset, planned)
        self._made = 0
        self._saves = frozenset(log_spaced(planned, preset.checkpoints)) if planned is not None else frozenset()
        self._next_evaluation: float = start if count else math.inf

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

    def evaluation(self, step: int) -> bool:
        """Whether a curvature evaluation is due."""
        return step in self._evaluations if self._planned is not None else step >= self._next_evaluation

    def long(self, step: int) -> bool:
        """Whether an evaluation is to measure the whole panel."""
        return step in self._long if self._planned is not None else self._made % self._preset.long_every == 0

    def checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is due."""
        return step in self._saves

    def evaluated(self, step: int, spent: float, wall: float, per_step: float) -> None:
        """Plan the next evaluation.

        Args:
            step: The step of the evaluation that was just made.
            spent: Seconds that all evaluations so far have taken.
            wall: Seconds since recording began.
            per_step: Seconds a step of the training takes.
        """
        self._made += 1
        if step == 0:
            self._next_evaluation = 1
            return
        # Steps until evaluations that cost as much again per evaluation fit under the cap.
        needed = (spent / self._preset.cap - wall) / max(per_step, 1e-9)
        self._next_evaluation = max(growing(step, self._preset.growth), step + math.ceil(needed))

    def _every(self, step: int, every: int | None) -> bool:
        return every is not None and (step % every == 0 or step == 1 or self.evaluation(step))
