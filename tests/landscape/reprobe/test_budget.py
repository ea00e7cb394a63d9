"""Least budget of each group: accepted by the measures behind it, and one product less is refused."""

from __future__ import annotations

import pytest
import torch

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.reprobe.selection import check_budget, least_products, select_measures
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


@pytest.fixture(scope="module")
def subject() -> MeasurementTarget:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        x, y = torch.randn(64, 5), torch.arange(64) % 3
    optimizer = torch.optim.AdamW(model.parameters())
    objective = Objective(model, CrossEntropy(), [(x, y)])
    objective.model(x).square().mean().backward()
    optimizer.step()
    return MeasurementTarget(objective, optimizer)


@pytest.mark.parametrize(
    "names",
    [
        ["lambda_max"],
        ["lambda_5", "trace"],
        ["lambda_max", "lambda_min"],
        ["lambda_5", "lambda_min"],
        ["sharpness_edge_ratio", "frobenius"],
        ["trace"],
        ["effective_rank"],
        ["spectrum"],
        ["metric"],
        ["adaptive_trace"],
        ["per_module"],
        ["sampling_error"],
        ["loss", "log_fisher_rao", "radial"],
    ],
)
def test_the_least_budget_is_accepted_and_one_less_is_not(names: list[str], subject: MeasurementTarget) -> None:
    for group, measures in select_measures(names, "lossscope").items():
        least = least_products(group, measures, subject.objective.size)
        GROUPS[group].measure(Panel(subject, SolverOptions(0.5, 0.5, max(least, 1))), measures)
        if least > 1:
            with pytest.raises(ProbeError):
                GROUPS[group].measure(Panel(subject, SolverOptions(0.5, 0.5, least - 1)), measures)


def refused(names: list[str], budget: int) -> str:
    with pytest.raises(ConfigError) as error:
        check_budget(select_measures(names, "lossscope"), SolverOptions(0.01, 0.01, budget), 1000)
    return str(error.value)


def test_one_error_tells_what_all_calls_need_by_the_names_that_were_asked_for() -> None:
    assert refused(["lambda_max", "trace"], 4) == "--max-products 4 is too few for lambda_max, trace: need at least 6"
    assert refused(["spectrum", "metric"], 3) == "--max-products 3 is too few for spectrum: need at least 9"
    assert refused(["metric"], 3).endswith("for preconditioned_sharpness, preconditioned_edge_ratio: need at least 4")
    check_budget(select_measures(["lambda_max", "trace"], "lossscope"), SolverOptions(0.01, 0.01, 6), 1000)
