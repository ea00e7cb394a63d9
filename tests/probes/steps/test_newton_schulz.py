from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.steps.newton_schulz import check_newton_schulz_image, newton_schulz_image

KELLER = [(3.4445, -4.7750, 2.0315)] * 5
QUINTIC = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def newton_schulz(A: Tensor, coefficients: list[tuple[float, float, float]], eps: float) -> Tensor:
    X = A.mT if A.shape[-2] > A.shape[-1] else A
    X = X / (torch.linalg.matrix_norm(X, keepdim=True) + eps)
    for a, b, c in coefficients:
        S = X @ X.mT
        X = a * X + (b * S + c * S @ S) @ X
    return X.mT if A.shape[-2] > A.shape[-1] else X


def rank_deficient(m: int, n: int, rank: int) -> Tensor:
    return gaussian(m, rank) @ gaussian(rank, n, seed=1)


CASES = {
    "square": gaussian(24, 24),
    "tall": gaussian(40, 12),
    "wide": gaussian(12, 40),
    "rank deficient": rank_deficient(20, 30, 4),
    "batch": gaussian(3, 8, 20),
    "tiny": 1e-6 * gaussian(8, 8),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("coefficients", [KELLER, QUINTIC, [(1.5, -0.5, 0.0)] * 8], ids=["keller", "quintic", "cubic"])
def test_the_map_gives_the_singular_values_of_a_real_iteration(
    case: str, coefficients: list[tuple[float, float, float]]
) -> None:
    A = CASES[case]
    real = torch.linalg.svdvals(newton_schulz(A, coefficients, 1e-7))
    image = newton_schulz_image(torch.linalg.svdvals(A), coefficients)
    assert (image - real).abs().max() < 1e-10
    assert (
        check_newton_schulz_image(newton_schulz(A, coefficients, 1e-7), torch.linalg.svdvals(A), coefficients) < 1e-10
    )


def test_the_keller_map_has_the_published_bands() -> None:
    def image(x: float) -> float:
        return float(newton_schulz_image(np.array([x]), KELLER, eps=0.0, norm=1.0)[0])

    band = newton_schulz_image(np.geomspace(0.01, 1.0, 20001), KELLER, eps=0.0, norm=1.0)
    assert (band.min(), band.max()) == (pytest.approx(0.682, abs=5e-4), pytest.approx(1.134, abs=5e-4))
    assert image(1e-3) == pytest.approx(0.471, abs=5e-4)
    assert image(1e-4) == pytest.approx(0.048, abs=5e-4)
    assert image(1.0) == pytest.approx(0.6964, abs=5e-5)
    wider = newton_schulz_image(np.geomspace(3e-3, 1.0, 20001), KELLER, eps=0.0, norm=1.0)
    assert wider.max() == pytest.approx(1.202, abs=5e-4)


def test_the_quintic_preset_has_the_published_band() -> None:
    band = newton_schulz_image(np.geomspace(0.01, 1.0, 20001), QUINTIC, eps=0.0, norm=1.0)
    assert (band.min(), band.max()) == (pytest.approx(0.978, abs=5e-4), pytest.approx(1.032, abs=5e-4))


def test_the_slope_at_zero_is_the_product_of_the_first_coefficients() -> None:
    assert newton_schulz_image(np.array([1e-9]), KELLER, eps=0.0, norm=1.0)[0] == pytest.approx(1e-9 * 3.4445**5)


def test_numpy_and_torch_agree_in_values_and_kind() -> None:
    values = np.array([[3.0, 2.0, 0.01], [1.0, 1.0, 0.0]])
    array, tensor = newton_schulz_image(values, KELLER), newton_schulz_image(torch.from_numpy(values), KELLER)
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, Tensor)
    np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-14)


def test_the_image_is_sorted_although_the_map_is_not_monotone() -> None:
    values = np.geomspace(1.0, 1e-3, 50)
    unsorted = np.array([newton_schulz_image(np.array([x]), KELLER, norm=1.0)[0] for x in values])
    assert (np.diff(unsorted) > 0).any()
    image = newton_schulz_image(values, KELLER, norm=1.0)
    assert (np.diff(image) <= 0).all()
    np.testing.assert_allclose(image, np.sort(unsorted)[::-1], rtol=1e-14)


def test_a_negative_image_is_a_positive_singular_value() -> None:
    flipped = newton_schulz_image(torch.tensor([2.0, 1.0]), [(-1.0, 0.0, 0.0)], eps=0.0, norm=2.0)
    assert flipped.tolist() == [1.0, 0.5]


def test_eps_matters_for_a_tiny_matrix_and_no_steps_only_scale() -> None:
    assert newton_schulz_image(torch.tensor([1e-7]), [])[0] == pytest.approx(0.5)
    assert newton_schulz_image(np.array([3.0, 4.0]), [], eps=0.0).tolist() == [0.8, 0.6]
    assert newton_schulz_image(torch.zeros(2), KELLER).tolist() == [0.0, 0.0]


def test_a_norm_for_each_spectrum_of_a_batch_is_used() -> None:
    values = torch.tensor([[2.0], [3.0]])
    assert newton_schulz_image(values, [], eps=0.0, norm=torch.tensor([4.0, 12.0])).tolist() == [[0.5], [0.25]]


def test_the_check_sees_a_wrong_iteration_and_float32_noise() -> None:
    A = CASES["wide"]
    values = torch.linalg.svdvals(A)
    assert check_newton_schulz_image(newton_schulz(A, KELLER[:4], 1e-7), values, KELLER) > 0.05
    single = newton_schulz(A.float(), KELLER, 1e-7)
    deviation = check_newton_schulz_image(single, values, KELLER)
    assert (deviation.ndim, deviation.dtype) == (0, torch.float64)
    assert 1e-9 < deviation < 1e-5  # float32 rounding


def test_the_check_of_an_output_with_a_nan_is_a_gap() -> None:
    output = torch.eye(3)
    output[0, 0] = math.nan
    assert torch.isnan(check_newton_schulz_image(output, torch.ones(3), KELLER))


def test_a_pair_in_place_of_a_triple_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"coefficients must be triples .*, got \(1.5, -0.5\)"):
        newton_schulz_image(torch.ones(2), [(1.5, -0.5)])


def test_values_of_another_matrix_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"values must have shape \(3,\) for an output of shape \(3, 5\), got \(4,\)"):
        check_newton_schulz_image(torch.ones(3, 5), torch.ones(4), KELLER)
