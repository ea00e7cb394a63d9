"""Recording schedule: presets, and the steps at which each instrument runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Final, Literal, get_args

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.recording.whole_numbers import integer

__all__ = [
    "MOST_EVALUATIONS",
    "PRESETS",
    "Cadence",
    "Preset",
    "Spacing",
    "geometric_step",
    "given_steps",
    "log_spaced",
    "preset_of",
]

MOST_EVALUATIONS: Final = 100_000


@dataclass(frozen=True)
class Preset:
    """Periods and budgets of all instruments. The table `steps` has a row for every step with any preset."""

    name: str
    tensors_every: int  # period in steps of norms, energies and shear; curvature evaluations sample them too
    spectra_every: int | None  # the same for singular values; None: never
    evaluations: int  # number of curvature evaluations, if the number of steps is known
    growth: float  # ratio of the steps of successive evaluations, if it is unknown
    cap: float  # share of the wall time that recording may take, unless `overhead` says otherwise
    checkpoints: int  # number of log-spaced checkpoints, if the number of steps is known
    products: int  # budget of an evaluation in Hessian products: for the spectrum, and for each other measure
    rel: float  # requested relative accuracy of eigenvalues
    trace_rel: float  # requested relative standard error of traces and of the norm
    top: int  # number of eigenvalues at the upper end
    tracked: bool  # True: track the largest eigenvalue between evaluations, for a few products each
    long_every: int  # period in evaluations of long ones, which take every recorded measure; the last one is long
    counterfactual_every: int | None  # period in steps of the update without the injected shear
    layers_every: int | None  # period in steps of the Taylor remainders of single layers
    windows_every: int | None  # period in steps of the windows in which pairs of minibatches are sampled
    lags: tuple[int, ...]  # steps from the start of a window to its other samples; all below `windows_every`
    warm: bool = True  # True: evaluations start from the eigenvectors of the last, and depend on it within bounds


PRESETS: Final[dict[str, Preset]] = {
    "economy": Preset("economy", 100, None, 8, 2.0, 0.02, 3, 32, 0.03, 0.15, 1, True, 3, None, None, None, ()),
    "standard": Preset("standard", 10, 100, 20, 1.5, 0.10, 8, 64, 0.02, 0.05, 1, False, 1, 100, 600, 600, (1, 5, 20)),
    "full": Preset("full", 1, 10, 40, 1.2, 0.50, 20, 256, 0.01, 0.02, 5, False, 1, 10, 10, 40, (1, 2, 5, 10, 20)),
    # What a comparison of arms reads: every evaluation is long and depends on the weights alone, so that a resumed run
    # holds the same numbers; a few norms and spectra.
    "comparison": Preset(
        *("comparison", 50, 200, 10, 1.5, 0.50, 3, 64, 0.02, 0.05, 1, False, 1, None, None, None, ()), warm=False
    ),
}


def preset_of(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        ConfigError: The name is unknown; the message suggests the nearest one.
    """
    if not isinstance(name, str) or name not in PRESETS:
        close = get_close_matches(str(name), list(PRESETS), n=1, cutoff=0.4) or list(PRESETS)
        raise ConfigError(f"unknown preset {name!r}; did you mean {' or '.join(close)}?")
    return PRESETS[name]


Spacing = Literal["log", "linear"]
_EARLIEST: Final = 50  # log-spacing starts at the planned number of steps over this: before, no claim reads the loss
_SECOND: Final = 10  # step of the second evaluation if the number of steps is unknown


