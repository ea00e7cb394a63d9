"""Panel: cost of each group of measures, and the reasons for what is missing."""

from __future__ import annotations

import pytest
import torch

from lossscope.landscape.measures import panel as panel_module
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


@pytest.fixture
def subject() -> MeasurementTarget:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return MeasurementTarget(Objective(model, CrossEntropy(), [(torch.randn(8, 3), torch.arange(8) % 2)]))


def test_loading_torchs_forward_rules_is_booked_on_no_measure(subject, monkeypatch):
    order: list[str] = []
    measure = panel_module.log_fisher_rao
    monkeypatch.setattr(panel_module, "load_forward_mode", lambda: order.append("rules"))
    monkeypatch.setattr(panel_module, "log_fisher_rao", lambda goal: order.append("measure") or measure(goal))
    GROUPS["log_fisher_rao"].measure(Panel(subject, SolverOptions(0.1, 0.1, 16)), ["log_fisher_rao"])
    assert order == ["rules", "measure"]


def test_a_density_names_the_cost_of_its_call(subject):
    rows = GROUPS["spectrum"].measure(Panel(subject, SolverOptions(0.1, 0.1, 16)), ["density"])
    assert rows.probes == []
    assert len(rows.densities) > 1
    for row in rows.densities:
        assert row["products"] > 0
        assert row["seconds"] > 0
        assert row["method"] == "reverse"


def test_what_has_no_optimizer_says_so_and_where_to_read_on(subject):
    panel = Panel(MeasurementTarget(subject.objective, no_optimizer="there is none"), SolverOptions(0.1, 0.1, 16))
    GROUPS["metric"].measure(panel, ["preconditioned_sharpness"])
    GROUPS["spectrum"].measure(panel, ["sharpness_edge_ratio"])
    assert set(panel.absent) == {"preconditioned_sharpness", "sharpness_edge_ratio"}
    assert set(panel.absent.values()) == {
        "there is none; use lambda_max, and directional_edge_ratio, which training records for every optimizer"
    }


def test_alignment_measures_the_eigenvectors_that_it_needs_and_takes_those_that_are_there(subject):
    panel = Panel(subject, SolverOptions(0.01, 0.1, 32))
    alone = {
        row["measure"]: row["value"]
        for row in GROUPS["alignment"].measure(panel, ["top_share", "gradient_cosine"]).probes
    }
    assert set(alone) == {"top_share", "gradient_cosine"}
    spent = panel.hessian.products
    GROUPS["alignment"].measure(panel, ["top_share"])
    assert panel.hessian.products == spent
    (five,) = GROUPS["alignment"].measure(panel, ["top5_share"]).probes
    assert panel.hessian.products > spent
    assert alone["top_share"] <= five["value"] <= 1 + 1e-6
