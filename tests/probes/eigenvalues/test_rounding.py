"""Rounding of products, measured and part of every bound: where terms cancel, float32 keeps few digits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import Vector, dense, gaussian
from lossscope.probes.eigenvalues import block_krylov
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.rounding_cause import rounding_remedy
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.invariant import adaptive_trace, theta_hessian_theta
from lossscope.probes.statistics.estimate import Estimate


def separable(scale: float, dtype: torch.dtype = torch.float32) -> Objective:
    """Return a linear classifier of separable data whose logits have a scale: the loss falls to 0 with it."""
    x, w = gaussian(50, 3, dtype=torch.float32), torch.tensor([[1.0, 0.5, -0.2]])
    y = (x @ w.mT > 0).long()[:, 0]
    x = x + (2 * y[:, None] - 1) * w / w.norm() * 0.7
    net = nn.Linear(3, 2, bias=False)
    net.weight.data.copy_(torch.cat([-w, w]) * scale)
    return Objective(net.to(dtype), CrossEntropy(), [(x.to(dtype), y)])


@cache
def trained(seed: int, width: int, last: int = 1500) -> tuple[list[nn.Module], Tensor, Tensor]:
    """Return networks after 50, 100, 200, 400, ... steps of a training that comes to fit its data, and the data."""
    torch.manual_seed(seed)
    x = torch.randn(40, 5)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    net = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))
    optimizer, found = torch.optim.Adam(net.parameters(), lr=0.05), []
    for step in range(last + 1):
        if step in (50, 100, 200, 400, 800, 1500, 3000, 6000):
            found.append(copy.deepcopy(net))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return found, x, y


def fitted(
    index: int, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 8, last: int = 1500
) -> Objective:
    """Return the loss of one of the networks."""
    nets, x, y = trained(seed, width, last)
    return Objective(copy.deepcopy(nets[index]).to(dtype), CrossEntropy(), [(x.to(dtype), y)])


def covers(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def misses(objective: Objective) -> list[str]:
    """Return the exact numbers whose interval excludes the float64 value."""
    H = dense(hessian(objective.in_double()))
    values, theta = torch.linalg.eigvalsh(H), objective.parameters().double()
    found = measure_spectrum(hessian(objective), top=1, max_products=200)
    pairs = {
        "top": (found.top.estimate(), float(values[-1])),
        "bottom": (found.bottom.estimate(), float(values[0])),
        "theta'H theta": (theta_hessian_theta(objective), float(theta @ H @ theta)),
        "tracked": (EigenTracker(rel=1e-3).measure(hessian(objective)).top.estimate(), float(values[-1])),
    }
    if found.trace.bound == "exact":
        pairs["trace"] = found.trace, float(values.sum())
        pairs["norm"] = found.frobenius, float(values.norm())
        pairs["adaptive trace"] = adaptive_trace(objective), float((theta.square() * H.diagonal()).sum())
    return [name for name, (estimate, truth) in pairs.items() if not covers(estimate, truth)]


@pytest.mark.parametrize("scale", [1.0, 4.0, 6.0, 8.0, 10.0, 12.0])
def test_the_bounds_contain_the_truth_however_well_the_data_is_fitted(scale: float) -> None:
    assert misses(separable(scale)) == []


def test_without_the_measured_rounding_the_bounds_would_exclude_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counterexample: the test above can fail."""
    monkeypatch.setattr(SymmetricOperator, "product_error", lambda *_: None)
    monkeypatch.setattr(block_krylov, "_ASYMMETRY", math.inf)
    assert {"top", "trace", "adaptive trace", "theta'H theta"} <= set(misses(separable(6.0)))


@pytest.mark.parametrize("index", [1, 3, 5])
def test_the_bounds_of_a_fitted_network_contain_the_truth(index: int) -> None:
    assert misses(fitted(index)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_the_bounds_of_many_fitted_networks_contain_the_truth(seed: int) -> None:
    for index in range(8):
        assert misses(fitted(index, seed, width=12, last=6000)) == [], index


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("make", [hessian, gauss_newton])
def test_an_exact_number_of_a_float64_model_contains_the_dense_value(make: Callable[..., Any], seed: int) -> None:
    objective = fitted(0, seed, torch.float64, width=2, last=50)
    A = dense(make(objective))
    found = measure_spectrum(make(objective), top=1, seed=seed)
    for estimate, truth in ((found.trace, A.trace()), (found.frobenius, A.norm())):
        assert estimate.bound == "exact"
        assert estimate.low < float(truth) < estimate.high
        assert estimate.high - estimate.low < 1e-9 * float(truth)
        assert estimate.converged


def test_where_rounding_exceeds_the_requested_bound_it_is_named_and_the_remedy_works() -> None:
    objective = separable(10.0)
    found = measure_spectrum(hessian(objective), top=1)
    assert {"top", "trace"} <= set(found.unmet)
    assert "are off by up to" in found.cause
    assert "objective.in_double()" in found.cause
    again = measure_spectrum(hessian(objective.in_double()), top=1)
    assert not again.unmet
    assert not again.cause
    assert covers(found.top.estimate(), again.top.estimate().value)
    H = dense(hessian(objective.in_double()))
    assert again.top.estimate().value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-6)
    assert again.trace.value == pytest.approx(float(H.trace()), rel=1e-6)


