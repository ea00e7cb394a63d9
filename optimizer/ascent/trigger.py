"""Decision to take a second gradient: never, always, every k steps, at random, or by the adaptive trigger."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = [
    "COUNTERS",
    "MODES",
    "TRIGGERS",
    "Decision",
    "TriggerState",
    "adaptive",
    "decided",
    "periodic",
    "replayed",
    "timed",
]

MODES: Final = ("base", "sync", "lazy", "aga", "timer")
TRIGGERS: Final = ("reference", "lagged")


@dataclass(frozen=True)
class TriggerState:
    """Scalar state of the trigger between steps."""

    clock: int = 0  # steps taken
    last_sync: int = 0  # step of the last second gradient
    syncs: int = 0  # number of second gradients so far
    phi_variance: float = 0.0  # running mean of phi^2
    phi_count: int = 0  # number of phi in that mean

    @classmethod
    def read(cls, group: MutableMapping[str, Any]) -> TriggerState:
        """Return the state stored in a parameter group, which is part of a checkpoint."""
        return cls(**{name: group[name] for name in cls.__dataclass_fields__})

    def write(self, group: MutableMapping[str, Any]) -> None:
        """Store the state in a parameter group."""
        for name in self.__dataclass_fields__:
            group[name] = getattr(self, name)


# Stored in the first parameter group, which is part of a checkpoint; not settings.
COUNTERS: Final[dict[str, Any]] = {name: one.default for name, one in TriggerState.__dataclass_fields__.items()}


@dataclass(frozen=True)
class Decision:
    """Decision for one step, its reason, and the trigger state after the step."""

    sync: bool
    after: TriggerState
    alpha: float = 0.0  # strength of the injected shear on a step that is not a sync step
    phi: float | None = None  # None if it was not measured
    threshold: float | None = None


def _after(before: TriggerState, *, sync: bool, variance: float, count: int) -> TriggerState:
    clock = before.clock + 1
    return TriggerState(clock, clock if sync else before.last_sync, before.syncs + sync, variance, count)


def periodic(before: TriggerState, *, k: int, alpha: float) -> Decision:
    """Take a second gradient at steps 1, k + 1, 2k + 1, ...; at every step for k = 1."""
    sync = before.clock % k == 0
    return Decision(sync, _after(before, sync=sync, variance=0.0, count=0), alpha)


def timed(before: TriggerState, *, k: int, alpha: float, lamda: float, seed: int) -> Decision:
    """Take a second gradient with probability `Phi(-lambda)` per step, at step 1, and after k steps at the latest.

    This is the rate at which the adaptive trigger fires if phi is noise. A recorded phi is not noise, and the adaptive
    trigger's alpha grows with it. To match a recorded run, choose lambda so that `Phi(-lambda)` equals its trigger
    probability per step (before the cap), which is possible up to one half, and set alpha to the mean of its alphas.
    The draw of a step depends only on `seed` and the step number, so a resumed run continues with the same draws.
    """
    step = before.clock + 1
    chance = math.erfc(lamda / math.sqrt(2)) / 2
    drawn = random.Random(seed * 1_000_003 + step).random()
    sync = step == 1 or step - before.last_sync >= k or drawn < chance
    return Decision(sync, _after(before, sync=sync, variance=0.0, count=0), alpha)


def replayed(before: TriggerState, *, alpha: float, counts: Sequence[int], window: int, seed: int) -> Decision:
    """Take as many second gradients in each window of steps as given, at random steps of it, and one at step 1.

    Steps beyond the last window count as windows like it. The draw of a window depends only on `seed` and its number.
    """
    number, place = divmod(before.clock, window)
    count, draw = counts[min(number, len(counts) - 1)], random.Random(f"{seed} {number}")
    first = (0,) if number == 0 else ()
    rest = draw.sample(range(len(first), window), max(count - len(first), 0))
    sync = place in (*first, *rest)
    return Decision(sync, _after(before, sync=sync, variance=0.0, count=0), alpha)


def adaptive(
    before: TriggerState,
    phi: float | None,
    *,
    k: int,
    alpha: float,
    beta: float,
    lamda: float,
    gamma: float,
    rule: str,
) -> Decision:
    """Take a second gradient if phi is below `-lambda sqrt(nu)`, at step 1, and after k steps at the latest.

    nu is the running mean of phi^2 over all steps except the one right after a second gradient. With the
    `reference` rule it already contains the present phi and starts from zero without bias correction, so
    that any negative phi triggers early in training. The `lagged` rule compares with the bias-corrected mean of
    the previous steps, and triggers only once there is one.
    """
    step = before.clock + 1
    age = step - before.last_sync
    measured = step > 1 and age > 1
    value = 0.0 if phi is None else phi
    variance = beta * before.phi_variance + (1 - beta) * value * value if measured else before.phi_variance
    if rule == "lagged":
        scale = before.phi_variance / (1 - beta**before.phi_count) if before.phi_count else math.inf
    else:
        scale = variance
    threshold = -lamda * math.sqrt(scale) if lamda else 0.0
    sync = value < threshold or step == 1 or age >= k
    after = _after(before, sync=sync, variance=variance, count=before.phi_count + measured)
    return Decision(sync, after, alpha * (1 + max(0.0, value)) ** gamma, phi, threshold)


def decided(
    settings: Mapping[str, Any], before: TriggerState, phi: float | None, *, takes_second_gradient: bool
) -> Decision:
    """Return the decision of the optimizer's mode; an optimizer without a radius decides like mode `base`."""
    mode, k = settings["mode"] if takes_second_gradient else "base", settings["k"]
    alpha = 0.0 if settings["shear"] == "off" else settings["alpha"]
    if mode == "base":
        return Decision(sync=False, after=replace(before, clock=before.clock + 1))
    if mode == "timer" and settings.get("replay_counts"):  # states saved before 0.3 have none
        counts, window = settings["replay_counts"], settings["replay_window"]
        return replayed(before, alpha=alpha, counts=counts, window=window, seed=settings["seed"])
    if mode == "timer":
        return timed(before, k=k, alpha=alpha, lamda=settings["aga_lambda"], seed=settings["seed"])
    if mode != "aga":
        return periodic(before, k=1 if mode == "sync" else k, alpha=alpha)
    return adaptive(
        before,
        phi,
        k=k,
        alpha=alpha,
        beta=settings["aga_beta"],
        lamda=settings["aga_lambda"],
        gamma=settings["aga_gamma"],
        rule=settings["trigger"],
    )
