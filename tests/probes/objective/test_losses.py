from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError, SplitLoss, rows


def test_it_is_the_mean_cross_entropy() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(CrossEntropy()(model, (x, y)), F.cross_entropy(model(x), y))
    assert torch.equal(CrossEntropy().logits(model, [x, y]), model(x))


def test_tokens_are_averaged_and_labels_may_be_probabilities() -> None:
    model, x, y = nn.Linear(3, 4).requires_grad_(False), torch.randn(2, 5, 3), torch.randint(4, (2, 5))
    hard = CrossEntropy()(model, (x, y))
    assert float(hard) == pytest.approx(float(F.cross_entropy(model(x).reshape(10, 4), y.reshape(10))), rel=1e-6)
    assert float(CrossEntropy()(model, (x, F.one_hot(y, 4).float()))) == pytest.approx(float(hard), rel=1e-6)


def test_a_batch_or_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"a batch must be a pair \(inputs, labels\), got Tensor of 5"):
        CrossEntropy()(nn.Linear(3, 4), torch.randn(5, 3))
    with pytest.raises(ProbeError, match=r"the model must return a tensor of logits \(..., C\), got tuple"):
        CrossEntropy()(nn.LSTM(3, 4), (torch.randn(5, 3), torch.zeros(5, dtype=torch.long)))


def test_the_squared_error_is_the_mean_over_all_entries() -> None:
    model, x, y = nn.Linear(3, 4).requires_grad_(False), torch.randn(5, 3), torch.randn(5, 4)
    loss = MeanSquaredError()
    assert float(loss(model, (x, y))) == pytest.approx(float(F.mse_loss(model(x), y)), rel=1e-6)
    with pytest.raises(ProbeError, match=r"targets must have the shape of the outputs \(5, 4\), got \(5, 1\)"):
        loss(model, (x, y[:, :1]))
    with pytest.raises(ProbeError, match="the model must return a tensor, got tuple: subclass MeanSquaredError"):
        loss(nn.LSTM(3, 4), (x, y))


def test_both_losses_split_into_outputs_and_a_loss_of_outputs() -> None:
    model, x = nn.Linear(3, 4).requires_grad_(False), torch.randn(5, 3)
    for loss, y in ((CrossEntropy(), torch.tensor([0, 1, 2, 3, 0])), (MeanSquaredError(), torch.randn(5, 4))):
        assert isinstance(loss, SplitLoss)
        assert torch.equal(loss.of_outputs(loss.outputs(model, (x, y)), (x, y)), loss(model, (x, y)))
    assert not isinstance(F.cross_entropy, SplitLoss)


def test_terms_marked_minus_100_are_left_out_as_in_torch() -> None:
    z, y = torch.randn(2, 3, 4), torch.tensor([[0, -100, 2], [3, 1, -100]])
    loss, batch = CrossEntropy(), (None, y)
    assert loss.terms(z, batch) == 4
    expected = F.cross_entropy(z.reshape(6, 4), y.reshape(6), reduction="none").sum() / 4
    assert float(loss.of_outputs(z, batch)) == pytest.approx(float(expected), rel=1e-6)
    assert not loss.model_fisher(z, batch)(torch.randn(2, 3, 4))[y == -100].any()
    assert loss.terms(z, (None, torch.ones(2, 3, 4))) == 6


def test_rows_are_terms() -> None:
    assert [tuple(rows(torch.ones(*shape)).shape) for shape in ((5,), (5, 3), (2, 5, 3))] == [(5, 1), (5, 3), (10, 3)]
