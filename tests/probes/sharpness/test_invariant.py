from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import (
    adaptive_lambda_max,
    adaptive_trace,
    log_fisher_rao,
    theta_hessian_theta,
)


def seeded_net(build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


def batches(*counts: int, width: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(gaussian(n, width, seed=n), torch.arange(n) % classes) for n in counts]


class Factors(nn.Module):
    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w, 1 / w], dtype=torch.float64))


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorisation_has_adaptive_trace_two_wherever_it_stands(w: float) -> None:
    objective = Objective(Factors(w), lambda m, _: (m.w[0] * m.w[1] - 1) ** 2 / 2, [torch.zeros(1)])
    found = adaptive_trace(objective)
    assert found.value == pytest.approx(2, rel=1e-12)
    assert found.stderr == 0.0
    assert measure_spectrum(hessian(objective)).trace.value == pytest.approx(w**2 + w**-2, rel=1e-12)


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorisation_has_adaptive_lambda_max_two_wherever_it_stands(w: float) -> None:
    objective = Objective(Factors(w), lambda m, _: (m.w[0] * m.w[1] - 1) ** 2 / 2, [torch.zeros(1)])
    assert adaptive_lambda_max(objective).value == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_lambda_max_is_the_top_of_the_dense_matrix_within_its_bound(seed: int) -> None:
    net = seeded_net(lambda: nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)))
    objective = Objective(net, CrossEntropy(), batches(20, 11))
    theta = objective.parameters()
    dense = theta[:, None] * (hessian(objective) @ torch.eye(len(theta), dtype=theta.dtype)) * theta
    values, vectors = torch.linalg.eigh(dense)
    found = adaptive_lambda_max(objective, rel=0.01, seed=seed)
    assert found.low <= float(values[-1]) <= found.high
    assert found.value <= float(values[-1]) * (1 + 1e-9)
    assert found.high - found.low <= 0.03 * float(values[-1])
    assert found.converged
    assert 2 <= found.products < len(theta)
    warm = adaptive_lambda_max(objective, rel=0.01, seed=seed, warm_start=vectors[:, -1])
    assert warm.products <= found.products
    given = adaptive_lambda_max(hessian(objective), parameters=theta, rel=0.01, seed=seed)
    assert given.value == pytest.approx(found.value, rel=1e-9)
    with pytest.raises(ProbeError, match="adaptive_lambda_max of an operator requires parameters="):
        adaptive_lambda_max(hessian(objective))


def test_adaptive_trace_is_the_weighted_sum_of_the_diagonal() -> None:
    A, theta = gaussian(60, 60), gaussian(60, seed=1)
    A = A @ A.mT
    true = float((theta**2 * A.diagonal()).sum())
    found = adaptive_trace(from_matrix(A), parameters=theta, max_products=50, rel=1e-4)
    assert abs(found.value - true) < 4 * found.stderr
    assert found.stderr < 0.05 * true
    diagonal = adaptive_trace(from_matrix(torch.diag(A.diagonal())), parameters=theta)
    assert diagonal.value == pytest.approx(true, rel=1e-12)
    assert diagonal.stderr < 1e-12 * true
    with pytest.raises(ProbeError, match="requires parameters="):
        adaptive_trace(from_matrix(A))
    with pytest.raises(ProbeError, match=r"diagonal must have shape \(60,\), got \(59,\)"):
        adaptive_trace(from_matrix(A), parameters=theta[1:])


def relu_net(alpha: float) -> Objective:
    """Fixture T6: the function-preserving rescaling of Dinh et al."""
    net = seeded_net(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():
        net[0].weight *= alpha
        net[0].bias *= alpha
        net[2].weight /= alpha
    return Objective(net, CrossEntropy(), batches(40, 25))


@pytest.mark.parametrize("alpha", [1 / 3, 3.0])
def test_a_rescaling_moves_raw_curvature_and_leaves_the_invariant_measures(alpha: float) -> None:
    plain, moved = relu_net(1.0), relu_net(alpha)
    assert moved.value() == pytest.approx(plain.value(), rel=1e-12)
    raw = [measure_spectrum(hessian(o), top=1, rel=1e-4, max_products=1000) for o in (plain, moved)]
    assert not 0.7 < float(raw[1].top.values[0] / raw[0].top.values[0]) < 1.4
    assert not 0.7 < raw[1].trace.value / raw[0].trace.value < 1.4
    assert adaptive_trace(moved).value == pytest.approx(adaptive_trace(plain).value, rel=1e-6)
    assert log_fisher_rao(moved).value == pytest.approx(log_fisher_rao(plain).value, abs=1e-6)
    D = -0.1 * plain.gradient()
    T = torch.cat([torch.full((40,), alpha), torch.full((24,), 1 / alpha), torch.ones(3)])
    ratios = [directional_sharpness(o, step) for o, step in ((plain, D), (moved, T * D))]
    assert ratios[1].edge_ratio.value == pytest.approx(ratios[0].edge_ratio.value, rel=1e-6)
    assert ratios[1].slope.value == pytest.approx(ratios[0].slope.value, rel=1e-6)
    assert abs(ratios[1].normalized.value / ratios[0].normalized.value - 1) > 0.1


def closed_fisher_rao(objective: Objective) -> float:
    """Compute the quadratic form independently, with the dense reverse-mode Jacobian of the logits."""
    names = objective.names
    params = {n: p.detach() for n, p in objective.model.named_parameters() if n in names}
    theta, total = objective.parameters(), 0.0
    for weight, batch in zip(objective.data.weights, objective.data.batches, strict=True):

        def logits(p: dict[str, Tensor], batch: Any = batch) -> Tensor:
            return torch.func.functional_call(objective.model, p, (batch[0],)).reshape(-1, 3)

        J = torch.cat(
            [part.flatten(2) for part in (j.flatten(2) for j in torch.func.jacrev(logits)(params).values())], 2
        )
        p, u = logits(params).softmax(-1), J @ theta
        S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        total += weight * float(torch.einsum("nc,ncd,nd->n", u, S, u).mean())
    return total


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.head = nn.Linear(4, 12), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(1, -1, 4)).chunk(3, -1)
        return self.head(self.norm(F.scaled_dot_product_attention(q, k, v))).reshape(-1, 3)