class Cadence:
    """The steps at which each instrument is due.

    If the number of steps is planned, or the steps of the evaluations are given, curvature evaluations are due at fixed
    steps. Otherwise the distance between evaluations grows by the preset's factor, and further if the cap on the
    overhead demands it.

    Args:
        preset: Periods of the instruments.
        planned: Planned number of optimizer steps; None if it is unknown.
        evaluations: Number of curvature evaluations; None for the preset's number, 0 for none.
        start: The step at which recording starts.
        layers: False if Taylor remainders of layers cannot be measured (there is no objective).
        evaluate_at: The steps of the curvature evaluations, in place of `evaluations` and `spacing`.
        spacing: Spacing of the evaluations over a planned number of steps.
        checkpoints: Number of log-spaced checkpoints over a planned number of steps; None for the preset's number.
        room: Returns True while recording is below its cap. Where it is not, or where the periods were lengthened,
            evaluations and layers that are due cause no samples of tensors and spectra.

    Attributes:
        fixed: True if the steps of the curvature evaluations are fixed.
        takes_last: True if there is an evaluation wherever the run ends.

    Raises:
        ConfigError: `evaluate_at` or `spacing` is not allowed.
    """

    def __init__(
        self,
        preset: Preset,
        planned: int | None,
        evaluations: int | None,
        start: int,
        *,
        layers: bool = True,
        evaluate_at: Collection[int] | None = None,
        spacing: Spacing = "log",
        checkpoints: int | None = None,
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._preset, self._planned = preset, planned
        self._room = room
        self._asked: tuple[int, bool] | None = None  # a step, and whether there was room when it was first asked for
        count = preset.evaluations if evaluations is None else evaluations
        spaced = _evaluation_steps(planned, count, evaluate_at, spacing)
        self.fixed = planned is not None or evaluate_at is not None
        self._evaluations = frozenset(spaced)
        self._long = frozenset(spaced[::-1][:: preset.long_every])  # counted from the end: the last evaluation is long
        self._last = spaced[-1] if spaced else None
        self._layers_every = _layers_period(preset, planned) if layers else None
        self._windows_every = _windows_period(preset, planned)
        self._made = 0
        saves = preset.checkpoints if checkpoints is None else checkpoints
        self._saves = frozenset(log_spaced(planned, saves)) if planned is not None else frozenset()
        self._next_evaluation: float = start if count else math.inf
        self.takes_last = bool(count) and evaluate_at is None
        self._lengthened = 1  # factor of the periods of tensors and spectra
        self._given = () if evaluate_at is None else spaced

    def tensors(self, step: int) -> bool:
        """Return True if norms, energies and shear are due."""
        layers = self.layers(step) and self.room(step)
        return self._every(step, self._preset.tensors_every) or layers or self.counterfactual(step)

    def spectra(self, step: int) -> bool:
        """Return True if singular values are due."""
        return self._every(step, self._preset.spectra_every)

    def counterfactual(self, step: int) -> bool:
        """Return True if the update without the injected shear is due."""
        every = self._preset.counterfactual_every
        return every is not None and step > 0 and step % every == 0

    def layers(self, step: int) -> bool:
        """Return True if the Taylor remainders of single layers are due."""
        every = self._layers_every
        return every is not None and step > 0 and step % every == 0

    def lengthen(self, factor: int) -> tuple[int, int]:
        """Lengthen the periods of tensors and spectra by a factor; return that of tensors before and after."""
        before = self._preset.tensors_every * self._lengthened
        self._lengthened *= factor
        return before, before * factor

    def window(self, step: int) -> tuple[int, int] | None:
        """Return the number of the current window of minibatch pairs, and the lag that is due in it.

        Lag 0 starts a window. None if nothing is due: before the first window, at a lag that is not sampled, or in a
        window whose first lag lies beyond the planned end of the run.
        """
        every, lags = self._windows_every, self._preset.lags
        if every is None or step < every:
            return None
        number, lag = divmod(step, every)
        if self._planned is not None and number * every + lags[0] > self._planned:
            return None
        return (number, lag) if lag == 0 or lag in lags else None

    def evaluation(self, step: int) -> bool:
        """Return True if a curvature evaluation is due."""
        return step in self._evaluations if self.fixed else step >= self._next_evaluation

    def last(self, step: int) -> bool:
        """Return True if the evaluation at this step is the last of a fixed schedule."""
        return step == self._last

    def given_after(self, step: int) -> tuple[int, ...]:
        """Return the steps of `evaluate_at` after a step."""
        return tuple(one for one in self._given if one > step)

    def long(self, step: int) -> bool:
        """Return True if an evaluation at this step takes every recorded measure."""
        return step in self._long if self.fixed else self._made % self._preset.long_every == 0

    def checkpoint(self, step: int) -> bool:
        """Return True if a checkpoint is due."""
        return step in self._saves

    def _following(self, step: int) -> int:
        """Return the step of the evaluation after one at this step, if the schedule is not fixed."""
        return _SECOND if step == 0 else geometric_step(step, self._preset.growth)

    def steps_to_last(self, step: int) -> int | None:
        """Return the number of steps until the last evaluation of a fixed schedule; None without one."""
        return None if not self.fixed or self._last is None else max(self._last - step, 0)

    def schedule_next(self, step: int) -> None:
        """Schedule the next curvature evaluation after one was made, if the schedule is not fixed."""
        self._made += 1
        self._next_evaluation = self._following(step)

    def postpone(self, step: int) -> None:
        """Move an evaluation that is due at this step to the next step of the schedule, which is not fixed."""
        self._next_evaluation = self._following(step)

    def _every(self, step: int, every: int | None) -> bool:
        """Return True at multiples of a period, at step 1 and at curvature evaluations."""
        if every is None:
            return False
        return step % (every * self._lengthened) == 0 or step == 1 or (self.evaluation(step) and self.room(step))

    def room(self, step: int) -> bool:
        """Return True if there is room for samples beside the periodic ones; the answer for a step never changes."""
        if self._lengthened > 1:
            return False
        if self._asked is None or self._asked[0] != step:
            self._asked = step, self._room()
        return self._asked[1]


def _evaluation_steps(
    planned: int | None, count: int, given: Collection[int] | None, spacing: Spacing
) -> tuple[int, ...]:
    """Return the fixed steps of the curvature evaluations, ascending; none if their number is unknown."""
    if spacing not in get_args(Spacing):
        raise ConfigError(f"spacing must be one of 'log', 'linear', got {spacing!r}")
    if given is not None:
        return given_steps(planned, given)
    if planned is None:
        return ()
    if spacing == "linear":
        return _linear_spaced(planned, count)
    return log_spaced(planned, count, max(round(planned / _EARLIEST), 1))


def given_steps(planned: int | None, given: Collection[int]) -> tuple[int, ...]:
    """Return the steps of `evaluate_at`, ascending and distinct.

    Raises:
        ConfigError: They are no steps of a run, or too many.
    """
    try:
        listed = list(islice(given, MOST_EVALUATIONS + 1))
    except TypeError:
        raise ConfigError(f"evaluate_at must be a list of step numbers, got {given!r}") from None
    if len(listed) > MOST_EVALUATIONS:
        raise ConfigError(f"evaluate_at has more than {MOST_EVALUATIONS} steps: leave some out")
    steps = sorted({_step(one) for one in listed})
    if planned is not None and steps and steps[-1] > planned:
        raise ConfigError(f"evaluate_at must lie within the {planned} planned steps, got {steps[-1]}; raise steps=")
    return tuple(steps)


def _step(given: object) -> int:
    """Return a step of `evaluate_at`, an integer of any library."""
    step = integer(given)
    if step is None or step < 0:
        raise ConfigError(f"evaluate_at must be step numbers of at least 0, got {given!r}")
    return step


def _linear_spaced(last: int, count: int) -> tuple[int, ...]:
    """Return `count` distinct steps from 0 to `last`, evenly spaced; all steps if there are fewer."""
    if count < 2:
        return log_spaced(last, count)
    return tuple(range(last + 1)) if last < count else tuple(round(i * last / (count - 1)) for i in range(count))


def log_spaced(last: int, count: int, earliest: int = 1) -> tuple[int, ...]:
    """Return `count` distinct steps from 0 to `last`, evenly spaced in log(step) and, but for 0, not before `earliest`.

    The smallest steps may be less than one apart on that scale; they move up to the next free step. If there are too
    few steps from `earliest` on, it moves down; if there are too few at all, all steps are returned.
    """
    if count < 1 or last < 0:
        return ()
    if count == 1 or last == 0:
        return (last,) if count == 1 else (0,)
    if last < count:
        return tuple(range(last + 1))
    steps = [0]
    earliest = min(earliest, last - count + 2)
    for i in range(1, count):
        # equal ratios from the current step to the last one, over the steps that remain to be placed
        start, left = max(steps[-1], 1), count - i
        ratio = (last / start) ** (1 / left) if i > 1 else last ** (1 / (count - 1))
        steps.append(last if left == 1 else max(steps[-1] + 1, round(start * ratio), earliest))
    return tuple(steps)


def geometric_step(step: int, factor: float) -> int:
    """Return the step `factor` times as far, rounded up, and at least the next one."""
    return max(step + 1, math.ceil(step * factor))


_WINDOWS: Final = 10  # fewer windows give no trustworthy confidence interval
_LAYER_SAMPLES: Final = 20  # the first half of them gives the typical size of a remainder
_SPACING: Final = 5  # least number of steps between two windows


def _windows_period(preset: Preset, planned: int | None) -> int | None:
    """Return the period of windows in steps: the preset's, or less to fit ten windows into a planned run. None: never.

    Windows never overlap, so a run of less than 275 steps has fewer than ten.
    """
    if preset.windows_every is None or planned is None:
        return preset.windows_every
    return min(preset.windows_every, max(planned // (_WINDOWS + 1), preset.lags[-1] + _SPACING))


def _layers_period(preset: Preset, planned: int | None) -> int | None:
    """Return the period of layer samples: the preset's, or less to fit twenty into a planned run. None: never."""
    if preset.layers_every is None or planned is None:
        return preset.layers_every
    return min(preset.layers_every, max(planned // _LAYER_SAMPLES, 1))
