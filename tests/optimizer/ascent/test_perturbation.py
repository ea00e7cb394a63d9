"""Perturbations: the points at which the second gradient is taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from helpers import draw
from lossscope.optimizer import ARS2Neo, OptimizerError, create
from lossscope.optimizer.ascent.perturbation import PERTURBATIONS, Ascent
from lossscope.optimizer.ascent.seeded_noise import SeededNoise

FLOAT64 = torch.float64


def ascents(seed: int, rho: float = 0.3, steps: int = 4, beta2: float = 0.98, eps: float = 1e-8) -> list[Ascent]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=FLOAT64)

    return [
        Ascent(
            draw(*shape),
            draw(*shape),
            draw(*shape).square() * 0.1,
            steps,
            beta2,
            eps,
            rho,
            SeededNoise("ascent", 0, 3, i),
        )
        for i, shape in enumerate([(4, 3), (5,), (2, 3, 2)])
    ]


def stacked(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


@given(seed=st.integers(0, 10_000), rho=st.floats(1e-3, 10.0), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=25, deadline=None)
def test_the_sizes_are_rho_per_tensor_or_over_all(seed, rho, scale):
    given_ = [
        replace(a, gradient=scale * a.gradient, second_moment=scale**2 * a.second_moment, eps=0.0, rho=rho)
        for a in ascents(seed)
    ]
    moves = {name: rule(given_) for name, rule in PERTURBATIONS.items()}
    for name in ("ars2", "random"):
        for move in moves[name]:
            assert float(move.norm()) == pytest.approx(rho, rel=1e-6)
        assert float(stacked(moves[name]).norm()) == pytest.approx(rho * math.sqrt(3), rel=1e-6)
    for name in ("paper", "sam", "random_ball"):
        assert float(stacked(moves[name]).norm()) == pytest.approx(rho, rel=1e-5)
    # ASAM's ball is round where distance is counted relative to |w|
    relative = [move / a.parameter.abs() for move, a in zip(moves["asam"], given_, strict=True)]
    assert float(stacked(relative).norm()) == pytest.approx(rho, rel=1e-5)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_every_ascent_goes_uphill(seed):
    given_ = ascents(seed)
    for name, rule in PERTURBATIONS.items():
        assert name.startswith("random") or stacked(rule(given_)) @ stacked([a.gradient for a in given_]) > 0


@pytest.mark.parametrize("name", ["random", "random_ball"])
def test_a_random_ascent_repeats_itself_and_knows_nothing_of_the_gradient(name):
    given_ = ascents(1)
    before = torch.get_rng_state()
    move = stacked(PERTURBATIONS[name](given_))
    flipped = [replace(a, gradient=-a.gradient) for a in given_]
    assert torch.equal(stacked(PERTURBATIONS[name](flipped)), move)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_ascent_moves_zeros_too():
    for name in ("random", "random_ball"):
        still = replace(ascents(1)[0], parameter=torch.zeros(4, 3, dtype=FLOAT64))
        assert float(PERTURBATIONS[name]([still])[0].norm()) == pytest.approx(0.3)


def test_a_whitened_ascent_without_a_second_moment_is_refused():
    bare = [replace(a, second_moment=None) for a in ascents(1)]
    for name in ("ars2", "paper"):
        with pytest.raises(OptimizerError, match="no second moment to whiten an ascent with"):
            PERTURBATIONS[name](bare)


def test_the_directions_are_those_of_their_formulas():
    given_ = ascents(1)
    w, g, v = (stacked([getattr(a, n) for a in given_]) for n in ("parameter", "gradient", "second_moment"))
    root = (v / (1 - 0.98**4)).sqrt() + 1e-8
    expected = {
        "paper": 0.3 * (g / root) / (g / root).norm(),
        "sam": 0.3 * g / g.norm(),
        "asam": 0.3 * w**2 * g / (w * g).norm(),
    }
    for name, e in expected.items():
        torch.testing.assert_close(stacked(PERTURBATIONS[name](given_)), e, rtol=1e-10, atol=0)
    for move, a in zip(PERTURBATIONS["ars2"](given_), given_, strict=True):
        n = a.parameter.abs() * a.gradient / ((a.second_moment / (1 - 0.98**4)).sqrt() + 1e-8)
        torch.testing.assert_close(move, 0.3 * n / n.norm(), rtol=1e-10, atol=0)


def test_before_the_first_update_the_direction_of_ars2_is_the_gradient_times_the_weight():
    a = ascents(2)[0]
    first = replace(a, second_moment=torch.zeros_like(a.gradient), steps=0)
    n = a.parameter.abs() * a.gradient
    torch.testing.assert_close(PERTURBATIONS["ars2"]([first])[0], 0.3 * n / n.norm(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_zeros_do_not_move_and_give_no_nan(name):
    zero = torch.zeros(3, 2, dtype=FLOAT64)
    for w, g in [(zero, zero + 1), (zero + 1, zero), (zero, zero)]:
        (move,) = PERTURBATIONS[name]([Ascent(w, g, zero, 0, 0.9, 1e-8, 0.1, SeededNoise("ascent", 0, 0, 0))])
        assert torch.isfinite(move).all()
        if name in ("ars2", "asam") or (not name.startswith("random") and not g.any()):
            assert not move.any()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_inputs_are_left_alone(name):
    given_ = ascents(3)
    before = [(a.parameter.clone(), a.gradient.clone(), a.second_moment.clone()) for a in given_]
    PERTURBATIONS[name](given_)
    for a, (w, g, v) in zip(given_, before, strict=True):
        assert torch.equal(a.parameter, w)
        assert torch.equal(a.gradient, g)
        assert torch.equal(a.second_moment, v)


def test_each_group_has_its_own_radius_and_a_group_without_one_stays():
    tensors = [torch.nn.Parameter(w) for w in torch.ones(3, 2, 2, dtype=FLOAT64)]
    groups = [{"params": [t], "rho": rho} for t, rho in zip(tensors, (0.5, 0.0, 0.2), strict=True)]
    optimizer = ARS2Neo(groups, mode="sync")
    start = [t.detach().clone() for t in tensors]
    for p in optimizer.passes():
        if p.index == 1:
            moved = [float((t.detach() - s).norm()) for t, s in zip(tensors, start, strict=True)]
        sum(((i + 1) * t**2).sum() for i, t in enumerate(tensors)).backward()
    optimizer.step()
    assert moved == pytest.approx([0.5, 0.0, 0.2], rel=1e-10)


def test_the_correction_of_the_second_moment_counts_the_updates_of_this_parameter():
    """A parameter whose first gradient comes late is not corrected by the age of the optimizer."""
    late, early = (torch.nn.Parameter(torch.full((2, 2), 2.0, dtype=FLOAT64)) for _ in range(2))
    optimizer = ARS2Neo([early, late], mode="sync", perturbation="paper", eps=0.5, rho=0.1, lr=0.0)
    moves = []
    optimizer.observe(lambda record: moves.append([t.perturbation for t in record.tensors]))
    for step in range(5):
        for _ in optimizer.passes():
            (4 * early).sum().backward()
            if step >= 3:
                (3 * late).sum().backward()
        optimizer.step()
    # at the second update of each, v_hat of its constant gradient g is g^2: n = g / (g + eps), whatever the clock
    n = torch.tensor([4 / 4.5, 3 / 3.5], dtype=FLOAT64)
    expected = 0.1 * n / (2 * n.norm())
    first, second = moves[4]
    torch.testing.assert_close(torch.stack([first[0, 0], second[0, 0]]), expected, rtol=1e-9, atol=0)


# -- the ascent that would be used now ---------------------------------------------------------------------------------


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_the_ascent_from_the_base_gradients_is_the_one_of_the_second_pass_and_leaves_no_trace(perturbation):
    w = {"W": nn.Parameter(draw(0, 4, 3)), "b": nn.Parameter(draw(1, 4)), "unused": nn.Parameter(draw(2, 2))}
    optimizer = ARS2Neo(w.items(), mode="sync", perturbation=perturbation, rho=0.3)
    for step in range(3):
        passes = optimizer.passes()
        before = {name: p.detach().clone() for name, p in w.items()}
        next(passes).backward(sum((p**4).sum() * (1 + step) for p in (w["W"], w["b"])))
        gradients = {p: p.grad.clone() for p in w.values() if p.grad is not None}
        known = {p: {key: t.clone() for key, t in state.items()} for p, state in optimizer.state.items()}
        moves = optimizer.ascent(gradients)
        assert list(moves) == [w["W"], w["b"]]
        assert {p: set(state) for p, state in optimizer.state.items()} == {p: set(s) for p, s in known.items()}
        assert all(torch.equal(optimizer.state[p][key], t) for p, s in known.items() for key, t in s.items())
        assert all(torch.equal(p, before[name]) for name, p in w.items())
        assert all(torch.equal(p.grad, g) for p, g in gradients.items())
        second = next(passes)
        for name in ("W", "b"):
            assert torch.equal(w[name], before[name] + moves[w[name]])
        second.backward(sum((p**4).sum() for p in (w["W"], w["b"])))
        with pytest.raises(StopIteration):
            next(passes)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "ars2-base", "muon"])
def test_what_does_not_ascend_has_no_ascent(name):
    W = nn.Parameter(draw(0, 4, 3))
    optimizer = create(name, [("W", W)])
    assert not optimizer.takes_second_gradient
    assert optimizer.ascent({W: draw(1, 4, 3)}) == {}


def test_an_ascent_ends_and_begins_with_the_radius():
    W, b = nn.Parameter(draw(0, 4, 3)), nn.Parameter(draw(2, 4))
    optimizer = create("sam", [("W", W)], rho=0.0)
    optimizer.add_param_group({"params": [("b", b)], "rho": 0.1})
    gradients = {W: draw(1, 4, 3), b: draw(3, 4)}
    assert optimizer.takes_second_gradient
    assert list(optimizer.ascent(gradients)) == [b]
    assert optimizer.ascent({}) == {}
    optimizer.param_groups[1]["rho"] = 0.0
    assert not optimizer.takes_second_gradient
    assert optimizer.ascent(gradients) == {}