def autocast(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[0])
    return F.cross_entropy(logits.float(), batch[1])


@pytest.mark.parametrize("width", [5, 16, 64])
@pytest.mark.parametrize("method", ["reverse", "differences"])
def test_under_autocast_the_bounds_contain_the_truth(width: int, method: str) -> None:
    torch.manual_seed(width)
    x, y = torch.randn(100, 4), torch.randint(0, 3, (100,))
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    plain, objective = Objective(net, CrossEntropy(), [(x, y)]), Objective(net, autocast, [(x, y)])
    truth = measure_spectrum(hessian(plain.in_double()), top=1, rel=1e-8, quantities=("top",)).top.estimate().value
    found = measure_spectrum(hessian(objective, method=method), top=1, rel=1e-3, quantities=("top",))
    assert covers(found.top.estimate(), truth)
    if method == "reverse":
        assert found.unmet == ("top",)
        assert "in_double" in found.cause
    else:
        assert found.top.estimate().value == pytest.approx(truth, rel=1e-3)
        assert not found.unmet
    assert covers(EigenTracker(rel=1e-3).measure(hessian(objective, method=method)).top.estimate(), truth)


def test_the_cause_names_the_arithmetic_and_the_remedy_is_one_that_works() -> None:
    x, y = gaussian(60, 4, dtype=torch.float32), torch.arange(60) % 3
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    lowered = Objective(net, autocast, [(x, y)])
    found = measure_spectrum(hessian(lowered), top=1, rel=1e-4, quantities=("top", "trace"))
    assert "float32 with factors in bfloat16" in found.cause
    assert found.cause.endswith("measure objective.in_double(), or raise rel")
    assert found.top.estimate().cause in found.cause
    assert "of the trace" in found.trace.cause
    assert "bfloat16" in EigenTracker(rel=1e-4).measure(hessian(lowered)).top.estimate().cause
    fitted_well = measure_spectrum(hessian(separable(10.0)), top=1, quantities=("top",))
    assert "large terms cancel" in fitted_well.cause
    assert "large terms cancel" not in found.cause
    assert rounding_remedy(hessian(lowered), 2.0) == "measure objective.in_double()"  # no rel below 1 helps
    assert rounding_remedy(hessian(lowered.in_double()), 0.5) == "raise rel"
    assert "no digit is left" in rounding_remedy(hessian(lowered.in_double()), 2.0)
    easy = measure_spectrum(hessian(lowered.in_double()), top=1, quantities=("top", "trace"), max_products=100)
    assert not easy.cause
    assert not easy.top.estimate().cause
    assert not easy.trace.cause


def test_the_float64_copy_ignores_conversions_inside_the_loss() -> None:
    x, y = gaussian(20, 4, dtype=torch.float32), torch.arange(20) % 3
    net = nn.Linear(4, 3)
    for rounded in (lambda z: z.float(), lambda z: z.to(torch.float32), lambda z: z.to(dtype=torch.bfloat16)):
        objective = Objective(net, lambda m, b, r=rounded: F.cross_entropy(r(m(b[0])), b[1]), [(x, y)])
        assert objective.in_double().value() == Objective(net, CrossEntropy(), [(x, y)]).in_double().value()


def indefinite() -> Tensor:
    values = torch.cat([torch.tensor([10.0, 5.0, 2.0]), torch.linspace(0, 0.1, 75), torch.tensor([-1.0, -0.5])])
    Q = torch.linalg.qr(gaussian(80, 80))[0]
    return (Q * values.double()) @ Q.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-15, 1.0, 1e15, 1e20, 1e30])
def test_every_scale_gives_the_same_spectrum(size: float, dtype: torch.dtype) -> None:
    A = indefinite()
    operator = from_matrix((A * size).to(dtype))
    found = measure_spectrum(operator, top=2, max_products=80)
    assert found.top.values.tolist() == pytest.approx([10 * size, 5 * size], rel=1e-4)
    assert found.bottom.estimate().value == pytest.approx(-size, rel=1e-2)
    assert found.trace.value == pytest.approx(float(A.trace()) * size, rel=0.05)
    assert covers(found.trace, float(A.trace()) * size)
    assert found.frobenius.value == pytest.approx(float(A.norm()) * size, rel=0.05)
    assert found.density.negative_mass.value == pytest.approx(1.5 / 22.25, rel=0.5)
    assert EigenTracker().measure(operator).top.estimate().value == pytest.approx(10 * size, rel=1e-2)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_scales_whose_powers_float64_does_not_hold_are_refused_with_the_factor_that_helps(size: float) -> None:
    operator = from_matrix(indefinite() * size)
    for measure in (
        lambda: measure_spectrum(operator, top=1),
        lambda: measure_spectrum(operator, quantities=("trace",)),
        lambda: EigenTracker().measure(operator),
    ):
        with pytest.raises(
            ProbeError, match=r"products must have entries between 1e-70 and 1e\+70 .* multiply the loss"
        ):
            measure()


