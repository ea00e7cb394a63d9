"""Tests of the ring of norms, and of planted faults whose spikes name the right layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.analysis.spikes import Spike, spikes_of
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.recording.spikes import MOST_SPIKES, spike_level
from lossscope.landscape.recording.step_ring import RING
from lossscope.landscape.run import Run
from lossscope.landscape.storage.missing_values import MISSING_VALUES
from lossscope.optimizer import create

STEPS, AT = 190, 170  # of a training, and the step of the fault, where the loss has settled
LAYERS = 4
ALL = pytest.param(10, marks=pytest.mark.slow)  # seeds


class Overflow(torch.autograd.Function):
    """The identity, whose gradient passes through float16 with a scale under which it overflows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return (gradient * 2.0**40).half().float() / 2.0**40


class Network(nn.Module):
    """Four layers on twelve inputs, of which the first is always zero."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (12, 24, 24, 24, 4)
        self.layers = nn.ModuleList(nn.Linear(sizes[i], sizes[i + 1]) for i in range(LAYERS))
        self.overflows: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = Overflow.apply(x) if i == self.overflows else x
            x = x.relu() if i < LAYERS - 1 else x
        return x


Fault = Callable[[Network, torch.optim.Optimizer, Tensor, Tensor], None]


def train(
    path: Path, seed: int, fault: Fault | None, *, name: str = "adamw", lr: float = 0.01, steps: int = STEPS
) -> Run:
    """Train a small network, with a fault at step 170, to the end or to a loss that is not finite."""
    torch.manual_seed(seed)
    X = torch.randn(2048, 12)
    X[:, 0] = 0
    targets = torch.tanh(X @ torch.randn(12, 4) / 2) + 0.3 * torch.randn(2048, 4)
    network = Network()
    groups = [{"params": list(layer.parameters())} for layer in network.layers]
    kinds = {"adamw": torch.optim.AdamW, "sgd": lambda g, lr: torch.optim.SGD(g, lr=lr, momentum=0.9)}
    optimizer = kinds[name](groups, lr=lr)
    recorder = Recorder(path, network, optimizer, preset="economy", overhead=1)
    for step in range(1, steps + 1):
        chosen = torch.randint(0, 2048, (128,))
        x, y = X[chosen], targets[chosen]
        if fault is not None and step == AT:
            fault(network, optimizer, x, y)
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
        if not math.isfinite(loss.detach()):
            break
    recorder.close(quiet=True)
    return Run.open(path)


def after_fault(run: Run) -> Spike | None:
    """Return the first spike from the fault on."""
    return next((one for one in spikes_of(run) if one.step >= AT), None)


def bad_batch(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    x.mul_(20)
    y.mul_(-5)


def no_epsilon(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    for group in optimizer.param_groups:
        group["eps"] = 0.0


def overflow(layer: int) -> Fault:
    def fault(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        network.overflows = layer

    return fault


def large_rate(layer: int) -> Fault:
    def fault(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        optimizer.param_groups[layer]["lr"] *= 10

    return fault


def named(seeds: int, tmp_path: Path, fault: Callable[[int], Fault], layer: Callable[[int], str], **settings) -> int:
    """Return the number of seeds whose spike names the layer of the fault."""
    found = [after_fault(train(tmp_path / f"run-{seed}", seed, fault(seed), **settings)) for seed in range(seeds)]
    return sum(
        one is not None and one.first is not None and one.first.module == layer(seed) for seed, one in enumerate(found)
    )


def required(seeds: int) -> int:
    return math.ceil(0.9 * seeds)


@pytest.mark.parametrize("seeds", [2, ALL])
def test_a_learning_rate_of_one_layer_names_it(tmp_path: Path, seeds: int) -> None:
    right = named(seeds, tmp_path, lambda s: large_rate(1 + s % 3), lambda s: f"layers.{1 + s % 3}", name="sgd", lr=0.2)
    assert right >= required(seeds)


@pytest.mark.parametrize("seeds", [2, ALL])
def test_no_epsilon_names_the_layer_with_entries_without_a_gradient(tmp_path: Path, seeds: int) -> None:
    assert named(seeds, tmp_path, lambda s: no_epsilon, lambda s: "layers.0") >= required(seeds)


@pytest.mark.parametrize("seeds", [2, ALL])
def test_an_overflow_of_the_backward_pass_names_the_layer_where_it_began(tmp_path: Path, seeds: int) -> None:
    right = named(seeds, tmp_path, lambda s: overflow(s % LAYERS), lambda s: f"layers.{s % LAYERS}")
    assert right >= required(seeds)


@pytest.mark.parametrize("seeds", [2, ALL])
def test_a_bad_batch_names_no_layer(tmp_path: Path, seeds: int) -> None:
    found = [after_fault(train(tmp_path / f"run-{seed}", seed, bad_batch)) for seed in range(seeds)]
    right = [one is not None and one.step == AT and one.first is None and "batch" in one.why for one in found]
    assert sum(right) >= required(seeds)


@pytest.mark.parametrize("seeds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_smooth_run_has_no_spike(tmp_path: Path, seeds: int) -> None:
    runs = [
        train(tmp_path / f"run-{seed}", seed, None, name=("adamw", "sgd")[seed % 2], steps=200) for seed in range(seeds)
    ]
    assert sum(len(run.spikes) > 0 for run in runs) <= seeds / 20


def test_the_ring_holds_the_norms_of_the_last_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run", model, optimizer, preset="economy", overhead=1)
    gradients, updates, weights, largest = [], [], [], []
    for step in range(40):
        before = model.weight.detach().clone()
        loss = model(torch.randn(5, 3)).square().mean() * (float("inf") if step == 39 else 1)
        optimizer.zero_grad()
        loss.backward()
        gradients.append(float(model.weight.grad.norm()))
        optimizer.step()
        change = model.weight.detach() - before
        updates.append(float(change.norm()))
        largest.append(float(change.abs().max()))
        weights.append(float(model.weight.detach().norm()))
        recorder.step(loss)
    recorder.close(quiet=True)
    rows = Run.open(tmp_path / "run").spikes
    assert list(rows["tensor"]) == ["weight", "bias"]
    row = rows.iloc[0]
    assert (row["step"], row["cause"]) == (40, "loss not finite")
    assert list(row["at"]) == list(range(9, 41))
    expected = {"gradient_norm": gradients, "update_norm": updates, "weight_norm": weights, "largest_update": largest}
    for norm, values in expected.items():
        finite = [value if math.isfinite(value) else math.inf for value in values[-RING:]]
        np.testing.assert_allclose(row[norm], finite, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon", "ars2-sync", "sgd"])
def test_the_ring_changes_no_bit_of_the_training(tmp_path: Path, name: str) -> None:
    def trained(recorded: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).bfloat16()
        optimizer = create(name, model, lr=0.01)
        recorder = Recorder(tmp_path / "run", model, optimizer, overhead=1) if recorded else None
        for step in range(40):
            x, factor = torch.randn(16, 4, dtype=torch.bfloat16), 1e8 if step == 38 else 1.0

            def closure(x: Tensor = x, factor: float = factor) -> Tensor:
                optimizer.zero_grad()
                loss = factor * model(x).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
            if recorder is not None:
                recorder.step()
        if recorder is not None:
            recorder.close(quiet=True)
            assert len(Run.open(tmp_path / "run").spikes)  # the loss is that of the closure
        return [p.detach() for p in model.parameters()]

    plain, recorded = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


def losses_of(tmp_path: Path, losses: list[float]) -> Run:
    """Record steps with given losses."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recorder = Recorder(tmp_path / "run", model, optimizer, preset="economy", overhead=1)
    for loss in losses:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        recorder.step(loss)
    recorder.close(quiet=True)
    return Run.open(tmp_path / "run")


