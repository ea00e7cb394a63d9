"""Optimizer that steps by one of the update rules, with any ascent before the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lossscope.optimizer.base import Params, TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.hyperparameters import SHARED, period_of, refuse_counters, user_settings
from lossscope.optimizer.update.adam import ParameterStep, Update
from lossscope.optimizer.update.rule import Rule
from lossscope.optimizer.update.rules import ADAMW, RULES

__all__ = ["RuleOptimizer"]


class RuleOptimizer(TwoPassOptimizer):
    """Optimizer that steps by one of `RULES`, with the passes, ascents and records of ARS2-Neo.

    Matrices (`ndim >= 2`, or as set by a group's `track`) take the rule's step. Vectors take AdamW's step if the rule
    declares `adamw_vectors`, else the rule's. Vectors use the same lr unless their group sets another one; Muon's lr is
    large for them, so `create` gives them a group of their own with `vector_lr`. Any ascent can be combined with any
    rule, except that `ars2` and `paper` need a rule with Adam's moments.

    `OneCycleLR` and `CyclicLR` cycle `betas` if a group has them. If the rule also has a `momentum`, these are the
    betas of vectors only: set `cycle_momentum=False`, or schedule the `momentum` of the groups.

    Args:
        params: Parameters, `(name, parameter)` pairs or groups.
        rule: A name in `RULES`.
        settings: `lr`, `weight_decay`, settings of the rule (`RULES[rule].settings`), or of the ascent: `mode`,
            `rho`, `k`, `alpha`, `perturbation`, `shear`, `surrogate`, ... as in `ARS2Neo`.

    Raises:
        OptimizerError: The rule is unknown, or a setting is unknown, missing or out of bounds.

    Source:
        `RULES[rule].source`; the formulas are in the docstrings of `update/rules.py`.
    """

    def __init__(self, params: Params, rule: str, **settings: Any) -> None:
        if rule not in RULES:
            raise OptimizerError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
        self.rule = rule
        declared = RULES[rule]
        defaults = {
            **SHARED,
            "perturbation": "sam",
            "lr": declared.lr,
            "weight_decay": declared.weight_decay,
            **declared.settings,
        }
        refuse_counters(settings)
        known = [*defaults, *declared.required]
        if unknown := sorted(settings.keys() - set(known)):
            raise OptimizerError(f"rule {rule} has no setting {unknown[0]!r}; known: {', '.join(user_settings(known))}")
        merged = {**defaults, **settings}
        super().__init__(params, {**merged, "k": period_of(merged["mode"], settings.get("k"))})

    @property
    def declared(self) -> Rule:
        """Declaration of the rule."""
        return RULES[self.rule]

    def __getstate__(self) -> dict[str, Any]:
        """Return the pickled state: that of torch, and the name of the rule."""
        return {**super().__getstate__(), "rule": self.rule}

    def take(self, group: dict[str, Any], moments: Sequence[ParameterStep]) -> list[Update]:
        """Step each parameter by its rule, and return the updates in the order of the moments."""
        rules = [self.rule_of(group, m.parameter) for m in moments]
        if all(rule is rules[0] for rule in rules):
            return rules[0].step(group, moments) if moments else []
        found: dict[int, Update] = {}
        for rule in (ADAMW, self.declared):
            own = [m for m, one in zip(moments, rules, strict=True) if one is rule]
            found |= zip([m.index for m in own], rule.step(group, own) if own else [], strict=True)
        return [found[m.index] for m in moments]
