from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.minibatch import _ratio_of_means, batch_sharpness
from lossscope.probes.statistics.estimate import mean_estimate

Example = tuple[Tensor, Tensor]


class Weights(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())


def least_squares(x: Tensor, y: Tensor, size: int) -> Objective:
    """Fixture T4: the mean of (x'w - y)^2 / 2 over batches of `size` samples, at some w."""
    model = Weights(gaussian(x.shape[1], seed=7))
    batches = list(zip(x.split(size), y.split(size), strict=True))
    return Objective(model, lambda m, b: ((b[0] @ m.w - b[1]) ** 2).mean() / 2, batches)


def network(counts: tuple[int, ...] = (9, 4, 7)) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in counts])


def test_single_samples_of_least_squares_have_the_trace_as_their_mean_ratio() -> None:
    x, y = gaussian(60, 5) * torch.tensor([2.0, 1.0, 0.5, 0.3, 0.1]), gaussian(60, seed=1)
    found = batch_sharpness(least_squares(x, y, 1))
    trace = float((x.mT @ x / 60).trace())
    assert found.mean_of_ratios.value == pytest.approx(trace, rel=1e-12)
    ratios = x.square().sum(1).tolist()
    assert found.mean_of_ratios.low == pytest.approx(mean_estimate(ratios).low, rel=1e-9)
    residual = x @ gaussian(5, seed=7) - y
    squares = residual**2 * x.square().sum(1)
    weighted = float((squares * x.square().sum(1)).sum() / squares.sum())
    assert found.ratio_of_means.value == pytest.approx(weighted, rel=1e-12)
    assert abs(weighted / trace - 1) > 0.1  # the two averages differ
    assert (found.batches, found.missing, found.batch_sizes) == (60, 0, (1.0, 1.0))


def test_whole_data_as_a_batch_gives_a_rayleigh_quotient_below_the_largest_eigenvalue() -> None:
    x, y = gaussian(30, 5), gaussian(30, seed=1)
    found = batch_sharpness(least_squares(torch.cat([x, x]), torch.cat([y, y]), 30))
    H = x.mT @ x / 30
    g = x.mT @ (x @ gaussian(5, seed=7) - y) / 30
    quotient = float(g @ H @ g / (g @ g))
    assert found.mean_of_ratios.value == pytest.approx(quotient, rel=1e-12)
    assert found.ratio_of_means.value == pytest.approx(quotient, rel=1e-12)
    assert quotient < float(torch.linalg.eigvalsh(H)[-1])
    assert found.mean_of_ratios.stderr == pytest.approx(0, abs=1e-12)


def test_the_forms_of_a_network_are_those_of_its_batches_one_by_one() -> None:
    objective = network()
    curvatures, squares, crossed = [], [], []
    whole, weights = objective.gradient(), objective.data.weights
    parts = [Objective(objective.model, CrossEntropy(), [batch]) for batch in objective.data.batches]
    for i, part in enumerate(parts):
        g, H = part.gradient(), hessian(part)
        curvatures.append(float(g @ (H @ g)))
        squares.append(float(g @ g))
        if i:
            before = parts[i - 1].gradient()
            crossed.append(2 * weights[i] * float(before @ (H @ before)))
    found = batch_sharpness(objective)
    assert found.mean_of_ratios.value == pytest.approx(np.mean(np.divide(curvatures, squares)), rel=1e-10)
    assert found.ratio_of_means.value == pytest.approx(sum(curvatures) / sum(squares), rel=1e-10)
    same = sum(w * c for w, c in zip(weights, curvatures, strict=True)) / 3
    expected = (same + np.mean(crossed)) / float(whole @ whole)
    assert found.noise_interaction.value == pytest.approx(expected, rel=1e-10)
    assert found.batch_sizes == (4.0, 9.0)
    assert found.mean_of_ratios.products == found.noise_interaction.products == 5


