"""Spectra measured with three vectors: coverage of bounds and intervals, ghosts, and what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct
from torch import Tensor

from lossscope.probes.eigenvalues import row_store
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.orthonormal_rows import Array
from lossscope.probes.eigenvalues.recurrence_density import recurrence_density
from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.eigenvalues.ritz import ritz
from lossscope.probes.eigenvalues.start_block import StartBlock, start_block, start_of_three_vectors
from lossscope.probes.eigenvalues.three_vectors import ThreeVectors
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import Reference, SymmetricOperator, from_matrix

N = 100_000
LITTLE = 4 * 25  # bytes a parameter: too few for a basis


def normal(n: int) -> Array:
    return np.random.default_rng(0).standard_normal(n)


def outliers(n: int) -> Array:
    return np.r_[10, 7, 5, 3, 2, 1.5, -1, 0.05 * normal(n)[7:]]


SPECTRA = {
    "outliers": outliers,
    "near double": lambda n: np.r_[10, 9.99, 5, -3, 0.05 * normal(n)[4:]],
    "no gap": lambda n: 2 * np.cos(np.pi * (np.arange(n) + 0.5) / n),
    "power law": lambda n: np.arange(1, n + 1) ** -1.0,
    "normal": normal,
}


def rotated(values: Array, dtype: torch.dtype = torch.float32) -> SymmetricOperator:
    """Return the operator with these eigenvalues; its eigenvectors are cosines with random signs."""
    numbers = torch.empty(0, dtype=dtype).numpy().dtype
    inside, signs = values.astype(numbers)[:, None], np.random.default_rng(1).choice([-1, 1], (len(values), 1))
    signs = signs.astype(numbers)

    def product(V: Tensor) -> Tensor:
        spectrum = inside * dct(V.numpy() * signs, axis=0, norm="ortho")
        return torch.from_numpy(signs * idct(spectrum, axis=0, norm="ortho"))

    def reference() -> Reference | None:
        return Reference(rotated(values.astype(numbers), torch.float64)) if dtype == torch.float32 else None

    return SymmetricOperator(len(values), product, dtype=dtype, device=torch.device("cpu"), reference=reference)


def recurrence(operator: SymmetricOperator, steps: int, seed: int = 0) -> StartBlock[ThreeVectors]:
    start = start_of_three_vectors(operator, None, torch.Generator().manual_seed(seed), seed)
    for _ in range(steps):
        start.space.step()
    return start


def measured(values: Array, seed: int, bytes_each: int = LITTLE) -> SpectrumEstimate:
    names = ("top", "bottom", "trace", "frobenius")
    return measure_spectrum(
        rotated(values), top=1, rel=0.02, trace_rel=0.05, quantities=names, seed=seed, memory=bytes_each * len(values)
    )


def covered(name: str, n: int, starts: int, bytes_each: int = LITTLE) -> dict[str, int]:
    """Return how often the bounds and intervals of some starts contain the truth."""
    values = SPECTRA[name](n)
    kept = values.astype(np.float32).astype(float)
    truth = {"top": kept.max(), "bottom": kept.min(), "trace": kept.sum(), "frobenius": np.sqrt(np.square(kept).sum())}
    counts = dict.fromkeys((*truth, "far"), 0)
    for seed in range(starts):
        found = measured(values, seed, bytes_each)
        # an easy spectrum is known before the basis is full
        assert found.basis in (["three vectors"] if bytes_each == LITTLE else ["restarted basis", "whole basis"])
        assert found.top is not None
        assert found.bottom is not None
        estimates = {"top": found.top.estimate(), "bottom": found.bottom.estimate()}
        estimates |= {"trace": found.trace, "frobenius": found.frobenius}
        for one, estimate in estimates.items():
            counts[one] += estimate.low <= truth[one] <= estimate.high
        reach = 3 * (estimates["top"].high - estimates["top"].value)
        counts["far"] += truth["top"] > estimates["top"].value + reach
        vectors = found.top.vectors.shape[1]
        assert vectors == int(found.basis != "three vectors")
    return counts


@pytest.mark.parametrize("name", ["outliers", "no gap"])
def test_bounds_and_intervals_cover_the_truth_in_float32(name: str) -> None:
    counts = covered(name, N // 5, 10)
    assert counts.pop("far") == 0
    assert min(counts.values()) >= 8, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECTRA)
def test_bounds_and_intervals_cover_the_truth_at_200_starts(name: str) -> None:
    counts = covered(name, N, 200)
    assert counts.pop("far") <= 1
    assert min(counts.values()) >= 181, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outliers", "power law"])
def test_bounds_and_intervals_cover_the_truth_at_a_million_parameters(name: str) -> None:
    counts = covered(name, 10 * N, 200)
    assert counts.pop("far") <= 1
    assert min(counts.values()) >= 181, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECTRA)
def test_a_restarted_basis_covers_the_truth_at_200_starts(name: str) -> None:
    counts = covered(name, N, 200, 4 * 36)
    assert counts.pop("far") <= 1
    assert min(counts.values()) >= 181, counts


def test_the_recurrence_is_that_of_the_whole_basis_until_a_pair_has_converged() -> None:
    operator = rotated(SPECTRA["no gap"](20_000))
    whole = start_block(operator, 1, None, torch.Generator().manual_seed(5))
    for _ in range(20):
        whole.space.step(1)
    three = recurrence(operator, 20, seed=5)
    assert three.random == pytest.approx(whole.random, rel=1e-6)
    assert three.space.projected == pytest.approx(whole.space.projected, abs=1e-5)
    assert three.space.coupling == pytest.approx(whole.space.coupling, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 16, 25, 29])  # in the last a copy is on its way from 7 to 5
def test_ghosts_are_there_and_no_eigenvalue_is_counted_twice_or_lost(seed: int) -> None:
    values = outliers(20_000)
    start = recurrence(rotated(values), 80, seed=seed)
    found = ritz(start.space, start.random)
    assert (np.abs(found.values - 10) < 1e-3).sum() >= 3  # T has copies
    first = found.outermost(6, largest=True)
    known = found.values[first][found.bounds[first] < 0.1]
    assert known[:5] == pytest.approx([10, 7, 5, 3, 2], rel=1e-3)
    assert found.values[found.outermost(1, largest=False)] == pytest.approx([-1], rel=1e-3)


@pytest.mark.parametrize("seed", range(1, 4))  # one in twenty takes more products for the bound
def test_the_pairs_measured_are_those_that_exist(seed: int) -> None:
    operator = rotated(outliers(20_000))
    found = measure_spectrum(
        operator, top=6, rel=1e-4, max_products=120, quantities=("top",), seed=seed, memory=LITTLE * 20_000
    ).top
    assert found is not None
    assert found.values.tolist() == pytest.approx([10, 7, 5, 3, 2, 1.5], abs=1e-3)
    assert bool(found.converged.all())
    assert bool((found.bounds <= 1e-3).all())


def test_the_weights_of_ghosts_add_up_to_those_of_their_eigenvalue() -> None:
    values = outliers(20_000)
    short, long = recurrence(rotated(values), 12), recurrence(rotated(values), 80)
    few, many = ritz(short.space, short.random), ritz(long.space, long.random)
    weight = few.weights[0, np.abs(few.values - 10) < 0.5].sum()
    assert many.weights[0, np.abs(many.values - 10) < 0.5].sum() == pytest.approx(weight, rel=1e-2)
    assert many.weights.sum() == pytest.approx(1)


def test_the_density_counts_a_settled_eigenvalue_once() -> None:
    values = outliers(20_000)
    operator = rotated(values)
    density = recurrence_density([recurrence(operator, 60, seed) for seed in (0, 1)])
    assert density.shares.sum() == pytest.approx(1)
    for value in (10, 7, 5):
        near = np.abs(density.nodes - value) < 0.3
        assert density.shares[near].sum() * len(values) == pytest.approx(1, rel=1e-3)
        assert density.settled[near].sum() == 1
    exact = -values[values < -0.01].sum() / np.abs(values).sum()
    assert density.negative_mass.low <= exact <= density.negative_mass.high


def test_an_exhausted_space_ends_the_search() -> None:
    operator = SymmetricOperator(5000, lambda V: 2 * V, dtype=torch.float32, device=torch.device("cpu"))
    found = measure_spectrum(operator, top=3, memory=LITTLE * 5000)
    assert found.top.values.tolist() == [pytest.approx(2)]
    assert found.trace.value == pytest.approx(10_000)
    zero = SymmetricOperator(5000, torch.zeros_like, dtype=torch.float32, device=torch.device("cpu"))
    assert measure_spectrum(zero, memory=LITTLE * 5000).top.values.tolist() == [0.0]


def test_with_enough_memory_nothing_depends_on_it() -> None:
    values = outliers(5000)
    plain, given = (measure_spectrum(rotated(values), memory=memory) for memory in (None, 4 * 5000 * 300))
    assert plain.basis == given.basis == "whole basis"
    assert given.memory == 4 * 5000 * 300
    assert torch.equal(plain.top.vectors, given.top.vectors)
    assert plain.trace == given.trace or plain.trace.value == given.trace.value


def test_a_basis_that_is_cut_gives_trace_and_pairs_with_their_bounds() -> None:
    values = SPECTRA["no gap"](20_000)
    found = measured(values, 0, 4 * 36)
    assert found.basis == "restarted basis"
    assert found.top.vectors.shape == (20_000, 1)
    assert found.top.estimate().low <= values.max() <= found.top.estimate().high


def test_an_asymmetric_operator_is_refused() -> None:
    n = 5000
    scale = torch.linspace(1, 2, n)[:, None]
    shift = SymmetricOperator(n, lambda V: scale * V.roll(1, 0), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ProbeError, match="not symmetric"):
        measure_spectrum(shift, memory=LITTLE * n)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (2 * 4 * 100, "memory must hold at least 3 vectors of 100 numbers, 1200 bytes, got 800"),
        ("a lot", "memory must be a positive number of bytes or text such as \"6GB\", got 'a lot'"),
        (0, "memory must be a positive number"),
        (True, "memory must be a positive number"),
    ],
)
def test_a_memory_that_is_none_is_refused(memory: int | str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        measure_spectrum(from_matrix(torch.eye(100)), memory=memory)


@pytest.mark.parametrize("bytes_each", [4 * 10, 4 * 34])
def test_tracking_with_little_memory_finds_the_eigenvalue_in_as_few_products(bytes_each: int) -> None:
    values = outliers(20_000)
    tracker = EigenTracker(0.03, memory=bytes_each * len(values))
    for change in (1.0, 1.01, 1.02):
        operator = rotated(values * change)
        found = tracker.measure(operator)
        assert found.top is not None
        estimate = found.top.estimate()
        assert estimate.low <= 10 * change <= estimate.high
        assert found.products <= (16 if change == 1.0 else 3)
        vector = found.top.vectors[:, 0]
        image = operator @ vector
        assert float((image - estimate.value * vector).norm()) <= 0.05 * estimate.value
    assert found.basis == ("three vectors" if bytes_each == 4 * 10 else "restarted basis")


def test_a_spilled_basis_gives_the_same_bits(tmp_path: Path) -> None:
    values = outliers(20_000)
    spilled = measure_spectrum(rotated(values), memory=LITTLE * 20_000, spill=tmp_path)
    whole = measure_spectrum(rotated(values))
    assert (spilled.basis, whole.basis) == ("spilled basis", "whole basis")
    assert torch.equal(spilled.top.vectors, whole.top.vectors)
    assert torch.equal(spilled.top.bounds, whole.top.bounds)
    assert spilled.trace.value == whole.trace.value
    assert not list(tmp_path.iterdir())


def test_a_missing_or_full_spill_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = rotated(outliers(20_000))
    with pytest.raises(ProbeError, match="spill must be an existing folder"):
        measure_spectrum(operator, memory=LITTLE * 20_000, spill=tmp_path / "none")

    def full(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(row_store, "_reserve", full)
    with pytest.raises(ProbeError, match=r"could not be spilled: \d+ bytes in .* gave 'No space left on device'"):
        measure_spectrum(operator, memory=LITTLE * 20_000, spill=tmp_path)


def test_disk_is_reserved_before_rows_are_written_where_the_system_has_no_call_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    rows = row_store.SpilledRows(tmp_path, torch.zeros(1, 1000))
    rows.grow(2)[:] = 1.0
    grown = rows.grow(6)
    assert grown.sum() == 2000
    assert grown.shape == (6, 1000)
