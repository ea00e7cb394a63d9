"""Helpers for the tests of the store: create, fill, crash and read small runs."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import pytest

from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore


def store(path: Path, steps=range(1, 4), tables=("probes", "steps")) -> RunStore:
    store = RunStore.create(path, {"arm": "sgd"})
    fill(store, steps, tables)
    return store


def fill(store: RunStore, steps, tables=("probes", "steps"), loss=0.0) -> None:
    for step in steps:
        if "probes" in tables:
            store.append("probes", {"step": step, "measure": "trace", "value": loss})
        if "steps" in tables:
            store.append("steps", {"step": step, "loss": loss})
        store.flush()


def crash(store: RunStore) -> None:
    """End the session like a killed process: files stay, the lock is released, the status stays running."""
    store._leave()


def recorded(path: Path) -> dict[str, list[tuple[int, float]]]:
    run = Run.open(path)
    return {
        "steps": list(zip(run.steps["step"], run.steps["loss"], strict=True)),
        "probes": list(zip(run.probes["step"], run.probes["value"], strict=True)),
    }


@pytest.fixture
def small() -> SimpleNamespace:
    """Return the four functions above."""
    return SimpleNamespace(store=store, fill=fill, crash=crash, recorded=recorded)


@pytest.fixture
def every_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every instrument of `full` sample within six steps."""
    frequent = {"spectra_every": 2, "layers_every": 2, "counterfactual_every": 1, "windows_every": 3, "lags": (1, 2)}
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], **frequent))


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Return a context of `multiprocessing` whose processes have loaded torch and what a training loads."""
    context = multiprocessing.get_context("forkserver")
    loaded = ("torch.fx.experimental.symbolic_shapes", "sklearn.datasets", "scipy.optimize")
    context.set_forkserver_preload(["lossscope.landscape.training.parallel", *loaded])
    return context