def test_both_intervals_cover_the_population_in_95_percent_of_seeds() -> None:
    """Least squares on Gaussian data, 40 batches of 16, with both quadratic forms of each batch in closed form."""
    scales, w = np.array([2, 1, 0.7, 0.5, 0.3, 0.2]), np.array([0.5, -0.3, 0.4, 0.2, -0.1, 0.3])

    def forms(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        X = rng.normal(size=(count, 16, 6)) * scales
        g = np.einsum("mb,mbd->md", X @ w + 0.3 * rng.normal(size=(count, 16)), X) / 16
        bent = np.einsum("mbd,md->mb", X, g)
        return (bent**2).sum(1) / 16, (g**2).sum(1)

    a, d = forms(100_000, np.random.default_rng(1))
    truth = (a / d).mean(), a.sum() / d.sum()
    hits = np.zeros(2)
    for seed in range(500):
        a, d = forms(40, np.random.default_rng(1000 + seed))
        found = mean_estimate(a / d), _ratio_of_means(a, d)
        hits += [e.low <= t <= e.high for e, t in zip(found, truth, strict=True)]
    assert all(0.91 <= share <= 0.98 for share in hits / 500), hits / 500


def test_the_noise_interaction_covers_the_mean_over_all_pairs_of_batches() -> None:
    """Over random orders of the same batches, the interval of the measured pairs covers the mean over all pairs."""
    x, y = gaussian(32, 4, seed=3), gaussian(32, seed=4)
    H, w = x.mT @ x / 32, gaussian(4, seed=7)
    g = x.mT @ (x @ w - y) / 32
    batches = list(zip(x.split(2), y.split(2), strict=True))
    own = torch.stack([a.mT @ (a @ w - b) / 2 for a, b in batches])
    truth = float(torch.einsum("bi,ij,bj->b", own, H, own).mean() / (g @ g))
    hits, values = 0, []
    for seed in range(40):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        shuffled = [x.split(2)[i] for i in order], [y.split(2)[i] for i in order]
        found = batch_sharpness(least_squares(torch.cat(shuffled[0]), torch.cat(shuffled[1]), 2)).noise_interaction
        hits += found.low <= truth <= found.high
        values.append(found.value)
    assert hits >= 0.9 * 40
    assert np.mean(values) == pytest.approx(truth, rel=4 * np.std(values) / math.sqrt(40) / truth)


def test_below_the_noise_interaction_threshold_a_random_step_lowers_the_loss_on_average() -> None:
    x, y = gaussian(20, 4, seed=3), gaussian(20, seed=4)
    objective = least_squares(x, y, 1)
    w, value = objective.parameters(), objective.value()
    own = [xi * (xi @ w - yi) for xi, yi in zip(x, y, strict=True)]
    H, g = x.mT @ x / 20, objective.gradient()
    interaction = float(sum(d @ H @ d for d in own) / 20 / (g @ g))
    for factor, falls in ((0.99, True), (1.01, False)):
        lr = factor * 2 / interaction
        after = []
        for d in own:
            with objective.at(w - lr * d):
                after.append(objective.value())
        assert (float(np.mean(after)) < value) is falls


def test_no_average_over_batches_says_converged() -> None:
    x, y = gaussian(64, 4, seed=3), gaussian(64, seed=4)
    found = batch_sharpness(least_squares(x, y, 1))
    assert not any(one.converged for one in (found.mean_of_ratios, found.ratio_of_means, found.noise_interaction))
    assert found.ratio_of_means.low < found.ratio_of_means.value < found.ratio_of_means.high


def test_the_interval_of_a_ratio_contains_the_ratio() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        d = rng.exponential(size=5) ** 3
        found = _ratio_of_means(d * rng.exponential(size=5), d)
        assert found.low <= found.value <= found.high


def test_a_batch_without_a_gradient_is_a_counted_gap() -> None:
    x = torch.cat([gaussian(4, 3), torch.zeros(1, 3).double()])
    found = batch_sharpness(least_squares(x, gaussian(5, seed=1), 1))
    assert (found.batches, found.missing) == (4, 1)
    assert found.mean_of_ratios.value == pytest.approx(float(x[:4].square().sum(1).mean()), rel=1e-12)
    assert found.mean_of_ratios.samples == 4
    assert not math.isnan(found.ratio_of_means.value)
    nothing = batch_sharpness(least_squares(torch.zeros(4, 3).double(), gaussian(4), 1))
    for estimate in (nothing.mean_of_ratios, nothing.ratio_of_means, nothing.noise_interaction):
        assert math.isnan(estimate.value)
        assert not estimate.converged
    assert (nothing.batches, nothing.missing) == (0, 4)


def test_two_batches_have_ratios_and_leave_the_interaction_open() -> None:
    found = batch_sharpness(network((9, 4)))
    assert not math.isnan(found.mean_of_ratios.value)
    assert math.isnan(found.noise_interaction.value)


def test_too_few_batches_and_bad_samples_are_told() -> None:
    with pytest.raises(ProbeError, match="batch sharpness requires at least 2 batches, got 1"):
        batch_sharpness(network((9,)))
    with pytest.raises(ProbeError, match="got 3 numerators and 1 of 3 denominators above 0"):
        _ratio_of_means([1.0, 1.0, 1.0], [0.0, 2.0, 0.0])
    steep = Weights(torch.tensor([1e-15]))
    overflowing = Objective(steep, lambda m, b: (b * m.w**2).mean(), [torch.tensor([2e38])] * 3)
    with pytest.raises(ProbeError, match="the curvature of a batch along a gradient is inf"):
        batch_sharpness(overflowing)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e-30, torch.float32), (1e25, torch.float32), (1e-200, torch.float64), (1e200, torch.float64)],
)
def test_it_has_the_scale_of_the_loss(scale: float, dtype: torch.dtype) -> None:
    def at(factor: float, dtype: torch.dtype) -> list[float]:
        plain = network()
        model, data = plain.model.to(dtype), [(x.to(dtype), y) for x, y in plain.data.batches]
        found = batch_sharpness(Objective(model, lambda m, b: CrossEntropy()(m, b) * factor, data))
        return [one.value for one in (found.mean_of_ratios, found.ratio_of_means, found.noise_interaction)]

    expected = [scale * value for value in at(1.0, torch.float64)]
    assert at(scale, dtype) == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 1e-12, abs=0)
