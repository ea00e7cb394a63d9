"""Synthetic runs with every table of the dynamics report, made without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

LAGS = (1, 5, 20)
TENSORS = {"0.weight": "matrix", "0.bias": "vector", "2.weight": "matrix"}
TURNS = {"gradient": 0.25, "shear": 0.05}  # radians a step
Row = tuple[str, dict[str, object]]


def manifest(arm: str, seed: int) -> dict[str, object]:
    kinds = ("instruments", "spectra", "counterfactual", "minibatches", "layers", "curvature", "checkpoints")
    return {
        "arm": arm,
        "seeds": {"init": seed, "split": 0, "order": seed},
        "model": {
            "parameters": 2000,
            "tensors": [{"name": k, "shape": [8, 16], "track": v} for k, v in TENSORS.items()],
        },
        "preset": "full",
        "loss_unit": "nats",
        "data_hash": "5f0c",
        "trigger": {"mode": "aga", "lambda": 1.0, "k": 6},
        "overhead": {"seconds": 2.0, "share": 0.4, **{f"{kind}_share": 0.4 / len(kinds) for kind in kinds}},
    }


def trained(generator: np.random.Generator, steps: int) -> Iterator[Row]:
    """Yield steps of a trigger whose phi is mostly negative, with their sampled tensors."""
    since = 6
    for step in range(1, steps + 1):
        phi = 0.1 * generator.standard_normal() - 0.095
        since += 1
        synced = since >= 6 or phi < -0.1
        since = 0 if synced else since
        row = {"step": step, "loss": 2.0 / step, "synced": synced, "phi": phi, "threshold": -0.1, "weight_norm": 5.0}
        yield "steps", {**row, "injection_angle": math.radians(30), "remainder_rounding": 1e-8}
        for name, track in TENSORS.items() if step % 10 == 0 else ():
            sampled = {"injected_norm": 1.0, "injection_angle": math.radians(20), "update_norm": 0.1}
            remainder = 1e-3 * (1 + generator.random())
            yield "tensors", {"step": step, "tensor": name, "track": track, "remainder": remainder, **sampled}


def pairs(generator: np.random.Generator, steps: int, objects: tuple[str, ...]) -> Iterator[Row]:
    """Yield cosines of directions that rotate in a plane, with noise that gives a ceiling of about 0.3."""
    for begin in range(0, steps - max(LAGS), 40):
        for kind in objects:
            for lag in (0, *LAGS):
                cosine = 0.3 * math.cos(TURNS[kind] * lag) + 0.01 * generator.standard_normal()
                row = {"step": begin + lag, "object": kind, "lag": lag, "cosine": cosine, "size": 2000}
                large = {"square": 5.0 + generator.random(), "pair_square": 3.0 + generator.random(), "samples": 32}
                yield "pairs", row | (large if lag == 0 else {})


def spectra(generator: np.random.Generator, steps: int) -> Iterator[Row]:
    """Yield spectra of three gradients and of the Newton-Schulz output of each matrix."""
    orders = {"gradient": 0.3, "batch_gradient": 0.2, "pair_gradient": 0.4}
    for step in range(0, steps, 40):
        for name in (name for name, track in TENSORS.items() if track == "matrix"):
            shared = {"step": step, "tensor": name, "values": [1.0] * 8, "method": "gram", "error": 1e-9}
            for kind, order in orders.items():
                excess = order + 0.01 * generator.standard_normal()
                entropy = (1.8 - excess) / math.log(8)
                yield "spectra", {**shared, "object": kind, "excess_order": excess, "entropy_energy": entropy}
            quality = {"outside_band": 0.125, "polar_norm": 0.875, "polar_cosine": 0.99, "condition": 4.0}
            yield "spectra", {**shared, "object": "orthogonal", "entropy_energy": 0.99, **quality}


def evaluations(steps: int) -> Iterator[Row]:
    """Yield step quality and gradient alignment at every 20th step."""
    exact = {"engine": "lossscope", "mode": "eval", "loss_kind": "mean", "stderr": 0.0, "data_hash": "5f0c"}
    for step in range(20, steps + 1, 20):
        values = {"secant_curvature": 3.0, "directional_sharpness": 2.5, "lambda_max": 10.0}
        values |= {"gradient_cosine": 0.5, "gradient_rayleigh": 0.25}
        for measure, value in {**values, "top_share": 0.125}.items():
            yield "probes", {**exact, "step": step, "measure": measure, "value": value}
        # Of a change of 1e-2 in terms of 1e-2, with a rounding of 1e-6.
        ratios = {"trust_ratio": (0.95, 0.95e-4), "relative_first": (0.2, 1e-4), "relative_second": (0.05, 1e-4)}
        for measure, (value, off) in ratios.items():
            ends = {"low": value - off, "high": value + off}
            yield "probes", {**exact, "step": step, "measure": measure, "value": value, **ends}


def dynamic(
    path: Path,
    arm: str = "ars2-aga",
    seed: int = 0,
    *,
    steps: int = 400,
    objects: tuple[str, ...] = ("gradient", "shear"),
    rows: Callable[[str, dict[str, object]], dict[str, object] | None] | None = None,
    **facts: object,
) -> Run:
    """Write a run with every table of the dynamics report, changed by `rows`, and return it, opened."""
    store = RunStore.create(path, {**manifest(arm, seed), **facts})
    generator = np.random.default_rng(seed)
    parts = (trained(generator, steps), pairs(generator, steps, objects), spectra(generator, steps), evaluations(steps))
    for table, row in (one for part in parts for one in part):
        changed = row if rows is None else rows(table, row)
        if changed is not None:
            store.append(table, changed)
    store.close("finished", "the loop ended")
    return Run.open(path)


@pytest.fixture
def dynamic_run(shelf: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """Return a function that writes a run with every table of the dynamics report below `tmp_path` and opens it."""
    return lambda name, *settings, **more: shelf(dynamic, tmp_path / name, *settings, **more)


@pytest.fixture(scope="module")
def long_named(shelf: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return such a run with a long name, for reading only."""
    return shelf(dynamic, tmp_path_factory.mktemp("long") / "a-run-with-a-rather-long-name")
