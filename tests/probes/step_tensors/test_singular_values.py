from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.matrix_spectrum import (
    MatrixSpectrum,
    gram_error,
    stored_spectrum,
    white_noise_entropy,
)
from lossscope.probes.step_tensors.singular_values import gram_spectra, singular_spectrum

SHAPES = [(6, 6), (3, 11), (11, 3), (1, 5), (128, 128), (512, 128)]


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(gaussian(n, n, seed=seed)).Q


@pytest.mark.parametrize("r", [2, 5, 64])
def test_the_identity_has_the_largest_entropy_and_no_defect(r: int) -> None:
    spectrum = singular_spectrum(3.0 * torch.eye(r))
    for kind in ("energy", "nuclear"):
        assert spectrum.entropy(kind) == pytest.approx(1.0, abs=1e-14)
        assert spectrum.entropy(kind, normalized=False) == pytest.approx(math.log(r), abs=1e-13)
    assert spectrum.stable_rank == pytest.approx(r)
    assert spectrum.effective_rank == pytest.approx(r)
    assert spectrum.condition == 1.0
    assert spectrum.orthogonality_defect == pytest.approx(0.0, abs=1e-14)
    assert spectrum.norm == pytest.approx(3.0 * math.sqrt(r))


def test_rank_one_has_no_entropy_and_no_condition() -> None:
    spectrum = singular_spectrum(torch.outer(gaussian(20), gaussian(30, seed=1)))
    assert spectrum.entropy("energy", normalized=False) < 1e-12  # 19 shares of at most 1e-16
    assert spectrum.entropy("nuclear", normalized=False) < 1e-5  # 19 shares of 1e-8 times ln 1e8
    assert spectrum.stable_rank == pytest.approx(1.0)
    assert spectrum.effective_rank == pytest.approx(1.0, abs=1e-5)
    assert spectrum.condition == math.inf
    assert spectrum.orthogonality_defect == pytest.approx(math.sqrt(19), abs=1e-6)


