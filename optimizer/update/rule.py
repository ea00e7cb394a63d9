"""Declaration of an update rule: its arithmetic, its settings, and what records and measures need to know of it.

Everything outside `update/` reads these declarations and never a rule's name or the keys of its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from torch import Tensor

from lossscope.optimizer.update.adam import ParameterStep, Update, zeros_state

__all__ = ["NOT_NEGATIVE", "Bound", "Direction", "Group", "Need", "Rule", "zeros"]

Group = dict[str, Any]


class Direction(Enum):
    """Direction of a step; it decides which metric and which stability threshold apply."""

    GRADIENT = "gradient"  # the gradient, with heavy-ball or Nesterov momentum as set by `momentum` and `nesterov`
    ADAM = "adam"  # m_hat / (sqrt(v_hat) + eps), with the settings `betas` and `eps`
    ORTHOGONAL = "orthogonal"  # built from an orthogonal factor
    SIGN = "sign"  # the signs of a gradient or of a momentum
    OTHER = "other"  # none of these: no metric and no threshold is known


class Need(Enum):
    """Passes of its own that a step needs beside, or in place of, a gradient; see `optimizer/estimates`."""

    SAMPLED_GRADIENT = "every `period` steps, the gradient of the loss with labels drawn from the model"
    LAYER_FACTORS = "every `period` steps, inputs and output gradients of dense layers, with drawn labels"
    HESSIAN_PRODUCT = "a product of the Hessian with random signs, from the graph of the gradient"
    TWO_LOSSES = "two losses at random displacements of the weights, and no gradient"

    @property
    def draws_labels(self) -> bool:
        """True if some passes are run with labels drawn from the model."""
        return self in (Need.SAMPLED_GRADIENT, Need.LAYER_FACTORS)


class Bound(NamedTuple):
    """Allowed values of a numeric setting."""

    words: str  # completes "<setting> must be ..."
    holds: Callable[[float], bool]


NOT_NEGATIVE: Final = Bound("at least 0 and finite", lambda x: 0 <= x < math.inf)


def zeros(*names: str) -> Callable[[Group, Tensor], dict[str, Any]]:
    """Return a `fresh_state` of a step count and these tensors of zeros, each like the parameter."""
    return lambda group, parameter: zeros_state(parameter, names)


_STEP_COUNT_ONLY: Final = zeros()


def _no_check(group: Group) -> None:
    """Accept every group."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An update rule.

    Attributes:
        step: Moves the parameters of a group, given one `ParameterStep` each, and returns one `Update` each, in order.
            It runs without gradients and counts its updates in `state["step"]`.
        words: One-line description, printed by `lossscope list optimizers`.
        source: Publication.
        lr: Default learning rate.
        weight_decay: Default weight decay.
        settings: Defaults of the other settings.
        required: Settings without a default: a user must give them.
        bounds: Bounds of the rule's own numeric settings; those of shared names (`lr`, `momentum`, `eps`, ...) are in
            `hyperparameters`.
        floors: Settings added to a root of mean squares before something is divided by it, other than Adam's `eps`.
        check: Raises an `OptimizerError` for a group whose settings contradict one another.
        fresh_state: Returns the state of a parameter before its first step, given its group; see `zeros`.
        optional_state: Keys that a saved state may have or lack, since settings may change during training.
        direction: Direction of the step.
        adam_moments: True if the state holds `exp_avg` and `exp_avg_sq`, as Adam does with `betas` and `eps`. Records
            then show both moments, and an ascent can be whitened by the second one.
        momentum: State key of the momentum that records show, for rules without Adam's moments.
        orthogonalizes: True if Newton-Schulz is applied to matrices, with the settings `newton_schulz`, `ns_steps`,
            `ns_dtype` and `ns_norm`.
        decoupled_decay: True if weight decay multiplies the weights; False if it is added to the gradient.
        adamw_vectors: True if vectors take AdamW's step (the settings then include `betas` and `eps`); False if they
            are stepped like matrices.
        vector_lr: Default learning rate of vectors that take AdamW's step; None uses `lr`.
        needs: Passes of its own, whose estimates the step finds in `ParameterStep.estimate`. Such a rule never ascends,
            and its settings have a `seed`.
    """

    step: Callable[[Group, Sequence[ParameterStep]], list[Update]]
    words: str
    source: str
    lr: float
    weight_decay: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    floors: tuple[str, ...] = ()
    check: Callable[[Group], None] = _no_check
    fresh_state: Callable[[Group, Tensor], dict[str, Any]] = _STEP_COUNT_ONLY
    optional_state: frozenset[str] = frozenset()
    direction: Direction = Direction.OTHER
    adam_moments: bool = False
    momentum: str | None = None
    orthogonalizes: bool = False
    decoupled_decay: bool = True
    adamw_vectors: bool = False
    vector_lr: float | None = None
    needs: Need | None = None