class Asymmetric(torch.autograd.Function):
    """Identity whose gradient has a derivative of its own that is not symmetric."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(theta, shift)
        return theta.square().sum() / 2

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        theta, shift = ctx.saved_tensors
        return slopes[0] * (theta + shift @ theta), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_wrong_second_derivative_is_still_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = 0.05 * gaussian(60, 60, dtype=dtype)
    model = Vector(gaussian(60, dtype=dtype))
    objective = Objective(model, lambda m, b: Asymmetric.apply(m.theta, b), [shift])
    objective.verified |= {"reverse"}  # the comparison with differences is not what is tested
    with pytest.raises(ProbeError, match=r"not symmetric: q'Ap and p'Aq differ by .* of the norm of a product"):
        measure_spectrum(hessian(objective), top=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks_that_fit_their_data_are_not_called_asymmetric(dtype: torch.dtype) -> None:
    found = measure_spectrum(hessian(fitted(5, 0, dtype)), top=1, quantities=("top",))
    assert found.top.estimate().value > 0


@pytest.mark.parametrize("scale", [6.0, 12.0, 16.0, 18.0])
def test_float64_is_right_or_says_so_where_float32_has_lost_all_digits(scale: float) -> None:
    """Losses of 1e-6 to 1e-18: p (1 - p) keeps ten digits to none, and products in float32 do not tell how many."""
    objective = separable(scale, torch.float64)
    x, _ = objective.data.batches[0]
    margins = (x @ (objective.model.weight[1] - objective.model.weight[0])).abs().detach()
    weights = margins.neg().exp() / (1 + margins.neg().exp()).square()
    truth = 2 * float(torch.linalg.eigvalsh((x.mT * weights) @ x)[-1]) / len(x)
    found = measure_spectrum(hessian(objective), top=1, quantities=("top",))
    assert covers(found.top.estimate(), truth)
    assert found.top.estimate().residual > abs(found.top.estimate().value - truth)
    assert bool(found.unmet) == (objective.value() < 1e-13)


@pytest.mark.parametrize("scale", [6.0, 12.0, 18.0, 24.0, 40.0])
def test_the_form_of_the_parameters_in_float64_covers_its_value_down_to_a_loss_of_zero(scale: float) -> None:
    """The loss is exactly 0 for the last two, where products in float32 have lost the same digits."""
    objective = separable(scale, torch.float64)
    x, _ = objective.data.batches[0]
    margins = (x @ (objective.model.weight[1] - objective.model.weight[0])).abs().detach()
    truth = float((margins.square() * margins.neg().exp() / (1 + margins.neg().exp()).square()).mean())
    found = theta_hessian_theta(objective)
    assert covers(found, truth)
    assert found.converged == (scale < 18)


def test_the_form_of_the_parameters_is_exact_where_a_residual_is_zero() -> None:
    x = gaussian(20, 3)
    net = nn.Linear(3, 1, bias=False).double()
    objective = Objective(net, MeanSquaredError(), [(x, (x @ net.weight.detach().mT))])
    assert objective.value() == 0
    found = theta_hessian_theta(objective)
    truth = 2 * float((x @ net.weight.detach().mT).square().mean())
    assert found.converged
    assert covers(found, truth)
    assert found.high - found.low < 1e-10 * truth


def softmax_regression(scale: float, seed: int, dtype: torch.dtype) -> Objective:
    """Return a linear classifier that fits the labels of a linear teacher; the loss falls with the scale."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(12, 5, generator=generator).to(dtype), torch.randn(3, 5, generator=generator)
    net = nn.Linear(5, 3, bias=False).to(dtype)
    net.weight.data.copy_(w * scale)
    y = (x.float() @ w.mT).argmax(1)
    return Objective(net, CrossEntropy(), [(x[:5], y[:5]), (x[5:], y[5:])])


