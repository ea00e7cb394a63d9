"""A loss that writes into its batch sees the same batch each time, and the caller keeps his."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian


def in_place(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"].mul_(0.5)), batch["y"])


def popping(model: nn.Module, batch: Any) -> Tensor:
    y = batch.pop("y")
    return F.cross_entropy(model(batch["x"] * 0.5), y)


def adding(model: nn.Module, batch: Any) -> Tensor:
    batch["z"] = model(batch["x"] * 0.5)
    return F.cross_entropy(batch["z"], batch["y"])


def plain(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"] * 0.5), batch["y"])


@pytest.mark.parametrize("loss", [in_place, popping, adding])
def test_a_loss_that_writes_into_its_batch_is_that_of_the_batch(loss: Any) -> None:
    model = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(n, 3, generator=generator), "y": torch.arange(n) % 2} for n in (4, 2)]
    kept = [{key: value.clone() for key, value in batch.items()} for batch in batches]
    expected, found = Objective(model, plain, kept), Objective(model, loss, batches)
    v = torch.ones(found.size)
    assert found.value() == pytest.approx(expected.value(), rel=1e-6)
    assert torch.allclose(found.gradient(), expected.gradient(), rtol=1e-5)
    assert torch.allclose(hessian(found) @ v, hessian(expected) @ v, atol=1e-6)
    for batch, before in zip(batches, kept, strict=True):
        assert batch.keys() == before.keys()
        assert all(torch.equal(batch[key], before[key]) for key in before)


def test_parameters_are_found_by_name_inside_a_loss() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    loss = Objective(
        model, lambda m, x: m.get_parameter("0.weight").square().sum() + 0 * m(x).mean(), [torch.ones(1, 3)]
    )
    assert torch.allclose(loss.gradient(), 2 * loss.parameters())
    with pytest.raises(AttributeError):
        model.get_parameter("0.none")


def test_torchscript_is_refused_in_one_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(ProbeError, match="got one of TorchScript"):
        Objective(model, lambda m, x: m(x).mean(), [torch.ones(1, 3)])


def test_a_sparse_embedding_has_the_products_of_a_dense_one() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    loss = Objective(model, lambda m, ids: m(ids).square().mean(), [torch.tensor([0, 1, 1])])
    v = torch.ones(loss.size)
    found = hessian(loss) @ v
    model.sparse = False
    assert torch.allclose(found, hessian(loss) @ v)
    model.sparse = True
    loss.gradient()
    assert model.sparse
