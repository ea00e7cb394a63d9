"""Every public measure on every member: the right number, or a refusal with the true reason; and nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scipy.stats import binom

import lossscope.probes
from zoo.measures import MEASURES, SEEDED
from zoo.outcomes import MISSES, outcome
from zoo.public import takes
from zoo.table import MEMBERS

# further ways to the same numbers: in the fast suite for the members with `sampled` only, as measures with seeds are
ON_REQUEST = {
    "pac_bayes_sigma",
    "average_sharpness",
    "low_pass_loss",
    "softmax_ghost_radius",
    "gradient_smoothness",
    "sam_sharpness",
    "worst_case_sharpness: l2",
    "worst_case_sharpness: linf",
}  # taken by name only: likewise
VARIANTS = {"hessian: batched", "hessian: cached", "gauss_newton: batched", "gauss_newton: forward", "Objective: batch"}


def cells() -> Iterator[Any]:
    """Yield every measure on every member; sampled ones on most members are slow."""
    for member, one in MEMBERS.items():
        for measure in MEASURES if member != "gpt_11m" else ():
            rare = measure in SEEDED | VARIANTS | ON_REQUEST
            marks = [pytest.mark.slow] if one.slow or (rare and not one.sampled) else []
            yield pytest.param(member, measure, id=f"{member}-{measure}", marks=marks)


@pytest.mark.parametrize(("member", "measure"), [*cells()])
def test_a_measure_is_right_or_refuses_with_the_true_reason(member: str, measure: str) -> None:
    found = outcome(member, measure)
    words = MEMBERS[member].refusal(measure)
    assert not found.touched
    assert not found.error
    if words is None:
        assert not found.refusal
        assert not found.failures
    else:
        assert words in found.refusal


@pytest.mark.parametrize("name", [name for name, one in MEMBERS.items() if one.sampled])
def test_few_intervals_of_a_member_miss(name: str) -> None:
    checks = [check for measure in SEEDED for check in outcome(name, measure).sampled]
    assert sum(check.missed for check in checks) <= binom.ppf(0.999, len(checks), MISSES)


def test_every_public_probe_of_an_objective_is_measured() -> None:
    names = [name for name in lossscope.probes.__all__ if takes(getattr(lossscope.probes, name), "Objective")]
    others = {"budget", "over_ranks"}  # a cost, and another objective: each has a file of tests
    assert not set(names) - others - {measure.partition(":")[0] for measure in MEASURES}
