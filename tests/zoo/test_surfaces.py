"""Every picture of `lossscope surface` on the zoo: the center exact, nothing written, missing only with a reason."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from lossscope.errors import LossscopeError
from lossscope.landscape.surfaces.fan import fan
from lossscope.landscape.surfaces.null import is_one_function, permuted
from lossscope.landscape.surfaces.path import path
from lossscope.landscape.surfaces.pictures import Plane
from lossscope.landscape.surfaces.plane import eigen_plane, pca_plane, points_plane, random_planes
from lossscope.probes import Objective, ProbeError
from lossscope.reports.render.picture import picture
from lossscope.reports.surfaces.plane_page import figure
from zoo import MEMBERS

FAST = ("resnet",)
CHOSEN = ("resnet", "gpt", "lstm", "bf16", "class_weighted", "lora", "gan")
CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CHOSEN]


def state(objective: Objective) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in objective.model.state_dict().items()}


def three(objective: Objective) -> list[tuple[str, torch.Tensor, float]]:
    theta = objective.parameters()
    generator = torch.Generator().manual_seed(1)
    moved = [
        theta + 0.1 * scale * theta * torch.randn(len(theta), generator=generator).to(theta) for scale in (0, 1, 2)
    ]
    return [(f"{k}", one, objective.value_at(one)) for k, one in enumerate(moved)]


@pytest.mark.parametrize("name", CASES)
def test_every_picture_of_a_member(name: str) -> None:
    objective = MEMBERS[name].objective()
    before, loss, located = state(objective), objective.value(), three(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = fan(objective, radius=0.1, points=3, draws=8)
        planes: dict[str, Plane] = {
            "random": random_planes(objective, points=3, planes=2, trainings={"training": located}),
            "points": points_plane(objective, located, points=3),
            "pca": pca_plane(objective, located, range(3), points=3, trainings={"training": located}),
            "eigen": eigen_plane(objective, radius=0.1, points=3, trainings={"training": located}),
        }
        between = path(objective, located[0][1], located[2][1], points=3)
    assert one.loss == loss
    assert (one.losses[:, 1] == loss).all()
    assert (planes["random"].losses[:, 1, 1] == loss).all()
    assert planes["eigen"].losses[0, 1, 1] == loss
    assert planes["points"].loss == loss
    assert all(np.isfinite(found.losses).all() for found in planes.values())
    assert planes["pca"].trails[0].held == pytest.approx(1.0, rel=1e-3)
    assert between.losses[0] == pytest.approx(loss, rel=1e-6)
    assert (between.restated is not None) == (name == "resnet")
    assert np.isfinite(between.sampling_error) != bool(between.missing)
    assert picture(figure(planes["random"], "random", "nats"), ".svg")
    assert all(torch.equal(one, before[key]) for key, one in objective.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_permuted_copy_is_one_function_or_has_a_reason(name: str) -> None:
    if name == "gpt_11m":
        pytest.skip("a large one of the same kind as gpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objective = MEMBERS[name].objective()
        try:
            found = path(objective, objective.parameters(), permuted(objective, 0), points=3)
        except ProbeError:  # no layer is known, or the loss has no other value
            return
    assert is_one_function(found), found.drawn
    assert np.isfinite(found.sampling_error) or found.missing


@pytest.mark.parametrize("name", ["resnet"])
def test_parameters_of_another_architecture_are_refused(name: str) -> None:
    objective = MEMBERS[name].objective()
    short = objective.parameters()[:-1]
    with pytest.raises(LossscopeError, match="one entry per trainable parameter"):
        path(objective, objective.parameters()[:-1], short + 1, points=3)
