from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from torch import Tensor

from helpers import gaussian, generator
from lossscope.probes.eigenvalues.block_krylov import Array, BlockKrylov
from lossscope.probes.eigenvalues.extreme_pairs import eigenpairs, grow
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.eigenvalues.start_block import StartBlock, start_block
from lossscope.probes.operators.base import SymmetricOperator, from_matrix


def diagonal(values: Array) -> SymmetricOperator:
    """Return a diagonal operator; as the start is Gaussian, it represents all matrices with its eigenvalues."""
    d = torch.from_numpy(np.asarray(values, dtype=np.float64))[:, None]
    return SymmetricOperator(len(d), lambda V: d * V, dtype=torch.float64, device=torch.device("cpu"))


def grown(values: Array, dimension: int, width: int = 1, seed: int = 0) -> StartBlock[BlockKrylov]:
    start = start_block(diagonal(values), width, None, generator(seed))
    while start.space.dimension < dimension:
        start.space.step(dimension - start.space.dimension)
    return start


def pairs_of(operator: SymmetricOperator, top: int, rel: float, *, width: int = 1, seed: int = 0) -> EigenPairs:
    start = start_block(operator, width, None, generator(seed))
    grow(start, top=top, bottom=0, rel=rel, max_products=300, steps=0)
    return eigenpairs(start.space, ritz(start.space, start.random), top, rel, largest=True)


_BULK = np.random.default_rng(0)
SPECTRA: dict[str, Array] = {
    "gaussian bulk": _BULK.standard_normal(300),
    "power law": 1 / np.arange(1.0, 401),
    "outlier and bulk": np.r_[5.0, _BULK.random(399)],
    "two close": np.r_[1.0, 0.95, 0.6 * _BULK.random(298)],
    "four close": np.r_[1.0, 0.99, 0.98, 0.97, 0.6 * _BULK.random(296)],
}
DIMENSIONS = {"gaussian bulk": 12, "power law": 6, "outlier and bulk": 6, "two close": 8, "four close": 14}
SPECTRA = {name: np.sort(values)[::-1].copy() for name, values in SPECTRA.items()}


def second(size: int) -> Tensor:
    """Return the worst warm start: exactly the second eigenvector."""
    vector = torch.zeros(size, dtype=torch.float64)
    vector[1] = 1
    return vector


