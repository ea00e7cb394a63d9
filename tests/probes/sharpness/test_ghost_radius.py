"""Softmax ghost radius: complex zeros by another algorithm, Taylor coefficients, networks, invariance, refusals."""

from __future__ import annotations

import cmath
import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.ghost_radius import softmax_ghost_radius


class Moved(nn.Module):
    """Logits that do not depend on the input: the weights themselves, one row a sample."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x.long()]


def fixed(logits: Tensor, labels: Tensor) -> Objective:
    return Objective(Moved(logits), CrossEntropy(), [(torch.arange(len(logits)).double(), labels)])


def nearest_zero(z: np.ndarray, slopes: np.ndarray) -> float:
    """Return the distance of the nearest complex zero of sum exp(z + t a) for whole numbers a, by a polynomial."""
    least = slopes.min()
    coefficients = np.zeros(slopes.max() - least + 1)
    for one, slope in zip(z, slopes - least, strict=True):
        coefficients[slope] += math.exp(one)
    roots = np.polynomial.polynomial.polyroots(coefficients)
    return min(abs(complex(cmath.log(root)) + 2j * math.pi * turn) for root in roots for turn in (-1, 0, 1))


def network() -> tuple[nn.Module, Objective]:
    x, y = gaussian(30, 4), torch.arange(30) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()
    return net, Objective(net, CrossEntropy(), [(x[:20], y[:20]), (x[20:], y[20:])])


def test_two_classes_have_their_nearest_zero_at_the_radius_of_the_runner_up() -> None:
    z, a = gaussian(12, 2), torch.tensor([[0.0, 1.0], [2.0, -1.0], [-3.0, 0.0]]).repeat(4, 1)
    found = softmax_ghost_radius(fixed(z, torch.arange(12) % 2), a.reshape(-1))
    right = [1 / nearest_zero(row, slope) for row, slope in zip(z.numpy(), a.numpy().astype(int), strict=True)]
    assert found.runner_up_ratios == pytest.approx(right, rel=1e-9)
    assert found.runner_up.value == pytest.approx(max(right))
    assert found.nonlinearity.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_zero_of_many_classes_lies_within_the_radius(seed: int) -> None:
    z, generator = gaussian(40, 5, seed=seed), torch.Generator().manual_seed(seed)
    a = torch.randint(-4, 5, (40, 5), generator=generator).double()
    found = softmax_ghost_radius(fixed(z, torch.arange(40) % 5), a.reshape(-1))
    zeros = [nearest_zero(row, slope) for row, slope in zip(z.numpy(), a.numpy().astype(int), strict=True)]
    assert found.spreads == pytest.approx((a.amax(1) - a.amin(1)).numpy())
    assert all(zero >= math.pi / spread * (1 - 1e-9) for zero, spread in zip(zeros, found.spreads, strict=True))
    assert found.ratio.value == pytest.approx(float((a.amax(1) - a.amin(1)).max()) / math.pi)


def test_the_radius_is_reached_where_two_classes_are_equal_and_the_series_diverges_behind_it() -> None:
    z, a = torch.zeros(1, 2), torch.tensor([0.0, 2.0])
    radius = math.pi / 2
    found = softmax_ghost_radius(fixed(z, torch.tensor([0])), a)
    assert found.ratio.value == pytest.approx(1 / radius)
    assert found.runner_up.value == pytest.approx(1 / radius)
    # Taylor coefficients of log(1 + e^(2t)) by the trapezoidal rule on a circle inside the radius
    points = 512
    circle = 1.2 * np.exp(2j * math.pi * np.arange(points) / points)
    coefficients = np.fft.fft(np.log(1 + np.exp(2 * circle))).real / points / 1.2 ** np.arange(points)
    even = np.abs(coefficients[20:40:2])
    assert (even[:-1] / even[1:]) ** 0.5 == pytest.approx(np.full(9, radius), rel=0.05)


def test_of_a_network_they_are_those_of_differences_of_its_logits() -> None:
    net, objective = network()
    D, h = 0.3 * gaussian(objective.size, seed=1), 1e-5

    def logits(s: float) -> Tensor:
        parts = objective.vector.split(objective.parameters() + s * D)
        x = torch.cat([batch[0] for batch in objective.data.batches])
        return functional_call(net, dict(zip(objective.names, parts, strict=True)), (x,)).detach()

    a = (logits(h) - logits(-h)) / (2 * h)
    spread = a.amax(1) - a.amin(1)
    found = softmax_ghost_radius(objective, D)
    assert found.spreads == pytest.approx(spread.numpy(), rel=1e-6)
    quantiles = np.quantile(spread.numpy() / math.pi, [1.0, 0.99, 0.9])
    assert [found.ratio.value, found.ratio_99.value, found.ratio_90.value] == pytest.approx(quantiles, rel=1e-6)
    remainder = float((logits(1.0) - logits(0.0) - a).norm() / a.norm())
    assert found.nonlinearity.value == pytest.approx(remainder, rel=1e-6)
    assert found.nonlinearity.low <= found.nonlinearity.value <= found.nonlinearity.high


def test_a_rescaling_of_neurons_with_the_step_changes_nothing() -> None:
    x, y = gaussian(30, 4), torch.arange(30) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, factor in (("0.weight", 3.0), ("0.bias", 3.0), ("2.weight", 1 / 3.0)):
            other.get_parameter(name).mul_(factor)
    first, second = (Objective(one, CrossEntropy(), [(x, y)]) for one in (net, other))
    D = gaussian(first.size, seed=1)
    factors = torch.tensor([3.0] * 30 + [1 / 3.0] * 18, dtype=torch.float64)
    before, after = softmax_ghost_radius(first, D), softmax_ghost_radius(second, factors * D)
    assert after.spreads == pytest.approx(before.spreads, rel=1e-12)
    assert after.runner_up.value == pytest.approx(before.runner_up.value, rel=1e-12)
    unscaled = softmax_ghost_radius(second, D)
    assert unscaled.ratio.value != pytest.approx(before.ratio.value, rel=0.01)


def test_a_model_without_forward_mode_gives_the_numbers_of_two_backward_passes() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = Cell().double()
    x, y = gaussian(20, 4, 3), torch.arange(20) % 3
    objective = Objective(net, CrossEntropy(), [(x, y)])
    D, h = gaussian(objective.size, seed=1), 1e-5
    ends = []
    for s in (h, -h):
        with objective.at(objective.parameters() + s * D), torch.no_grad():
            ends.append(net(x))
    a = (ends[0] - ends[1]) / (2 * h)
    assert softmax_ghost_radius(objective, D).spreads == pytest.approx((a.amax(1) - a.amin(1)).numpy(), rel=1e-6)


def test_ignored_terms_are_left_out_and_probabilities_have_no_runner_up() -> None:
    z, labels = gaussian(6, 3), torch.tensor([0, -100, 1, 2, -100, 0])
    a = gaussian(6, 3, seed=1)
    found = softmax_ghost_radius(fixed(z, labels), a.reshape(-1))
    kept = labels >= 0
    assert found.spreads == pytest.approx((a.amax(1) - a.amin(1))[kept].numpy())
    soft = softmax_ghost_radius(fixed(z, z.softmax(1)), a.reshape(-1))
    assert math.isnan(soft.runner_up.value)
    assert soft.ratio.converged
    assert not soft.runner_up.converged


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: softmax_ghost_radius(o, torch.zeros(o.size)), "must not be zero"),
        (lambda o: softmax_ghost_radius(o, torch.full((o.size,), math.nan)), "must be finite"),
        (lambda o: softmax_ghost_radius(o, torch.ones(3)), "must"),
        (
            lambda o: softmax_ghost_radius(Objective(o.model, o.loss_fn, o.data.batches, mode="train"), torch.ones(48)),
            "'eval' or 'frozen', got 'train'",
        ),
        (
            lambda o: softmax_ghost_radius(
                Objective(o.model, lambda m, b: m(b[0]).square().mean(), o.data.batches), torch.ones(48)
            ),
            "requires a loss with logits and labels",
        ),
    ],
    ids=["zero", "nan", "short", "train", "no logits"],
)
def test_what_has_no_radius_is_refused_with_the_reason(change, words: str) -> None:
    _, objective = network()
    with pytest.raises(ProbeError, match=words):
        change(objective)
