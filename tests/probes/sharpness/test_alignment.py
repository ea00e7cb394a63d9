from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import Vector, gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.alignment import gradient_alignment


def quadratic(diagonal: Tensor, theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda m, _: (diagonal * m.theta**2).sum() / 2, [torch.zeros(1)])


def exact(values: Tensor, vectors: Tensor, bound: float = 0.0, *, converged: bool = True) -> EigenPairs:
    flat = torch.full_like(values, bound)
    return EigenPairs(values, vectors, flat, flat, torch.full(values.shape, converged))


LAMBDA = torch.tensor([8.0, 4.0, 2.0, 1.0]).double()
TOP = exact(LAMBDA[:2], torch.eye(4).double()[:, :2])


def test_a_gradient_along_the_top_eigenvector_has_one_one_and_one() -> None:
    objective = quadratic(LAMBDA, torch.tensor([3.0, 0, 0, 0]).double())
    found = gradient_alignment(objective, TOP)
    assert found.chi.tolist() == [1.0, 1.0]
    assert (found.cosine.value, found.rayleigh, found.share.value) == (1.0, 8.0, 1.0)
    assert found.null.tolist() == [0.25, 0.5]
    measured = measure_spectrum(hessian(objective), top=2).top
    assert measured is not None
    assert gradient_alignment(objective, measured).chi == pytest.approx([1.0, 1.0], rel=1e-9)


def test_a_mixed_gradient_has_the_shares_of_its_parts() -> None:
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    found = gradient_alignment(quadratic(LAMBDA, weights.sqrt() / LAMBDA), TOP)  # squared gradient: the weights
    rayleigh = float(weights @ LAMBDA)
    assert found.chi == pytest.approx([0.4, 0.7])
    assert found.rayleigh == pytest.approx(rayleigh)
    assert found.cosine.value == pytest.approx(rayleigh / math.sqrt(float(weights @ LAMBDA**2)))
    assert found.share.value == pytest.approx(rayleigh / 8)


def test_random_gradients_have_the_share_of_the_null_on_average() -> None:
    shares = [gradient_alignment(quadratic(LAMBDA, gaussian(4, seed=s) / LAMBDA), TOP).chi for s in range(100)]
    assert np.mean(shares, 0) == pytest.approx([0.25, 0.5], abs=0.07)


def test_a_network_agrees_with_the_dense_decomposition() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in (9, 4)])
    H, g = hessian(objective) @ torch.eye(objective.size).double(), objective.gradient()
    values, vectors = torch.linalg.eigh((H + H.mT) / 2)
    found = gradient_alignment(objective, exact(values.flip(0)[:3], vectors.flip(1)[:, :3]))
    assert found.chi == pytest.approx((vectors.flip(1)[:, :3].mT @ g).square().cumsum(0).numpy() / float(g @ g))
    assert found.share.value == pytest.approx(float(g @ H @ g / (g @ g) / values[-1]))
    assert found.cosine.value == pytest.approx(float(g @ H @ g / (g.norm() * (H @ g).norm())))


def test_the_bound_of_the_eigenvalue_is_the_interval_of_the_share() -> None:
    objective = quadratic(LAMBDA, torch.tensor([0.0, 1, 0, 0]).double())
    found = gradient_alignment(objective, exact(LAMBDA[:2], torch.eye(4).double()[:, :2], 1.0, converged=False))
    assert (found.share.low, found.share.value, found.share.high) == pytest.approx((4 / 9, 0.5, 4 / 7))
    assert not found.share.converged
    assert not found.converged.any()
    wide = gradient_alignment(objective, exact(LAMBDA[:2], torch.eye(4).double()[:, :2], 9.0))
    assert wide.share.high == math.inf


def test_a_zero_gradient_and_a_hessian_without_a_positive_eigenvalue_are_gaps() -> None:
    still = gradient_alignment(quadratic(LAMBDA, torch.zeros(4).double()), TOP)
    assert np.isnan(still.chi).all()
    assert all(math.isnan(x) for x in (still.cosine.value, still.rayleigh, still.share.value))
    down = gradient_alignment(
        quadratic(-LAMBDA, torch.ones(4).double()), exact(-LAMBDA[3:], torch.eye(4).double()[:, 3:])
    )
    assert math.isnan(down.share.value)
    assert down.cosine.high < 0


def test_eigenvectors_of_another_length_are_refused() -> None:
    with pytest.raises(ProbeError, match="eigenvectors must have 3 entries, one per trainable parameter, got 4"):
        gradient_alignment(quadratic(LAMBDA[:3], torch.ones(3).double()), TOP)
