"""The relatives of ARS2-Neo: one optimizer, a rule for the step, and any ascent before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lossscope.optimizer.base import Params, TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.hyperparameters import SHARED, checked_group, chosen_of, period_of
from lossscope.optimizer.refusals import refuse_counters
from lossscope.optimizer.update.adam import ParameterStep, Update, adam_state, zeros_state
from lossscope.optimizer.update.matrix_view import matrix_view, track_of
from lossscope.optimizer.update.rules import RULES, Rule, adamw

__all__ = ["RuleOptimizer"]


class RuleOptimizer(TwoPassOptimizer):
    """An optimizer that steps by one of `RULES`, with passes, ascents and records as ARS2-Neo has them.

    Matrices (`ndim >= 2`, or as a group's `track` says) take the rule's step, vectors AdamW's; under `sgd` all take
    the rule's. Vectors step at the same lr unless their group says otherwise, and Muon's is large for them: `create`
    gives them a group of their own with `vector_lr`. Any ascent goes with any rule, but `ars2` and `paper` whiten it by
    a second moment, which not every rule has.

    `OneCycleLR` and `CyclicLR` cycle `betas` where a method has them. Under a rule that has a `momentum` as well those
    are of vectors alone: set `cycle_momentum=False`, or schedule the `momentum` of its groups.

    Args:
        params: Parameters, `(name, parameter)` pairs or groups.
        rule: A name in `RULES`.
        settings: `lr`, `weight_decay`, settings of the rule (`RULES[rule].settings`), or of the ascent: `mode`,
            `rho`, `k`, `alpha`, `perturbation`, `shear`, `surrogate`, ... as `ARS2Neo` has them.

    Raises:
        OptimizerError: There is no such rule, or a setting is unknown or out of its bounds.

    Source:
        `RULES[rule].source`; the formulas stand at the functions of `rules`.
    """

    def __init__(self, params: Params, rule: str, **settings: Any) -> None:
        if rule not in RULES:
            raise OptimizerError(f"there is no rule {rule!r}; known: {', '.join(RULES)}")
        self.rule = rule
        usual = RULES[rule]
        defaults = {
            **SHARED,
            "perturbation": "sam",
            "lr": usual.lr,
            "weight_decay": usual.weight_decay,
            **usual.settings,
        }
        refuse_counters(settings)
        if unknown := sorted(settings.keys() - defaults.keys()):
            raise OptimizerError(f"rule {rule} has no setting {unknown[0]!r}; known: {', '.join(chosen_of(defaults))}")
        merged = {**defaults, **settings}
        super().__init__(params, {**merged, "k": period_of(merged["mode"], settings.get("k"))})

    @property
    def optional_state(self) -> frozenset[str]:
        """A momentum that was switched on or off in between."""
        return frozenset({"momentum_buffer"} if self.rule == "sgd" else ())

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: torch's own part and the rule."""
        return {**super().__getstate__(), "rule": self.rule}

    def fresh_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """The rule's tensors for a matrix, Adam's for a vector."""
        if self._adam(group, parameter):
            return adam_state(parameter)
        rule = RULES[self.rule]
        state = zeros_state(parameter, rule.state if self.rule != "sgd" or group["momentum"] else ())
        if "row_beta" in rule.settings:
            view = matrix_view(parameter, flatten=group["flatten"], convolution=group["convolution"])
            state["row_square"] = torch.zeros_like(view[..., :1])
        return state

    def check_group(self, group: dict[str, Any], first: dict[str, Any]) -> None:
        """Settings of the whole optimizer cannot differ from those of the first group."""
        checked_group(group, first, self.defaults)
        if self.rule == "sgd" and group["nesterov"] and not group["momentum"]:
            raise OptimizerError(
                "nesterov=True looks ahead along a momentum, and momentum=0: set momentum, 0.9 is usual"
            )
        if group["perturbation"] in ("ars2", "paper") and group["mode"] != "base" and not self._whitens:
            raise OptimizerError(
                f"perturbation={group['perturbation']!r} whitens by a second moment, which {self.rule} has not: "
                "use 'sam', 'asam' or 'random_ball'"
            )

    def take(self, group: dict[str, Any], moments: Sequence[ParameterStep]) -> list[Update]:
        """Step matrices by the rule and vectors by AdamW; in the order of the moments."""
        rule: Rule = RULES[self.rule]
        vectors = [m for m in moments if self._adam(group, m.parameter)]
        others = [m for m in moments if not self._adam(group, m.parameter)]
        found = dict(zip([m.index for m in vectors], adamw(group, vectors) if vectors else [], strict=True))
        found |= zip([m.index for m in others], rule.step(group, others) if others else [], strict=True)
        return [found[m.index] for m in moments]

    @property
    def _whitens(self) -> bool:
        return "exp_avg_sq" in RULES[self.rule].state

    def _adam(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether a parameter takes AdamW's step."""
        return self.rule == "adamw" or (RULES[self.rule].vectors and track_of(group, parameter) == "vector")
