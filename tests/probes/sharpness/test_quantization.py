"""Loss in few bits: closed forms, convergence with the bits, an independent quantizer, and what leaves it as it is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.rescale import rescaled
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.quantization import quantized_loss

X, Y = gaussian(31, 4), torch.arange(31) % 3


class Quadratic(nn.Module):
    """A matrix W with the loss sum_i lambda_i (W_i - T_i)^2 / 2."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.W, self.bias = nn.Parameter(W.clone()), nn.Parameter(gaussian(3))


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def objective(model: nn.Module) -> Objective:
    x = X.to(next(model.parameters()).dtype)
    return Objective(model, CrossEntropy(), [(x[:20], Y[:20]), (x[20:], Y[20:])])


@pytest.mark.parametrize("bits", range(2, 9))
def test_on_a_quadratic_it_is_the_weighted_square_of_the_rounding(bits: int) -> None:
    W, curvature = gaussian(5, 4), gaussian(5, 4, seed=1).square()
    step = float(W.abs().max()) / (2 ** (bits - 1) - 1)
    off = W - step * torch.floor(W / step + 0.5)
    right = float((curvature * off.square()).sum() / 2)
    bowl = Objective(Quadratic(W), lambda net, _: (curvature * (net.W - W).square()).sum() / 2, [torch.zeros(1)])
    found = quantized_loss(bowl, bits)
    assert found.value == pytest.approx(right, rel=1e-9)
    assert found.low <= right <= found.high


def test_the_rise_falls_by_four_for_each_further_bit_and_vanishes() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.rand(60, 60, generator=generator, dtype=torch.float64) - 0.5
    bowl = Objective(Quadratic(W), lambda net, _: (net.W - W).square().mean(), [torch.zeros(1)])
    steps = [float(W.abs().max()) / (2 ** (bits - 1) - 1) for bits in (4, 6, 8)]
    for bits, step in zip((4, 6, 8), steps, strict=True):
        assert quantized_loss(bowl, bits).value == pytest.approx(step**2 / 12, rel=0.05)  # uniform error


def test_values_of_the_grid_stay() -> None:
    W = torch.tensor([[-7.0, 3.0, 0.0], [1.0, 7.0, -2.0]]).double() / 8
    far = Objective(Quadratic(W), lambda net, _: (net.W - 1).square().sum() + net.bias.sum(), [torch.zeros(1)])
    assert quantized_loss(far, 4).value == pytest.approx(far.value(), rel=1e-15)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_the_loss_with_the_weights_of_torchs_own_quantizer(bits: int) -> None:
    model = network(torch.float32)
    other = copy.deepcopy(model)
    q = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for layer in (other[0], other[2]):
            scale = float(layer.weight.abs().max()) / q
            layer.weight.copy_(torch.fake_quantize_per_tensor_affine(layer.weight, scale, 0, -q, q))
    found = quantized_loss(objective(model), bits)
    assert found.value == pytest.approx(objective(other).value(), rel=1e-6)
    assert abs(found.value - objective(model).value()) > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_interval_holds_the_value_in_float64(dtype: torch.dtype) -> None:
    narrow = network(dtype)
    wide = copy.deepcopy(narrow).double()
    found = quantized_loss(objective(narrow), 6)
    x = X.to(dtype).double()
    right = quantized_loss(Objective(wide, CrossEntropy(), [(x[:20], Y[:20]), (x[20:], Y[20:])]), 6).value
    assert found.low <= right <= found.high
    assert found.high - found.low < 0.05 * right


def test_a_factor_of_a_tensor_leaves_it_and_factors_of_neurons_do_not() -> None:
    model = network()
    before = quantized_loss(objective(model), 3).value
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= 3
        other[0].bias *= 3
        other[2].weight /= 3
    assert quantized_loss(objective(other), 3).value == pytest.approx(before, rel=1e-12)
    assert abs(quantized_loss(objective(rescaled(model, seed=1)), 3).value / before - 1) > 1e-3


def test_weights_and_statistics_stay_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    before = copy.deepcopy(model.state_dict())
    for mode in ("eval", "train"):
        quantized_loss(Objective(model, CrossEntropy(), [(X, Y)], mode=mode), 3)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_bad_arguments_are_refused() -> None:
    for bits in (1, 17, True, 2.5):
        with pytest.raises(ProbeError, match="bits must be an integer from 2 to 16"):
            quantized_loss(objective(network()), bits)  # type: ignore[arg-type]
    flat = Objective(nn.PReLU(4).double(), lambda net, x: net(x).square().mean(), [X])
    with pytest.raises(ProbeError, match="no trainable parameter has two or more axes"):
        quantized_loss(flat, 4)
    bowl = Quadratic(gaussian(2, 2))
    jump = Objective(bowl, lambda net, _: 1 / (net.W[0, 0] - net.W[0, 1]) ** 2, [torch.zeros(1)])
    with torch.no_grad():
        bowl.W.copy_(torch.tensor([[0.1, 0.2], [1.0, 1.0]]))
    assert math.isfinite(jump.value())
    with pytest.raises(ProbeError, match="the loss is inf after rounding to 2 bits"):
        quantized_loss(jump, 2)


def test_zeros_and_empty_tensors_are_left() -> None:
    bowl = Quadratic(torch.zeros(2, 3, dtype=torch.float64))
    bowl.empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
    still = Objective(bowl, lambda net, _: (net.W - 1).square().sum() + net.empty.sum(), [torch.zeros(1)])
    assert quantized_loss(still, 2).value == 6.0
