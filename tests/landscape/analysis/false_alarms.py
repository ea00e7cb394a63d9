"""Null models of the rules of diagnosis: how many alarms a healthy run of 1000 steps gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lossscope.landscape.analysis.diagnosis.signals import (
    collapsed,
    does_not_ascend,
    first_above,
    first_outlier,
    grows,
    looks_random,
)
from lossscope.landscape.analysis.divergence import first_divergence
from lossscope.landscape.recording.spikes import spike_level
from lossscope.probes.dynamics.trigger_test import trigger_test

STEPS = 1000
Generator = np.random.Generator


def losses(random: Generator, noise: float) -> np.ndarray:
    start, end = random.uniform(1, 5), random.uniform(0.001, 1)
    middle = end + (start - end) * np.exp(-np.arange(STEPS) / random.uniform(20, 500))
    return middle * np.exp(noise * random.standard_normal(STEPS))


def divergence(random: Generator) -> int:
    return first_divergence(np.arange(1, STEPS + 1), losses(random, 0.3)) is not None


def loss_spike(random: Generator) -> int:
    values = losses(random, random.uniform(0.02, 0.5)).tolist()
    found, last = 0, -32
    for step in range(16, STEPS):
        past = values[max(0, step - 32) : step]
        if step - last >= 32 and values[step] > max(past) and values[step] > spike_level(past):
            found, last = found + 1, step
    return found


def energy_spike(random: Generator) -> int:
    energies = np.zeros((100, 10))
    for sample in range(1, 100):
        energies[sample] = 0.8 * energies[sample - 1] + 0.1 * random.standard_normal(10)
    return any(first_outlier(np.exp(column)) is not None for column in energies.T)


def edge(random: Generator) -> int:
    errors = np.full(20, 0.05 * 0.95)
    return first_above(0.95 + errors / 1.96 * random.standard_normal(20), errors) is not None


def negative_mass(random: Generator) -> int:
    return grows(random.random(20), np.zeros(20))


def collapse(random: Generator) -> int:
    found = 0
    for _ in range(10):
        rows, columns = random.integers(8, 33, 2)
        weights = random.standard_normal((rows, columns))
        ranks = []
        for _ in range(10):
            values = np.linalg.svd(weights, compute_uv=False)
            shares = values / values.sum()
            ranks.append(float(np.exp(-(shares * np.log(shares)).sum())))
            weights += 0.3 * random.standard_normal((rows, columns))
        found += collapsed(ranks)
    return found


def entropy(random: Generator) -> int:
    """Five cubic steps toward the polar factor, of white noise, against white noise."""
    orders = []
    for _ in range(10):
        shape = random.integers(8, 65, 2)
        noise = np.linalg.svd(random.standard_normal(shape), compute_uv=False)
        other = np.linalg.svd(random.standard_normal(shape), compute_uv=False)
        x = noise / np.sqrt((noise**2).sum())
        for _ in range(5):
            x = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
        orders.append(_entropy(other) - _entropy(x))
    return float(np.mean(orders)) > 0.05


def _entropy(values: np.ndarray) -> float:
    shares = values**2 / (values**2).sum()
    return float(-(shares * np.log(shares)).sum())


def shear(random: Generator) -> int:
    return bool(looks_random(0.1 + 0.1 * np.sqrt(8) / 5 * random.standard_normal(8)))


def trigger(random: Generator) -> int:
    sizes, fires = np.abs(random.standard_normal(400)) + 1, random.random(400) < 0.7
    phi = np.where(fires, -sizes, sizes)
    found = trigger_test(fires.tolist(), phi.tolist(), [-0.5] * 400, k=10**6).share
    return not (found.low is not None and found.low > 0.5)


def ascent(random: Generator) -> int:
    return does_not_ascend(random.standard_normal(100))


NULLS: dict[str, Callable[[Generator], int]] = {
    one.__name__: one
    for one in (
        *(divergence, loss_spike, energy_spike, edge, negative_mass),
        *(collapse, entropy, shear, trigger, ascent),
    )
}


def alarms(key: str, runs: int, seed: int = 0) -> int:
    """Return the number of alarms of a rule in some healthy runs of 1000 steps."""
    random = np.random.default_rng([seed, *key.encode()])
    return sum(int(NULLS[key](random)) for _ in range(runs))