def subset() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    net[0].weight.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(4, 3),
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        subset,
        Attention,
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 4)),
            nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
    ],
    ids=["linear", "mlp", "trainable subset", "attention", "encoder"],
)
def test_fisher_rao_is_the_quadratic_form_of_the_dense_fisher_matrix(build: Any) -> None:
    objective = Objective(seeded_net(build).eval(), CrossEntropy(), batches(11, 6))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = closed_fisher_rao(objective)
    found = log_fisher_rao(objective)
    assert found.value == pytest.approx(math.log(expected), abs=1e-9)
    assert (found.stderr, found.bound, found.samples) == (0.0, "exact", 0)


def test_fisher_rao_of_softmax_regression_is_the_variance_of_its_logits() -> None:
    objective = Objective(
        seeded_net(lambda: nn.Linear(4, 3)), CrossEntropy(), [(x := gaussian(30, 4), torch.arange(30) % 3)]
    )
    z = objective.model(x).detach()  # logits are linear in the parameters: J theta = z
    p = z.softmax(-1)
    variance = (p * z**2).sum(-1) - (p * z).sum(-1) ** 2
    assert log_fisher_rao(objective).value == pytest.approx(math.log(float(variance.mean())), abs=1e-12)


def test_a_homogeneous_net_of_depth_three_has_nine_times_the_variance_of_its_logits() -> None:
    net = seeded_net(
        lambda: nn.Sequential(
            *[m for _ in range(2) for m in (nn.Linear(4, 4, bias=False), nn.ReLU())], nn.Linear(4, 3, bias=False)
        )
    )
    objective = Objective(net, CrossEntropy(), [(x := gaussian(30, 4), torch.arange(30) % 3)])
    z = net(x).detach()
    p = z.softmax(-1)
    variance = (p * z**2).sum(-1) - (p * z).sum(-1) ** 2
    assert log_fisher_rao(objective).value == pytest.approx(math.log(9 * float(variance.mean())), abs=1e-9)


def test_tokens_are_averaged_like_samples() -> None:
    net, x = seeded_net(lambda: nn.Linear(4, 3)), gaussian(12, 4)
    flat = Objective(net, CrossEntropy(), [(x, torch.arange(12) % 3)])
    tokens = Objective(net, CrossEntropy(), [(x.reshape(3, 4, 4), (torch.arange(12) % 3).reshape(3, 4))])
    assert log_fisher_rao(tokens).value == pytest.approx(log_fisher_rao(flat).value, abs=1e-12)


def test_a_loss_without_logits_is_told_and_a_net_of_zeros_is_a_gap() -> None:
    net = seeded_net(lambda: nn.Linear(4, 3))
    mean_square = Objective(net, lambda m, b: m(b[0]).square().mean(), batches(5))
    with pytest.raises(ProbeError, match=r"requires a loss with logits, got <lambda>: use CrossEntropy"):
        log_fisher_rao(mean_square)
    with mean_square.at(torch.zeros(15)):
        assert math.isnan(log_fisher_rao(Objective(net, CrossEntropy(), batches(5))).value)


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorization_has_radial_curvature_four_wherever_it_stands(w: float) -> None:
    found = theta_hessian_theta(Objective(Factors(w), lambda m, _: (m.w[0] * m.w[1] - 1) ** 2 / 2, [torch.zeros(1)]))
    assert found.value == pytest.approx(4, rel=1e-12)
    # one product and its comparison; two more show that no digit is lost where the loss is exactly 0
    assert (found.stderr, found.bound, found.products) == (0.0, "exact", 4)


def radial_net() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()

    def batch(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        return x, torch.arange(n) % 3

    return Objective(net, CrossEntropy(), [batch(20), batch(7)])


def test_radial_curvature_is_the_second_difference_of_the_loss_along_the_ray() -> None:
    objective = radial_net()
    theta, step = objective.parameters(), 1e-3
    losses = []
    for factor in (1 - step, 1.0, 1 + step):
        with objective.at(factor * theta):
            losses.append(objective.value())
    second = (losses[0] - 2 * losses[1] + losses[2]) / step**2
    assert theta_hessian_theta(objective).value == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("alpha", [1 / 3, 3.0])
def test_radial_curvature_is_invariant_under_a_rescaling_of_the_layers(alpha: float) -> None:
    plain, moved = radial_net(), radial_net()
    with torch.no_grad():
        moved.model[0].weight *= alpha
        moved.model[0].bias *= alpha
        moved.model[2].weight /= alpha
    assert theta_hessian_theta(moved).value == pytest.approx(theta_hessian_theta(plain).value, rel=1e-10)