def test_two_and_one_have_the_entropies_of_the_closed_form() -> None:
    spectrum = singular_spectrum(torch.diag(torch.tensor([1.0, -2.0])))
    assert spectrum.values.tolist() == [2.0, 1.0]
    nuclear = math.log(3) - 2 / 3 * math.log(2)
    energy = math.log(5) - 4 / 5 * math.log(4)
    assert spectrum.entropy("nuclear", normalized=False) == pytest.approx(nuclear, abs=1e-14)
    assert spectrum.entropy("energy", normalized=False) == pytest.approx(energy, abs=1e-14)
    assert spectrum.entropy("energy") == pytest.approx(energy / math.log(2), abs=1e-14)
    assert spectrum.effective_rank == pytest.approx(math.exp(nuclear))
    assert (spectrum.stable_rank, spectrum.condition) == (1.25, 2.0)
    # scaled to norm sqrt 2 the squares are 1.6 and 0.4
    assert spectrum.orthogonality_defect == pytest.approx(0.6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_values_are_those_of_an_svd(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    values = singular_spectrum(matrix).values
    expected = scipy.linalg.svdvals(matrix.numpy())
    assert values.dtype == np.float64
    assert (np.diff(values) <= 0).all()
    assert values[0] == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(values, expected, rtol=0, atol=gram_error(expected))


@pytest.mark.parametrize("decay", ["geometric", "rank one", "constant"])
@pytest.mark.parametrize("seed", range(4))
def test_no_value_is_further_from_an_svd_than_its_stated_error(decay: str, seed: int) -> None:
    m, n = 64, 96
    sigma = {
        "geometric": 10.0 ** -torch.linspace(0, 16, m, dtype=torch.float64),
        "rank one": torch.eye(m, dtype=torch.float64)[0],
        "constant": torch.ones(m, dtype=torch.float64),
    }[decay]
    matrix = (orthogonal(m, seed) * sigma) @ orthogonal(n, seed + 10)[:m]
    spectrum = singular_spectrum(matrix)
    furthest = np.abs(spectrum.values - torch.linalg.svdvals(matrix).numpy()).max()
    assert furthest <= spectrum.error
    assert spectrum.error < 2e-7 * spectrum.values[0]


def test_entropies_are_those_of_scipy() -> None:
    spectrum = singular_spectrum(gaussian(9, 14))
    for kind, weights in (("nuclear", spectrum.values), ("energy", spectrum.values**2)):
        assert spectrum.entropy(kind, normalized=False) == pytest.approx(scipy.stats.entropy(weights), abs=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 0.37, 1e25])
@pytest.mark.parametrize("shape", [(12, 12), (7, 20)])
def test_scale_and_rotations_change_nothing_but_the_norm(scale: float, shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    before = singular_spectrum(matrix)
    after = singular_spectrum(scale * orthogonal(shape[0], 1) @ matrix @ orthogonal(shape[1], 2))
    for kind in ("energy", "nuclear"):
        assert after.entropy(kind) == pytest.approx(before.entropy(kind), abs=1e-12)
    for name in ("stable_rank", "effective_rank", "condition", "orthogonality_defect", "excess_order"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-10)
    assert after.norm == pytest.approx(scale * before.norm, rel=1e-12)


def test_a_row_rescaling_does_change_the_entropy() -> None:
    matrix = gaussian(8, 8)
    rescaled = singular_spectrum(torch.logspace(0, 3, 8)[:, None] * matrix)
    assert rescaled.entropy() < singular_spectrum(matrix).entropy() - 0.3


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_of_extreme_matrices_neither_underflow_nor_overflow(scale: float) -> None:
    spectrum = singular_spectrum(scale * torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    np.testing.assert_allclose(spectrum.values, [2 * scale, scale], rtol=1e-14)
    assert (spectrum.stable_rank, spectrum.condition) == (1.25, 2.0)
    assert spectrum.norm == pytest.approx(scale * math.sqrt(5))


@pytest.mark.parametrize("shape", [(20, 20), (8, 30), (30, 8)])
def test_a_random_stiefel_matrix_has_no_defect(shape: tuple[int, int]) -> None:
    tall = torch.linalg.qr(gaussian(max(shape), min(shape))).Q
    stiefel = tall if shape[0] >= shape[1] else tall.mT
    assert singular_spectrum(0.01 * stiefel).orthogonality_defect < 1e-13


def test_the_defect_is_the_one_of_the_matrix_definition() -> None:
    D = gaussian(5, 9)
    r = 5
    scaled = D / (torch.linalg.matrix_norm(D) / math.sqrt(r))
    expected = torch.linalg.matrix_norm(scaled @ scaled.mT - torch.eye(r, dtype=torch.float64)) / math.sqrt(r)
    assert singular_spectrum(D).orthogonality_defect == pytest.approx(float(expected), rel=1e-12)
    assert singular_spectrum(D.mT).orthogonality_defect == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("shape", [(128, 128), (64, 256), (512, 128)])
def test_white_noise_has_the_entropy_of_page(shape: tuple[int, int]) -> None:
    draws = [singular_spectrum(gaussian(*shape, seed=seed)) for seed in range(6)]
    mean = float(np.mean([draw.entropy(normalized=False) for draw in draws]))
    assert mean == pytest.approx(white_noise_entropy(shape), abs=0.008)  # spread of one draw: 0.006 at 128 x 128
    m, n = min(shape), max(shape)
    assert mean == pytest.approx(math.log(m) - m / (2 * n), abs=0.012)
    assert abs(float(np.mean([draw.excess_order for draw in draws]))) < 0.008


def test_the_entropy_of_gaussian_128_is_the_tabulated_one() -> None:
    mean = np.mean([singular_spectrum(gaussian(128, 128, seed=s)).entropy(normalized=False) for s in range(10)])
    assert mean == pytest.approx(4.350, abs=0.006)  # three standard errors of the mean of ten


def test_the_real_correction_to_page_shows_in_small_matrices() -> None:
    draws = [singular_spectrum(gaussian(32, 32, seed=seed)).entropy(normalized=False) for seed in range(60)]
    assert np.mean(draws) == pytest.approx(white_noise_entropy((32, 32)), abs=0.008)  # sd 0.020, se 0.0026
    assert math.log(32) - 0.5 - np.mean(draws) > 0.008


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_a_vector_has_a_gap_for_its_normalized_entropy(shape: tuple[int, int]) -> None:
    spectrum = singular_spectrum(gaussian(*shape))
    assert math.isnan(spectrum.entropy())
    assert math.isnan(spectrum.entropy("nuclear"))
    assert spectrum.entropy("nuclear", normalized=False) == 0.0
    assert spectrum.stable_rank == 1.0


def test_a_zero_matrix_has_gaps_and_a_norm_of_zero() -> None:
    spectrum = singular_spectrum(torch.zeros(3, 5))
    gaps = (spectrum.entropy(), spectrum.entropy("nuclear", normalized=False), spectrum.stable_rank)
    gaps += (spectrum.effective_rank, spectrum.condition, spectrum.orthogonality_defect, spectrum.excess_order)
    assert all(math.isnan(gap) for gap in gaps)
    assert spectrum.norm == 0.0
    assert spectrum.values.tolist() == [0.0] * 3


def test_a_spectrum_is_rebuilt_from_its_stored_list() -> None:
    spectrum = singular_spectrum(gaussian(6, 9))
    stored = spectrum.values.tolist()
    rebuilt = MatrixSpectrum.from_values(stored[::-1], [6, 9], "gram", spectrum.error)
    assert rebuilt.values.tolist() == stored
    assert rebuilt.entropy() == spectrum.entropy()
    assert (rebuilt.shape, rebuilt.method, rebuilt.error) == ((6, 9), "gram", spectrum.error)
    with pytest.raises(ValueError, match="read-only"):
        rebuilt.values[0] = 1.0


def test_a_smallest_value_inside_the_error_gives_no_condition() -> None:
    assert MatrixSpectrum.from_values([2.0, 0.5], (2, 2), "map", 0.4).condition == 4.0
    assert MatrixSpectrum.from_values([2.0, 0.5], (2, 2), "map", 0.6).condition == math.inf


def test_many_spectra_are_the_single_ones_in_order() -> None:
    matrices = [
        gaussian(4, 32, 128),
        gaussian(128, 128, seed=1, dtype=torch.float32),
        gaussian(3, 5, seed=2),
        gaussian(5, 3, seed=3, dtype=torch.bfloat16),
        gaussian(40, 32, seed=4),
        gaussian(2, 70, 66, seed=5),
    ]
    spectra = gram_spectra(matrices)
    assert [tuple(s.shape) for s in spectra] == [(4, 32), (128,), (3,), (3,), (32,), (2, 66)]
    for matrix, spectrum in zip(matrices, spectra, strict=True):
        assert spectrum.dtype == torch.float64
        torch.testing.assert_close(spectrum, torch.linalg.svdvals(matrix.double()), rtol=1e-9, atol=1e-9)


def test_a_matrix_with_a_nan_leaves_the_others_alone() -> None:
    batch = gaussian(3, 4, 6)
    batch[1, 0, 0] = math.nan
    infinite = torch.full((4, 4), math.inf)
    slices, whole, clean = gram_spectra([batch, infinite, torch.eye(4)])
    assert torch.isnan(slices).all(dim=-1).tolist() == [False, True, False]
    assert torch.isnan(whole).all()
    assert clean.tolist() == [1.0] * 4
    gap = MatrixSpectrum.from_values(whole.tolist(), (4, 4), "gram", math.nan)
    assert math.isnan(gap.entropy())
    assert math.isnan(gap.norm)
    assert math.isnan(gap.condition)


def test_parameters_that_need_gradients_give_plain_values() -> None:
    (values,) = gram_spectra([torch.nn.Parameter(gaussian(3, 4))])
    assert not values.requires_grad


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 3, 4, 5)])
def test_a_tensor_that_is_no_matrix_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProbeError, match=r"matrix must be 2-D, got shape \(.*\): flatten it"):
        singular_spectrum(torch.ones(shape))


