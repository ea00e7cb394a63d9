"""Local learning coefficient: potentials with a known one, the effect of the localization, and a sampler that fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from helpers import Vector
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness import learning_coefficient
from lossscope.probes.sharpness.learning_coefficient import local_learning_coefficient
from lossscope.probes.statistics.estimate import exact_estimate

N = 1000  # terms in the mean, so that n beta is 144.8


def potential(*powers: float, factors: tuple[float, ...] = ()) -> Objective:
    """Return sum_i c_i |x_i|^p_i at 0, whose coefficient is sum 1 / p at any temperature without localization."""
    p = torch.tensor(powers, dtype=torch.float64)
    c = torch.tensor(factors or [1.0] * len(powers), dtype=torch.float64)
    return Objective(Vector(torch.zeros_like(p)), lambda m, _: (c * m.theta.abs() ** p).sum(), [torch.zeros(N)])


def localized(curvature: float, gamma: float) -> float:
    """Return the coefficient of the quadratic curvature x^2 under localization: half of its share of the precision."""
    pull = 2 * N / math.log(N) * curvature
    return pull / (pull + gamma) / 2


def test_of_a_singular_minimum_it_is_the_sum_of_inverse_powers() -> None:
    target = potential(2, 4)
    found = local_learning_coefficient(target, localization=0, chains=2, steps=400)
    assert found.coefficient.low <= 0.75 <= found.coefficient.high
    assert found.coefficient.value == pytest.approx(0.75, rel=0.2)
    assert found.inverse_temperature == pytest.approx(N / math.log(N))
    assert bool((target.model.theta == 0).all())
    assert min(found.accepted) > 0.2
    assert found.agreement < 1.05


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [100.0, 1000.0])
def test_localization_takes_from_a_quadratic_what_its_precision_says(gamma: float) -> None:
    found = local_learning_coefficient(potential(2, 2), localization=gamma, steps=300).coefficient
    assert found.low <= 2 * localized(1, gamma) <= found.high
    assert 2 * localized(1, gamma) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("powers", [(2.0,) * 4, (2.0, 4.0), (4.0, 4.0, 4.0), (2.0, 2.0, 6.0), (1.5, 2.0, 3.0)])
def test_intervals_cover_the_sum_of_inverse_powers(powers: tuple[float, ...]) -> None:
    right = sum(1 / p for p in powers)
    found = [local_learning_coefficient(potential(*powers), localization=0, seed=seed).coefficient for seed in range(6)]
    assert sum(not one.low <= right <= one.high for one in found) <= binom.ppf(0.999, 6, 0.05)
    assert sum(one.value for one in found) / 6 == pytest.approx(right, rel=0.06)


@pytest.mark.slow
def test_equal_seeds_give_equal_chains_and_others_do_not() -> None:
    one, two, three = (local_learning_coefficient(potential(2), localization=0, steps=200, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.losses, two.losses)
    assert not np.array_equal(one.losses, three.losses)
    assert not np.array_equal(one.losses[0], one.losses[1])


@pytest.mark.slow
def test_more_steps_make_it_more_certain() -> None:
    few, many = (
        local_learning_coefficient(potential(2, 4), localization=0, steps=steps).coefficient for steps in (400, 4000)
    )
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert many.samples > 4 * few.samples


@pytest.mark.slow
def test_a_stretch_of_the_parameters_leaves_it_without_localization_and_moves_it_with_it() -> None:
    for factor in (1.0, 25.0):
        free = local_learning_coefficient(potential(2, 2, factors=(factor, factor)), localization=0).coefficient
        held = local_learning_coefficient(potential(2, 2, factors=(factor, factor)), localization=1000).coefficient
        assert free.low <= 1 <= free.high
        assert held.low <= 2 * localized(factor, 1000) <= held.high


def test_a_sampler_that_has_not_converged_gives_no_number() -> None:
    with pytest.raises(ProbeError, match=r"the sampler has not converged, .*: raise steps"):
        local_learning_coefficient(potential(2, 4), localization=0, steps=40)
    rise, fine = exact_estimate(1.0), (0.5, 0.6)
    for words, accepted, agreement, effective, mean in (
        (r"the chains accept 0\.50, 0\.99 of", (0.5, 0.99), 1.0, 500, rise),
        (r"the chains disagree: their spread is 1\.200 times", fine, 1.2, 500, rise),
        ("the chains have 80 independent samples", fine, 1.0, 80, rise),
        ("below that of these parameters, which are no minimum", fine, 1.0, 500, exact_estimate(-1.0)),
    ):
        with pytest.raises(ProbeError, match=words):
            learning_coefficient._require_sampled(accepted, agreement, effective, mean)


def test_at_no_minimum_there_is_no_number() -> None:
    hill = Objective(Vector(torch.zeros(1, dtype=torch.float64)), lambda m, _: m.theta.cos().sum(), [torch.zeros(N)])
    with pytest.raises(ProbeError, match=r"no minimum|has not converged"):
        local_learning_coefficient(hill, localization=1, chains=2, steps=60)


def test_diagnostics_tell_independent_correlated_and_apart_chains() -> None:
    drawn = np.random.default_rng(0).standard_normal((4, 2000))
    slow = np.zeros_like(drawn)
    for i in range(1, 2000):
        slow[:, i] = 0.9 * slow[:, i - 1] + drawn[:, i]
    apart = drawn + np.arange(4)[:, None]
    assert learning_coefficient._agreement(drawn) == pytest.approx(1, abs=0.01)
    assert learning_coefficient._agreement(apart) > 1.3
    assert learning_coefficient._effective(drawn) > 2500
    assert 8000 / 19 / 2.5 < learning_coefficient._effective(slow) < 2.5 * 8000 / 19
    assert learning_coefficient._effective(apart) < 100


class Wall(nn.Module):
    """A parabola in a box outside of which the loss is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.x.square().sum() - (1 - 50 * self.x.square()).log().sum()


