"""Hyperparameters: defaults, bounds, and the validation of parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from lossscope.optimizer.ascent.perturbation import PERTURBATIONS
from lossscope.optimizer.ascent.shear import SHEARS
from lossscope.optimizer.ascent.surrogate import SURROGATES
from lossscope.optimizer.ascent.trigger import COUNTERS, MODES, TRIGGERS
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import newton_schulz as ns
from lossscope.optimizer.update.matrix_view import ADJUSTMENTS, ENERGIES, TRACKS
from lossscope.optimizer.update.rule import NOT_NEGATIVE, Bound

__all__ = [
    "DEFAULTS",
    "SHARED",
    "check_floors",
    "checked_group",
    "checked_number",
    "period_of",
    "refuse_counters",
    "refuse_duplicate_names",
    "user_settings",
]

# Settings of every optimizer here: when and where to ascend, and the matrix view of tensors.
SHARED: Final[dict[str, Any]] = {
    "mode": "base",
    "rho": 0.1,
    "k": 1,
    "alpha": 0.1,
    "aga_beta": 0.99,
    "aga_lambda": 2.0,
    "aga_gamma": 2.0,
    "replay_counts": (),
    "replay_window": 0,
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

# Settings of ARS2-Neo.
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

# These must be equal in all groups: the decision to ascend is made once for all groups, and a record names one
# set of polynomials.
_SHARED_BY_GROUPS: Final = (
    "mode",
    "k",
    "alpha",
    "aga_beta",
    "aga_lambda",
    "aga_gamma",
    "replay_counts",
    "replay_window",
    "seed",
    "perturbation",
    "shear",
    "surrogate",
    "trigger",
    "newton_schulz",
    "ns_steps",
    "ns_norm",
)

_PERIODS: Final = {"lazy": 5, "aga": 10, "timer": 10}  # default k of the modes that have one

# Configuration files hold dtypes by name.
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

_FRACTION: Final = Bound("in [0, 1)", lambda x: 0 <= x < 1)
_MOST: Final = 1e30  # a bounded direction times lr, or rho, then stays in the range of float32
_SIZE: Final = Bound(f"{NOT_NEGATIVE.words}, at most {_MOST:.0e}", lambda x: 0 <= x <= _MOST)
_BOUNDS: Final[dict[str, Bound]] = {
    "lr": _SIZE,
    "vector_lr": _SIZE,
    "eps": _SIZE,
    "weight_decay": _SIZE,
    "rho": Bound(f"{NOT_NEGATIVE.words}; 0 disables the ascent, {_MOST:.0e} is the most", _SIZE.holds),
    "alpha": Bound("a finite number, at most 1e6 in size", lambda x: abs(x) <= 1e6),
    "aga_beta": _FRACTION,
    "aga_lambda": Bound("at least 0", lambda x: x >= 0),  # at infinity only the cap triggers
    "aga_gamma": Bound("a finite number, at most 100 in size", lambda x: abs(x) <= 100),  # 2^gamma multiplies alpha
    "momentum": _FRACTION,
    "row_beta": _FRACTION,
    "rms_eps": _SIZE,
}


def _check_number(name: str, value: Any, bound: Bound) -> None:
    one = isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    if isinstance(value, bool) or not one or not bound.holds(float(value)):
        raise OptimizerError(f"{name}={value!r} must be {bound.words}")


def checked_number(name: str, value: Any) -> None:
    """Raise an `OptimizerError` that names the setting, its value and the bound, if the value is out of bounds."""
    _check_number(name, value, _BOUNDS[name])


def checked_group(
    group: dict[str, Any], first: dict[str, Any], known: Iterable[str], bounds: Mapping[str, Bound]
) -> None:
    """Raise an `OptimizerError` for a group whose settings are unknown, out of bounds or contradict the first group.

    Args:
        group: The parameter group.
        first: The first group of the optimizer.
        known: Names of the settings of the optimizer.
        bounds: Bounds of the settings that belong to its rule alone.

    Raises:
        OptimizerError: See above; it names the setting, its value and the bound.
    """
    allowed = {
        *known,
        "params",
        "param_names",
        "initial_lr",
        "max_lr",
        "min_lr",
        "max_momentum",
        "base_momentum",
    }
    if unknown := sorted(group.keys() - allowed):
        raise OptimizerError(
            f"a parameter group has the unknown setting {unknown[0]!r}; known: {', '.join(user_settings(known))}"
        )
    for name, choices in _CHOICES.items():
        if name in group and group[name] not in choices:
            raise OptimizerError(f"{name}={group[name]!r} must be one of {', '.join(map(repr, choices))}")
    for name, bound in {**_BOUNDS, **bounds}.items():
        if name in group:
            _check_number(name, group[name], bound)
    betas = group.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise OptimizerError(f"betas={betas!r} must be two numbers in [0, 1)")
    for beta in betas:
        _check_number("betas", beta, Bound("two numbers in [0, 1)", _FRACTION.holds))
    if "ns_dtype" in group:
        _check_newton_schulz(group)
    if not isinstance(group["seed"], int) or isinstance(group["seed"], bool):
        raise OptimizerError(f"seed={group['seed']!r} must be an integer")
    if group["mode"] in _PERIODS:
        period_of(group["mode"], group["k"])
    _check_replay(group)
    for name in _SHARED_BY_GROUPS:
        if name in group and group[name] != first[name]:
            raise OptimizerError(
                f"{name} must be equal in all groups, got {group[name]!r} and {first[name]!r} in the first group"
            )
    if group["track"] == "matrix" and any(p.ndim < 2 for p in group["params"]):
        raise OptimizerError(
            "track='matrix' needs parameters with at least 2 dimensions; put the others into a group with "
            "track='vector'"
        )
    for p in group["params"]:
        if not p.is_floating_point():
            raise OptimizerError(
                f"parameter groups must contain real floating-point parameters, got {p.dtype}; remove it from the group"
            )


def check_floors(group: Mapping[str, Any], parameter: torch.Tensor, names: Sequence[str]) -> None:
    """Raise an `OptimizerError` if a floor of a root of mean squares does not bound the steps of a parameter.

    A square below the smallest number of a dtype is stored as zero. The floor is then all that is divided by: below the
    root of that number, steps are larger than any ratio that the rule allows, or divide by zero.

    Args:
        group: The parameter group.
        parameter: One of its parameters, which gives the dtype of the squares.
        names: Settings that are such floors.

    Raises:
        OptimizerError: See above; it names the setting, its value and the bound.
    """
    numbers = torch.finfo(parameter.dtype)
    least = math.sqrt(numbers.tiny * numbers.eps)
    for name in names:
        if float(group[name]) < least:
            raise OptimizerError(
                f"{name}={group[name]!r} must be at least {least:.1e} for {parameter.dtype}, which holds no smaller "
                f"square: set {name}, or keep the weights in a dtype with a larger range"
            )


def _check_replay(group: Mapping[str, Any]) -> None:
    counts, window = group["replay_counts"], group["replay_window"]
    if not isinstance(window, int) or isinstance(window, bool) or window < 0:
        raise OptimizerError(f"replay_window={window!r} must be a number of steps, or 0 for no replay")
    if not isinstance(counts, tuple | list) or bool(counts) != bool(window):
        raise OptimizerError(f"replay_counts={counts!r} must be a list of counts, one for each window of replay_window")
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= window:
            raise OptimizerError(f"replay_counts={counts!r} must be integers from 0 to replay_window={window}")


def _check_newton_schulz(group: dict[str, Any]) -> None:
    if isinstance(group["ns_dtype"], str) and group["ns_dtype"] in _DTYPES:
        group["ns_dtype"] = _DTYPES[group["ns_dtype"]]
    if group["ns_dtype"] != "auto" and not getattr(group["ns_dtype"], "is_floating_point", False):
        raise OptimizerError(
            f"ns_dtype={group['ns_dtype']!r} must be 'auto', a floating torch.dtype or one of {', '.join(_DTYPES)}"
        )
    ns.coefficients(group["newton_schulz"], group["ns_steps"])


def user_settings(names: Iterable[str]) -> list[str]:
    """Return the user-settable keys of a parameter group (drop the optimizer's own counters)."""
    return [name for name in names if name not in COUNTERS]


def refuse_counters(settings: Mapping[str, Any]) -> None:
    """Raise an `OptimizerError` if one of the settings is a counter of the optimizer."""
    if counted := sorted(COUNTERS.keys() & settings.keys()):
        raise OptimizerError(f"{counted[0]} is a counter of the optimizer, not a setting; load_state_dict restores it")


def refuse_duplicate_names(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise an `OptimizerError` if two parameters have the same name, since records identify parameters by name."""
    seen: set[str] = set()
    for name in (name for group in groups for name in group.get("param_names", ())):
        if name in seen:
            raise OptimizerError(
                f"two parameters have the name {name!r}; give them distinct names, for example with "
                "model.named_parameters('prefix')"
            )
        seen.add(name)


def period_of(mode: str, k: int | None) -> int:
    """Return the lazy period, or the longest interval of aga and timer: the given value, else the mode's default."""
    if mode not in _PERIODS:
        if k is not None:
            raise OptimizerError(
                f"k={k} has no meaning in mode={mode!r}; it is the lazy period or the longest interval of aga and timer"
            )
        return 1
    period = _PERIODS[mode] if k is None else k
    if not isinstance(period, int) or period < 2:  # True is 1
        raise OptimizerError(f"k={period} must be an integer >= 2; for two passes every step use mode='sync'")
    return period
