from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.loss import CrossEntropy


def test_it_is_the_mean_cross_entropy() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(CrossEntropy()(model, (x, y)), F.cross_entropy(model(x), y))
    assert torch.equal(CrossEntropy().logits(model, [x, y]), model(x))


def test_tokens_are_averaged_and_labels_may_be_probabilities() -> None:
    model, x, y = nn.Linear(3, 4).requires_grad_(False), torch.randn(2, 5, 3), torch.randint(4, (2, 5))
    hard = CrossEntropy()(model, (x, y))
    assert float(hard) == pytest.approx(float(F.cross_entropy(model(x).reshape(10, 4), y.reshape(10))), rel=1e-6)
    assert float(CrossEntropy()(model, (x, F.one_hot(y, 4).float()))) == pytest.approx(float(hard), rel=1e-6)


def test_a_batch_or_a_model_of_another_kind_is_told() -> None:
    with pytest.raises(ProbeError, match=r"a batch is a Tensor of 5, need a pair \(inputs, labels\)"):
        CrossEntropy()(nn.Linear(3, 4), torch.randn(5, 3))
    with pytest.raises(ProbeError, match="the model returned tuple, need a tensor of logits"):
        CrossEntropy()(nn.LSTM(3, 4), (torch.randn(5, 3), torch.zeros(5, dtype=torch.long)))