@pytest.mark.slow
def test_proposals_where_the_loss_is_not_finite_are_rejected() -> None:
    found = local_learning_coefficient(
        Objective(Wall(), lambda m, x: m(x), [torch.zeros(N)]), localization=0, steps=300
    )
    assert found.coefficient.low <= 0.5 <= found.coefficient.high


def test_weights_too_large_to_be_moved_are_refused() -> None:
    center = torch.tensor([1e9, 1.0])
    target = Objective(Vector(center), lambda m, _: (m.theta - center).square().sum() / 2, [torch.zeros(N)])
    with pytest.raises(ProbeError, match="length of the sampler's steps must be at least"):
        local_learning_coefficient(target, steps=100)
    local_learning_coefficient(Objective(Vector(center.double()), target.loss_fn, [torch.zeros(N)]), steps=400)


def test_bad_arguments_are_refused() -> None:
    target = potential(2, 2)
    for words, wrong in (
        ("localization must be finite and not negative", {"localization": -1.0}),
        ("inverse_temperature must be positive", {"inverse_temperature": 0.0}),
        ("chains must be at least 2", {"chains": 1}),
        ("steps at least 40", {"steps": 39}),
    ):
        with pytest.raises(ProbeError, match=words):
            local_learning_coefficient(target, **wrong)  # type: ignore[arg-type]
    one = Objective(Vector(torch.zeros(2)), lambda m, _: m.theta.square().sum(), [torch.zeros(1)])
    with pytest.raises(ProbeError, match="needs more than one term"):
        local_learning_coefficient(one)
    narrow = Objective(nn.Linear(2, 1).bfloat16(), lambda m, x: m(x).square().mean(), [torch.ones(5, 2).bfloat16()])
    with pytest.raises(ProbeError, match="too coarse for small steps"):
        local_learning_coefficient(narrow)
