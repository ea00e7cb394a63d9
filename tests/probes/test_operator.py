from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from lossscope.probes.errors import ProbeError
from lossscope.probes.loss import CrossEntropy
from lossscope.probes.objective import Objective
from lossscope.probes.operator import SymmetricOperator, from_matrix, hessian, scaled


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(n: int, seed: int = 0) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return (A + A.mT) / 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(1, -1, 4)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v)).reshape(-1, 3)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(-1, 1, 2, 2))


def dictionary_loss(model: nn.Module, batch: Any) -> Tensor:
    return ((model(batch["x"]) - 0.3) ** 2).mean() + 0.1 * sum(p.pow(4).sum() for p in model.parameters())


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "tied": Tied,
    "batchnorm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)),
    "conv": Images,
    "attention": Attention,
}


def case(name: str, counts: tuple[int, ...] = (7, 4, 1), mode: Any = "eval") -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = NETS[name.removesuffix("-dict")]().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean, module.running_var = gaussian(4), gaussian(4, seed=1).square() + 0.5
    pairs = [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in counts]
    if name.endswith("-dict"):
        return Objective(net, dictionary_loss, [{"x": x} for x, _ in pairs], mode=mode)
    return Objective(net, CrossEntropy(), pairs, mode=mode)


def dense_hessian(objective: Objective) -> Tensor:
    """The same loss as one function of a flat vector, differentiated by torch's own dense Hessian."""

    def mean_loss(theta: Tensor) -> Tensor:
        shapes = [p.shape for n, p in objective.model.named_parameters() if n in objective.names]
        parts = [part.reshape(s) for part, s in zip(theta.split([s.numel() for s in shapes]), shapes, strict=True)]
        wrapped = nn.Module()
        wrapped.model, wrapped.forward = objective.model, lambda b: objective.loss_fn(objective.model, b)
        names = [f"model.{name}" for name in objective.names]
        losses = [functional_call(wrapped, dict(zip(names, parts, strict=True)), (b,)) for b in objective.data.batches]
        counts = objective.data.counts
        return sum(c * loss for c, loss in zip(counts, losses, strict=True)) / sum(counts)

    objective.model.train(objective.mode != "eval")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(mean_loss, objective.parameters())


@pytest.mark.parametrize("name", [*NETS, "mlp-dict", "tied-dict"])
def test_the_hessian_is_torchs_dense_one(name: str) -> None:
    objective = case(name)
    H = hessian(objective)
    found = H @ torch.eye(objective.size, dtype=torch.float64)
    torch.testing.assert_close(found, dense_hessian(objective), rtol=1e-8, atol=1e-8)
    assert H.products == objective.size
    assert (H.size, H.dtype, H.device) == (objective.size, torch.float64, torch.device("cpu"))


