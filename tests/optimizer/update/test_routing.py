"""Routing: the type of its module decides whether a parameter is orthogonalized."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lossscope.optimizer import ARS2Neo, OptimizerError, routing
from lossscope.optimizer.update.matrix_view import matrix_view


class Everything(nn.Module):
    """One of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.bag = nn.EmbeddingBag(7, 4)
        self.conv1 = nn.Conv1d(2, 3, 5)
        self.conv2 = nn.Conv2d(2, 3, 5, bias=False)
        self.conv3 = nn.Conv3d(2, 3, 2, bias=False)
        self.up = nn.ConvTranspose1d(2, 3, 5, bias=False)
        self.batch = nn.BatchNorm1d(3)
        self.layer = nn.LayerNorm((3, 4))
        self.group = nn.GroupNorm(1, 3)
        self.root = nn.RMSNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.linear = nn.Linear(4, 3)
        self.heads = nn.Parameter(torch.zeros(2, 3, 4))
        self.frozen = nn.Linear(4, 3).requires_grad_(False)


ROUTES = {
    "heads": ("matrix", False),
    "table.weight": ("vector", False),
    "bag.weight": ("vector", False),
    "conv1.weight": ("matrix", True),
    "conv1.bias": ("vector", False),
    "conv2.weight": ("matrix", True),
    "conv3.weight": ("matrix", True),
    "up.weight": ("matrix", True),
    "batch.weight": ("vector", False),
    "batch.bias": ("vector", False),
    "layer.weight": ("vector", False),
    "layer.bias": ("vector", False),
    "group.weight": ("vector", False),
    "group.bias": ("vector", False),
    "root.weight": ("vector", False),
    "attention.in_proj_weight": ("matrix", False),
    "attention.in_proj_bias": ("vector", False),
    "attention.out_proj.weight": ("matrix", False),
    "attention.out_proj.bias": ("vector", False),
    "linear.weight": ("matrix", False),
    "linear.bias": ("vector", False),
}


def test_the_module_decides_the_track():
    routes = routing(Everything()).routes
    assert {r.name: (r.track, r.convolution) for r in routes} == ROUTES


def test_the_table_shows_every_parameter_with_its_shape_and_reason():
    lines = str(routing(Everything())).splitlines()
    assert len(lines) == len(ROUTES)
    text = {line.split()[0]: line for line in lines}
    assert "(3, 2, 5)" in text["conv1.weight"]
    assert "Conv1d as (out, -1)" in text["conv1.weight"]
    assert "its rows are looked up, not mixed" in text["table.weight"]
    assert "LayerNorm rescales" in text["layer.weight"]
    assert "1-dimensional" in text["linear.bias"]


def test_the_groups_hold_every_parameter_once_with_its_name_and_settings():
    network = Everything()
    groups = routing(network).groups(lr=0.5, weight_decay=0.0)
    assert sorted((g["track"], g["convolution"]) for g in groups) == [
        ("matrix", False),
        ("matrix", True),
        ("vector", False),
    ]
    assert all(g["lr"] == 0.5 and g["weight_decay"] == 0.0 for g in groups)
    named = {name: p for g in groups for name, p in g["params"]}
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert named.keys() == trainable.keys()
    assert all(named[name] is p for name, p in trainable.items())
    ARS2Neo(groups)


def test_an_embedding_takes_adams_step_and_a_convolution_of_any_dimension_is_one_matrix():
    network = Everything()
    optimizer, shapes = ARS2Neo(routing(network).groups()), {}
    optimizer.observe(lambda record: shapes.update({t.name: (t.track, t.matrix_shape) for t in record.tensors}))
    for p in network.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    optimizer.step()
    assert shapes["table.weight"] == ("vector", None)
    assert shapes["conv1.weight"] == ("matrix", (3, 10))
    assert shapes["conv2.weight"] == ("matrix", (3, 50))
    assert shapes["conv3.weight"] == ("matrix", (3, 16))
    assert shapes["heads"] == ("matrix", (2, 3, 4))


def test_a_tied_weight_is_routed_once_with_its_first_owner():
    network = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    network["head"].weight = network["table"].weight
    (route,) = routing(network).routes
    assert (route.name, route.track) == ("table.weight", "vector")


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 5), nn.Embedding(4, 3)], ids=["Conv1d", "Embedding"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_parametrized_weight_is_routed_as_its_layer(layer, nested):
    kind = type(layer).__name__
    layer = torch.nn.utils.parametrizations.spectral_norm(copy.deepcopy(layer))
    network = nn.Sequential(layer) if nested else layer
    route = next(r for r in routing(network).routes if r.name.endswith("original"))
    assert (route.track, route.convolution) == (("matrix", True) if kind == "Conv1d" else ("vector", False))
    assert kind in route.reason


def test_a_frozen_model_is_refused():
    with pytest.raises(OptimizerError, match="Linear has no parameter that requires a gradient; nothing to optimize"):
        routing(nn.Linear(2, 2).requires_grad_(False))


def test_a_model_without_matrices_is_refused():
    with pytest.raises(OptimizerError, match=r"no matrix \(ndim >= 2\) among 2 parameters; use torch.optim.AdamW"):
        ARS2Neo(routing(nn.LayerNorm(3)).groups())
    with pytest.raises(OptimizerError, match="no matrix"):
        ARS2Neo(nn.LayerNorm(3).parameters())


@pytest.mark.parametrize(
    ("shape", "flatten", "convolution", "expected"),
    [
        ((3, 4), False, False, (3, 4)),
        ((2, 3, 4), False, False, (2, 3, 4)),
        ((2, 3, 4), True, False, (6, 4)),
        ((2, 3, 4), False, True, (2, 12)),
        ((2, 3, 4), True, True, (2, 12)),
        ((2, 3, 4, 5), False, False, (2, 60)),
        ((2, 3, 4, 5, 6), True, False, (2, 360)),
    ],
)
def test_a_tensor_is_cut_by_its_dimensions(shape, flatten, convolution, expected):
    view = matrix_view(torch.zeros(shape), flatten=flatten, convolution=convolution)
    assert tuple(view.shape) == expected
