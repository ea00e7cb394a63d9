"""A synthetic run in which every column of every table has values, and every measure of the catalogue is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import TABLES

__all__ = ["MATRICES", "whole_run"]

Row = tuple[str, dict[str, object]]

STEPS = 80
LAGS = (1, 5, 10)
MATRICES = ("0.weight", "2.weight")
TENSORS = {"0.weight": "matrix", "0.bias": "vector", "2.weight": "matrix"}
OBJECTS = ("gradient", "momentum", "whitened", "source", "orthogonal", "update", "weight", "movement")
BATCHES = ("batch_gradient", "pair_gradient")
HASH = "5f0c3a9b1e2d4c66"
SHARED = {"mode": "eval", "loss_kind": "mean", "data_hash": HASH, "additivity": "mean of samples"}
COST = {"products": 48, "seconds": 0.5, "gradients": 100.0}
HOW = {"method": "hvp", "dtype": "float32", "seed": 7, "gauge": "raw", "engine": "lossscope", "parameters": 2000}
NODES = np.array([-0.5, 0.1, 0.4, 2.0, 10.0])


def _manifest() -> dict[str, object]:
    tensors = [{"name": name, "shape": [8, 16], "track": track} for name, track in TENSORS.items()]
    return {
        "arm": "ars2-aga",
        "config": {"steps": STEPS},
        "seeds": {"init": 0, "split": 0, "order": 0},
        "model": {"parameters": 2000, "tensors": tensors},
        "data_hash": HASH,
        "loss_unit": "nats",
        "preset": "full",
        "trigger": {"mode": "aga", "lambda": 1.0, "k": 6},
        "overhead": {"seconds": 2.0, "share": 0.2, "curvature_share": 0.1},
    }


def _numbers(table: str, chosen: np.random.Generator) -> dict[str, object]:
    """Return a number between 0.1 and 0.9 for every column of floats."""
    return {column.name: 0.1 + 0.8 * chosen.random() for column in TABLES[table] if column.type == "float"}


def _steps(chosen: np.random.Generator) -> Iterator[Row]:
    """Yield steps of a trigger whose phi is mostly negative; every fifth is sampled in full."""
    since = 6
    for step in range(1, STEPS + 1):
        phi = 0.1 * chosen.standard_normal() - 0.095
        since += 1
        synced = since >= 6 or phi < -0.1
        since = 0 if synced else since
        row = _numbers("steps", chosen)
        loss = 2.0 / step
        row |= {"step": step, "seconds": 0.25 * step, "loss": loss, "adversarial_loss": loss + 0.1, "lr": 1e-3}
        row |= {"passes": 1 + synced, "synced": synced, "phi": phi, "threshold": -0.1, "remainder_rounding": 0.02}
        yield "steps", row
        for name, track in TENSORS.items() if step % 5 == 0 else ():
            remainder = 0.1 if (step, name) == (70, "0.bias") else 1e-3 * (1 + chosen.random())
            sampled = {"step": step, "tensor": name, "track": track, "remainder": remainder}
            yield "tensors", {**_numbers("tensors", chosen), **sampled}


def _spectra(chosen: np.random.Generator) -> Iterator[Row]:
    """Yield the spectrum of every object; the first matrix is a batch of two slices."""
    for step in range(0, STEPS + 1, 20):
        for name in MATRICES:
            for part in (0, 1) if name == MATRICES[0] else (None,):
                for kind in (*OBJECTS, *BATCHES):
                    row = _numbers("spectra", chosen)
                    values = np.sort(0.5 + chosen.random(8))[::-1]
                    row |= {"step": step, "tensor": name, "slice": part, "object": kind, "values": values.tolist()}
                    excess = 0.1 + 0.2 * chosen.random()
                    row |= {"method": "gram", "error": 1e-4, "excess_order": excess, "condition": 4 * row["condition"]}
                    row |= {"entropy_energy": (1.8 - excess) / math.log(8)}
                    yield "spectra", row


def _probes(chosen: np.random.Generator) -> Iterator[Row]:
    """Yield every measure of the whole model, the measures of blocks, and rows of another engine and of other data."""
    for step in (20, 40, 60, 80):
        for place, measure in enumerate(known_measures()):
            value = 1.0 + 0.01 * place + 0.1 * chosen.random()
            row = {**SHARED, **HOW, **COST, "step": step, "measure": measure, "value": value, "stderr": 0.01}
            row |= {"low": value - 0.02, "high": value + 0.02, "residual": 0.005, "samples": 12, "converged": True}
            yield "probes", {**row, "basis": "whole", "proof": True}
    row |= {"step": STEPS, "stderr": None, "low": None, "high": None}
    for name in MATRICES:
        for measure in ("trace", "trace_share", "lambda_max", "frobenius_share"):
            yield "probes", {**row, "tensor": name, "measure": measure, "value": 0.2 + chosen.random(), "stderr": 0.01}
    yield "probes", {**row, "measure": "lambda_max", "value": 1.1, "engine": "pyhessian"}
    missed = {"value": 1.2, "low": 1.1, "high": 1.4, "converged": False, "proof": False, "cause": "rounding"}
    missed |= {"method": "differences", "product_error": 3e-5, "basis": "restarted", "memory": 10**9}
    yield "probes", {**row, "measure": "lambda_2", **missed}
    yield "probes", {**row, "measure": "lambda_max", "value": 1.7, "data_hash": "another", "parameters": 1000}


def _densities() -> Iterator[Row]:
    for probe in range(3):
        row: dict[str, object] = {**SHARED, **COST, "step": STEPS, "probe": probe, "size": 2000, "seed": 7}
        row |= {"nodes": (NODES * (1 + 0.01 * probe)).tolist(), "weights": [0.2, 0.5, 0.2, 0.05, 0.05]}
        row |= {"settled": [0.0, 0.0, 0.0, 0.0, 1.0], "engine": "lossscope", "method": "differences"}
        yield "densities", {**row, "product_error": 2e-5, "basis": "restarted", "memory": 2 * 10**9}


def _curves() -> Iterator[Row]:
    row: dict[str, object] = {**SHARED, **COST, "step": STEPS, "measure": "noise_rise", "samples": 8}
    row |= {"x": [0.01, 0.1, 1.0], "y": [0.01, 0.1, 1.0], "low": [0.005, 0.05, 0.5], "high": [0.02, 0.2, 2.0]}
    yield "curves", {**row, "gauge": "raw", "dtype": "float32", "seed": 7, "parameters": 2000}


def _pairs(chosen: np.random.Generator) -> Iterator[Row]:
    turns = {"gradient": 0.25, "shear": 0.05}
    for begin in range(0, STEPS - max(LAGS), 11):
        for kind, turn in turns.items():
            for lag in (0, *LAGS):
                cosine = 0.3 * math.cos(turn * lag) + 0.01 * chosen.standard_normal()
                row: dict[str, object] = {**SHARED, "dtype": "float32", "size": 2000, "cosine": cosine}
                row |= {"step": begin + lag, "object": kind, "lag": lag}
                large = {"square": 5.0 + chosen.random(), "pair_square": 3.0 + chosen.random(), "samples": 32}
                yield "pairs", row | (large if lag == 0 else {})


def _spikes() -> Iterator[Row]:
    """Yield a spike before which four parameters leave their past, each by another norm."""
    at = np.arange(1.0, 33)
    flat = 1 + 0.01 * (at % 3)
    norms = ("gradient_norm", "update_norm", "weight_norm", "largest_update")
    for place, norm in enumerate(norms):
        moved = np.where(at >= 24 + 2 * place, 50.0 + at, flat)
        row = {"step": 32, "tensor": f"{place}.weight", "cause": "loss", "loss": 9.0, "level": 2.0, "at": at}
        yield "spikes", {**row, **dict.fromkeys(norms, flat), norm: moved}


def whole_run(path: Path) -> Run:
    """Write the run to a folder and return it, opened."""
    store = RunStore.create(path, _manifest())
    chosen = np.random.default_rng(0)
    for part in (_steps(chosen), _spectra(chosen), _probes(chosen), _densities(), _curves(), _pairs(chosen), _spikes()):
        for table, row in part:
            store.append(table, row)
    store.close("finished", "the loop ended")
    return Run.open(path)