def test_in_frozen_mode_the_hessian_goes_through_the_statistics_of_the_batch() -> None:
    objective = case("batchnorm", (8, 5), mode="frozen")
    found = hessian(objective) @ torch.eye(objective.size, dtype=torch.float64)
    torch.testing.assert_close(found, dense_hessian(objective), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("counts", [(9,), (5, 4)])
def test_held_products_are_the_same_and_the_graph_is_freed(counts: tuple[int, ...]) -> None:
    objective = case("mlp", counts)
    H, V = hessian(objective), gaussian(case("mlp").size, 3)
    forwards: list[int] = []
    objective.model.register_forward_hook(lambda *_: forwards.append(1))
    expected = H @ V
    forwards.clear()
    with H.held():
        for _ in range(4):
            torch.testing.assert_close(H @ V, expected, rtol=1e-12, atol=1e-14)
    assert len(forwards) == (1 if len(counts) == 1 else 2 * 4)
    with objective.at(objective.parameters() + 0.5):
        assert not torch.allclose(H @ V, expected)  # nothing of the old graph is left


def test_a_block_of_columns_shares_one_forward_pass() -> None:
    objective = case("mlp", (9, 3))
    objective.value()
    forwards: list[int] = []
    objective.model.register_forward_hook(lambda *_: forwards.append(1))
    found = hessian(objective) @ gaussian(objective.size, 6)
    assert len(forwards) == 2
    torch.testing.assert_close(found[:, 2], hessian(objective) @ gaussian(objective.size, 6)[:, 2])


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_hessian_is_symmetric_and_linear(seed: int) -> None:
    H = hessian(case("attention"))
    v, w = gaussian(H.size, seed=seed), gaussian(H.size, seed=seed + 1)
    Hv, Hw = H @ v, H @ w
    assert float(w @ Hv) == pytest.approx(float(v @ Hw), abs=1e-12 * float(v.norm() * w.norm()))
    torch.testing.assert_close(H @ (2 * v - 3 * w), 2 * Hv - 3 * Hw, rtol=1e-10, atol=1e-12)


def test_a_linear_loss_has_curvature_zero() -> None:
    net = nn.Linear(3, 1).double()
    objective = Objective(net, lambda m, x: m(x).mean(), [gaussian(4, 3)])
    assert not (hessian(objective) @ gaussian(4)).any()


def test_float32_products_agree_with_float64_to_single_precision() -> None:
    double = case("mlp")
    v = gaussian(double.size)
    expected = hessian(double) @ v
    single = Objective(double.model.float(), CrossEntropy(), [(x.float(), y) for x, y in double.data.batches])
    found = hessian(single) @ v
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_dense_matrix_multiplies_and_counts() -> None:
    A = symmetric(5)
    operator = from_matrix(A)
    torch.testing.assert_close(operator @ gaussian(5), A @ gaussian(5))
    torch.testing.assert_close(operator @ gaussian(5, 3), A @ gaussian(5, 3))
    assert operator.products == 4
    with operator.held():
        assert (operator @ np_ones()).dtype == torch.float64


def np_ones() -> Tensor:
    return torch.from_numpy(np.ones(5, dtype=np.float32))


def test_a_scaled_operator_is_d_a_d() -> None:
    A, d = symmetric(5), gaussian(5, seed=4)
    inner = from_matrix(A)
    found = scaled(inner, d) @ torch.eye(5)
    torch.testing.assert_close(found, d[:, None] * A * d)
    assert inner.products == 5


def test_scipy_finds_the_same_eigenvalues_through_the_operator() -> None:
    from scipy.sparse.linalg import eigsh

    H = hessian(case("mlp"))
    found = eigsh(H.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(H @ torch.eye(H.size, dtype=torch.float64))[-3:]
    np.testing.assert_allclose(np.sort(found), expected.numpy(), rtol=1e-8)
    assert H.to_scipy().dtype == np.float64


def test_matrices_and_vectors_that_do_not_fit_are_told() -> None:
    with pytest.raises(ProbeError, match="differs from its transpose by 1 where its largest entry is 1"):
        from_matrix(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ProbeError, match=r"A is torch.float32 of shape \(2, 3\)"):
        from_matrix(torch.ones(2, 3))
    with pytest.raises(ProbeError, match=r"A is torch.int64"):
        from_matrix(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ProbeError, match="differs from its transpose by nan"):
        from_matrix(torch.full((2, 2), float("nan")))
    with pytest.raises(ProbeError, match=r"shape \(3,\) cannot be multiplied: need \(2,\)"):
        from_matrix(torch.eye(2)) @ torch.ones(3)
    with pytest.raises(ProbeError, match=r"the diagonal has shape \(3,\), need 2 finite numbers"):
        scaled(from_matrix(torch.eye(2)), torch.ones(3))
    broken = SymmetricOperator(2, lambda V: V / 0, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ProbeError, match="product 1 with the operator is not finite"):
        broken @ torch.ones(2)


def test_a_gram_matrix_with_rounding_is_let_through() -> None:
    X = gaussian(200, 30).float()
    A = X.mT @ X
    A[0, 1] *= 1 + 1e-6
    assert from_matrix(A).size == 30
