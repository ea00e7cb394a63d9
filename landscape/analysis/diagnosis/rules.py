"""All rules of diagnosis, and the verdicts on a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from lossscope.landscape.analysis.diagnosis.curvature import EDGE, NEGATIVE_MASS, UNCONVERGED
from lossscope.landscape.analysis.diagnosis.parts import ASCENT, COLLAPSE, ENTROPY, SHEAR, TRIGGER
from lossscope.landscape.analysis.diagnosis.rule import Rule, Verdict
from lossscope.landscape.analysis.diagnosis.training import DIVERGENCE, ENERGY_SPIKE, LOSS_SPIKE, OVERHEAD

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["RULES", "alarmed", "diagnose"]

RULES: Final[tuple[Rule, ...]] = (
    DIVERGENCE,
    LOSS_SPIKE,
    EDGE,
    NEGATIVE_MASS,
    COLLAPSE,
    ENTROPY,
    ENERGY_SPIKE,
    ASCENT,
    SHEAR,
    TRIGGER,
    UNCONVERGED,
    OVERHEAD,
)
_KNOWN: WeakKeyDictionary[Run, dict[Rule, Verdict]] = WeakKeyDictionary()  # a page asks more than once


def diagnose(run: Run) -> dict[Rule, Verdict]:
    """Return the verdict of each rule on a run; rules about what the run does not have are left out."""
    if run not in _KNOWN:
        _KNOWN[run] = _diagnose(run)
    return dict(_KNOWN[run])


def alarmed(runs: Iterable[Run], rule: Rule) -> bool:
    """Return True if a rule gives an alarm on one of the runs."""
    return any(verdict.level != "fine" for run in runs if (verdict := diagnose(run).get(rule)) is not None)


def _diagnose(run: Run) -> dict[Rule, Verdict]:
    """Judge a run by each rule."""
    found = ((rule, rule.judge(run)) for rule in RULES)
    return {rule: verdict for rule, verdict in found if verdict is not None}
