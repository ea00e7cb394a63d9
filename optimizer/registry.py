"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update.routing import routing

__all__ = ["ENTRIES", "Entry", "Groups", "create", "names", "nearest", "register", "settings"]

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """An optimizer that `create` knows."""

    words: str  # what it is, in a line
    source: str
    make: Callable[..., Optimizer]  # (params, **settings)
    usual: Mapping[str, Any] = field(default_factory=dict)  # every setting it accepts; None: its base's usual value
    cuts: bool = False  # whether it cuts tensors into matrices: `make` then gets groups, that of convolutions marked


ENTRIES: Final[dict[str, Entry]] = {}


def register(name: str, entry: Entry) -> None:
    """Let `create` know an optimizer.

    Args:
        name: New.
        entry: What it is.

    Raises:
        OptimizerError: The name is taken.
    """
    if name in ENTRIES:
        raise OptimizerError(
            f"an optimizer {name!r} is registered already ({ENTRIES[name].words}): choose another name"
        )
    ENTRIES[name] = entry


def names() -> tuple[str, ...]:
    """The names `create` knows."""
    return tuple(ENTRIES)


def settings(name: str) -> tuple[str, ...]:
    """The settings that `create(name, ...)` accepts.

    Raises:
        OptimizerError: The name does not exist; the nearest ones are told.
    """
    return tuple(_entry(name).usual)


def create(name: str, parameters: nn.Module | Iterable[tuple[str, Tensor]], **overrides: Any) -> Optimizer:
    """The optimizer of that name, with its usual settings but for `overrides`.

    Shape alone decides the track. Weights of one-dimensional convolutions have three dimensions, as heads of attention
    do: of a model, those of an optimizer that cuts matrices get a group with `convolution=True`, behind the others.

    Args:
        name: One of `names()`.
        parameters: A model, or its `named_parameters()`, which do not say what is a convolution.
        overrides: Settings of that optimizer, such as `lr` or `rho`.

    Raises:
        OptimizerError: The name or a setting does not exist (the nearest ones are told), or a setting is out
            of its bounds.
    """
    entry = _entry(name)
    for setting in overrides:
        if setting not in entry.usual:
            raise OptimizerError(f"optimizer {name} has no setting {setting!r}{nearest(setting, entry.usual)}")
    trainable = [(label, p) for label, p in _named(name, parameters) if p.requires_grad]
    if not trainable:
        raise OptimizerError(f"no parameter requires a gradient; {name} has nothing to optimise")
    try:
        return entry.make(_groups(parameters, trainable) if entry.cuts else trainable, **overrides)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"optimizer {name}: {error}") from error
    except (IndexError, KeyError, RuntimeError) as error:
        raise OptimizerError(f"optimizer {name} does not accept its settings {overrides}: {error}") from error


def _named(name: str, parameters: Any) -> list[tuple[str, Tensor]]:
    """Pairs of a name and a parameter, or an error for anything else."""
    if isinstance(parameters, nn.Module):
        return list(parameters.named_parameters())
    found = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    for pair in found:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            what = "bare parameters" if isinstance(pair, Tensor) else type(pair).__name__
            raise OptimizerError(f"create({name!r}, ...) takes a model or its named_parameters(), not {what}")
    return found


def _groups(parameters: Any, trainable: list[tuple[str, Tensor]]) -> Groups:
    """The parameters in one group, and weights of one-dimensional convolutions of a model in another."""
    routes = routing(parameters).routes if isinstance(parameters, nn.Module) else ()
    cut = {route.name for route in routes if route.convolution and route.parameter.ndim == 3}
    rest = {"params": [(label, p) for label, p in trainable if label not in cut]}
    convolutions = {"params": [(label, p) for label, p in trainable if label in cut], "convolution": True}
    return [group for group in (rest, convolutions) if group["params"]]


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise OptimizerError(f"there is no optimizer {name!r}{nearest(name, names())}")
    return ENTRIES[name]


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: those that it may have meant, or all there are."""
    close = get_close_matches(word, list(words), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(words)}"
