"""Matrices with known spectra: multiple eigenvalues, absence of ghosts, limit density, exactness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.hessian import hessian

# Copies: those that are there are found, those that are not are not.


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    Q, _ = torch.linalg.qr(gaussian(len(eigenvalues), len(eigenvalues), seed=seed))
    A = (Q * eigenvalues.double()) @ Q.mT
    return (A + A.mT) / 2


@pytest.mark.parametrize("n", [3, 100])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_double_eigenvalue_is_found_twice(n: int, seed: int) -> None:
    eigenvalues = torch.cat([torch.tensor([5.0, 5.0]), torch.ones(n - 2)])
    found = measure_spectrum(from_matrix(rotated(eigenvalues, seed)), top=3, rel=1e-4, seed=seed)
    assert found.top.values.tolist() == pytest.approx([5, 5, 1], rel=1e-4)
    gram = found.top.vectors.mT @ found.top.vectors
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("n", [6, 60, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_matrix_of_rank_three_has_three_eigenvalues_and_no_ghosts(n: int, seed: int) -> None:
    matrix = rotated(torch.cat([torch.tensor([7.0, 3.0, 0.5]), torch.zeros(n - 3)]), seed)
    found = measure_spectrum(from_matrix(matrix), top=5, rel=1e-6, seed=seed, max_products=200)
    assert found.top.values.tolist() == pytest.approx([7, 3, 0.5, 0, 0], abs=1e-8)
    assert found.bottom.values.abs().max() < 1e-8 if n > 8 else True
    assert bool(found.top.converged.all())


def test_a_hessian_of_rank_three_has_no_ghosts_either() -> None:
    X = gaussian(3, 80)
    net = nn.Linear(80, 1, bias=False).double()
    objective = Objective(net, lambda m, _: (X @ m.weight[0]).square().sum() / 2, [torch.ones(1)])
    found = measure_spectrum(hessian(objective), top=5, rel=1e-6)
    expected = [*torch.linalg.eigvalsh(X @ X.mT).flip(0).tolist(), 0, 0]
    assert found.top.values.tolist() == pytest.approx(expected, abs=1e-7)


# Marchenko-Pastur: the second moment of N Gaussian inputs of length n has its spectrum between known edges.


def marchenko_pastur(x: np.ndarray, ratio: float) -> np.ndarray:
    """Return the limit density of the eigenvalues of X'X / N, n / N -> ratio < 1."""
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    return np.sqrt(np.maximum((high - x) * (x - low), 0)) / (2 * math.pi * ratio * np.maximum(x, 1e-9))


def test_gaussian_regression_has_the_density_of_marchenko_and_pastur() -> None:
    n, samples, width = 600, 2400, 0.15
    x = gaussian(samples, n)
    operator = from_matrix(2 / samples * x.mT @ x)  # the Hessian of the first test
    low, high = 2 * (1 - math.sqrt(n / samples)) ** 2, 2 * (1 + math.sqrt(n / samples)) ** 2
    grid, fine = np.linspace(low - 0.5, high + 0.5, 60), np.linspace(low, high, 4001)
    weights = marchenko_pastur(fine / 2, n / samples) / 2 * (fine[1] - fine[0])
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    bells = np.exp(-((grid[:, None] - fine) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    expected = bells @ weights
    curves, covered = [], []
    for seed in range(10):
        found = measure_spectrum(operator, top=1, quantities=("top", "bottom", "density"), seed=seed)
        assert float(found.bottom.values[0]) == pytest.approx(low, abs=0.08)  # the edge fluctuates by n^(-2/3)
        assert float(found.top.values[0]) == pytest.approx(high, abs=0.08)
        mean, below, above = found.density.curve(grid, width)
        curves.append(mean)
        covered.append((below <= expected) & (expected <= above))
    assert np.abs(np.mean(curves, 0) - expected).max() < 0.08 * expected.max()
    assert np.mean(covered) > 0.85  # bands of 95 % for the spectrum of this one matrix, which is not quite the limit


# A matrix that the budget can multiply out has no error left.


@pytest.mark.parametrize("quantities", [("trace",), ("frobenius",), ("trace", "frobenius"), ("top", "trace"), None])
@pytest.mark.parametrize("n", [2, 7, 32])
def test_a_small_matrix_is_known_exactly(n: int, quantities: tuple[str, ...] | None) -> None:
    A = gaussian(n, n) + gaussian(n, n).mT
    found = measure_spectrum(from_matrix(A), quantities=quantities, rel=1e-6)
    if found.trace is not None:
        assert (found.trace.value, found.trace.stderr) == pytest.approx((float(A.trace()), 0), rel=1e-12, abs=1e-11)
    if found.frobenius is not None:
        assert found.frobenius.value == pytest.approx(float(A.norm()), rel=1e-12)
    assert (found.unmet, found.products) == ((), n)


@pytest.mark.parametrize("quantities", [("trace",), ("frobenius",), None])
def test_no_bound_is_out_of_reach_of_a_budget_of_many_times_the_size(quantities: tuple[str, ...] | None) -> None:
    X = gaussian(100, 100)
    found = measure_spectrum(from_matrix(X @ X.mT / 100), quantities=quantities, rel=1e-3, max_products=1000)
    assert found.unmet == ()
