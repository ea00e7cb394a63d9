"""Catalogue entries of sharpness by perturbation: rows equal the probes', on minibatches, missing with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import gaussian
from lossscope.landscape.measures.catalogue import GROUPS, recorded_groups
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.perturbation_entries import PERTURBATIONS
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.average_case import average_sharpness, low_pass_loss
from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma
from lossscope.probes.sharpness.sam import sam_sharpness
from lossscope.probes.sharpness.worst_case import worst_case_sharpness


def target() -> MeasurementTarget:
    x, y = gaussian(48, 4), torch.arange(48) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    parts = list(zip(x.split(8), y.split(8), strict=True))
    return MeasurementTarget(
        Objective(net, CrossEntropy(), [(x, y)]), minibatches=Objective(net, CrossEntropy(), parts)
    )


def rows(group: str, of: MeasurementTarget | None = None) -> tuple[Panel, dict[str, dict]]:
    panel = Panel(of or target(), SolverOptions(rel=0.01, trace_rel=0.01, max_products=30, seed=3))
    found = GROUPS[group].measure(panel, GROUPS[group].names)
    return panel, {row["measure"]: row for row in panel.with_provenance(found, 7).probes}


def test_every_row_is_that_of_its_probe() -> None:
    found = {name: row for group in PERTURBATIONS for name, row in rows(group.name)[1].items()}
    whole, parts = target().objective, target().minibatches
    assert parts is not None
    right = {
        "worst_case_l2": worst_case_sharpness(parts, rho=0.5, seed=3).sharpness,
        "worst_case_linf": worst_case_sharpness(parts, rho=0.002, norm="linf", seed=3).sharpness,
        "sam_sharpness": sam_sharpness(parts, rho=0.05).sharpness,
        "adaptive_sam_sharpness": sam_sharpness(parts, rho=0.5, relative=True).sharpness,
        "average_sharpness": average_sharpness(whole, rho=0.1, seed=3),
        "low_pass_loss": low_pass_loss(whole, sigma=0.01, seed=3),
        "pac_bayes_sigma": pac_bayes_sigma(whole, rise=0.1, seed=3),
    }
    assert list(found) == list(right)
    for name, one in right.items():
        row, on = found[name], parts if name in ("worst_case_l2", "worst_case_linf") or "sam" in name else whole
        assert (row["value"], row["low"], row["converged"]) == (one.value, one.low, one.converged)
        assert row["low"] < row["value"]
        assert (row["data_hash"], row["step"], row["seed"]) == (on.data_hash, 7, 3)
        assert row["gradients"] > 0


def test_one_that_is_missing_leaves_the_other_of_its_group() -> None:
    net = nn.Linear(4, 3).bfloat16()
    x, y = gaussian(8, 4).bfloat16(), torch.arange(8) % 3
    panel, found = rows("worst_case", MeasurementTarget(Objective(net, CrossEntropy(), [(x, y)])))
    assert list(found) == ["worst_case_l2"]
    assert panel.failed == {
        "worst_case_linf": "rho must be at least 0.031 for the dtype of these parameters, got 0.002: convert the model "
        "to float32"
    }


def test_without_minibatches_they_are_taken_on_the_batches_of_the_loss() -> None:
    whole = replace(target(), minibatches=None)
    _, found = rows("sam", whole)
    assert {row["data_hash"] for row in found.values()} == {whole.objective.data_hash}


@pytest.mark.parametrize("group", PERTURBATIONS, ids=lambda group: group.name)
def test_they_are_taken_by_name_only_and_say_what_they_cost(group) -> None:
    assert group not in [one for _, one in recorded_groups()]
    assert not group.usual
    assert group.cost_in_words
