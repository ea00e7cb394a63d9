from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.norms import inner, norm
from lossscope.probes.step_tensors.shear_geometry import angle, angles, cosine, cosines, secants, shear, surrogate_gap

Many = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
One = Callable[[Tensor, Tensor], Tensor]
SEEDS = st.integers(0, 10_000)
SCALES = st.floats(1e-8, 1e8)


def symmetric(n: int, seed: int = 0) -> Tensor:
    M = gaussian(n, n, seed=seed)
    return (M + M.mT) / 2


def quadratic(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return Hessian, gradient and unit gradient of a quadratic loss at a random point."""
    H, point = symmetric(n, seed), gaussian(n, seed=seed + 1)
    g = H @ point
    return H, g, g / g.norm()


# angle and cosine ------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 1e-9, 1e-5, 0.3, math.pi / 2, 3.0, math.pi - 1e-9])
def test_the_angle_is_right_also_where_vectors_are_nearly_parallel(theta: float) -> None:
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = 7.0 * torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64)
    assert float(angle(a, b)) == pytest.approx(theta, abs=1e-15)
    assert float(cosine(a, b)) == pytest.approx(math.cos(theta), abs=1e-15)


@pytest.mark.parametrize("theta", [1e-5, 1e-4])
def test_the_angle_in_float32_sees_what_an_arccos_cannot(theta: float) -> None:
    a = gaussian(4000)
    across = gaussian(4000, seed=1)
    across = across - (across @ a) / (a @ a) * a
    b = a / a.norm() * math.cos(theta) + across / across.norm() * math.sin(theta)
    assert float(angle(a.float(), b.float())) == pytest.approx(theta, abs=2e-7)  # three float32 roundings
    in_float32 = torch.arccos((a.float() @ b.float() / (a.float().norm() * b.float().norm())).clamp(-1, 1))
    assert abs(float(in_float32) - theta) > 2e-7


@given(SEEDS, SCALES, SCALES)
def test_angles_ignore_lengths_and_order(seed: int, left: float, right: float) -> None:
    a, b = gaussian(6, seed=seed), gaussian(6, seed=seed + 1)
    plain = angle(a, b)
    assert float(angle(left * a, right * b)) == pytest.approx(float(plain), abs=1e-12)
    assert float(angle(b, a)) == pytest.approx(float(plain), abs=1e-12)
    assert float(angle(-a, b)) == pytest.approx(math.pi - float(plain), abs=1e-12)
    assert float(cosine(left * a, right * b)) == pytest.approx(math.cos(float(plain)), abs=1e-12)


def test_a_list_has_the_geometry_of_the_long_vector() -> None:
    a, b = [gaussian(3, 4), gaussian(5, seed=1)], [gaussian(3, 4, seed=2), gaussian(5, seed=3)]
    long_a, long_b = (torch.cat([t.flatten() for t in x]) for x in (a, b))
    assert float(angle(a, b)) == pytest.approx(float(angle(long_a, long_b)), rel=1e-13)
    assert float(cosine(a, b)) == pytest.approx(float(cosine(long_a, long_b)), rel=1e-13)
    parts = shear(a, b)
    torch.testing.assert_close(torch.cat([t.flatten() for t in parts]), shear(long_a, long_b), rtol=1e-13, atol=1e-14)
    assert [t.shape for t in parts] == [t.shape for t in a]
    one = torch.cat([shear(x, y).flatten() for x, y in zip(a, b, strict=True)])
    assert (one - shear(long_a, long_b)).norm() > 0.01  # projecting tensor by tensor is another convention


@pytest.mark.parametrize(("together", "alone"), [(angles, angle), (cosines, cosine)])
def test_many_at_once_are_each_what_it_is_alone(together: Many, alone: One) -> None:
    a = [gaussian(3, 4), gaussian(5, seed=1), torch.zeros(2, dtype=torch.float64), gaussian(2, seed=2)]
    b = [gaussian(3, 4, seed=2), -gaussian(5, seed=1), gaussian(2, seed=4), torch.zeros(2, dtype=torch.float64)]
    for x, y in ((a, b), ([t.float() for t in a], [t.bfloat16() for t in b])):
        found = together(x, y)
        assert (found.shape, found.dtype) == ((4,), torch.float64)
        torch.testing.assert_close(
            found, torch.stack([alone(s, t) for s, t in zip(x, y, strict=True)]), rtol=0, atol=1e-14, equal_nan=True
        )
        assert torch.isnan(found[2:]).all()
        assert not torch.isnan(found[:2]).any()
    with pytest.raises(ProbeError, match="shapes must match"):
        together(a, a[::-1])


def test_a_zero_vector_has_no_angle() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    for pair in ((zero, one), (one, zero), (zero, zero)):
        assert torch.isnan(angle(*pair))
        assert torch.isnan(cosine(*pair))


# shear -------------------------------------------------------------------------------------------


@given(SEEDS, SCALES, SCALES)
def test_the_shear_is_orthogonal_to_the_gradient_and_ignores_its_length(seed: int, up: float, down: float) -> None:
    g_adv, g = gaussian(8, seed=seed), gaussian(8, seed=seed + 1)
    s = shear(g_adv, g)
    assert abs(float(s @ g)) <= 1e-13 * float(g_adv.norm() * g.norm())
    torch.testing.assert_close(shear(g_adv, up * g), s, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(shear(down * g_adv, g), down * s, rtol=1e-10, atol=1e-13 * down)
    assert float(s.norm()) == pytest.approx(float(g_adv.norm() * torch.sin(angle(g_adv, g))), rel=1e-10)


def test_the_shear_of_a_quadratic_is_the_projected_hessian_times_the_ascent() -> None:
    H, g, unit = quadratic()
    e = gaussian(12, seed=5)
    expected = H @ e - (unit @ H @ e) * unit
    torch.testing.assert_close(shear(g + H @ e, g), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rho", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_shear_of_a_gradient_ascent_is_the_spread_of_curvature(rho: float, seed: int) -> None:
    H, g, unit = quadratic(seed=seed)
    mean, square = unit @ H @ unit, (H @ unit) @ (H @ unit)
    s = shear(g + rho * H @ unit, g)
    assert float(norm(s)) == pytest.approx(rho * float((square - mean**2).sqrt()), rel=1e-10)
    # the curvature itself is in the parallel part
    assert float((g + rho * H @ unit) @ unit - g.norm()) == pytest.approx(rho * float(mean), abs=1e-12)


@pytest.mark.parametrize("sharpness", [1.0, 1e4])
def test_there_is_no_shear_along_an_eigenvector_however_sharp(sharpness: float) -> None:
    lam = torch.tensor([sharpness, 2.0, -0.5], dtype=torch.float64)
    g = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.equal(shear(g + lam * 0.1 * g, g), torch.zeros(3, dtype=torch.float64))


@given(SEEDS)
def test_in_two_dimensions_shears_turn_exactly_as_gradients_do(seed: int) -> None:
    H, g, unit = quadratic(2, seed=seed)
    later = gaussian(2, seed=seed + 7)
    first, second = (shear(x + 0.1 * H @ (x / x.norm()), x) for x in (g, later))
    if min(float(first.norm() / g.norm()), float(second.norm() / later.norm())) > 1e-6:
        assert abs(float(cosine(first, second))) == pytest.approx(abs(float(cosine(unit, later))), abs=1e-7)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.95])
def test_at_the_edge_the_shear_turns_against_the_gradient(share: float) -> None:
    """Along one direction eta lambda = 2, the others are flat: cos_v(1) = -cos_g(1) = 2 a^2 - 1."""
    eta = 0.05
    lam = torch.tensor([2 / eta, 0.0, 0.0, 0.0], dtype=torch.float64)
    rest = gaussian(3)
    g = torch.cat([torch.tensor([math.sqrt(share)], dtype=torch.float64), rest / rest.norm() * math.sqrt(1 - share)])
    later = (1 - eta * lam) * g
    first, second = (shear(x + 0.01 * lam * x / x.norm(), x) for x in (g, later))
    assert float(cosine(g, later)) == pytest.approx(1 - 2 * share, abs=1e-12)
    assert float(cosine(first, second)) == pytest.approx(2 * share - 1, abs=1e-10)


@given(SEEDS)
def test_the_shear_and_the_gsam_component_differ_by_the_angle_of_the_gradients(seed: int) -> None:
    g_adv, g = gaussian(7, seed=seed), gaussian(7, seed=seed + 1)
    s, perpendicular = shear(g_adv, g), shear(g, g_adv)
    assert float(cosine(s, -perpendicular)) == pytest.approx(float(cosine(g, g_adv)), abs=1e-9)


def test_a_zero_gradient_removes_nothing() -> None:
    assert shear(torch.ones(3), torch.zeros(3)).tolist() == [1.0] * 3


# gap and secants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [[12], [5, 7]])
def test_both_secants_of_a_quadratic_are_its_curvature_along_the_ascent(split: list[int]) -> None:
    H, g, _ = quadratic()
    e = 0.1 * gaussian(12, seed=9)
    loss = torch.tensor(1.5, dtype=torch.float64)
    gap = surrogate_gap(loss, loss + g @ e + e @ H @ e / 2)
    found = secants(list(g.split(split)), list((g + H @ e).split(split)), list(e.split(split)), gap)
    expected = float(e @ H @ e / (e @ e))
    assert float(found["secant_gradient"]) == pytest.approx(expected, rel=1e-12)
    assert float(found["secant_loss"]) == pytest.approx(expected, rel=1e-10)


def test_the_gap_at_a_minimum_is_half_the_curvature_times_the_squared_radius() -> None:
    lam, rho = torch.tensor([5.0, 1.0], dtype=torch.float64), 0.2
    e = torch.tensor([rho, 0.0], dtype=torch.float64)
    gap = surrogate_gap(torch.tensor(0.0), (lam * e * e).sum() / 2)
    assert 2 * float(gap) / rho**2 == pytest.approx(5.0)
    zero = torch.zeros(2, dtype=torch.float64)
    assert float(secants(zero, lam * e, e, gap)["secant_loss"]) == pytest.approx(5.0)


def test_on_a_cubic_the_two_secants_weigh_the_segment_differently() -> None:
    """Loss t^3 from t = 1 over e: the mean curvature is 6 + 3 e, weighted to the beginning 6 + 2 e."""
    t, e = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    found = secants(3 * t**2, 3 * (t + e) ** 2, e, surrogate_gap((t**3).sum(), ((t + e) ** 3).sum()))
    assert float(found["secant_gradient"]) == pytest.approx(7.5)
    assert float(found["secant_loss"]) == pytest.approx(7.0)


def test_one_tensor_alone_carries_the_cross_curvature_of_the_others() -> None:
    H, g, _ = quadratic()
    e = gaussian(12, seed=9)
    found = secants(g[:5], (g + H @ e)[:5], e[:5])
    assert list(found) == ["secant_gradient"]
    assert float(found["secant_gradient"]) == pytest.approx(float(e[:5] @ (H @ e)[:5] / (e[:5] @ e[:5])), rel=1e-12)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_secants_follow_the_scale_of_the_loss(seed: int, c: float) -> None:
    H, g, _ = quadratic(5, seed=seed)
    e = gaussian(5, seed=seed + 2)
    gap = g @ e + e @ H @ e / 2
    one, other = secants(g, g + H @ e, e, gap), secants(c * g, c * (g + H @ e), c * 0 + e, c * gap)
    for name, value in one.items():
        assert float(other[name]) == pytest.approx(c * float(value), rel=1e-8, abs=1e-9 * c)


def test_an_ascent_of_length_zero_has_no_secant() -> None:
    zero = torch.zeros(3)
    found = secants(torch.ones(3), torch.ones(3), zero, torch.tensor(0.0))
    assert all(torch.isnan(value) for value in found.values())


def test_every_scalar_is_a_float64_without_a_graph() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    q = torch.tensor([2.0, 1.0], dtype=torch.bfloat16)
    scalars = [angle(p, q), cosine(p, q), surrogate_gap(p.sum(), q.sum()), *secants(p, q, p, p.sum()).values()]
    assert {(value.ndim, value.dtype, value.requires_grad) for value in scalars} == {(0, torch.float64, False)}
    assert inner(shear(q, p), p).abs() < 1e-6
    assert shear(q, p).dtype == torch.float32


def test_lists_that_do_not_match_are_refused() -> None:
    one, two = [torch.ones(3)], [torch.ones(3), torch.ones(3)]
    for call in (lambda: angle(one, two), lambda: shear(one, two), lambda: secants(one, two, one)):
        with pytest.raises(ProbeError, match=r"shapes must match, .*: pass the same parameters on both sides"):
            call()
