from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, asymmetry
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.method import BatchProduct, graph_bytes
from lossscope.probes.sharpness.directional import directional_sharpness
from zoo.layers import Cube

METHODS = ("reverse", "batched", "forward", "linearize", "differences")


def identity(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def dense_hessian(objective: Objective) -> Tensor:
    """Return torch's dense Hessian of the loss as one function of a flat vector."""

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


def forwards(objective: Objective) -> list[int]:
    """Return a list that grows by one with each forward pass."""
    passes: list[int] = []
    objective.model.register_forward_hook(lambda *_: passes.append(1))
    return passes


WAYS = [(m, n) for m in ("reverse", "batched", "forward", "differences") for n in ("mlp", "tied", "attention")]
WAYS += [("reverse", n) for n in ("dictionary", "frozen parameters", "batch norm", "dropout", "conv and group norm")]
WAYS += [("linearize", "mlp"), ("forward", "conv and group norm")]


@pytest.mark.parametrize(("method", "name"), WAYS)
def test_each_method_gives_torchs_dense_hessian_over_unequal_batches(method: str, name: str, make_case: Any) -> None:
    objective = make_case(name).objective()
    H = hessian(objective, method=method)
    with H.cached():
        found = H @ identity(H.size)
    bound = 1e-7 if method == "differences" else 1e-8
    torch.testing.assert_close(found, dense_hessian(objective), rtol=bound, atol=bound)
    assert H.products == H.size
    assert (H.size, H.dtype, H.device) == (objective.size, torch.float64, torch.device("cpu"))
    assert (H.method, H.is_hessian, H.objective, H.names) == (method, True, objective, objective.names)


def test_a_method_that_raises_says_why_and_is_not_replaced_unless_it_is_the_default(make_case: Any) -> None:
    objective = make_case("conv and group norm", (5,)).objective()
    for method in ("batched", "linearize"):  # torch has no rule for group norm there
        with pytest.raises(
            ProbeError, match=rf"method={method} cannot take products here \(RuntimeError: .+use method="
        ):
            hessian(objective, method=method) @ torch.ones(objective.size, 2)
    assert hessian(objective).method == "reverse"


def test_unknown_methods_and_a_negative_memory_are_refused(make_case: Any) -> None:
    objective = make_case("mlp").objective()
    with pytest.raises(ProbeError, match=r"method must be one of .*differences.*, got 'fast'"):
        hessian(objective, method="fast")
    with pytest.raises(ProbeError, match=r"method must be one of .*, got 'compile'"):  # on the CPU
        hessian(objective, method="compile")
    with pytest.raises(ProbeError, match="memory must be at least 0 bytes, got -1"):
        hessian(objective, memory=-1)


def test_in_frozen_mode_the_hessian_goes_through_the_statistics_of_the_batch(make_case: Any) -> None:
    objective = make_case("batch norm", (8, 5)).objective("frozen")
    expected = dense_hessian(objective)
    for method in ("reverse", "batched", "differences"):
        found = hessian(objective, method=method) @ identity(objective.size)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("memory", [0, 5000, 2**30])
def test_graphs_are_kept_within_the_memory_and_products_are_the_same(memory: int, make_case: Any) -> None:
    objective = make_case("mlp", (40, 6)).objective()
    V = gaussian(objective.size, 3)
    expected = hessian(objective) @ V
    H, passes = hessian(objective, memory=memory), forwards(objective)
    with H.cached(), H.cached():
        for _ in range(4):
            torch.testing.assert_close(H @ V, expected, rtol=1e-12, atol=1e-14)
        # all graphs are kept, that of the small batch alone, or none
        assert len(passes) == {0: 8, 5000: 5, 2**30: 2}[memory]
    with objective.at(objective.parameters() + 0.5):
        assert not torch.allclose(H @ V, expected)  # nothing of the old graphs is left


class Ageing(nn.Module):
    """A loss that grows with every call since its buffer was last reset."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(gaussian(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return (self.w * x).pow(2).sum() * (1 + self.calls)


@pytest.mark.parametrize("graphs", [0, 1.5, 2.5, 100])
def test_in_train_mode_buffers_move_from_batch_to_batch_whatever_is_kept(graphs: float) -> None:
    batches = [gaussian(3, seed=seed) for seed in range(3)]
    objective = Objective(Ageing(), lambda m, x: m(x), batches, mode="train", count=lambda _: 1)
    with objective.evaluating():
        batch = next(objective.gradients(graph=True))
    size = graph_bytes(BatchProduct(lambda rows, keep: rows, batch.parts, batch.leaves))
    H = hessian(objective, memory=graphs * size)
    diagonal = sum((2 + i) * x.square() for i, x in enumerate(batches)) * 2 / 3
    with H.cached():
        for _ in range(3):
            torch.testing.assert_close(H @ identity(3), torch.diag(diagonal))
    with pytest.raises(ProbeError, match="method='forward' does not support mode='train', which updates buffers"):
        hessian(objective, method="forward") @ torch.ones(3)


def test_a_block_of_columns_shares_one_pass_over_the_batches(make_case: Any) -> None:
    objective = make_case("mlp", (9, 3)).objective()
    objective.value()
    passes, V = forwards(objective), gaussian(objective.size, 6)
    found = hessian(objective) @ V
    assert len(passes) == 2
    torch.testing.assert_close(found[:, 2], hessian(objective) @ V[:, 2])


def test_the_first_graph_serves_as_one_of_the_two_evaluations_that_are_compared(make_case: Any) -> None:
    objective = make_case("mlp", (9, 3)).objective()
    passes = forwards(objective)
    H = hessian(objective)
    with H.cached():
        H @ gaussian(objective.size)
        assert len(passes) == 2 * 2
        assert H.gradient_seconds > 0
    passes.clear()
    fresh = hessian(objective)
    assert math.isnan(fresh.gradient_seconds)
    fresh @ gaussian(objective.size)
    assert len(passes) == 2


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_hessian_is_symmetric_and_linear(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    H = hessian(Objective(net, CrossEntropy(), [(gaussian(6, 4, seed=seed), torch.arange(6) % 3)]))
    assert asymmetry(H, seed) < 1e-12
    v, w = gaussian(H.size, seed=seed), gaussian(H.size, seed=seed + 1)
    torch.testing.assert_close(H @ (2 * v - 3 * w), 2 * (H @ v) - 3 * (H @ w), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_loss_has_curvature_zero(method: str) -> None:
    net = nn.Linear(3, 1).double()
    H = hessian(Objective(net, lambda m, x: m(x).mean(), [gaussian(4, 3)]), method=method)
    with H.cached():
        assert float((H @ gaussian(4, 2)).abs().max()) < 1e-10


@pytest.mark.parametrize("method", ["reverse", "batched", "forward", "differences"])
def test_a_parameter_the_loss_does_not_contain_has_a_zero_row(method: str, make_case: Any) -> None:
    net = nn.ModuleDict({"unused": nn.Linear(2, 2), "used": make_case("mlp").net}).double()
    objective = Objective(net, lambda m, b: CrossEntropy()(m["used"], b), make_case("mlp").pairs)
    found = hessian(objective, method=method) @ gaussian(objective.size, 2)
    assert not found[:6].any()
    assert found[6:].any()


@pytest.mark.parametrize("method", ["reverse", "batched", "forward"])
def test_float32_products_agree_with_float64_to_single_precision(method: str, make_case: Any) -> None:
    double = make_case("attention").objective()
    v = gaussian(double.size, 2)
    expected = hessian(double) @ v
    single = Objective(double.model.float(), CrossEntropy(), [(x.float(), y) for x, y in double.data.batches])
    H = hessian(single, method=method)
    found = H @ v
    assert found.dtype == torch.float32
    assert H.unit == torch.finfo(torch.float32).eps
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_model_in_half_precision_says_how_coarse_its_products_are(make_case: Any) -> None:
    net = make_case("mlp").net
    net[0].bfloat16()
    objective = Objective(net, lambda m, x: m[2](m[1](m[0](x)).double()).square().mean(), [gaussian(6, 4).bfloat16()])
    H = hessian(objective)
    found = H @ gaussian(objective.size, 2)
    assert found.dtype == torch.float64
    assert H.unit == torch.finfo(torch.bfloat16).eps
    expected = hessian(Objective(net.double(), objective.loss_fn, [gaussian(6, 4)])) @ gaussian(objective.size, 2)
    assert float((found - expected).norm() / expected.norm()) < 10 * H.unit


def test_scipy_finds_the_same_eigenvalues_through_the_operator(make_case: Any) -> None:
    from scipy.sparse.linalg import eigsh

    H = hessian(make_case("mlp").objective())
    found = eigsh(H.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(H @ identity(H.size))[-3:]
    np.testing.assert_allclose(np.sort(found), expected.numpy(), rtol=1e-8)
    assert H.to_scipy().dtype == np.float64


def test_a_layer_that_writes_into_its_weight_does_not_reach_the_model() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 3)).double()
    objective = Objective(net, CrossEntropy(), [(torch.tensor([0, 1, 4, 4]), torch.tensor([0, 1, 2, 0]))])
    before = objective.parameters()
    found = hessian(objective) @ identity(objective.size)
    objective.value()
    assert torch.equal(objective.parameters(), before)
    assert float(found.norm()) > 0.1


class Power(torch.autograd.Function):
    """The fifth power, whose derivative cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**5

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 5 * ctx.saved_tensors[0] ** 4 * slope


class FusedSquare(torch.autograd.Function):
    """The mean of squares, whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(2 * x / x.numel())
        return x.square().mean()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * ctx.saved_tensors[0]


def relu_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_fused_loss_that_loses_its_second_derivative_is_found_out() -> None:
    net, x = relu_net().double(), gaussian(200, 4)
    fused = Objective(net, lambda m, b: FusedSquare.apply(m(b) - 1), [x[:120], x[120:]])
    plain = Objective(net, lambda m, b: (m(b) - 1).square().mean(), [x[:120], x[120:]])
    v = gaussian(fused.size)
    H = hessian(fused)
    torch.testing.assert_close(H @ v, hessian(plain) @ v, rtol=1e-4, atol=1e-5)
    assert H.method == "differences"
    with pytest.raises(ProbeError, match="the backward pass of FusedSquare has no derivative of its own"):
        directional_sharpness(fused, v)
    assert directional_sharpness(plain, v).curvature.value == pytest.approx(float(v @ (H @ v)), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_of_ones_own_that_can_be_differentiated_twice_is_left_alone(dtype: torch.dtype) -> None:
    net, x = relu_net().to(dtype), gaussian(500, 4).to(dtype)
    own = hessian(Objective(net, lambda m, b: Cube.apply(m(b) - 1).mean(), [x]))
    plain = hessian(Objective(net, lambda m, b: ((m(b) - 1) ** 3).mean(), [x]))
    v = gaussian(own.size)
    torch.testing.assert_close(own @ v, plain @ v, rtol=1e-4, atol=1e-5)
    assert own.method == "reverse"


def powers(n: int, dtype: torch.dtype) -> tuple[Objective, Tensor]:
    """Return the mean of fifth powers and the diagonal of its Hessian."""
    net = nn.Module()
    net.theta = nn.Parameter(1 + gaussian(n).to(dtype).abs())
    return Objective(net, lambda m, _: Power.apply(m.theta).mean(), [torch.zeros(1)]), 20 * net.theta.detach() ** 3 / n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_there_is_no_second_derivative_differences_replace_it(dtype: torch.dtype) -> None:
    n = 20_000
    objective, diagonal = powers(n, dtype)
    H = hessian(objective)
    signs = gaussian(n, 2).sign().to(dtype)
    with H.cached():
        found = H @ signs
    assert H.method == "differences"
    assert "reverse cannot take products here (SecondDerivativeError: a product with the Hessian" in H.fallback_reason
    error = float((found - diagonal[:, None] * signs).norm() / (diagonal.norm() * math.sqrt(2)))
    assert error < {torch.float32: 1e-6, torch.float64: 1e-8}[dtype]  # differences are taken in float64
    assert error < 3 * H.unit < 1e-6  # and it says how inexact it is
    with pytest.raises(ProbeError, match=r"method=batched cannot .+ by 100%: the backward pass of Power has no"):
        hessian(objective, method="batched") @ signs
    for length in (1e-6, 1e6):  # the length of a vector plays no part
        again = hessian(objective, method="differences") @ (length * signs)
        assert float((again / length - found).norm()) < 1e-6 * float(found.norm())


def test_differences_of_a_model_that_knows_float32_only_say_that_they_are_coarse() -> None:
    net, x = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), gaussian(50, 8).float()
    matrix = gaussian(3, 3).float()
    objective = Objective(net, lambda m, b: ((m(b) @ matrix) ** 2).mean(), [x])
    v = gaussian(objective.size, 2).float()
    H, expected = hessian(objective, method="differences"), hessian(objective) @ v
    error = float((H @ v - expected).norm() / expected.norm())
    assert 1e-6 < error < 3 * H.unit
    assert H.unit < 1e-2
    fine = hessian(Objective(net, lambda m, b: (m(b) ** 2).mean(), [x]), method="differences")
    assert math.isnan(fine.gradient_seconds)
    fine @ v
    assert fine.unit < 1e-6
    assert fine.gradient_seconds > 0


def test_an_error_in_the_loss_itself_comes_out_as_it_is(make_case: Any) -> None:
    objective = Objective(make_case("mlp").net, lambda m, x: F.cross_entropy(m(x), x), [gaussian(5, 4)])
    with pytest.raises(RuntimeError, match=r"size|shape|target"):
        hessian(objective) @ gaussian(objective.size)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(take: Callable[[SymmetricOperator, Tensor], Any], cached: bool) -> int:
    """Return the growth of resident memory over 200 products whose graph takes 2 MiB, without the cycle collector."""
    net = nn.Sequential(nn.Linear(2, 512), nn.Tanh(), nn.Linear(512, 2))
    objective = Objective(net, CrossEntropy(), [(gaussian(1000, 2).float(), torch.arange(1000) % 2)])
    H, v = hessian(objective), gaussian(objective.size).float()

    def run(products: int) -> None:
        for _ in range(products):
            take(H, v)

    gc.collect()
    gc.disable()
    try:
        with H.cached() if cached else objective.evaluating():
            run(20)
            before = resident_bytes()
            run(200)
            return resident_bytes() - before
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_200_products_leave_no_memory_behind(cached: bool) -> None:
    assert growth(lambda H, v: H @ v, cached) < 40 * 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_leak_would_be_seen() -> None:
    graphs: list[Any] = []

    def leaking(H: SymmetricOperator, _: Tensor) -> None:
        if len(graphs) < 120:
            graphs.append(next(H.objective.gradients(graph=True)))

    assert growth(leaking, cached=False) > 80 * 2**20
