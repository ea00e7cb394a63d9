"""Fans: closed forms on a quadratic, invariance under rescaled neurons, a dense eigenvector, lost losses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.directions import filter_normalized, orthonormal, relative_directions
from lossscope.landscape.surfaces.fan import fan, fan_losses
from lossscope.probes import CrossEntropy, Objective, ProbeError, hessian
from lossscope.probes.operators.derived import scaled

SIZE = 12


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", root @ root.T / SIZE)
        self.theta = nn.Parameter(torch.randn(SIZE, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta @ self.matrix @ self.theta / 2 * x.mean()


def quadratic() -> Objective:
    return Objective(Quadratic(), lambda model, x: model(x), [torch.ones(2, 1, dtype=torch.float64)])


def network() -> Objective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return Objective(net, CrossEntropy(), [(torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3)])


def test_a_quadratic_is_its_own_model_in_every_direction() -> None:
    objective = quadratic()
    found = fan(objective, radius=0.7, points=9, draws=8, seed=3)
    theta, matrix = objective.parameters(), objective.model.matrix
    for row, d in zip(found.losses, relative_directions(theta, 8, 3), strict=True):
        truth = [float((theta + s * d) @ matrix @ (theta + s * d) / 2) for s in found.sigmas]
        assert row == pytest.approx(truth, rel=1e-12)
    assert found.quadratic == pytest.approx(found.losses, rel=1e-10)
    assert found.sigmas.tolist() == pytest.approx(np.linspace(-0.7, 0.7, 9).tolist())
    assert (found.losses[:, 4] == objective.value()).all()  # exactly
    assert found.loss == objective.value()


def test_the_sharpest_direction_is_the_eigenvector_of_the_dense_matrix() -> None:
    objective = quadratic()
    found = fan(objective, radius=0.5, points=3, draws=8)
    theta, matrix = objective.parameters(), objective.model.matrix
    values, vectors = torch.linalg.eigh(theta[:, None] * matrix * theta)
    assert abs(found.sharpness - float(values[-1])) <= found.sharpness_error + 1e-9
    d = theta * vectors[:, -1]
    truth = sorted(float((theta + s * d) @ matrix @ (theta + s * d) / 2) for s in (-0.5, 0.5))
    assert found.sharp is not None
    assert sorted(found.sharp[[0, 2]]) == pytest.approx(truth, rel=0.05)
    assert found.sharp[1] == found.loss


def test_median_and_band_are_percentiles_over_the_directions() -> None:
    found = fan(network(), radius=0.3, points=5, draws=16, quadratic=False, sharp=False)
    assert found.median == pytest.approx(np.median(found.losses, axis=0))
    low, high = found.band
    assert low == pytest.approx(np.percentile(found.losses, 10, axis=0))
    assert high == pytest.approx(np.percentile(found.losses, 90, axis=0))
    assert found.quadratic is found.sharp is None


def test_neurons_rescaled_against_each_other_leave_the_picture() -> None:
    objective = network()
    other = copy.deepcopy(objective.model)
    scales = torch.exp(torch.randn(8, dtype=torch.float64))
    with torch.no_grad():
        other[0].weight.mul_(scales[:, None])
        other[0].bias.mul_(scales)
        other[2].weight.div_(scales)
    first, second = (fan(one, radius=0.4, points=5, draws=8) for one in (objective, objective.with_model(other)))
    assert first.losses == pytest.approx(second.losses, rel=1e-9)
    assert first.sharpness == pytest.approx(second.sharpness, rel=0.1)


def test_nothing_is_written_and_equal_seeds_give_equal_pictures() -> None:
    objective = network()
    before = {name: one.clone() for name, one in objective.model.state_dict().items()}
    first, second, other = (fan(objective, points=5, draws=8, seed=seed, sharp=False) for seed in (1, 1, 2))
    assert (first.losses == second.losses).all()
    assert (first.losses != other.losses).any()
    assert all(torch.equal(one, before[name]) for name, one in objective.model.state_dict().items())


def test_the_range_ends_where_the_median_loss_has_risen_by_one() -> None:
    objective = quadratic()
    with objective.at(10 * objective.parameters()):
        found = fan(objective, points=3, draws=8, seed=0, sharp=False, quadratic=False)
    assert float(np.median(found.losses[:, 2]) - found.loss) <= 1.0
    assert math.log2(found.sigmas[-1]) == int(math.log2(found.sigmas[-1]))
    assert found.sigmas[-1] < 1


def test_losses_that_are_not_finite_are_missing_and_counted() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return -torch.log(1.2 - model.weight.square().sum()) + 0 * model(x).sum()

    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    found = fan(Objective(net, loss, [torch.ones(1, 1)]), radius=0.5, points=5, draws=16, sharp=False)
    assert found.lost.tolist()[2] == 0
    assert found.lost[0] > 0
    assert int(np.isnan(found.losses).sum()) == int(found.lost.sum())
    assert np.isnan(found.band[1][0])  # a tenth of the directions is lost there


def test_a_loss_without_derivatives_has_a_fan_without_a_model() -> None:
    net = nn.Linear(2, 1, bias=False)
    objective = Objective(net, lambda model, x: model(x).detach().square().mean(), [torch.ones(3, 2)])
    found = fan(objective, radius=0.1, points=3, draws=8)
    assert found.quadratic is found.sharp is None
    assert set(found.missing) == {"quadratic model", "sharpest direction"}
    assert np.isfinite(found.losses).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"radius": 0.0}, "radius must be above 0"),
        ({"radius": math.nan}, "radius must be above 0"),
        ({"points": 4}, "points must be odd and at least 3"),
        ({"draws": 4}, "draws must be at least 8"),
    ],
)
def test_arguments_out_of_range_are_named(given: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fan(quadratic(), **given)


def test_zero_weights_have_no_fan() -> None:
    objective = quadratic()
    with (
        objective.at(torch.zeros(SIZE, dtype=torch.float64)),
        pytest.raises(ProbeError, match="all parameters are zero"),
    ):
        fan(objective, radius=0.1)


def test_as_many_losses_are_taken_as_told() -> None:
    counted: list[int] = []
    fan(network(), points=7, draws=9, progress=counted.append)
    assert sum(counted) <= fan_losses(7, 9)
    counted.clear()
    fan(network(), radius=0.1, points=7, draws=9, progress=counted.append)
    assert sum(counted) == fan_losses(7, 9, chosen=False) == 60


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights() -> None:
    objective = network()
    d = filter_normalized(objective, torch.Generator().manual_seed(0))
    first = objective.model[0].weight
    drawn = d[: first.numel()].reshape(first.shape)
    assert drawn.norm(dim=1) == pytest.approx(first.norm(dim=1).detach(), rel=1e-9)
    assert not d[first.numel() : first.numel() + 8].any()  # the bias


def test_a_plane_needs_two_directions() -> None:
    a, b = orthonormal(torch.tensor([3.0, 0, 0]), torch.tensor([1.0, 2, 0]), ("a", "b"))
    assert torch.equal(a, torch.tensor([1.0, 0, 0]))
    assert b.tolist() == pytest.approx([0, 1, 0], abs=1e-7)
    with pytest.raises(ConfigError, match="a and b are parallel"):
        orthonormal(torch.ones(3), torch.ones(3), ("a", "b"))
    with pytest.raises(ConfigError, match="b has the length 0"):
        orthonormal(torch.ones(3), torch.zeros(3), ("a", "b"))


def test_relative_directions_have_the_law_of_the_adaptive_trace() -> None:
    objective = network()
    theta = objective.parameters()
    operator = scaled(hessian(objective), theta)
    trace = float((operator @ torch.eye(objective.size, dtype=torch.float64)).trace())
    found = fan(objective, radius=1e-3, points=3, draws=256, sharp=False)
    assert found.quadratic is not None
    bends = (found.quadratic[:, 0] + found.quadratic[:, 2] - 2 * found.loss) / 1e-6
    assert abs(bends.mean() - trace) < 4 * bends.std() / 16
