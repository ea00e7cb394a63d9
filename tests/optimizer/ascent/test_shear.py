"""The shear: what a second gradient has that the first does not, and its way into later steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from helpers import draw
from lossscope.optimizer import ARS2Neo
from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.shear import injected, misalignment, placebo, residual

FLOAT64 = torch.float64
seeds = st.integers(0, 10_000)


@given(seed=seeds, rows=st.integers(1, 5), columns=st.integers(2, 5))
@example(seed=1194, rows=1, columns=2)
@settings(max_examples=30, deadline=None)
def test_the_residual_is_orthogonal_and_completes_the_projection(seed, rows, columns):
    g, ga = draw(seed, rows, columns), draw(seed + 1, rows, columns)
    s = residual(ga, g)
    near = 1e-10 + 1e-12 / float(g.square().sum())  # what the published floor of <g, g> leaves of the gradient
    assert abs(float((s * g).sum())) < near * float(g.norm() * ga.norm())
    cosine = float((g * ga).sum() / (g.norm() * ga.norm()))
    assert float(s.norm() / ga.norm()) == pytest.approx((1 - cosine**2) ** 0.5, abs=near)


def test_the_residual_of_the_gradient_itself_is_nothing():
    g = draw(1, 4, 3)
    assert residual(g, g).norm() < 1e-11 * g.norm()
    assert torch.equal(residual(g, torch.zeros_like(g)), g)


def test_the_memory_layout_does_not_matter():
    g, ga = draw(2, 2, 3, 4, 4), draw(3, 2, 3, 4, 4)
    last = torch.channels_last
    torch.testing.assert_close(residual(ga.to(memory_format=last), g), residual(ga, g), rtol=0, atol=1e-14)
    mixed = misalignment([g.to(memory_format=last)], [ga])
    assert mixed == pytest.approx(misalignment([g], [ga]), rel=1e-12)


@given(seed=seeds, scale=st.sampled_from([1e-6, 1.0, 1e6]), alpha=st.floats(0.01, 2.0))
@settings(max_examples=30, deadline=None)
def test_the_injection_has_alpha_times_the_size_of_the_gradient(seed, scale, alpha):
    g, s = draw(seed, 4, 3), scale * draw(seed + 1, 4, 3)
    added = injected(g, s, alpha) - g
    assert float(added.norm() / g.norm()) == pytest.approx(alpha, rel=1e-5)  # the floor 1e-12 under |s| >= 1e-6
    assert float((added * s).sum()) > 0


def test_an_injection_of_nothing_changes_nothing():
    g = draw(4, 4, 3)
    assert torch.equal(injected(g, draw(5, 4, 3), 0.0), g)
    assert torch.equal(injected(g, torch.zeros_like(g), 0.1), g)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_phi_is_the_cosine_over_all_tensors(seed):
    gradients = [draw(seed, 3, 2), draw(seed + 1, 5)]
    shears = [draw(seed + 2, 3, 2), draw(seed + 3, 5)]
    g, s = (torch.cat([t.flatten() for t in x]) for x in (gradients, shears))
    expected = float(torch.nn.functional.cosine_similarity(g, s, dim=0))
    assert misalignment(gradients, shears) == pytest.approx(expected, abs=1e-12)


def test_phi_is_unmeasured_without_a_shear():
    assert misalignment([], []) is None


@given(seed=seeds, key=st.integers(20_000, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_placebo_is_orthogonal_with_the_norm_of_the_shear_and_draws_no_global_numbers(seed, key):
    g, s = draw(seed, 4, 3), draw(seed + 1, 4, 3)
    stream = torch.get_rng_state()
    draw_ = SeededNoise("placebo", key, 3, 0)
    control = placebo(s, g, draw_)
    assert torch.equal(torch.get_rng_state(), stream)
    assert abs(float((control * g).sum())) < 1e-10 * float(g.norm() * s.norm())
    assert float(control.norm()) == pytest.approx(float(s.norm()), rel=1e-9)
    assert torch.equal(control, placebo(s, g, SeededNoise("placebo", key, 3, 0)))
    for other in (replace(draw_, seed=key + 1), replace(draw_, step=4), replace(draw_, index=1)):
        assert not torch.equal(control, placebo(s, g, other))


def test_placebos_of_two_tensors_of_one_shape_differ_also_across_groups():
    first, second = (torch.nn.Parameter(draw(7, 3, 3)) for _ in range(2))
    optimizer = ARS2Neo([{"params": [first]}, {"params": [second]}], mode="lazy", k=3, shear="placebo")
    for _ in optimizer.passes():
        ((first**4).sum() + (second**4).sum()).backward()
    optimizer.step()
    one, other = (optimizer.state[p]["placebo"] for p in (first, second))
    assert abs(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)) < 0.9


@pytest.mark.parametrize("shear", ["looksam", "placebo", "signflip", "off"])
def test_each_kind_of_shear_is_injected_as_it_says(shear):
    p = torch.nn.Parameter(draw(8, 4, 3))
    optimizer = ARS2Neo([p], mode="lazy", k=3, shear=shear, alpha=0.2)
    seen = []

    def keep(record):
        (t,) = record.tensors
        seen.append((t.gradient.clone(), None if t.injected is None else t.injected.clone(), record.alpha))

    optimizer.observe(keep)
    for _ in range(2):
        for _ in optimizer.passes():
            (p**4).sum().backward()
        optimizer.step()
    g, fed, alpha = seen[1]
    state = optimizer.state[p]
    if shear == "off":
        assert fed is None
        assert alpha is None
        assert "shear" not in state
        return
    assert alpha == 0.2
    direction = state["placebo"] if shear == "placebo" else state["shear"]
    sign = -1 if shear == "signflip" else 1
    torch.testing.assert_close(fed, g + sign * 0.2 * g.norm() / direction.norm() * direction, rtol=1e-9, atol=1e-9)
    assert ("placebo" in state) == (shear == "placebo")


def test_phi_is_measured_against_the_shear_also_where_a_placebo_is_injected():
    p = torch.nn.Parameter(draw(9, 4, 3))
    optimizer = ARS2Neo([p], mode="aga", k=5, shear="placebo", aga_lambda=50.0)
    for _ in range(3):
        for _ in optimizer.passes():
            (p**4).sum().backward()
        g, s = p.grad.clone(), optimizer.state[p].get("shear")
        optimizer.step()
    assert optimizer.last.decision.phi == pytest.approx(misalignment([g], [s]), rel=1e-12)