def steady(count: int) -> list[float]:
    return [1.0 + 0.1 * (step % 5) for step in range(count)]


def test_a_spike_is_written_once_in_32_steps_and_twenty_times(tmp_path: Path) -> None:
    losses = steady(40)
    for _ in range(MOST_SPIKES + 2):
        losses += [50.0, 60.0, *steady(38)]
    run = losses_of(tmp_path, losses)
    assert sorted(set(run.spikes["step"])) == [41 + 40 * spike for spike in range(MOST_SPIKES)]
    missing = [one for one in run.manifest[MISSING_VALUES] if one["instrument"] == "spikes"]
    assert [one["step"] for one in missing] == [41 + 40 * MOST_SPIKES, 81 + 40 * MOST_SPIKES]


def test_a_loss_that_stays_not_finite_is_one_spike(tmp_path: Path) -> None:
    run = losses_of(tmp_path, [*steady(20), *[math.nan] * 100, *steady(40), math.inf])
    assert sorted(set(run.spikes["step"])) == [21, 161]


def test_without_a_loss_the_reason_is_kept(tmp_path: Path) -> None:
    run = losses_of(tmp_path, [None] * 3)
    missing = [one for one in run.manifest[MISSING_VALUES] if one["instrument"] == "spikes"]
    assert len(missing) == 1
    assert "recorder.step(loss)" in missing[0]["why"]


def test_the_level_is_median_and_eight_mad_in_the_loss_or_its_logarithm() -> None:
    losses = [-1.0, 0.0, 1.0, 2.0] * 8
    assert spike_level(losses) == pytest.approx(0.5 + 8 * 1.0)
    positive = [math.exp(one) for one in losses]
    assert spike_level(positive) == pytest.approx(math.exp(0.5 + 8 * 1.0))
    assert spike_level([2.0] * 32) == pytest.approx(2 * math.exp(0.08))
    assert spike_level(losses[:15]) == math.inf


def test_a_ring_that_fails_is_missing_and_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "_foreach_mul", full)
    with pytest.warns(match="no memory"):
        run = losses_of(tmp_path, [*steady(20), math.nan])
    assert len(run.steps) == 21
    assert not len(run.spikes)
    assert any(one["instrument"] == "ring" for one in run.manifest[MISSING_VALUES])
