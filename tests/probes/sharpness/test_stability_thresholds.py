from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness import stability_thresholds as stability
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.stability_thresholds import Threshold, edge_ratio
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate

LR, B = 0.3, 0.9
SPECTRUM = np.array([1.0, 0.4, 0.07])  # times the largest eigenvalue


def hessian(largest: float) -> np.ndarray:
    """Return a dense positive definite matrix with the given largest eigenvalue."""
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return (Q * (largest * SPECTRUM)) @ Q.T


def iteration(step: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the matrix of a linear step (x, buffer) -> (x, buffer)."""
    columns = []
    for unit in np.eye(6):
        x, buffer = step(unit[:3], unit[3:])
        columns.append(np.concatenate([x, buffer]))
    return np.array(columns).T


def gradient_descent(H: np.ndarray) -> np.ndarray:
    return iteration(lambda x, m: (x - LR * H @ x, 0 * m))


def heavy_ball(H: np.ndarray, dampening: float = 0.0) -> np.ndarray:
    def step(x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = B * m + (1 - dampening) * H @ x
        return x - LR * m, m

    return iteration(step)


def nesterov(H: np.ndarray) -> np.ndarray:
    def step(x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = B * m + H @ x
        return x - LR * (H @ x + B * m), m

    return iteration(step)


def frozen_sam(H: np.ndarray, rho: float, norm: float) -> np.ndarray:
    return iteration(lambda x, m: (x - LR * H @ (x + rho * H @ x / norm), 0 * m))


CASES = {
    "gradient descent": (stability.gradient_descent(LR), gradient_descent),
    "heavy ball": (stability.heavy_ball(LR, B), heavy_ball),
    "dampened heavy ball": (stability.heavy_ball(LR, B, 0.4), lambda H: heavy_ball(H, 0.4)),
    "ema momentum": (stability.ema_momentum(LR, B), lambda H: heavy_ball(H, B)),
    "nesterov": (stability.nesterov(LR, B), nesterov),
    "sam": (stability.sam(LR, 0.05, 0.7), lambda H: frozen_sam(H, 0.05, 0.7)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_iteration_on_a_quadratic_converges_below_the_threshold_and_diverges_above(name: str) -> None:
    threshold, matrix = CASES[name]
    assert (threshold.quantity, threshold.evidence) == ("lambda_max", "theorem")
    radii = [np.abs(np.linalg.eigvals(matrix(hessian(f * threshold.value)))).max() for f in (0.999, 1.001)]
    assert radii[0] < 1 < radii[1]
    assert radii[1] < 1.2  # the root leaves the circle here, not below


def test_frozen_adam_is_stable_up_to_38_over_lr_in_its_own_metric() -> None:
    threshold = stability.frozen_adam(LR, 0.9)
    assert threshold.value == pytest.approx(38 / LR)
    P = np.array([0.01, 1.0, 3.0])
    for factor, stable in ((0.999, True), (1.001, False)):
        H = hessian(1.0)
        H *= factor * threshold.value / np.linalg.eigvalsh(H / np.sqrt(np.outer(P, P))).max()

        def step(x: np.ndarray, m: np.ndarray, H: np.ndarray = H) -> tuple[np.ndarray, np.ndarray]:
            m = 0.9 * m + 0.1 * H @ x
            return x - LR * m / P, m

        assert (float(np.abs(np.linalg.eigvals(iteration(step))).max()) < 1) is stable


W = 1.7  # weight decay; LR times it is half of what is stable without curvature


def decaying(H: np.ndarray, b: float, d: float, coupled: float, beside: float, *, looks: bool = False) -> np.ndarray:
    """Return the matrix of a step with momentum, Nesterov's if it looks ahead, and both kinds of weight decay."""

    def step(x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        g = H @ x + coupled * x
        m = b * m + (1 - d) * g
        return (1 - LR * beside) * x - LR * (g + b * m if looks else m), m

    return iteration(step)


DECAYING = {
    "gradient descent": (lambda **w: stability.gradient_descent(LR, **w), (0.0, 0.0, False)),
    "heavy ball": (lambda **w: stability.heavy_ball(LR, B, **w), (B, 0.0, False)),
    "dampened": (lambda **w: stability.heavy_ball(LR, B, 0.4, **w), (B, 0.4, False)),
    "ema": (lambda **w: stability.ema_momentum(LR, B, **w), (B, B, False)),
    "nesterov": (lambda **w: stability.nesterov(LR, B, **w), (B, 0.0, True)),
    "adam with P = 1": (lambda **w: stability.frozen_adam(LR, B, **w), (B, B, False)),
}


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize(("coupled", "beside"), [(W, 0.0), (0.0, W), (0.4, W)])
def test_the_iteration_with_weight_decay_converges_below_its_threshold_and_diverges_above(
    name: str, coupled: float, beside: float
) -> None:
    threshold, (b, d, looks) = DECAYING[name]
    found = threshold(coupled_decay=coupled, decoupled_decay=beside)
    of_shifted = name.startswith("adam") and coupled > 0  # there the quantity is that of H + w I
    if of_shifted:
        assert found.quantity == f"preconditioned_sharpness of H + {coupled:g} I"
    largest = found.value - coupled if of_shifted else found.value
    radii = [
        np.abs(np.linalg.eigvals(decaying(hessian(f * largest), b, d, coupled, beside, looks=looks))).max()
        for f in (0.999, 1.001)
    ]
    assert radii[0] < 1 < radii[1]
    assert found.value < threshold().value or of_shifted


def test_both_decays_are_one_for_plain_descent_and_two_formulas_with_momentum() -> None:
    both = [stability.gradient_descent(LR, **{kind: W}).value for kind in ("coupled_decay", "decoupled_decay")]
    assert both == pytest.approx([2 / LR - W] * 2)
    sums = (1 + B) / (1 - B)
    assert stability.ema_momentum(LR, B, coupled_decay=W).value == pytest.approx(2 / LR * sums - W)
    assert stability.ema_momentum(LR, B, decoupled_decay=W).value == pytest.approx((2 / LR - W) * sums)
    adamw = stability.frozen_adam(1e-3, 0.9, decoupled_decay=0.1).value
    assert adamw == pytest.approx(38_000 - 1.9)


def stays(optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], largest: float) -> bool:
    """Train a quadratic with an optimizer of torch; return True if the weights have shrunk at the end."""
    curvature = largest * torch.tensor(SPECTRUM)
    x = torch.nn.Parameter(torch.full((3,), 1e-3, dtype=torch.float64))
    made = optimizer([x])
    sizes = []
    for _ in range(500):
        made.zero_grad()
        (curvature * x.square()).sum().div(2).backward()
        made.step()
        sizes.append(float(x.detach().abs().max()))
        if sizes[-1] > 1.0:
            return False
    return max(sizes[-50:]) < max(sizes[100:150])


OF_TORCH: dict[str, tuple[Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], Threshold]] = {
    "sgd": (lambda p: torch.optim.SGD(p, LR), stability.gradient_descent(LR)),
    "sgd with decay": (
        lambda p: torch.optim.SGD(p, LR, weight_decay=W),
        stability.gradient_descent(LR, coupled_decay=W),
    ),
    "momentum with decay": (
        lambda p: torch.optim.SGD(p, LR, momentum=0.8, dampening=0.3, weight_decay=W),
        stability.heavy_ball(LR, 0.8, 0.3, coupled_decay=W),
    ),
    "nesterov with decay": (
        lambda p: torch.optim.SGD(p, LR, momentum=0.8, nesterov=True, weight_decay=1.0),
        stability.nesterov(LR, 0.8, coupled_decay=1.0),
    ),
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_the_optimizer_of_torch_stays_just_below_and_leaves_just_above(name: str) -> None:
    optimizer, threshold = OF_TORCH[name]
    assert stays(optimizer, 0.97 * threshold.value)
    assert not stays(optimizer, 1.03 * threshold.value)


@given(lam=st.floats(0.1, 30), rho=st.floats(0.001, 0.5), x=st.floats(1e-3, 10))
@settings(max_examples=100, deadline=None)
def test_a_step_of_sam_moves_away_from_a_minimum_exactly_above_its_threshold(lam: float, rho: float, x: float) -> None:
    threshold = stability.sam(LR, rho, lam * x).value
    after = abs(x - LR * lam * (x + rho))
    if abs(lam / threshold - 1) > 1e-9:
        assert (after < x) is (lam < threshold)


def test_sam_without_a_radius_is_gradient_descent_and_a_smaller_gradient_bears_less() -> None:
    assert stability.sam(LR, 0.0, 1.0).value == stability.gradient_descent(LR).value
    values = [stability.sam(LR, 0.1, norm).value for norm in (1e6, 1.0, 1e-3, 1e-9)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(2 / LR, rel=1e-5)
    long_and_bartlett = 1.0 / 0.2 * (math.sqrt(1 + 0.8 / LR) - 1)
    assert values[1] == pytest.approx(long_and_bartlett, rel=1e-12)


def quadratic_change(H: np.ndarray, x: np.ndarray, step: np.ndarray) -> float:
    after = x + step
    return float(after @ H @ after - x @ H @ x) / 2


@pytest.mark.parametrize(("x", "rises"), [(0.51 * LR, False), (0.49 * LR, True)])
def test_sign_descent_raises_an_isotropic_quadratic_exactly_above_the_threshold(x: float, rises: bool) -> None:
    H, at = 2.0 * np.eye(4), np.full(4, x)
    g = H @ at
    sharpness = 4 * 2.0  # the trace: attained at every vertex of the cube
    ratio = edge_ratio(exact_estimate(sharpness / float(np.abs(g).sum())), stability.normalized(LR))
    assert (ratio.value > 1) is rises
    assert (quadratic_change(H, at, -LR * np.sign(g)) > 0) is rises


@pytest.mark.parametrize(("curvature", "rises"), [(1.99 / LR, False), (2.01 / LR, True)])
def test_steps_along_the_dual_direction_rise_exactly_above_the_threshold_of_their_norm(
    curvature: float, rises: bool
) -> None:
    H, at = curvature / 4 * np.eye(4), np.ones(4)  # sharpness in the maximum norm: the trace
    g = H @ at
    assert (curvature > stability.non_euclidean(LR).value) is rises
    assert (quadratic_change(H, at, -LR * np.abs(g).sum() * np.sign(g)) > 0) is rises


def test_the_threshold_of_a_logged_step_is_r_dir_at_one() -> None:
    H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)

    class Point(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor([1.0, -0.3], dtype=torch.float64))

    objective = Objective(Point(), lambda m, _: m.x @ H @ m.x / 2, [torch.zeros(1)])
    d = torch.tensor([0.7, 0.4], dtype=torch.float64)
    found = directional_sharpness(objective, -LR * d)
    form = float(d @ H @ d) / float(objective.gradient() @ d)
    assert form / stability.logged_step(LR).value == pytest.approx(found.edge_ratio.value, rel=1e-12)


def test_batch_sharpness_settles_at_levels_that_are_called_empirical() -> None:
    levels = [
        stability.batch_sharpness_threshold(LR),
        stability.momentum_batch_sharpness_threshold(LR, B, "small"),
        stability.momentum_batch_sharpness_threshold(LR, B, "large"),
    ]
    assert {(t.quantity, t.evidence) for t in levels} == {("batch_sharpness", "empirical")}
    assert [t.value for t in levels] == pytest.approx([2 / LR, 2 * (1 - B) / LR, 2 * (1 + B) / LR])
    with pytest.raises(ProbeError, match=r"regime must be one of .*, got 'middle'"):
        stability.momentum_batch_sharpness_threshold(LR, B, "middle")  # type: ignore[arg-type]


def test_an_edge_ratio_carries_the_error_over() -> None:
    drawn = mean_estimate([1.0, 2.0, 4.0])
    found = edge_ratio(drawn, 4.0)
    expected = [x / 4 for x in (drawn.value, drawn.stderr, drawn.low, drawn.high)]
    assert [found.value, found.stderr, found.low, found.high] == expected
    assert (found.samples, found.bound, found.residual) == (3, "standard error", None)
    ritz = Estimate(19.0, math.nan, 18.0, 20.0, 0, "residual", residual=1.0, products=7, converged=False)
    found = edge_ratio(ritz, stability.gradient_descent(0.1))
    assert (found.value, found.low, found.high, found.residual) == (0.95, 0.9, 1.0, 0.05)
    assert (found.products, found.converged) == (7, False)
    assert math.isnan(edge_ratio(exact_estimate(math.nan), 1.0).value)


@pytest.mark.parametrize("line", [0.0, -1.0, math.nan, math.inf])
def test_nothing_is_divided_by_a_threshold_that_is_none(line: float) -> None:
    with pytest.raises(ProbeError, match="threshold must be finite and above 0"):
        edge_ratio(exact_estimate(1.0), line)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability.gradient_descent(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.heavy_ball(-1.0, 0.9), "lr must be finite and above 0, got -1"),
        (lambda: stability.nesterov(math.nan, 0.9), "lr must be finite and above 0, got nan"),
        (lambda: stability.heavy_ball(0.1, 1.0), r"momentum must be in \[0, 1\), got 1"),
        (lambda: stability.heavy_ball(0.1, 0.5, -0.1), r"dampening must be in \[0, 1\), got -0.1"),
        (lambda: stability.ema_momentum(0.1, -0.1), r"beta must be in \[0, 1\), got -0.1"),
        (lambda: stability.frozen_adam(0.1, math.nan), r"beta1 must be in \[0, 1\), got nan"),
        (lambda: stability.frozen_adam(math.inf, 0.9), "lr must be finite and above 0, got inf"),
        (
            lambda: stability.heavy_ball(0.1, 0.9, decoupled_decay=-1.0),
            "weight decay must be finite and at least 0, got -1",
        ),
        (lambda: stability.frozen_adam(0.1, 0.9, coupled_decay=math.nan), "weight decay must be finite"),
        (lambda: stability.gradient_descent(0.1, coupled_decay=20.0), "weight decay must leave a stable iteration"),
        (lambda: stability.nesterov(0.1, 0.9, decoupled_decay=30.0), "weights diverge without any curvature"),
        (lambda: stability.sam(0.1, -0.1, 1.0), "rho must be finite and at least 0, got -0.1"),
        (lambda: stability.sam(0.1, 0.1, 0.0), "gradient_norm must be finite and above 0, got 0"),
        (lambda: stability.normalized(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.non_euclidean(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.logged_step(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.batch_sharpness_threshold(0.0), "lr must be finite and above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_rejected(call: Callable[[], Threshold], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        call()