@pytest.mark.parametrize(
    "name",
    [name if name == "two close" else pytest.param(name, marks=pytest.mark.slow) for name in SPECTRA],
)
def test_an_eigenvalue_is_ruled_out_where_it_is_in_at_most_five_per_cent_of_the_seeds(name: str) -> None:
    values, dimension = SPECTRA[name], DIMENSIONS[name]
    top, bottom = values[0], values[-1]
    wrong = {key: np.zeros(2, dtype=int) for key in itertools.product((1, 2), (False, True))}
    for width, warm in wrong:
        for seed in range(250):
            start = start_block(diagonal(values), width, second(len(values)) if warm else None, generator(seed))
            failed = np.zeros(2, dtype=bool)  # at one of the dimensions: the search may stop at any of them
            while start.space.dimension < dimension:
                for _ in range(2 // width):
                    start.space.step(dimension - start.space.dimension)
                found = ritz(start.space, start.random)
                above, below = top - found.values[-1], found.values[0] - bottom
                failed[0] |= above > 1e-12 and found.enclosed(above * (1 - 1e-9), largest=True)
                failed[1] |= below > 1e-12 and found.enclosed(below * (1 - 1e-9), largest=False)
            wrong[width, warm] += failed
    for key, count in wrong.items():
        assert count.max() <= binom.ppf(0.9999, 250, 0.05), (key, count)
    assert sum(wrong.values()).max() <= binom.ppf(0.9999, 1000, 0.05)


def test_the_five_per_cent_are_used_and_half_of_the_reach_would_miss_more() -> None:
    values = SPECTRA["outlier and bulk"]
    missed, half = 0, 0
    for seed in range(1000):
        start = grown(values, 3, seed=seed)
        found = ritz(start.space, start.random)
        off, reach = values[0] - found.values[-1], found.reach(largest=True)
        missed += off > reach
        half += off > reach / 4
    assert 20 <= missed <= binom.ppf(0.9999, 1000, 0.05)
    assert half > 80


# the two largest eigenvalues of a small network, 17 % apart, and a bulk
_APART = np.r_[0.663, 0.554, np.linspace(0.33, -0.3, 32), -0.383]


def _off_and_bound(seed: int) -> tuple[float, float]:
    """Return how far a search ends below the largest eigenvalue, and the bound it states."""
    start = start_block(diagonal(_APART), 1, None, generator(seed))
    grow(start, top=1, bottom=0, rel=0.05, max_products=40, steps=0)
    pairs = eigenpairs(start.space, ritz(start.space, start.random), 1, 0.05, largest=True)
    return float(_APART[0] - pairs.values[0]), float(pairs.bounds[0])


@pytest.mark.parametrize("seed", [1021, 1322, 1426, 1516, 1657, 2142, 2178, 2297])
def test_a_start_that_nearly_misses_the_largest_eigenvector_does_not_end_at_the_second(seed: int) -> None:
    start = start_block(diagonal(_APART), 1, None, generator(seed))
    assert abs(float(start.space._pending[0][0]) * start.random[0, 0]) < 0.0627  # among the 5 % of the starts
    off, bound = _off_and_bound(seed)
    assert off <= 3 * bound


@pytest.mark.slow
def test_an_end_beyond_three_times_the_bound_is_as_rare_as_it_is_said() -> None:
    ends = [_off_and_bound(seed) for seed in range(10_000)]
    assert sum(off > bound for off, bound in ends) <= binom.ppf(0.9999, 10_000, 0.05)
    assert sum(off > 3 * bound for off, bound in ends) <= binom.ppf(0.9999, 10_000, 0.001)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_reach_is_the_first_distance_from_which_on_nothing_is_possible(width: int, largest: bool) -> None:
    for values, seed in itertools.product((SPECTRA["gaussian bulk"], SPECTRA["four close"]), range(4)):
        start = grown(values, 9, width, seed)  # at width 2 the last block is cut
        found = ritz(start.space, start.random)
        reach = found.reach(largest=largest)
        assert not any(found.enclosed(reach * share, largest=largest) for share in (0.001, 0.1, 0.5, 0.9))
        assert all(found.enclosed(reach * share, largest=largest) for share in (1, 1.1, 2, 10, 1e3))


@pytest.mark.parametrize("largest", [True, False])
def test_a_pair_has_converged_exactly_where_the_search_would_stop(largest: bool) -> None:
    both = set()
    for seed in range(5):
        start = grown(SPECTRA["gaussian bulk"], 9, seed=seed)
        found = ritz(start.space, start.random)
        for share in np.linspace(0.98, 1.01, 13):  # the reach itself is known to one per cent
            allowed = share * found.reach(largest=largest)
            rel = (allowed + found.rounding) / found.scale
            pairs = eigenpairs(start.space, found, 1, rel, largest=largest)
            stops = found.enclosed(rel * found.scale - found.rounding, largest=largest)
            assert bool(pairs.converged[0]) == stops
            assert not stops or float(pairs.bounds[0]) <= rel * found.scale
            both.add(stops)
    assert both == {True, False}


def first_convergence(start: StartBlock[BlockKrylov], true: float, allowed: float) -> int:
    """Return the number of products at which the largest Ritz value is first within the tolerance of the truth."""
    T = start.space.projected
    values = (float(np.linalg.eigvalsh(T[:k, :k])[-1]) for k in range(1, len(T) + 1))
    return 1 + next(k for k, value in enumerate(values) if true - value <= allowed)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_search_stops_soon_after_it_is_right_and_only_where_it_has_met_its_bound(name: str) -> None:
    values, rel, late = SPECTRA[name], 0.02, []
    scale = float(np.abs(values).max())
    for seed in range(20):
        start = start_block(diagonal(values), 1, None, generator(seed))
        grow(start, top=1, bottom=0, rel=rel, max_products=300, steps=0)
        pairs = eigenpairs(start.space, ritz(start.space, start.random), 1, rel, largest=True)
        assert bool(pairs.converged[0])
        assert float(pairs.bounds[0]) <= rel * scale
        late.append(start.space.dimension - first_convergence(start, float(values[0]), rel * scale))
    assert 0 <= np.mean(late) < 10  # two of them for the 99.9 % at three times the distance
    assert max(late) <= 16


@pytest.mark.parametrize(("name", "top"), [("two close", 2), ("four close", 4), ("power law", 4), ("gaussian bulk", 3)])
def test_inner_pairs_lie_within_their_bounds(name: str, top: int) -> None:
    values, missed, nobody, quadratic = SPECTRA[name], 0, 0, 0
    for seed in range(60):
        pairs = pairs_of(diagonal(values), top, 0.01, width=2, seed=seed)
        assert pairs.converged.all()
        found, bounds = pairs.values.numpy(), pairs.bounds.numpy()
        missed += int((np.abs(found - values[:top]) > bounds).any())
        nobody += int((np.abs(found[:, None] - values).min(1) > bounds).any())
        quadratic += int((bounds[1:] < pairs.residuals.numpy()[1:]).any())
    assert missed <= binom.ppf(0.9999, 60, 0.05)
    assert nobody <= 2
    assert quadratic > (5 if name == "four close" else 30)  # the finer bound is in use


def restarted(values: Array, width: int, seed: int, cuts: tuple[int, ...] = (12, 12, 12)) -> StartBlock[BlockKrylov]:
    """Return a space that was cut to a part of its Ritz vectors several times, and has grown again."""
    start = start_block(diagonal(values), width, None, generator(seed))
    for dimension in cuts:
        while start.space.dimension < dimension:
            start.space.step(width)
        found = ritz(start.space, start.random)
        k = start.space.dimension
        kept = np.r_[0, k - 4 : k]
        others = np.setdiff1d(np.arange(k), kept)
        start.space.restart(found.values[others], found.coefficients[:, kept], found.coefficients[:, others])
        start.space.step(width)
    return start


@pytest.mark.parametrize("width", [1, 2, 3])
def test_after_restarts_the_random_start_is_still_known_along_every_eigenvector(width: int) -> None:
    """The identity from which eigenvalues are excluded, X'v = M' Q_+'v, entry by entry for a diagonal matrix."""
    values = np.random.default_rng(3).standard_normal(200)
    start = restarted(values, width, seed=1)
    space, found = start.space, ritz(start.space, start.random)
    drawn = generator(1)
    X = np.stack([torch.randn(200, generator=drawn, dtype=torch.float64).numpy() for _ in range(width)])
    S = found._history.start(values)  # (n, k, b)
    inside = np.einsum("ki,ikb->ib", space.basis.numpy(), S)
    M = -space.coupling @ np.linalg.solve(space.projected - values[:, None, None] * np.eye(space.dimension), S)
    outside = np.einsum("pi,ipb->ib", space._pending.numpy(), M)
    np.testing.assert_allclose(inside, X.T, atol=1e-8 * np.abs(X).max())
    known = np.concatenate([found.values, *(one.values for one in space.restarts)])
    apart = np.abs(values[:, None] - known).min(1) > 1e-4  # where both sides are divided by next to nothing
    assert apart.sum() > 150
    np.testing.assert_allclose(outside[apart], X.T[apart], atol=1e-8 * np.abs(X).max())
    possible = np.square(M).sum((1, 2)) >= found._quantile(0.05)
    assert (found._possible(values) == possible).all()


@pytest.mark.parametrize("width", [1, 2])
def test_after_restarts_residuals_and_images_are_those_of_the_matrix(width: int) -> None:
    values = np.random.default_rng(3).standard_normal(200)
    space = restarted(values, width, seed=2).space
    found = ritz(space, space.start)
    vectors = space.mixed(found.coefficients).numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(space.dimension), atol=1e-12)
    np.testing.assert_allclose(space.images_of(found.coefficients).numpy(), vectors * values, atol=1e-12)
    defects = vectors * values - found.values[:, None] * vectors
    np.testing.assert_allclose(np.linalg.norm(defects, axis=1), found._loose, atol=1e-12)


