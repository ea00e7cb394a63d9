"""Logit scale: closed forms, invariance, and losses without logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossscope.probes import CrossEntropy, MeanSquaredError, Objective, ProbeError, logit_scale


def identity(logits: list[list[float]], labels: list[int], *sizes: int) -> Objective:
    """Return an objective whose inputs are the logits, in batches of these sizes."""
    net = nn.Linear(len(logits[0]), len(logits[0]), bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.eye(len(logits[0])))
    z, y = torch.tensor(logits, dtype=torch.float64), torch.tensor(labels)
    batches = list(zip(z.split(sizes or (len(z),)), y.split(sizes or (len(z),)), strict=True))
    return Objective(net, CrossEntropy(), batches)


def test_norm_and_margin_are_means_over_the_samples_whatever_the_batches() -> None:
    logits, labels = [[3.0, 0.0, 0.0], [1.0, 5.0, 2.0], [0.0, 0.0, 6.0]], [0, 2, 2]
    z = torch.tensor(logits)
    expected = float((z - z.mean(1, keepdim=True)).norm(dim=1).mean())
    for sizes in ((3,), (1, 2)):
        found = logit_scale(identity(logits, labels, *sizes))
        assert found.norm.value == pytest.approx(expected)
        assert found.margin.value == pytest.approx((3 - 3 + 6) / 3)
        assert found.norm.stderr == 0


def test_a_number_added_to_all_logits_changes_neither() -> None:
    plain = logit_scale(identity([[3.0, 1.0], [0.0, 2.0]], [0, 1]))
    moved = logit_scale(identity([[13.0, 11.0], [-5.0, -3.0]], [0, 1]))
    assert (moved.norm.value, moved.margin.value) == pytest.approx((plain.norm.value, plain.margin.value))


def test_labels_left_out_count_for_nothing() -> None:
    with_it = logit_scale(identity([[3.0, 1.0], [9.0, -9.0]], [0, -100]))
    without = logit_scale(identity([[3.0, 1.0]], [0]))
    assert (with_it.norm.value, with_it.margin.value) == (without.norm.value, without.margin.value)


def test_tokens_are_terms_and_probabilities_have_no_margin() -> None:
    net = nn.Linear(3, 4)
    x, y = torch.randn(2, 5, 3), torch.randint(0, 4, (2, 5))
    deep, flat = (logit_scale(Objective(net, CrossEntropy(), [d])) for d in ((x, y), (x.flatten(0, 1), y.flatten())))
    assert deep == flat or deep.margin.value == pytest.approx(flat.margin.value)
    soft = logit_scale(Objective(net, CrossEntropy(), [(x, F.one_hot(y, 4).float())]))
    assert soft.norm.value == pytest.approx(deep.norm.value)
    assert math.isnan(soft.margin.value)


def test_a_loss_without_logits_and_logits_that_overflow_are_refused() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(
        ProbeError, match="requires a loss with logits and labels, got MeanSquaredError: use CrossEntropy"
    ):
        logit_scale(Objective(net, MeanSquaredError(), [(torch.ones(3, 2), torch.ones(3, 2))]))
    with torch.no_grad():
        net.weight.fill_(math.inf)
    with pytest.raises(ProbeError):
        logit_scale(Objective(net, CrossEntropy(), [(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))]))