def test_a_matrix_that_is_not_finite_is_refused_with_the_number_of_entries() -> None:
    matrix = torch.ones(2, 3)
    matrix[0, 1], matrix[1, 2] = math.nan, math.inf
    with pytest.raises(ProbeError, match=r"got 2 of 6 that are not in shape \(2, 3\)"):
        singular_spectrum(matrix)


@pytest.mark.parametrize(
    "tensor", [torch.ones(3), torch.ones(1, 2, 3, 4), torch.ones(0, 3), torch.ones(2, 2, dtype=torch.complex64)]
)
def test_the_fast_path_refuses_what_has_no_spectrum(tensor: Tensor) -> None:
    with pytest.raises(ProbeError, match="matrices must be real, non-empty"):
        gram_spectra([tensor])


def test_an_unknown_kind_of_entropy_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"kind must be one of .*, got 'fisher'"):
        singular_spectrum(torch.eye(2)).entropy("fisher")  # type: ignore[arg-type]


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"got 3 values for shape \(2, 4\)"):
        MatrixSpectrum.from_values([3.0, 2.0, 1.0], (2, 4), "gram", 0.0)
    with pytest.raises(ProbeError, match="singular values must be at least 0, got -1"):
        MatrixSpectrum.from_values([3.0, -1.0], (2, 4), "gram", 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_spectrum_without_torch_is_that_with_torch(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossscope.probes.step_tensors.matrix_spectrum._BLOCK", 300)  # several blocks of rows
    matrix = gaussian(*shape).to(dtype)
    ours, theirs = stored_spectrum(matrix.numpy()), singular_spectrum(matrix)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-12, atol=theirs.error)
    assert (ours.shape, ours.method) == (theirs.shape, theirs.method)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_spectrum_without_torch_neither_under_nor_overflows(scale: float) -> None:
    values = stored_spectrum((np.diag([3.0, 2.0, 0.0]) * scale).astype(np.float32)).values
    np.testing.assert_allclose(values, np.array([3.0, 2.0, 0.0]) * scale, rtol=1e-6)


@pytest.mark.parametrize("matrix", [np.zeros(3), np.zeros((0, 2)), np.full((2, 2), np.nan), np.full((9, 1), np.inf)])
def test_what_has_no_spectrum_is_refused_without_torch(matrix: np.ndarray) -> None:
    with pytest.raises(ProbeError, match=r"matrix must be|must be finite"):
        stored_spectrum(matrix)
