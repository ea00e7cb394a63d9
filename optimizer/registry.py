"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer.ars2_neo import ARS2Neo
from lossscope.optimizer.errors import OptimizerError

__all__ = ["DESCRIPTIONS", "create", "names", "settings"]

_FACTORIES: Final[dict[str, Callable[..., Optimizer]]] = {
    "ars2-base": partial(ARS2Neo, mode="base"),
    "ars2-sync": partial(ARS2Neo, mode="sync"),
    "ars2-lazy": partial(ARS2Neo, mode="lazy"),
    "ars2-aga": partial(ARS2Neo, mode="aga"),
    "adamw@rms": partial(ARS2Neo, mode="base", orthogonalise=False),
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

_ADAPTIVE: Final = frozenset({"aga_beta", "aga_lambda", "aga_gamma", "trigger"})
_INJECTING: Final = frozenset({"k", "alpha", "shear"})
_ASCENDING: Final = frozenset({"rho", "perturbation"})
# Settings that a mode does not read: to accept them would be to ignore them without a word.
_WITHOUT_USE: Final[dict[str, frozenset[str]]] = {
    "ars2-base": _ADAPTIVE | _INJECTING | _ASCENDING,
    "adamw@rms": _ADAPTIVE | _INJECTING | _ASCENDING,
    "ars2-sync": _ADAPTIVE | _INJECTING,
    "ars2-lazy": _ADAPTIVE,
}

DESCRIPTIONS: Final = {
    "ars2-base": "ARS2-Neo, one pass a step",
    "ars2-sync": "ARS2-Neo, two passes every step",
    "ars2-lazy": "ARS2-Neo, two passes every k steps, shear injected between",
    "ars2-aga": "ARS2-Neo, two passes when the gradient turns against the shear",
    "adamw@rms": "AdamW's direction with the step size of ARS2-Neo base: lr |O|_F A for a matrix",
    "adamw": "torch.optim.AdamW",
    "sgd": "torch.optim.SGD",
}


def names() -> tuple[str, ...]:
    """The names `create` knows."""
    return tuple(_FACTORIES)


def settings(name: str) -> tuple[str, ...]:
    """The settings that `create(name, ...)` accepts.

    Raises:
        OptimizerError: The name does not exist; the nearest ones are told.
    """
    if name not in _FACTORIES:
        raise OptimizerError(f"there is no optimizer {name!r}{_nearest(name, names())}")
    factory = _FACTORIES[name]
    left_out = {"params", *_fixed(factory), *_WITHOUT_USE.get(name, ())}
    return tuple(p for p in signature(factory).parameters if p not in left_out)


def _nearest(word: str, words: Iterable[str]) -> str:
    close = get_close_matches(word, list(words), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(words)}"


def create(name: str, parameters: nn.Module | Iterable[tuple[str, Tensor]], **overrides: Any) -> Optimizer:
    """The optimizer of that name, with its usual settings but for `overrides`.

    Args:
        name: One of `names()`.
        parameters: A model, or its `named_parameters()`; shape alone decides the track.
        overrides: Settings of that optimizer, such as `lr` or `rho`.

    Raises:
        OptimizerError: The name or a setting does not exist (the nearest ones are told), or a setting is out
            of its bounds.
    """
    known = settings(name)
    factory = _FACTORIES[name]
    for setting in overrides:
        if setting not in known:
            raise OptimizerError(f"optimizer {name} has no setting {setting!r}{_nearest(setting, known)}")
    named = list(parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters)
    if any(not isinstance(pair, tuple) for pair in named):
        raise OptimizerError(f"create({name!r}, ...) takes a model or its named_parameters(), not bare parameters")
    trainable = [(label, p) for label, p in named if p.requires_grad]
    if not trainable:
        raise OptimizerError(f"no parameter requires a gradient; {name} has nothing to optimise")
    try:
        return factory(trainable, **overrides)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"optimizer {name}: {error}") from error
    except (IndexError, KeyError, RuntimeError) as error:
        raise OptimizerError(f"optimizer {name} does not accept its settings {overrides}: {error}") from error


def _fixed(factory: Callable[..., Optimizer]) -> tuple[str, ...]:
    return tuple(factory.keywords) if isinstance(factory, partial) else ()
