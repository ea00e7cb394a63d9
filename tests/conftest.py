"""Synthetic runs: rows as a recorder writes them, without training."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_made_verdicts import trained
from hypothesis import HealthCheck, settings

from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

# Small networks gain nothing from threads, and on a busy machine waiting threads cost minutes. This is set before torch
# is imported; subprocesses of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test measures time: none may fail on a busy machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Modules and collected tests are half a million objects that live to the end. No collection of garbage visits them:
# in one part of the suite those visits took half of the processor time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes golden files."""
    parser.addoption("--golden", action="store_true", help="write the golden files of tests/data/golden anew")


def pytest_collection_finish() -> None:
    """Set apart what exists before the first test, and collect garbage from here on."""
    gc.freeze()
    gc.enable()


EVALUATIONS = (0, 1, 2, 4, 8, 16, 32, 40)
MATRICES = {"0.weight": [8, 8], "2.weight": [3, 8]}
VECTORS = {"0.bias": [8], "2.bias": [3]}
OBJECTS = {"gradient": 0.5, "momentum": 0.6, "whitened": 0.8, "orthogonal": 0.99, "update": 0.99, "weight": 0.9}


def manifest(arm: str, seed: int) -> dict[str, object]:
    tensors = [{"name": name, "shape": shape, "track": "matrix"} for name, shape in MATRICES.items()]
    tensors += [{"name": name, "shape": shape, "track": "vector"} for name, shape in VECTORS.items()]
    return {
        "arm": arm,
        "config": {"steps": 40},
        "seeds": {"init": seed, "split": 0, "order": seed},
        "model": {"parameters": 99, "tensors": tensors},
        "data_hash": "5f0c3a9b1e2d4c66",
        "loss_unit": "nats",
        "environment": {"python": "3.12.4", "torch": "2.13.0", "numpy": "2.4.6", "lossscope": "0.1.0", "threads": 1},
        "code_version": "0.1.0",
        "preset": "standard",
        "overhead": {"seconds": 1.0, "share": 0.25, "curvature_seconds": 0.9, "curvature_share": 0.2},
    }


def step_rows(arm: str, seed: int, steps: int) -> Iterator[tuple[str, dict[str, object]]]:
    for step in range(1, steps + 1):
        synced = "sync" in arm
        row: dict[str, object] = {"step": step, "loss": 2.0 / step + 0.01 * seed, "lr": 1e-3, "synced": synced}
        if step % 10 == 0:
            row |= {"weight_norm": 5.0 + seed, "update_norm": 0.1, "test_accuracy": 0.9 + 0.01 * seed}
            row |= {"adversarial_angle": np.pi / 6} if synced else {}
            for name in MATRICES:
                energy = None if "sgd" in arm else 0.25
                yield "tensors", {"step": step, "tensor": name, "track": "matrix", "energy_rms": energy}
            yield "tensors", {"step": step, "tensor": "0.bias", "track": "vector"}
            yield from (("spectra", one) for one in spectrum_rows(step))
        yield "steps", row


def spectrum_rows(step: int) -> Iterator[dict[str, object]]:
    for name in MATRICES:
        for kind, entropy in OBJECTS.items():
            yield {
                "step": step,
                "tensor": name,
                "object": kind,
                "values": [2.0, 1.0, 0.5],
                "entropy_energy": entropy,
                "entropy_nuclear": entropy + 0.01,
                "stable_rank": 2.5,
                "effective_rank": 2.75,
                "condition": None if kind == "gradient" else 4.0,
                "orthogonality_defect": 1 - entropy,
                "method": "gram",
                "error": 1e-9,
            }


