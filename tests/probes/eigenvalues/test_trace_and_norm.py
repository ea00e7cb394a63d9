from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from helpers import gaussian, generator
from lossscope.probes.eigenvalues.block_krylov import Array, BlockKrylov
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.measured_rounding import RandomRounding
from lossscope.probes.eigenvalues.trace_and_norm import Complement, trace_and_frobenius
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import Reference, SymmetricOperator, from_matrix
from lossscope.probes.statistics.estimate import Estimate, mean_estimate
from lossscope.probes.sums import without


def rotated(eigenvalues: Tensor, seed: int = 77) -> Tensor:
    Q, _ = torch.linalg.qr(gaussian(len(eigenvalues), len(eigenvalues), seed=seed))
    A = (Q * eigenvalues.double()) @ Q.mT
    return (A + A.mT) / 2


def space_of(operator: SymmetricOperator, dimension: int, seed: int = 1000) -> BlockKrylov:
    space = BlockKrylov(operator, gaussian(1, operator.size, seed=seed), generator(seed + 1))
    while space.dimension < dimension:
        space.step(dimension - space.dimension)
    return space


def estimated(
    A: Tensor, dimension: int = 0, *, rel: float = 0.01, budget: int = 32, seed: int = 0, **options
) -> tuple[Estimate, Estimate]:
    operator = from_matrix(A)
    space = space_of(operator, dimension)
    return trace_and_frobenius(operator, space, rel=rel, max_products=budget, generator=generator(seed), **options)


SPECTRA = {
    "identity": torch.ones(100),
    "power law": 1 / torch.arange(1.0, 101) ** 1.5,
    "outlier and bulk": torch.cat([torch.tensor([30.0]), 0.2 + 0.1 * torch.linspace(0, 1, 99)]),
    "indefinite": torch.linspace(-1, 1, 100) ** 3 + 0.1,
}


@pytest.mark.parametrize("dimension", [0, 3, 10, 40])
def test_the_parts_inside_and_outside_of_the_space_add_up_exactly(dimension: int) -> None:
    A = rotated(SPECTRA["indefinite"])
    operator = from_matrix(A)
    space = space_of(operator, dimension)
    rest = Complement(operator, space, generator())
    rest.draw(4000)
    trace, square = rest.estimates()
    assert abs(trace.value - float(A.trace())) < 4 * trace.stderr
    assert abs(square.value - float(A.square().sum())) < 4 * square.stderr
    P = torch.eye(100, dtype=torch.float64) - space.basis.mT @ space.basis
    B = P @ A @ P
    expected = 2 * float(B.square().sum() - B.diagonal().square().sum()) / 4000
    assert trace.stderr**2 == pytest.approx(expected, rel=0.1)  # nothing but the complement is left to chance


@pytest.mark.parametrize("cuts", [(8, 8), (3, 13), (2, 1, 13)])
def test_old_probes_follow_a_space_that_grows_without_a_product(cuts: tuple[int, ...]) -> None:
    A = rotated(SPECTRA["indefinite"])
    operator = from_matrix(A)
    space = space_of(operator, 2)
    rest = Complement(operator, space, generator())
    for cut in cuts:
        rest.draw(cut)
        rest.estimates()
        for _ in range(5):
            space.step(1)
    before = operator.products
    late = Complement(operator, space, generator())
    followed = rest.estimates()
    assert operator.products == before == 16 + space.dimension
    late.draw(16)
    for grown, fresh in zip(followed, late.estimates(), strict=True):
        assert grown.value == pytest.approx(fresh.value, rel=1e-12)
        assert grown.stderr == pytest.approx(fresh.stderr, rel=1e-9)
        assert grown.samples == fresh.samples == 16


def test_probes_do_not_depend_on_the_space_or_on_how_they_are_cut_into_blocks() -> None:
    seen: list[Tensor] = []
    A = rotated(torch.linspace(0, 1, 50)).double()

    def product(V: Tensor) -> Tensor:
        seen.append(V)
        return A @ V

    operator = SymmetricOperator(50, product, dtype=torch.float64, device=torch.device("cpu"))

    def drawn(space: BlockKrylov, *counts: int) -> Tensor:
        rest = Complement(operator, space, generator(5))
        seen.clear()
        for count in counts:
            rest.draw(count)
        return torch.cat(seen, 1)

    none, space = space_of(operator, 0), space_of(operator, 6)
    probes = drawn(none, 10)
    assert torch.equal(probes, drawn(none, 3, 7))
    assert sorted(set(probes.flatten().tolist())) == [-1.0, 1.0]
    inside = space.basis @ probes
    torch.testing.assert_close(drawn(space, 10), probes - space.basis.mT @ inside)  # less their part in the space


