"""Member of the zoo: a builder of model, loss and batches, with what an objective must be told about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lossscope.probes.objective.objective import Objective

UNEVALUATED = {"SymmetricOperator", "ObjectiveOperator", "singular_spectrum"}  # they evaluate no loss

__all__ = ["Member", "Parts", "cast", "first_length", "same", "seeded"]


@dataclass(frozen=True)
class Parts:
    """Model, loss and batches, newly built; `reaches` are further modules that the loss calls."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batches: list[Any]
    reaches: tuple[nn.Module, ...] = ()


def first_length(batch: Any) -> float:
    """Return the length of the first tensor of a batch."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(batch)


def same(batch: Any) -> float:
    """Return one: every batch has the same weight, as for a loss that is no mean over its batches."""
    return 1.0


@dataclass(frozen=True)
class Member:
    """One kind of training that people have.

    `build` returns the same bytes at every call and leaves the random state. `terms` counts the terms of a batch in the
    mean, independently of the product; `options` are the arguments that `Objective` needs. `refuses` maps a measure to
    words of the true reason for which it cannot be had. The float64 twin is `twin`, or `build` cast to float64.
    """

    build: Callable[[], Parts]
    options: Mapping[str, Any] = field(default_factory=dict)
    terms: Callable[[Any], float] = first_length
    refuses: Mapping[str, str] = field(default_factory=dict)
    twin: Callable[[], Parts] | None = None
    slow: bool = False
    sampled: bool = False  # measures that draw random numbers run in the fast suite too
    seeds: tuple[int, int, int] = (3, 4, 5)  # of the measures that draw random numbers
    digits: float = 1e-6  # rounding unit of its own arithmetic, if coarser than that of the parameters

    def objective(self, parts: Parts | None = None, **more: Any) -> Objective:
        """Return an objective of newly built parts, or of these."""
        parts = parts or self.build()
        options = {**self.options, **more}
        known = inspect.signature(Objective).parameters  # additive= comes with issue 10
        return Objective(
            parts.model, parts.loss_fn, parts.batches, **{key: value for key, value in options.items() if key in known}
        )

    def refusal(self, measure: str) -> str | None:
        """Return words of the true reason for which a measure cannot be had; None if it can.

        A key of `refuses` is a measure with its variant, a measure with all its variants, or empty for all measures.
        """
        for key in (measure, measure.partition(":")[0], *([] if measure in UNEVALUATED else [""])):
            if key in self.refuses:
                return self.refuses[key]
        return None

    def double(self) -> Parts:
        """Return the float64 twin."""
        parts = (self.twin or self.build)()
        for module in (parts.model, *parts.reaches):
            module.double()
        return Parts(parts.model, parts.loss_fn, [cast(batch) for batch in parts.batches], parts.reaches)


def cast(batch: Any) -> Any:
    """Return a batch with its floating tensors in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: cast(value) for key, value in batch.items()}
    return type(batch)(cast(value) for value in batch) if isinstance(batch, tuple | list) else batch


def seeded(build: Callable[[], Parts]) -> Callable[[], Parts]:
    """Return a builder that draws from its own seed and leaves the global random state."""

    def built() -> Parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()

    return built
