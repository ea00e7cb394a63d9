"""Measures on request: their rows are the values of the probes behind them, under the right names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.measures.detail_rows import batch_rows, module_rows, sampling_rows
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue

EFFORT = SolverOptions(0.05, 0.05, 40, seed=3)
NAMES = set(known_measures())


@pytest.fixture
def objective() -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        data = torch.randn(64, 5, dtype=torch.float64), torch.randint(0, 3, (64,))
    return Objective(model, CrossEntropy(), [data])


def by_measure(rows, tensor=None):
    return {row["measure"]: row for row in rows.probes if row["tensor"] == tensor}


def test_a_row_for_every_module_and_measure_and_one_for_what_lies_between(objective):
    rows = module_rows(hessian(objective), EFFORT)
    table = per_module(hessian(objective), by="module", rel=0.05, max_products=40, seed=3)
    assert {row["tensor"] for row in rows.probes} == {"0", "2", None}
    assert {row["measure"] for row in rows.probes} <= NAMES
    for block in table.rows:
        found = by_measure(rows, block.name)
        for name in ("trace", "lambda_max", "frobenius", "trace_share", "frobenius_share"):
            assert found[name]["value"] == getattr(block, name).value
            assert found[name]["products"] == table.products
    assert by_measure(rows)["cross_block_share"]["value"] == table.cross_share.value


def test_the_three_numbers_over_samples_of_data_keep_their_names(objective):
    rows = by_measure(sampling_rows(MeasurementTarget(objective), EFFORT, frozenset(NAMES)))
    found = sampled_eigenvalue(objective, rel=0.05, max_products=40, seed=3)
    assert rows["lambda_max_in_sample"]["value"] == found.in_sample.value
    assert rows["lambda_max_cross_fitted"]["value"] == found.cross_fitted.value
    assert rows["lambda_max_population"]["value"] == found.population.value
    assert rows["lambda_max_population"]["high"] == found.population.high
    only = sampling_rows(MeasurementTarget(objective), EFFORT, frozenset({"lambda_max_population"}))
    assert list(by_measure(only)) == ["lambda_max_population"]


def test_batch_sharpness_is_taken_on_the_minibatches_and_says_so(objective):
    batches = [(x, y) for x, y in zip(*(part.split(8) for part in objective.data.batches[0]), strict=True)]
    minibatches = Objective(objective.model, CrossEntropy(), batches)
    rows = by_measure(batch_rows(MeasurementTarget(objective, minibatches=minibatches), frozenset(NAMES)))
    found = batch_sharpness(minibatches)
    assert rows["batch_sharpness"]["value"] == found.mean_of_ratios.value
    assert rows["batch_sharpness_ratio_of_means"]["value"] == found.ratio_of_means.value
    assert {row["data_hash"] for row in rows.values()} == {minibatches.data_hash} != {objective.data_hash}