def test_the_whole_matrix_in_bfloat16_covers_its_trace_and_norm() -> None:
    """Its error is nearly of rank one, so a single vector often misses it: 10 of these 96 numbers with one."""
    missed = 0
    for scale, seed in product((1, 4, 8, 12), range(12)):
        objective = softmax_regression(scale, seed, torch.bfloat16)
        request = {"quantities": ("trace", "frobenius"), "max_products": 15}
        found = measure_spectrum(hessian(objective), **request)
        truth = measure_spectrum(hessian(objective.in_double()), **request)
        missed += not covers(found.trace, truth.trace.value)
        missed += not covers(found.frobenius, truth.frobenius.value)
    assert missed <= 3


@pytest.mark.parametrize(("scale", "seed"), [(60, 7), (30, 8), (30, 7), (60, 14)])
def test_float64_near_interpolation_is_not_called_asymmetric(scale: float, seed: int) -> None:
    objective = softmax_regression(scale, seed, torch.float64)
    for operator in (hessian(objective), gauss_newton(objective)):
        try:
            found = measure_spectrum(operator, top=1, bottom=1, max_products=15)
        except ProbeError as error:
            assert objective.value() < 1e-12
            assert "so near 0 that its curvature has lost all digits" in str(error)  # noqa: PT017
        else:
            assert found.top.estimate().value > 0
            assert found.bottom.estimate().low <= 0  # the matrix is positive semidefinite, and singular


def test_a_loss_whose_curvature_has_no_digit_left_is_not_blamed_on_a_layer() -> None:
    with pytest.raises(ProbeError, match=r"the loss is \S+, so near 0 that its curvature has lost all digits"):
        measure_spectrum(hessian(separable(30.0)), top=1)


def test_saturated_units_are_not_called_asymmetric() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
    for layer in net[::2]:
        layer.weight.data.mul_(30)
    objective = Objective(net, CrossEntropy(), [(torch.randn(60, 10), torch.arange(60) % 3)])
    truth = measure_spectrum(hessian(objective.in_double()), top=1, rel=1e-4, max_products=300, quantities=("top",))
    found = measure_spectrum(hessian(objective), top=1, max_products=300, quantities=("top",))
    assert covers(found.top.estimate(), truth.top.estimate().value)


def test_an_undefined_second_derivative_in_float64_is_not_called_an_overflow() -> None:
    theta = torch.tensor([0.0, 0.5, -0.3], dtype=torch.float64)
    objective = Objective(Vector(theta), lambda m, _: torch.sinc(m.theta).square().sum(), [torch.ones(1)])
    own = SymmetricOperator(3, lambda V: V / 0 * 0, dtype=torch.float64, device=torch.device("cpu"))
    with pytest.raises(ProbeError, match=r"product 1 with the operator is not finite \(nan\): .* undefined") as error:
        own @ torch.ones(3)
    assert "overflow" not in str(error.value)
    for method in ("reverse", "differences"):  # the default method falls back to differences
        found = measure_spectrum(hessian(objective, method=method), top=1)
        assert found.method == "differences"
        assert covers(found.bottom.estimate(), -2 * math.pi**2 / 3)


def test_the_measurement_costs_at_most_three_products() -> None:
    objective = fitted(0)
    for quantities, most in ((("top",), 2), (("top", "bottom", "trace"), 4), (("trace",), 1)):
        plain, measured = hessian(objective), hessian(objective)
        plain.reference = lambda: None
        without = measure_spectrum(plain, top=1, quantities=quantities, max_products=60)
        found = measure_spectrum(measured, top=1, quantities=quantities, max_products=60)
        assert 1 <= found.products - without.products <= most


def test_a_tracker_measures_rounding_at_the_first_evaluation_and_every_eighth() -> None:
    objective, tracker = fitted(0), EigenTracker(rel=0.01)
    compared = []
    for evaluation in range(17):
        operator = hessian(objective)
        reference, asked = operator.reference, []
        operator.reference = lambda r=reference, a=asked: a.append(1) or r()
        found = tracker.measure(operator)
        assert bool(found.top.converged[0])
        compared += [evaluation] * bool(asked)
    assert compared == [0, 8, 16]


def test_a_tracker_of_a_network_that_comes_to_fit_its_data_keeps_covering() -> None:
    tracker = EigenTracker(rel=0.01)
    for scale in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.5, 7.0, 7.5, 8.0, 9.0, 10.0):
        objective = separable(scale)
        values = torch.linalg.eigvalsh(dense(hessian(objective.in_double()))).tolist()
        found = tracker.measure(hessian(objective)).top.estimate()
        assert any(covers(found, value) for value in values)


def test_an_operator_without_a_reference_keeps_the_bound_that_it_assumes() -> None:
    operator = SymmetricOperator(
        40, lambda V: V * torch.arange(1.0, 41.0)[:, None], dtype=torch.float32, device=torch.device("cpu")
    )
    found = measure_spectrum(operator, top=1, quantities=("top",), max_products=40)
    assert found.top.residuals[0] >= 100 * torch.finfo(torch.float32).eps * 40
