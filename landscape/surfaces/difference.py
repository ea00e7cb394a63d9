"""Difference of two sets of weights with the loss between them, as numbers that a report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lossscope.landscape.analysis.diff import WeightDifference
from lossscope.landscape.surfaces.pictures import Path

__all__ = ["Difference", "LossChange", "ModuleChange", "SeedPair"]


@dataclass(frozen=True)
class ModuleChange:
    """Part of a module in the second-order expansion at A of the loss at B.

    Attributes:
        name: Name of the module.
        size: Number of its trainable parameters.
        linear: Sum of its entries of g * D, with the gradient g at A and D = B - A.
        linear_error: Bound of the rounding error.
        quadratic: Half the sum of its entries of D * (H D), with the Hessian H at A.
        quadratic_error: Bound of the rounding error.
    """

    name: str
    size: int
    linear: float
    linear_error: float
    quadratic: float
    quadratic_error: float


@dataclass(frozen=True)
class LossChange:
    """Second-order expansion at A: L(B) - L(A) = g'D + D'HD / 2 + remainder.

    Attributes:
        loss_a: The loss at A.
        loss_b: The loss at the trainable parameters of B, with the buffers and frozen parameters of A.
        own_loss_b: The loss of B with its own; nan if it is not finite.
        modules: The parts of the modules, which add up to both terms.
        change_error: Bound of the rounding error of `change`.
        remainder_error: Bound of the rounding error of `remainder`.
        seconds: Time.
    """

    loss_a: float
    loss_b: float
    own_loss_b: float
    modules: tuple[ModuleChange, ...]
    change_error: float
    remainder_error: float
    seconds: float

    @property
    def change(self) -> float:
        """Change of the loss from A to B."""
        return self.loss_b - self.loss_a

    @property
    def linear(self) -> float:
        """The linear term, the sum over the modules."""
        return math.fsum(one.linear for one in self.modules)

    @property
    def quadratic(self) -> float:
        """The quadratic term, the sum over the modules."""
        return math.fsum(one.quadratic for one in self.modules)

    @property
    def remainder(self) -> float:
        """Rest of the change that both terms leave."""
        return self.change - self.linear - self.quadratic

    @property
    def is_exact(self) -> bool:
        """True if the remainder is zero within its rounding error, as of a quadratic loss."""
        return abs(self.remainder) <= self.remainder_error

    @property
    def tells_the_loss(self) -> bool:
        """True if the remainder is smaller than the quadratic term and than the change: the expansion reaches B."""
        return self.is_exact or abs(self.remainder) < min(abs(self.quadratic), abs(self.change))


@dataclass(frozen=True)
class SeedPair:
    """Two runs of one arm with different seeds, compared as A and B are.

    Attributes:
        name: Names of both.
        arm: Name of the arm.
        weights: Difference of their weights, without subspaces.
        path: The loss between them; None if it was not evaluated.
    """

    name: str
    arm: str
    weights: WeightDifference
    path: Path | None = None


@dataclass(frozen=True)
class Difference:
    """Difference of A and B.

    Attributes:
        weights: Distances, singular spectra and angles, tensor by tensor.
        change: Expansion of the loss change; None if there is no loss.
        path: The loss on the straight path; None if there is no loss.
        seeds: The same of pairs of seeds of one optimizer.
        same_start: True if A and B began at the same initial weights, as far as their seeds tell; None if unknown.
        missing: What could not be measured, with the reason.
        notes: Sentences about the input.
        unit: Unit of the loss.
        samples: Number of terms of the loss.
        data: Hash of its data.
        seconds: Time of all.
    """

    weights: WeightDifference
    change: LossChange | None = None
    path: Path | None = None
    seeds: tuple[SeedPair, ...] = ()
    same_start: bool | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unit: str = ""
    samples: float = 0.0
    data: str = ""
    seconds: float = 0.0