def test_rounding_that_is_known_is_not_measured_again() -> None:
    def found(rounding: RandomRounding | None) -> tuple[Estimate, int]:
        A = rotated(torch.linspace(0, 1, 400))
        operator = SymmetricOperator(
            400,
            A.float().matmul,
            dtype=torch.float32,
            device=torch.device("cpu"),
            reference=lambda: Reference(from_matrix(A)),
        )
        before = operator.products
        trace, _ = trace_and_frobenius(
            operator,
            space_of(operator, 0),
            rel=0.5,
            max_products=BUDGET,
            generator=generator(5),
            rounding=rounding,
        )
        return trace, operator.products - before

    (measured, more), (known, fewer) = found(None), found(RandomRounding(1e-2, 1e-3))
    assert (more, fewer) == (fewer + 1, known.samples)
    assert known.value == measured.value
    assert known.high - measured.high == pytest.approx(400 * 1e-3 + 3 * (400 * 1e-2) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_identity_has_its_exact_trace_without_an_error(dtype: torch.dtype) -> None:
    found = measure_spectrum(from_matrix(torch.eye(100, dtype=dtype)), quantities=("trace", "frobenius"))
    assert (found.trace.value, found.trace.stderr) == (100, 0)
    assert 100 - 1e3 * torch.finfo(dtype).eps <= found.trace.low < 100 < found.trace.high
    assert found.frobenius.value == pytest.approx(10, rel=1e-7)
    assert found.frobenius.stderr == 0
    assert found.trace.converged
    assert found.trace.samples == found.products


def test_probes_that_the_space_was_grown_from_would_never_cover() -> None:
    """Counterexample: the coverage test below can fail."""
    for name in ("identity", "power law", "outlier and bulk"):
        A = rotated(SPECTRA[name])
        truth, covered = float(A.trace()), 0
        for seed in range(20):
            operator = from_matrix(A)
            signs = torch.randint(2, (8, 100), generator=generator(seed)).double() * 2 - 1
            space = BlockKrylov(operator, signs, generator(seed))
            while space.dimension < 16 and space.width:
                space.step(8)
            left = signs - (signs @ space.basis.mT) @ space.basis
            forms = (left * (operator @ left.mT).mT).sum(1)
            inside = float(space.projected.trace())
            same = mean_estimate(forms.tolist())
            covered += inside + same.low - 1e-9 <= truth <= inside + same.high + 1e-9
        assert covered == 0


def covers(found: Estimate, truth: float) -> bool:
    return found.low - 1e-9 * abs(truth) <= truth <= found.high + 1e-9 * abs(truth)


@pytest.mark.parametrize(
    ("name", "seeds"),
    [("identity", 200), *(pytest.param(name, 1000, marks=pytest.mark.slow) for name in ("identity", "indefinite"))],
)
def test_the_intervals_of_a_whole_measurement_cover_the_truth(name: str, seeds: int) -> None:
    A = rotated(SPECTRA[name])
    trace, norm, operator = float(A.trace()), float(torch.linalg.matrix_norm(A)), from_matrix(A)
    covered = [0, 0]
    for seed in range(seeds):
        found = measure_spectrum(operator, rel=0.1, max_products=60, top=1, seed=seed)
        assert found.trace is not None
        assert found.frobenius is not None
        covered[0] += covers(found.trace, trace)
        covered[1] += covers(found.frobenius, norm)
    least, most = binom.ppf([0.001, 0.999], seeds, [0.94, 0.96])
    assert all(least <= count <= most for count in covered), covered


class Replayed:
    """A Krylov space that replays one grown before: it depends on its start only, not on the probes."""

    def __init__(self, operator: SymmetricOperator, whole: BlockKrylov) -> None:
        self._operator, self._whole, self.dimension = operator, whole, 0
        self._basis, self._squares = whole.basis, whole.images.square().sum(1)

    def step(self, at_most: int) -> None:
        assert at_most > 0
        assert self.dimension < self._whole.dimension
        self.dimension += 1
        self._operator.products += 1

    def without(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return without(rows, self._basis[: self.dimension])

    def outwards(self, coefficients: Array) -> Tensor:
        k = self.dimension
        coupling = torch.from_numpy(self._whole.projected[k : k + 1, :k] @ coefficients)
        return coupling.mT @ self._basis[k : k + 1]

    measured_error = 0.0
    image_square = property(lambda self: float(self._squares[: self.dimension].sum()))
    projected = property(lambda self: self._whole.projected[: self.dimension, : self.dimension])


STARTS, BUDGET = 50, 90


@pytest.mark.parametrize(
    ("name", "rel"),  # cases with the coverage nearest to a limit; 0.02 is reached at the first test, the others later
    [
        pytest.param("power law", 0.02, marks=pytest.mark.slow),
        pytest.param("power law", 0.01, marks=pytest.mark.slow),
        pytest.param("outlier and bulk", 0.02, marks=pytest.mark.slow),
        pytest.param("indefinite", 0.09, marks=pytest.mark.slow),
        pytest.param("indefinite", 0.06, marks=pytest.mark.slow),
    ],
)
def test_the_interval_covers_the_truth_with_the_stopping_rule_on(name: str, rel: float) -> None:
    A = rotated(SPECTRA[name])
    trace, norm, operator = float(A.trace()), float(torch.linalg.matrix_norm(A)), from_matrix(A)
    spaces = [space_of(operator, 80, seed=2000 + 2 * start) for start in range(STARTS)]
    covered, tests, dimensions = [0, 0], set[int](), set[int]()
    for seed in range(1000):
        space: Any = Replayed(operator, spaces[seed % STARTS])
        found = trace_and_frobenius(operator, space, rel=rel, max_products=BUDGET, generator=generator(seed))
        for k, (estimate, truth) in enumerate(zip(found, (trace, norm), strict=True)):
            covered[k] += covers(estimate, truth)
        tests.add(found[0].samples)
        dimensions.add(space.dimension)
    assert all(930 <= count <= 980 for count in covered), covered
    assert max(dimensions) > 0
    assert len(tests) > 1 or rel == 0.02


def test_a_space_that_is_replayed_gives_what_it_gave() -> None:
    for name in ("power law", "indefinite"):
        operator = from_matrix(rotated(SPECTRA[name]))
        replayed: Any = Replayed(operator, space_of(operator, 80, seed=2000))
        fresh = space_of(operator, 0, seed=2000)
        found = [
            trace_and_frobenius(operator, space, rel=0.05, max_products=BUDGET, generator=generator(3))
            for space in (replayed, fresh)
        ]
        assert replayed.dimension == fresh.dimension > 0
        for one, other in zip(*found, strict=True):
            assert (one.samples, one.products, one.converged) == (other.samples, other.products, other.converged)
            numbers = [(e.value, e.stderr, e.low, e.high) for e in (one, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-10)  # the replayed basis is summed in other chunks


def test_the_norm_is_at_least_what_the_space_knows_of_it() -> None:
    """With few probes the interval of the rest would include negative values, which a square cannot have."""
    A = rotated(SPECTRA["outlier and bulk"])
    cut = 0
    for seed in range(20):
        operator = from_matrix(A)
        rest = Complement(operator, space_of(operator, 3), generator(seed))
        rest.draw(3)
        known = 2 * rest._space.image_square - float((rest._space.projected**2).sum())
        plain = mean_estimate(rest._forms()[1])
        square = rest.estimates()[1]
        assert square.low == pytest.approx(known + max(plain.low, 0.0), rel=1e-12)
        cut += plain.low < 0
        assert square.low <= square.value
    assert cut


def test_the_identity_is_always_covered() -> None:
    A = rotated(SPECTRA["identity"])
    for seed in range(50):
        trace, frobenius = estimated(A, rel=0.1, seed=seed)
        assert covers(trace, 100)
        assert covers(frobenius, 10)


def test_the_trace_of_a_diagonal_is_exact() -> None:
    trace, frobenius = estimated(torch.diag(torch.arange(100.0) - 30))
    assert (trace.value, trace.stderr) == (1950.0, 0.0)
    assert 1950 - 1e-2 < trace.low < 1950 < trace.high < 1950 + 1e-2  # rounding in float32
    assert frobenius.value == pytest.approx(float((torch.arange(100.0) - 30).square().sum().sqrt()), rel=1e-6)
    assert trace.converged


def test_where_the_space_is_everything_both_numbers_are_exact() -> None:
    A = rotated(torch.tensor([4.0, 1.0, -1.0]))
    trace, frobenius = estimated(A, 3)
    assert (trace.value, frobenius.value) == pytest.approx((4.0, 18**0.5), rel=1e-14)
    assert trace.bound == frobenius.bound == "exact"
    assert trace.stderr == frobenius.stderr == trace.samples == 0
    assert trace.converged
    sampled, _ = estimated(A, 0, budget=2)
    assert sampled.bound == "standard error"


def test_the_whole_matrix_is_taken_where_it_costs_no_more_than_the_missing_probes() -> None:
    A = rotated(torch.linspace(-1, 1, 100))
    trace, frobenius = estimated(A, rel=1e-3, budget=200)
    assert trace.bound == frobenius.bound == "exact"
    assert trace.value == pytest.approx(float(A.trace()), abs=1e-12)
    assert frobenius.value == pytest.approx(float(A.norm()), rel=1e-12)
    for dimension in (60, 84, 92):  # also where the last chunk completes it
        grown, _ = estimated(A, dimension, rel=1e-4, budget=200)
        assert grown.bound == "exact"
    tight, _ = estimated(A, rel=1e-3, budget=90)
    assert tight.bound == "standard error"


def test_the_space_grows_where_that_saves_probes_and_only_there() -> None:
    counts = {}
    for name in ("outlier and bulk", "power law", "flat"):
        values = SPECTRA.get(name, torch.where(torch.arange(300) % 2 > 0, 1.0, -1.0) * torch.linspace(1, 2, 300))
        operator = from_matrix(rotated(values))
        space = space_of(operator, 0)
        trace, _ = trace_and_frobenius(operator, space, rel=0.02, max_products=200, generator=generator())
        counts[name] = (space.dimension, trace.samples, trace.converged)
        assert trace.products == operator.products == space.dimension + trace.samples <= 200
    assert counts["outlier and bulk"][0] > 0
    assert sum(counts["outlier and bulk"][:2]) < 40  # plain probes would need thousands: 2 sum / (rel trace)^2
    assert counts["outlier and bulk"][2]
    assert sum(counts["power law"][:2]) < 60
    assert counts["flat"][0] <= 16  # one try of a chunk or two, then probes
    assert not counts["flat"][2]


def test_the_budget_is_kept_and_used_up_where_it_is_too_small() -> None:
    A = rotated(torch.linspace(-1, 1, 300))
    for budget in (2, 7, 50, 131):
        operator = from_matrix(A)
        trace, frobenius = trace_and_frobenius(
            operator, space_of(operator, 0), rel=1e-5, max_products=budget, generator=generator()
        )
        assert operator.products == trace.products == budget
        assert not trace.converged
        assert not frobenius.converged
    with pytest.raises(ProbeError, match="max_products must be at least 2 for a standard error, got 1"):
        estimated(A, budget=1)


def test_a_number_has_converged_where_its_standard_error_is_as_small_as_requested() -> None:
    A = rotated(torch.linspace(0.5, 1, 300))
    samples = []
    for rel in (0.02, 0.01, 0.005):
        trace, frobenius = estimated(A, rel=rel, budget=5000)
        assert trace.converged
        assert frobenius.converged
        assert trace.stderr <= rel * trace.value
        assert frobenius.stderr <= rel * frobenius.value
        samples.append(trace.samples)
    assert samples == sorted(samples)


def test_only_what_decides_is_waited_for() -> None:
    A = rotated(torch.linspace(-0.2, 1, 300) ** 3)
    products = [
        estimated(A, rel=0.02, budget=2048, decide=decide)[0].products
        for decide in (("trace",), ("frobenius",), ("trace", "frobenius"))
    ]
    assert products[2] == max(products) > min(products)


def test_a_traceless_matrix_is_measured_relative_to_its_norm() -> None:
    A = rotated(torch.cat([torch.ones(150), -torch.ones(150)]))
    trace, frobenius = estimated(A, rel=0.1, budget=290)
    assert trace.converged
    assert 0 < trace.stderr <= 0.1 * frobenius.value
    assert abs(trace.value) < 4 * trace.stderr


def test_the_error_falls_with_the_root_of_the_budget() -> None:
    A = rotated(torch.linspace(0, 1, 60))
    errors = []
    for samples in (256, 4096):
        operator = from_matrix(A)
        rest = Complement(operator, space_of(operator, 5), generator())
        rest.draw(samples)
        errors.append(rest.estimates()[0].stderr)
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.15)


@pytest.mark.parametrize("budget", [2, 3, 5, 9])
def test_fewer_than_ten_probes_never_count_as_converged(budget: int) -> None:
    for seed in range(5):
        found = measure_spectrum(
            from_matrix(torch.eye(100) + 1e-4), quantities=("trace",), max_products=budget, rel=0.5, seed=seed
        )
        assert found.trace is not None
        assert not found.trace.converged
        assert found.unmet == ("trace",)


def test_a_converged_trace_of_few_probes_misses_twice_its_error_rarely() -> None:
    values = 1.0 / torch.arange(1, 101, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    A = (Q * values) @ Q.mT
    A, true, size, missed = (A + A.mT) / 2, float(values.sum()), float(values.sum()), 0
    for seed in range(150):
        found = measure_spectrum(from_matrix(A), quantities=("trace",), max_products=12, rel=0.1, seed=seed).trace
        assert found is not None
        missed += found.converged and abs(found.value - true) > 2 * 0.1 * size
    assert missed <= 2