def probe_rows(arm: str, seed: int, steps: int) -> Iterator[dict[str, object]]:
    shared = {"mode": "eval", "loss_kind": "mean", "gauge": "raw", "dtype": "float32", "engine": "lossscope"}
    for step in (evaluation for evaluation in EVALUATIONS if evaluation <= steps):
        top = 10.0 + step + seed
        loss = 2.0 / min(step + 1, steps) + 0.01 * seed
        yield {**shared, "step": step, "measure": "loss", "value": loss, "stderr": 0.0, "converged": True}
        eigen = {**shared, "step": step, "products": 20, "seconds": 0.5, "residual": 0.25, "converged": True}
        yield {**eigen, "measure": "lambda_max", "value": top, "low": top - 0.25, "high": top + 0.25}
        yield {**eigen, "measure": "lambda_min", "value": -2.0, "low": -2.25, "high": -1.75}
        mean = {**shared, "step": step, "products": 16, "seconds": 0.25, "samples": 16, "converged": True}
        yield {**mean, "measure": "trace", "value": 4 * top, "stderr": 1.5, "low": 4 * top - 3, "high": 4 * top + 3}
        flat = {"value": 3.0 + seed, "stderr": 0.125, "low": 2.75 + seed, "high": 3.25 + seed}
        yield {**mean, "measure": "adaptive_trace", **flat}
        yield {**mean, "measure": "log_fisher_rao", "value": 0.7, "stderr": 0.0, "products": 0}
        if step:
            yield {**mean, "measure": "directional_edge_ratio", "value": 0.5 + 0.1 * seed, "stderr": 0.0, "products": 1}


def written(
    path: Path,
    arm: str = "ars2-base",
    seed: int = 0,
    *,
    steps: int = 40,
    curvature: bool = True,
    status: str | None = "finished",
    rows: Callable[[str, dict[str, object]], dict[str, object] | None] = lambda table, row: row,
    **facts: object,
) -> Run:
    """Write a run to a path and return it, opened."""
    store = RunStore.create(path, {**manifest(arm, seed), **facts})
    made = [*step_rows(arm, seed, steps)]
    made += [("probes", row) for row in probe_rows(arm, seed, steps)] if curvature and steps else []
    for table, row in made:
        changed = rows(table, row)
        if changed is not None:
            store.append(table, changed)
    store.flush()
    if status is not None:
        store.close(status, "the loop ended")
    return Run.open(path)


class Shelf:
    """Runs that are written once in a session, and copied to where a test wants them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._kept = folder, dict[str, Path]()

    def __call__(self, write: Callable[..., Run], path: Path, *settings: object, **more: object) -> Run:
        """Return the run that `write` would write to the path; a run with rows of its own, or not closed, it writes."""
        if "rows" in more or more.get("status", "") is None:
            return write(path, *settings, **more)
        key = repr((write.__qualname__, settings, sorted(more.items())))
        if key not in self._kept:
            self._kept[key] = self._folder / str(len(self._kept))
            write(self._kept[key], *settings, **more)
        shutil.copytree(self._kept[key], path)
        return Run.open(path)

    def written(self, path: Path, *settings: object, **more: object) -> Run:
        """Return the run of `written`."""
        return self(written, path, *settings, **more)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Return the shelf of this session."""
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def write_run(shelf: Shelf, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that writes a run below `tmp_path` and opens it."""
    return lambda name, *settings, **more: shelf.written(tmp_path / name, *settings, **more)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two arms of two seeds, one arm without a second pass; for copying only."""
    folder = tmp_path_factory.mktemp("written")
    for arm in ("ars2-base", "ars2-sync"):
        for seed in (0, 1):
            written(folder / f"{arm}-s{seed}", arm, seed)
    return folder


@pytest.fixture
def demo_runs(demo_folder: Path, tmp_path: Path) -> list[Run]:
    """Return a copy of the runs in `demo_folder` that a test may change, in the order of arms and seeds."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "demo"))
    return [Run.open(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two arms with six paired seeds, without training and for reading only."""
    folder = tmp_path_factory.mktemp("study")
    for arm in ("sync", "base"):
        for seed in range(6):
            trained(folder / f"{arm}-s{seed}", arm, seed)
    return folder


@pytest.fixture
def few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the products of curvature evaluations in this process, for tests of their rows and not of their precision.

    Sixteen are enough for every row: five eigenvalues and the smallest need nine.
    """
    for name, preset in list(PRESETS.items()):
        monkeypatch.setitem(PRESETS, name, replace(preset, products=16))