@pytest.mark.parametrize("name", [pytest.param("gaussian bulk", marks=pytest.mark.slow), "two close"])
def test_restarts_cost_hardly_a_product_and_leave_the_bounds_true(name: str) -> None:
    products, missed = [0, 0], 0
    for seed in range(60):
        for index, dimensions in enumerate((None, 12)):
            start = start_block(diagonal(SPECTRA[name]), 1, None, generator(seed))
            grow(start, top=1, bottom=1, rel=0.01, max_products=300, steps=0, dimensions=dimensions)
            products[index] += start.space.products
            found = ritz(start.space, start.random)
        assert start.space.restarts
        assert start.space.dimension <= 13
        ends = [eigenpairs(start.space, found, 1, 0.01, largest=largest).estimate() for largest in (True, False)]
        truths = (SPECTRA[name].max(), SPECTRA[name].min())
        missed += not all(end.low <= truth <= end.high for end, truth in zip(ends, truths, strict=True))
        assert all(end.converged for end in ends)
    assert missed <= binom.ppf(0.9999, 60, 0.05)
    assert products[1] < 1.15 * products[0]


@pytest.mark.parametrize("dimensions", [None, 12])
def test_an_end_is_enclosed_at_both_confidences_with_and_without_restarts(
    dimensions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    farther = 0
    for seed in range(6):
        start = start_block(diagonal(SPECTRA["gaussian bulk"]), 1, None, generator(seed))
        grow(start, top=1, bottom=1, rel=0.1, max_products=30, steps=30, dimensions=dimensions)
        found = ritz(start.space, start.random)
        assert bool(start.space.restarts) == (dimensions is not None)
        for largest, edge, sign in ((True, found.values[-1], 1.0), (False, found.values[0], -1.0)):
            distance = found.reach(largest=largest)
            assert not found._possible(np.array([edge + sign * distance]))[0]
            assert not found._possible(np.array([edge + sign * 3 * distance]), 0.001)[0]
            assert found.enclosed(distance, largest=largest)
            with monkeypatch.context() as patch:
                patch.setattr("lossscope.probes.eigenvalues.ritz._FAR_RISK", 0.05)
                near = found.reach(largest=largest)
            farther += near < 0.98 * distance
            assert not found.enclosed(0.98 * distance, largest=largest)
    assert farther  # the second rule has decided somewhere


def test_the_quadratic_bound_needs_a_gap_that_is_known() -> None:
    start = grown(np.r_[1.0, 0.95, 0.6 * _BULK.random(298)], 14)
    found = ritz(start.space, start.random)
    assert 0.04 < found.gaps[-1] <= 0.05 + 1e-6  # never further than the nearest eigenvalue
    assert found.bounds[-2] < found.residuals[-2] / 10
    middle = len(found.values) // 2
    assert found.gaps[middle] == 0  # the bulk is not resolved
    assert found.bounds[middle] == pytest.approx(found.residuals[middle], rel=1e-9)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_pairs_of_the_first_steps_are_those_of_a_space_that_ended_there(width: int) -> None:
    long, short = (grown(SPECTRA["power law"], dimension, width, 3) for dimension in (5 * width + 1, 3 * width))
    now, then = ritz(long.space, long.random, dimensions=3 * width), ritz(short.space, short.random)
    for name in ("values", "residuals", "bounds", "weights"):
        np.testing.assert_allclose(getattr(now, name), getattr(then, name), rtol=1e-6, atol=1e-12)
    for largest in (True, False):
        assert now.reach(largest=largest) == pytest.approx(then.reach(largest=largest), rel=1e-6)


def test_a_closed_space_is_exact_up_to_rounding_and_misses_nothing() -> None:
    start = grown(np.r_[3.0, 2.0, 2.0, *[0.0] * 50], 3)
    found = ritz(start.space, start.random)
    assert found.reach(largest=True) == found.reach(largest=False) == 0
    assert found.values.tolist() == pytest.approx([0, 2, 3], abs=1e-12)
    assert found.rounding == pytest.approx(100 * 2**-52 * 3)
    np.testing.assert_allclose(found.residuals, found.rounding, rtol=0.1)
    assert ritz(grown(np.zeros(40), 2).space, start.random).reach(largest=True) == 0


def test_where_nothing_was_random_nothing_is_enclosed() -> None:
    start = grown(SPECTRA["power law"], 6)
    found = ritz(start.space, start.random[:, :0])
    assert found.reach(largest=True) == math.inf
    assert not found.enclosed(1e9, largest=True)


def dense(n: int, seed: int) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return (A + A.mT) / 2


@given(n=st.integers(2, 40), seed=st.integers(0, 10**6), budget=st.integers(1, 12), width=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_ritz_values_lie_inside_the_spectrum_and_residuals_certify_an_eigenvalue(
    n: int, seed: int, budget: int, width: int
) -> None:
    A = dense(n, seed)
    true = torch.linalg.eigvalsh(A).numpy()
    start = start_block(from_matrix(A), width, None, generator(seed + 1))
    grow(start, top=min(3, n), bottom=min(3, n), rel=1e-3, max_products=budget, steps=0)
    found: Ritz = ritz(start.space, start.random)
    assert true[0] - 1e-10 <= found.values[0]
    assert found.values[-1] <= true[-1] + 1e-10
    assert (np.diff(found.values) >= 0).all()
    vectors = start.space.basis.mT.numpy() @ found.coefficients
    defects = A.numpy() @ vectors - vectors * found.values
    np.testing.assert_allclose(np.linalg.norm(defects, axis=0) + found.rounding, found.residuals, atol=1e-9)
    assert (np.abs(true[:, None] - found.values).min(0) <= found.residuals).all()
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-9)


def test_the_error_falls_with_the_budget() -> None:
    values = np.linspace(0, 1, 400) ** 2
    errors = [1 - ritz(s.space, s.random).values[-1] for s in (grown(values, budget) for budget in (10, 20, 40, 80))]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[1]
