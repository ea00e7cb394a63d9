"""The list of measures."""

from __future__ import annotations

from lossscope.landscape.curvature import CurvatureProbe
from lossscope.landscape.measure import MEASURES
from lossscope.landscape.preset import PRESETS
from lossscope.probes.loss import CrossEntropy
from lossscope.probes.objective import Objective

KNOWN = {measure.name: measure for measure in MEASURES}


def test_a_visit_writes_no_measure_that_the_list_does_not_know():
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        batch = (torch.randn(8, 3), torch.arange(8) % 2)
    objective = Objective(model, CrossEntropy(), [batch])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = CurvatureProbe(objective, PRESETS["economy"]).rows(1, before, {n: -0.01 * p for n, p in before.items()})
    assert {row["measure"] for row in rows} == set(KNOWN)


def test_the_bound_of_an_extreme_eigenvalue_says_which_side_is_open():
    assert "never above the eigenvalue" in KNOWN["lambda_max"].bound
    assert "no upper bound" in KNOWN["lambda_max"].bound
    assert "never below the eigenvalue" in KNOWN["lambda_min"].bound
    assert "no lower bound" in KNOWN["lambda_min"].bound
