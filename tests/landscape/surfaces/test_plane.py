"""Planes: closed forms, points with their own losses, principal components beside those of a random walk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.plane import eigen_plane, pca_plane, points_plane, random_planes, walk_shares
from lossscope.probes import CrossEntropy, Objective, ProbeError


class Point(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def of(function: object, *values: float) -> Objective:
    return Objective(Point(*values), lambda model, x: function(model.theta), [torch.ones(1)])


def rosenbrock(t: Tensor) -> Tensor:
    return (1 - t[0]) ** 2 + 100 * (t[1] - t[0] ** 2) ** 2


def himmelblau(t: Tensor) -> Tensor:
    return (t[0] ** 2 + t[1] - 11) ** 2 + (t[0] + t[1] ** 2 - 7) ** 2


def network() -> Objective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return Objective(net, CrossEntropy(), [(torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3)])


@pytest.mark.parametrize("function", [rosenbrock, himmelblau])
def test_a_plane_through_points_has_the_function_at_every_cell(function) -> None:
    corners = [torch.tensor(one, dtype=torch.float64) for one in ((0.5, 0.5), (1.5, 0.5), (0.5, 2.5))]
    located = [(name, one, float(function(one))) for name, one in zip("abc", corners, strict=True)]
    objective = of(function, 0.5, 0.5)
    found = points_plane(objective, located, points=9)
    for i, up in enumerate(found.y):
        for k, along in enumerate(found.x):
            truth = float(function(torch.tensor([0.5 + along, 0.5 + up], dtype=torch.float64)))
            assert found.losses[0, i, k] == pytest.approx(truth, rel=1e-9)
    assert [(round(one.x, 9), round(one.y, 9)) for one in found.marks] == [(0, 0), (1, 0), (0, 2)]
    assert all(one.distance < 1e-9 for one in found.marks)
    assert [one.loss for one in found.marks] == [loss for *_, loss in located]
    assert found.losses[0, list(found.y).index(0), list(found.x).index(0)] == objective.value() == found.loss


def test_along_eigenvectors_a_quadratic_bends_by_its_eigenvalues() -> None:
    scales = torch.tensor([8.0, 2.0, 0.5], dtype=torch.float64)
    found = eigen_plane(of(lambda t: (scales * t**2).sum() / 2, 0.0, 0.0, 0.0), points=5)
    assert found.x[-1] == pytest.approx(1.0)  # 2 x² / 2 has risen by 1
    truth = 4 * found.x**2 + found.y[:, None] ** 2
    assert found.losses[0] == pytest.approx(truth, rel=1e-6, abs=1e-9)
    assert found.axes == ("eigenvector of λ = 8", "eigenvector of λ = 2")
    with pytest.raises(ProbeError, match="give a radius"):
        eigen_plane(of(lambda t: t[0] ** 2 - t[1] ** 2 - t[2] ** 2, 0.0, 0.0, 0.0))


def test_random_planes_differ_and_share_the_exact_center() -> None:
    objective = network()
    before = {name: one.clone() for name, one in objective.model.state_dict().items()}
    counted: list[int] = []
    found = random_planes(objective, points=5, planes=3, progress=counted.append)
    assert found.losses.shape == (3, 5, 5)
    assert (found.losses[:, 2, 2] == objective.value()).all()
    assert np.abs(np.diff(found.losses[:, 0, 0])).min() > 0
    assert sum(counted) == 75
    assert found.x.tolist() == (-found.x[::-1]).tolist()
    lengths = sum(float(p.detach().square().sum()) for p in objective.model.parameters() if p.ndim > 1) ** 0.5
    assert found.x[-1] == pytest.approx(0.5 * lengths)  # true distance
    assert all(torch.equal(one, before[name]) for name, one in objective.model.state_dict().items())
    assert (random_planes(objective, points=5, planes=3).losses == found.losses).all()


def walk(points: int, size: int, drift: float, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(points, size, generator=generator, dtype=torch.float64)
    return list((steps + drift).cumsum(0))


def located(vectors: list[Tensor]) -> list[tuple[str, Tensor, float]]:
    return [(str(i), one, 0.0) for i, one in enumerate(vectors)]


def bowl(size: int) -> Objective:
    return of(lambda t: t.square().sum(), *[1.0] * size)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_is_recognized_as_one(seed: int) -> None:
    vectors = walk(12, 4000, 0.0, seed)
    found = pca_plane(bowl(4000), located(vectors), range(12), points=3, trainings={"walk": located(vectors)})
    assert found.explained == pytest.approx(walk_shares(range(12)), abs=0.03)
    assert found.looks_random
    (trail,) = found.trails
    assert trail.held == pytest.approx(sum(found.explained or ()), rel=1e-6)
    assert not trail.is_held
    assert min(one.distance for one in found.marks[:-1]) > 1.0


def test_shares_of_a_long_walk_are_those_of_the_literature() -> None:
    assert walk_shares(range(2000)) == pytest.approx((6 / np.pi**2, 6 / np.pi**2 / 4), rel=0.01)
    even, late = walk_shares([0, 10, 20, 30]), walk_shares([0, 1, 2, 30])
    assert late[0] > even[0] + 0.1  # one step holds nearly all of the variance


def test_a_training_that_moves_in_a_plane_is_held_by_it() -> None:
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vectors = [t * a + 0.4 * t**2 * b for t in torch.linspace(-1, 1, 7, dtype=torch.float64)]
    objective = bowl(50)
    found = pca_plane(objective, located(vectors), range(7), points=5, trainings={"training": located(vectors)})
    assert sum(found.explained or ()) == pytest.approx(1.0)
    assert found.trails[0].is_held
    assert found.trails[0].marks == found.marks
    assert max(one.distance for one in found.marks) < 1e-6
    assert (found.marks[-1].x, found.marks[-1].y) == (0.0, 0.0)
    i, k = list(found.y).index(0), list(found.x).index(0)
    assert found.losses[0, i, k] == pytest.approx(float(vectors[-1].square().sum()))


def test_cells_that_are_not_finite_are_missing() -> None:
    objective = of(lambda t: torch.log(t[0]) + t[1], 1.0, 0.0)
    corners = [("a", torch.tensor([1.0, 0]).double(), 0.0), ("b", torch.tensor([-1.0, 0]).double(), np.nan)]
    corners.append(("c", torch.tensor([1.0, 1]).double(), 1.0))
    found = points_plane(objective, corners, points=9)
    assert np.isnan(found.losses[0][:, found.x > 1]).all()
    assert np.isfinite(found.losses[0][:, found.x < 1]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: random_planes(o, radius=0.0), "radius must be above 0, got 0"),
        (lambda o: random_planes(o, points=4), "points must be odd"),
        (lambda o: random_planes(o, planes=1), "planes must be at least 2"),
        (lambda o: points_plane(o, located(walk(2, o.size, 0.0))), "needs 3 of them, got 2"),
        (lambda o: points_plane(o, located([o.parameters() * i for i in (1, 2, 3)])), "parallel"),
        (lambda o: pca_plane(o, located(walk(2, o.size, 0.0)), range(2)), "at least 3 checkpoints, got 2"),
        (lambda o: pca_plane(o, located([o.parameters() * i for i in (1, 2, 3)]), range(3)), "lie on a line"),
        (
            lambda o: pca_plane(o, located([torch.full((o.size,), one).double() for one in (0, 1, np.nan)]), range(3)),
            "2 has",
        ),
        (lambda o: random_planes(of(lambda t: t.square().sum(), 1.0, 2.0)), "has the length 0: it spans no plane"),
    ],
)
def test_wrong_input_is_named(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call(network())


def test_the_distance_and_share_of_a_training_are_those_of_geometry() -> None:
    scales = torch.tensor([8.0, 2.0, 0.5], dtype=torch.float64)
    ways = [(3.0, 4.0, 2.0), (0.0, 4.0, 1.0), (0.0, 0.0, 0.0)]  # the plane is that of the first two axes
    training = {"run": located([torch.tensor(one, dtype=torch.float64) for one in ways])}
    objective = of(lambda t: (scales * t**2).sum() / 2, 0.0, 0.0, 0.0)
    (trail,) = eigen_plane(objective, points=3, trainings=training).trails
    assert [one.distance for one in trail.marks] == pytest.approx([2, 1, 0], abs=1e-6)
    assert [abs(one.x) for one in trail.marks] == pytest.approx([3, 0, 0], abs=1e-6)
    assert [abs(one.y) for one in trail.marks] == pytest.approx([4, 4, 0], abs=1e-6)
    variances = np.var(np.array(ways), axis=0)
    assert trail.held == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-6)
    assert trail.is_held == (trail.held >= 0.9)


def test_random_planes_hold_two_of_many_directions() -> None:
    objective = network()
    theta = objective.parameters()
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(6, len(theta), generator=generator, dtype=torch.float64).cumsum(0)
    training = {"run": located([theta + one for one in moves])}
    found = random_planes(objective, points=3, planes=3, trainings=training)
    assert [one.plane for one in found.trails] == [0, 1, 2]
    assert len({one.held for one in found.trails}) == 3
    assert max(one.held for one in found.trails) < 0.3
    assert not any(one.is_held for one in found.trails)
