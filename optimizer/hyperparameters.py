"""The settings of our optimizers: defaults, bounds, and which of them hold for all parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from lossscope.optimizer.ascent.perturbation import PERTURBATIONS
from lossscope.optimizer.ascent.shear import SHEARS
from lossscope.optimizer.ascent.surrogate import SURROGATES
from lossscope.optimizer.ascent.trigger import COUNTERS, MODES, TRIGGERS
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import newton_schulz as ns
from lossscope.optimizer.update.matrix_view import ADJUSTMENTS, ENERGIES, TRACKS, track_of

__all__ = [
    "DEFAULTS",
    "SHARED",
    "checked_group",
    "checked_number",
    "chosen_of",
    "period_of",
]

# What every optimizer here reads: when and where to ascend, and how tensors are cut.
SHARED: Final[dict[str, Any]] = {
    "mode": "base",
    "rho": 0.1,
    "k": 1,
    "alpha": 0.1,
    "aga_beta": 0.99,
    "aga_lambda": 2.0,
    "aga_gamma": 2.0,
    "seed": 0,
    "perturbation": "ars2",
    "shear": "looksam",
    "surrogate": "adversarial",
    "trigger": "reference",
    "flatten": False,
    "convolution": False,
    "track": None,
    **COUNTERS,
}

# And what ARS2-Neo reads besides.
DEFAULTS: Final[dict[str, Any]] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.01,
    "energy": "reference",
    "newton_schulz": "keller",
    "ns_steps": 5,
    "ns_dtype": "auto",
    "ns_norm": "frobenius",
    "orthogonalize": True,
    **SHARED,
}

# One for the whole optimizer: the decision to ascend is made once for all groups, and a record names one
# set of polynomials.
_ONE: Final = (
    "mode",
    "k",
    "alpha",
    "aga_beta",
    "aga_lambda",
    "aga_gamma",
    "seed",
    "perturbation",
    "shear",
    "surrogate",
    "trigger",
    "newton_schulz",
    "ns_steps",
    "ns_norm",
)

_PERIODS: Final = {"lazy": 5, "aga": 10, "timer": 10}  # the usual k of the modes that have one

# Configuration files have no dtypes, only their names.
_DTYPES: Final = {
    str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}

_CHOICES: Final[dict[str, tuple[object, ...]]] = {
    "mode": MODES,
    "energy": ENERGIES,
    "perturbation": tuple(PERTURBATIONS),
    "shear": SHEARS,
    "surrogate": tuple(SURROGATES),
    "ns_norm": ns.NORMS,
    "adjust": ADJUSTMENTS,
    "equilibrate": ("R", "C", "RC"),
    "nesterov": (True, False),
    "trigger": TRIGGERS,
    "track": (*TRACKS, None),
    "orthogonalize": (True, False),
    "flatten": (True, False),
    "convolution": (True, False),
}

_BOUNDS: Final[dict[str, tuple[str, Callable[[float], bool]]]] = {
    "lr": ("at least 0 and finite", lambda x: 0 <= x < math.inf),
    "vector_lr": ("at least 0 and finite", lambda x: 0 <= x < math.inf),
    "eps": ("at least 0 and finite", lambda x: 0 <= x < math.inf),
    "weight_decay": ("at least 0 and finite", lambda x: 0 <= x < math.inf),
    "rho": ("at least 0 and finite; 0 leaves the ascent out", lambda x: 0 <= x < math.inf),
    "alpha": ("a finite number", math.isfinite),
    "aga_beta": ("in [0, 1)", lambda x: 0 <= x < 1),
    "aga_lambda": ("at least 0", lambda x: x >= 0),  # at infinity only the cap is left
    "aga_gamma": ("a finite number", math.isfinite),
    "momentum": ("in [0, 1)", lambda x: 0 <= x < 1),
    "row_beta": ("in [0, 1)", lambda x: 0 <= x < 1),
    "rms_eps": ("at least 0 and finite", lambda x: 0 <= x < math.inf),
}


def _check_number(name: str, value: Any, words: str, holds: Callable[[float], bool]) -> None:
    one = isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    if isinstance(value, bool) or not one or not holds(float(value)):
        raise OptimizerError(f"{name}={value!r} must be {words}")


def checked_number(name: str, value: Any) -> None:
    """Raise an `OptimizerError` that names the setting, its value and the bound, for one that is out of it."""
    words, holds = _BOUNDS[name]
    _check_number(name, value, words, holds)


def checked_group(group: dict[str, Any], first: dict[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> None:
    """Raise an `OptimizerError` for a group whose settings are unknown, out of bounds or contradict the first.

    Args:
        group: The parameter group.
        first: The first group of the optimizer.
        defaults: The settings that the optimizer knows.

    Raises:
        OptimizerError: See above; it names the setting, its value and the bound.
    """
    known = {
        *defaults,
        "params",
        "param_names",
        "initial_lr",
        "max_lr",
        "min_lr",
        "max_momentum",
        "base_momentum",
    }
    if unknown := sorted(group.keys() - known):
        raise OptimizerError(
            f"a parameter group has the unknown setting {unknown[0]!r}; known: {', '.join(chosen_of(defaults))}"
        )
    for name, choices in _CHOICES.items():
        if name in group and group[name] not in choices:
            raise OptimizerError(f"{name}={group[name]!r} is none of {', '.join(map(repr, choices))}")
    for name in _BOUNDS:
        if name in group:
            checked_number(name, group[name])
    betas = group.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise OptimizerError(f"betas={betas!r} must be two numbers in [0, 1)")
    for beta in betas:
        _check_number("betas", beta, "two numbers in [0, 1)", lambda x: 0 <= x < 1)
    if "ns_dtype" in group:
        _check_newton_schulz(group)
    if not isinstance(group["seed"], int) or isinstance(group["seed"], bool):
        raise OptimizerError(f"seed={group['seed']!r} must be a whole number")
    if group["mode"] in _PERIODS:
        period_of(group["mode"], group["k"])
    for name in _ONE:
        if name in group and group[name] != first[name]:
            raise OptimizerError(
                f"{name}={group[name]!r} in one group and {first[name]!r} in the first: it is one for all groups"
            )
    if group["track"] == "matrix" and any(p.ndim < 2 for p in group["params"]):
        raise OptimizerError("track='matrix' for a parameter with fewer than 2 dimensions; put it into a vector group")
    if any(not p.is_floating_point() for p in group["params"]):
        raise OptimizerError("optimizers here step real floating parameters only; leave the others out of its groups")


def _check_newton_schulz(group: dict[str, Any]) -> None:
    if isinstance(group["ns_dtype"], str) and group["ns_dtype"] in _DTYPES:
        group["ns_dtype"] = _DTYPES[group["ns_dtype"]]
    if group["ns_dtype"] != "auto" and not getattr(group["ns_dtype"], "is_floating_point", False):
        raise OptimizerError(
            f"ns_dtype={group['ns_dtype']!r} must be 'auto', a floating torch.dtype or one of {', '.join(_DTYPES)}"
        )
    ns.coefficients(group["newton_schulz"], group["ns_steps"])
    for p in group["params"]:
        if p.numel() == 0 and track_of(group, p) == "matrix":
            raise OptimizerError(
                f"a parameter of shape {tuple(p.shape)} has no elements and so no orthogonal factor; leave it out"
            )


def chosen_of(defaults: Iterable[str]) -> list[str]:
    """The settings among what a group holds, which is also what the optimizer counts by itself.

    Args:
        defaults: The names of what a group holds.

    Returns:
        Those that a user sets.
    """
    return [name for name in defaults if name not in COUNTERS]


def period_of(mode: str, k: int | None) -> int:
    """The lazy period or aga's longest interval: what was asked for, else the mode's default."""
    if mode not in _PERIODS:
        if k is not None:
            raise OptimizerError(
                f"k={k} has no meaning in mode={mode!r}; it is the lazy period or the longest interval of aga and timer"
            )
        return 1
    period = _PERIODS[mode] if k is None else k
    if not isinstance(period, int) or period < 2:  # True is 1
        raise OptimizerError(
            f"k={period} must be a whole number of at least 2; for two passes every step use mode='sync'"
        )
    return period
