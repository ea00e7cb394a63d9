"""Controls of an ablation: did the ascents ascend, and do arms take steps of the length they promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lossscope.landscape.run import Run

__all__ = ["Ascents", "Controls", "StepLengths", "controls", "sentences"]

_PROMISES: Final = "@rms"  # optimizers with the step length of ars2-base
_NEAR: Final = 1.1  # ratio of step lengths up to which a promise is kept


@dataclass(frozen=True)
class Ascents:
    """Ascents of an arm: how often, and how many of those recorded raised the loss of their minibatch."""

    arm: str
    taken: float  # mean over runs
    recorded: int  # in all runs together
    rose: int

    @property
    def share(self) -> float:
        """The share that rose; nan if none was recorded."""
        return self.rose / self.recorded if self.recorded else math.nan


@dataclass(frozen=True)
class StepLengths:
    """Lengths of the steps of two arms of a contrast; nan where not recorded."""

    part: str
    with_part: str
    without: str
    ratio: float  # geometric mean over the steps and the pairs of runs in which both are recorded
    per_energy: float  # ratio of the lengths over lr |A|_F sqrt(r), medians over matrices and steps, mean over pairs
    promised: bool  # one of the arms promises the step length of the other at equal energy

    @property
    def kept(self) -> bool:
        """True unless a promised length is off by more than 10 %."""
        return not (self.promised and abs(math.log(self.per_energy)) > math.log(_NEAR))


@dataclass(frozen=True)
class Controls:
    """Controls of an ablation."""

    ascents: tuple[Ascents, ...]  # of arms that take any
    steps: tuple[StepLengths, ...]  # of contrasts


def controls(contrasts: Mapping[str, tuple[str, str]], runs: Sequence[Run]) -> Controls:
    """Return the controls of an ablation, read from the recorded steps.

    Args:
        contrasts: Arms with and without a part, by name of the part.
        runs: The runs of all arms.
    """
    arms: dict[str, dict[str, Run]] = {}
    for run in runs:
        arms.setdefault(str(run.manifest.get("arm")), {})[_pair(run)] = run
    ascents = [_ascents(arm, list(members.values())) for arm, members in arms.items()]
    steps = [_lengths(part, pair, arms) for part, pair in contrasts.items() if all(arm in arms for arm in pair)]
    return Controls(tuple(one for one in ascents if one.taken), tuple(steps))


def sentences(found: Controls) -> list[str]:
    """Return the controls in sentences."""
    said = []
    if found.ascents:
        words = ", ".join(
            f"{one.arm} {'not recorded' if math.isnan(one.share) else f'{100 * one.share:.0f} %'}"
            for one in found.ascents
        )
        said.append(f"Ascents that raised the loss: {words}.")
    promised = [one for one in found.steps if one.promised and math.isfinite(one.per_energy)]
    if promised:
        words = ", ".join(
            f"{one.with_part} / {one.without} {one.per_energy:.2f}{'' if one.kept else ' (broken)'}" for one in promised
        )
        said.append(f"Step lengths at equal energy, promised to be equal: {words}.")
    return said


def _pair(run: Run) -> str:
    """Return what the runs of a pair share."""
    return repr((_config(run).get("workload"), run.manifest.get("seeds")))


def _config(run: Run) -> Mapping[str, Any]:
    """Return the settings of a run."""
    config = run.manifest.get("config")
    return config if isinstance(config, Mapping) else {}


def _ascents(arm: str, runs: Sequence[Run]) -> Ascents:
    """Return the ascents of an arm."""
    taken, gaps = list[int](), list[float]()
    for run in runs:
        taken.append(int(run.steps["synced"].fillna(False).astype(bool).sum()))
        gaps += run.steps["surrogate_gap"].dropna().tolist()
    return Ascents(arm, float(np.mean(taken)) if taken else 0.0, len(gaps), sum(gap > 0 for gap in gaps))


def _lengths(part: str, pair: tuple[str, str], arms: Mapping[str, Mapping[str, Run]]) -> StepLengths:
    """Return the ratio of the step lengths of a contrast."""
    a, b = (arms[arm] for arm in pair)
    both = [(a[key], b[key]) for key in a.keys() & b.keys()]
    logs = [one for runs in both for one in _log_ratios(*runs)]
    per_energy = [_per_energy(one) / _per_energy(other) for one, other in both]
    promised = any(_optimizer(side).endswith(_PROMISES) for side in (a, b))
    return StepLengths(part, *pair, _geometric_mean(logs), _geometric_mean(np.log(per_energy).tolist()), promised)


def _geometric_mean(logs: Sequence[float]) -> float:
    """Return the geometric mean of numbers with these logarithms; nan if there is none."""
    return math.exp(float(np.mean(logs))) if len(logs) else math.nan


def _optimizer(members: Mapping[str, Run]) -> str:
    """Return the optimizer of an arm."""
    return str(_config(next(iter(members.values()))).get("optimizer"))


def _per_energy(run: Run) -> float:
    """Return the median length of a matrix' step over that of an orthogonal factor with the energy; nan if unknown."""
    model = run.manifest.get("model") or {}
    ranks = {one["name"]: min(one["shape"][0], math.prod(one["shape"][1:])) for one in model.get("tensors", ())}
    rows = run.tensors
    rows = rows[(rows["track"] == "matrix") & (rows["energy"] > 0) & (rows["lr"] > 0) & rows["update_norm"].notna()]
    if not len(rows):
        return math.nan
    steps = rows["lr"] * rows["energy"] * np.sqrt(rows["tensor"].map(ranks).to_numpy(np.float64))
    return float((rows["update_norm"] / steps).median())


def _log_ratios(a: Run, b: Run) -> list[float]:
    """Return the log-ratio of the step lengths of two runs at each step in which both are recorded."""
    lengths = [run.steps[["step", "update_norm"]].dropna().set_index("step")["update_norm"] for run in (a, b)]
    both = lengths[0].to_frame("a").join(lengths[1].rename("b"), how="inner")
    both = both[(both["a"] > 0) & (both["b"] > 0)]
    return [float(one) for one in np.log(both["a"] / both["b"])]
