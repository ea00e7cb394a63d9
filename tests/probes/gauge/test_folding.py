"""Gains of normalization layers: folded where that keeps the function, named where nothing is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.training.workloads import built, digits_conv
from lossscope.probes import CrossEntropy, Objective, adaptive_trace, hessian, measure_spectrum
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.rescale import rescaled

LABELS = torch.arange(12) % 3


def trained(net: nn.Module, x: Tensor) -> nn.Module:
    """Return the network with gains and shifts that are not 1 and 0, and statistics of its data, in eval mode."""
    for _ in range(5):
        net.train()(x)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                module.weight.copy_(1 + 0.5 * gaussian(*module.weight.shape, seed=1))
                module.bias.copy_(gaussian(*module.bias.shape, seed=2))
    return net.eval()


def images(*, bias: bool) -> tuple[nn.Module, Tensor]:
    def build() -> nn.Module:
        first, second = nn.Conv2d(1, 4, 3, padding=1, bias=bias), nn.Conv2d(4, 6, 3, groups=2, bias=bias)
        layers = (first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(24, 3))

    x = gaussian(12, 1, 4, 4)
    return trained(built(build, 2).double(), x), x


def numbers(net: nn.Module, x: Tensor) -> list[float]:
    made = Objective(net, CrossEntropy(), [(x, LABELS)])
    found = measure_spectrum(hessian(made), top=1, rel=1e-8, quantities=("top", "trace"), max_products=64)
    return [float(found.top.values[0]), found.trace.value]


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norms_are_folded_into_the_layers_before_them(bias: bool) -> None:
    net, x = images(bias=bias)
    found = balance(net, batch=x)
    assert (found.unknown, found.logit_error < 1e-12) == ((), True)
    assert found.fixed[0] == "gains of 1, folded into 0.weight"
    assert len(found.fixed) == 4
    norm = found.model[1]
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert not norm.running_mean.any()
    assert not norm.weight.requires_grad
    assert norm.bias.requires_grad is not bias
    assert bool(norm.bias.any()) is not bias
    assert list(found.model.state_dict()) == list(net.state_dict())
    assert net[1].weight.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_a_rescaled_network_with_batch_norm_has_the_same_balanced_point(bias: bool) -> None:
    net, x = images(bias=bias)
    other = rescaled(net, 4)
    assert not torch.equal(other[1].weight, net[1].weight)
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert numbers(balance(other).model, x) == pytest.approx(numbers(balance(net).model, x), rel=1e-6)
    assert numbers(other, x)[0] != pytest.approx(numbers(net, x)[0], rel=0.2)
    traces = [adaptive_trace(Objective(one, CrossEntropy(), [(x, LABELS)]), max_products=16) for one in (net, other)]
    assert traces[0].value == pytest.approx(traces[1].value, rel=1e-8)


def test_a_gain_moved_into_the_layer_by_hand_gives_the_same_balanced_point() -> None:
    net, x = images(bias=True)
    other = rescaled(net, 0)
    with torch.no_grad():
        norm, layer = other[1], other[0]
        factor = torch.tensor([0.5, 2.0, 3.0, 1.5], dtype=torch.float64)
        layer.weight *= factor[:, None, None, None]
        layer.bias.copy_((layer.bias - norm.running_mean) * factor + norm.running_mean)
        norm.weight /= factor
    torch.testing.assert_close(other(x), net(x))
    assert numbers(balance(other).model, x) == pytest.approx(numbers(balance(net).model, x), rel=1e-6)


def test_the_gain_of_a_layer_norm_goes_into_the_linear_layer_that_reads_it() -> None:
    x = gaussian(12, 5)
    build = lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))  # noqa: E731
    net = trained(built(build, 2).double(), x)
    found, other = balance(net, batch=x), rescaled(net, 3)
    assert found.fixed == ("gains of 0 (LayerNorm), folded into 1.weight", "scale of each of the 6 neurons of 1")
    assert (found.unknown, found.logit_error < 1e-12) == ((), True)
    assert not found.model[0].bias.any()
    assert not torch.equal(other[0].weight, net[0].weight)
    torch.testing.assert_close(other(x), net(x))
    assert numbers(balance(other).model, x) == pytest.approx(numbers(found.model, x), rel=1e-6)


def test_gains_before_relu_are_balanced_and_the_scale_before_a_group_norm_is_unknown() -> None:
    x = gaussian(5, 1, 8, 8)
    net = trained(built(digits_conv, 2).double(), x)
    found = balance(net, batch=x)
    assert found.fixed == (
        "scale of each of the 16 neurons of 1 (GroupNorm)",
        "scale of each of the 32 neurons of 4 (GroupNorm)",
    )
    assert [one.partition(":")[0] for one in found.unknown] == ["0", "3"]
    assert "1 (GroupNorm) ignores its scale but for eps" in found.unknown[0]
    written = torch.stack([found.model[1].weight, found.model[1].bias]).norm(dim=0)
    read = found.model[3].weight.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(written, read, rtol=1e-10, atol=0)


UNFOLDED = {
    "after ReLU": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "of the data": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "without statistics": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()),
    "without gains": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 3)),
    "frozen": nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
    "shift without a bias to go to": nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3, bias=False)),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_gains_that_cannot_be_folded_are_unknown(name: str) -> None:
    found = balance(UNFOLDED[name], batch=gaussian(6, 4, dtype=torch.float32))
    assert found.unknown
    assert not any("folded" in one for one in found.fixed)


def test_a_batch_norm_behind_a_layer_that_is_used_twice_is_not_folded() -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.BatchNorm1d(4), nn.ReLU(), layer).eval()
    found = balance(net, batch=gaussian(6, 4, dtype=torch.float32))
    assert found.unknown
    assert not found.fixed


def test_a_batch_norm_behind_an_embedding_is_folded_and_rescaled() -> None:
    net, ids = (
        nn.Sequential(nn.Embedding(7, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double(),
        torch.arange(7),
    )
    net = trained(net, ids)
    assert (balance(net, batch=ids).unknown, balance(net, batch=ids).logit_error < 1e-12) == ((), True)
    torch.testing.assert_close(rescaled(net, 1)(ids), net(ids))
