from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from helpers import gaussian
from lossscope.optimizer.update.newton_schulz import PRESETS, coefficients, orthogonal_factor
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.newton_schulz import (
    check_newton_schulz_image,
    newton_schulz_image,
    newton_schulz_quality,
)

KELLER = [(3.4445, -4.7750, 2.0315)] * 5
QUINTIC = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


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


TURNING = [(1.5, -4.0, 0.5)] * 3  # an iteration whose images take both signs


def measured(A: Tensor, O: Tensor) -> dict[str, float]:
    """Compute the same numbers from the output itself and from decompositions."""
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    out = torch.linalg.svdvals(O)
    root = math.sqrt(len(s))
    images = torch.einsum("mi,mn,in->i", U, O, Vh)
    return {
        "outside_band": float(((images < 0.68) | (images > 1.21)).double().mean()),
        "output_condition": float(out[0] / out[-1]),
        "output_norm": float(O.norm()) / root,
        "polar_cosine": float((O * (U @ Vh)).sum() / (O.norm() * root)),
    }


def numbers(A: Tensor, triples: list[tuple[float, float, float]]) -> dict[str, float]:
    found = newton_schulz_quality(torch.linalg.svdvals(A), triples)
    assert all(value.ndim == 0 and value.dtype == torch.float64 for value in found.values())
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (40, 10), (1, 7)])
def test_the_scalar_map_agrees_with_the_output_and_the_exact_polar_factor(preset: str, shape: tuple[int, int]) -> None:
    A, triples = gaussian(*shape), list(coefficients(preset, {"deepseek_v4": 10, "keller_finished": 8}.get(preset, 5)))
    assert numbers(A, triples) == pytest.approx(measured(A, orthogonal_factor(A, triples, torch.float64)), rel=1e-8)


def test_images_of_both_signs_count_with_their_signs() -> None:
    A = gaussian(20, 30, seed=1)
    found = numbers(A, TURNING)
    assert found == pytest.approx(measured(A, orthogonal_factor(A, TURNING, torch.float64)), rel=1e-8)
    flipped = newton_schulz_quality(torch.ones(4), [(-1.0, 0.0, 0.0)], norm=1.0, eps=0.0)
    assert (float(flipped["polar_cosine"]), float(flipped["outside_band"])) == (-1.0, 1.0)
    assert (float(flipped["output_condition"]), float(flipped["output_norm"])) == (1.0, 1.0)


def test_keller_reaches_the_band_from_fifteen_ten_thousandths_of_the_norm_upwards() -> None:
    inputs = torch.logspace(math.log10(1.51e-3), 0, 3000, dtype=torch.float64)
    inside = newton_schulz_quality(inputs, KELLER, norm=1.0, eps=0.0)
    assert float(inside["outside_band"]) == 0.0
    assert float(inside["output_condition"]) < 1.78
    below = newton_schulz_quality(torch.tensor([1e-3, 1e-4, 0.5, 0.8]), KELLER, norm=1.0, eps=0.0)
    assert float(below["outside_band"]) == 0.5
    assert float(newton_schulz_quality(inputs, KELLER, norm=1.0, band=(0.0, 0.9))["outside_band"]) > 0.3


def test_rows_of_equal_size_and_no_iteration_are_perfect_but_for_their_length() -> None:
    found = numbers(3 * torch.eye(9), [])
    assert found["polar_cosine"] == pytest.approx(1)
    assert found["output_condition"] == pytest.approx(1)
    assert found["output_norm"] == pytest.approx(1 / 3)


def test_a_long_convergent_iteration_ends_at_the_polar_factor() -> None:
    found = numbers(gaussian(12, 30), [(15 / 8, -10 / 8, 3 / 8)] * 25)
    assert found == pytest.approx(
        {"outside_band": 0.0, "output_condition": 1.0, "output_norm": 1.0, "polar_cosine": 1.0}, abs=1e-9
    )


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_scale_does_not_matter_and_the_norm_is_that_of_the_image(seed: int, scale: float) -> None:
    values = gaussian(6, seed=seed).abs()
    found = newton_schulz_quality(values, KELLER, eps=0.0)
    image = newton_schulz_image(values, KELLER, eps=0.0)
    assert float(found["output_norm"]) == pytest.approx(float(image.norm()) / math.sqrt(6), rel=1e-12)
    again = newton_schulz_quality(scale * values, KELLER, eps=0.0)
    assert float(again["polar_cosine"]) == pytest.approx(float(found["polar_cosine"]), rel=1e-9)
    assert abs(float(found["polar_cosine"])) <= 1 + 1e-12


def test_a_stack_has_one_number_for_each_matrix_and_its_gaps_stay_apart() -> None:
    stack = torch.stack([gaussian(5).abs(), torch.zeros(5), torch.full((5,), math.nan), gaussian(5, seed=1).abs()])
    found = newton_schulz_quality(stack.double(), KELLER)
    alone = newton_schulz_quality(stack[3], KELLER)
    for name, row in found.items():
        assert torch.isnan(row).tolist() == [False, True, True, False]
        assert row[3] == alone[name]
    norms = torch.tensor([2.0, 1.0, 1.0, 3.0])
    apart = newton_schulz_quality(stack, KELLER, norm=norms)
    assert apart["output_norm"][3] == newton_schulz_quality(stack[3], KELLER, norm=3.0)["output_norm"]


def test_lost_rank_has_an_infinite_condition_and_a_cosine_below_one() -> None:
    found = newton_schulz_quality(torch.tensor([1.0, 1.0, 0.0, 0.0]), [(15 / 8, -10 / 8, 3 / 8)] * 25)
    assert float(found["output_condition"]) == math.inf
    assert float(found["polar_cosine"]) == pytest.approx(math.sqrt(0.5))
    assert float(found["outside_band"]) == 0.5


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match="coefficients must be triples"):
        newton_schulz_quality(torch.ones(3), [(1.0, 2.0)])
    with pytest.raises(ProbeError, match="band must be"):
        newton_schulz_quality(torch.ones(3), KELLER, band=(1.0, 0.5))
    with pytest.raises(ProbeError, match="values must have shape"):
        newton_schulz_quality(torch.ones(()), KELLER)
