"""Runs as long as wanted, made without training and written by the storage room itself, for `report.py`.

A run has every table that the preset `standard` writes: a row of `steps` for each step, norms and energies of 20
tensors at every tenth, spectra of the ten matrices among them at every hundredth, windows of pairs of minibatches and
20 evaluations of curvature. Numbers are drawn at random around curves of training; equal arguments give equal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lossscope.landscape.storage.parquet import CompactedTable, write_parquet
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import TABLES, arrow_schema

__all__ = ["big_run", "small_runs"]

MATRICES: Final = tuple(f"blocks.{index}.weight" for index in range(10))
TRACKS: Final = {
    name: track
    for index, weight in enumerate(MATRICES)
    for name, track in ((weight, "matrix"), (f"blocks.{index}.bias", "vector"))
}
OBJECTS: Final = ("gradient", "momentum", "whitened", "orthogonal", "update", "weight")
LAGS: Final = (0, 1, 5, 20)
RANK: Final = 16
EVALUATIONS: Final = 20
GROUPS: Final = 100_000  # steps that are drawn at once, so that memory does not grow with the run

Columns = dict[str, Any]


def big_run(path: Path, steps: int, seed: int = 0) -> None:
    """Write a finished run of an optimizer with every instrument.

    Args:
        path: The run's folder; it must not exist.
        steps: Number of optimizer steps, at least 1000.
        seed: Seed of all numbers.
    """
    store = RunStore.create(path, _manifest("ars2-aga", seed, steps))
    for row in _probes(steps):
        store.append("probes", row)
    store.close("finished", "the loop ended")
    generator = np.random.default_rng(seed)
    for table, parts in (
        ("steps", _steps(generator, steps)),
        ("tensors", _tensors(generator, steps)),
        ("spectra", _spectra(generator, steps)),
        ("pairs", _pairs(generator, steps)),
    ):
        rows = pa.concat_tables([_arrow(table, columns) for columns in parts])
        write_parquet(path, table, CompactedTable(rows, frozenset(), {1: None}), store.manifest["id"])


def small_runs(folder: Path, count: int, steps: int = 200) -> None:
    """Write runs of ten arms with `count / 10` seeds each; every fourth arm has curvature.

    Args:
        folder: Their folder, which is made.
        count: Number of runs.
        steps: Number of optimizer steps of each.
    """
    for index in range(count):
        arm, seed = f"arm-{index % 10}", index // 10
        store = RunStore.create(folder / f"{arm}-s{seed}", _manifest(arm, seed, steps))
        for step in range(1, steps + 1):
            row = {"step": step, "loss": 2.0 / step + 0.01 * seed, "lr": 1e-3, "seconds": 0.01 * step, "passes": 1}
            store.append("steps", row | ({"test_accuracy": 0.9} if step % 100 == 0 else {}))
        for row in _probes(steps):
            store.append("probes", row)
        store.close("finished", "the loop ended")


def _manifest(arm: str, seed: int, steps: int) -> dict[str, object]:
    """Return the facts of a run."""
    kinds = ("instruments", "spectra", "counterfactual", "minibatches", "layers", "curvature", "checkpoints")
    tensors = [
        {"name": name, "shape": [RANK, RANK] if track == "matrix" else [RANK], "track": track}
        for name, track in TRACKS.items()
    ]
    return {
        "arm": arm,
        "seeds": {"init": seed, "split": 0, "order": seed},
        "config": {"steps": steps, "batch_size": 128},
        "model": {"parameters": 10 * RANK * (RANK + 1), "tensors": tensors},
        "preset": "standard",
        "loss_unit": "nats",
        "dtype": "float32",
        "data_hash": "5f0c",
        "trigger": {"mode": "aga", "lambda": 2.0, "k": 10},
        "overhead": {"seconds": 2.0, "share": 0.05, **{f"{kind}_share": 0.05 / len(kinds) for kind in kinds}},
    }


def _arrow(table: str, columns: Columns) -> pa.Table:
    """Return columns as rows of a table; those that are not given are null."""
    size = len(columns["step"])
    schema = arrow_schema(table)
    arrays = [
        pa.array(columns[field.name], field.type, from_pandas=True)
        if field.name in columns
        else pa.nulls(size, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _groups(steps: int, every: int) -> Iterator[NDArray[np.int64]]:
    """Yield the steps that are multiples of a period, in parts."""
    for begin in range(0, steps, GROUPS):
        yield np.arange(begin + every, min(begin + GROUPS, steps) + 1, every, dtype=np.int64)


def _where(there: NDArray[np.bool_], values: Any) -> NDArray[np.float64]:
    """Return the values with nan, which is stored as null, at other places."""
    return np.where(there, values, np.nan)


def _noise(generator: np.random.Generator, size: int, middle: Any = 1.0, spread: float = 0.1) -> NDArray[np.float64]:
    """Return positive numbers around a middle."""
    noise: NDArray[np.float64] = middle * np.exp(spread * generator.standard_normal(size))
    return noise


def _steps(generator: np.random.Generator, steps: int) -> Iterator[Columns]:
    """Yield columns of `steps`."""
    for at in _groups(steps, 1):
        size = len(at)
        sampled, tested, layers = at % 10 == 0, at % 1000 == 0, at % 600 == 0
        synced = generator.random(size) < 0.3
        loss = _noise(generator, size, 0.2 + 2.0 / np.sqrt(1 + at / 100))
        sums = {
            name: _where(sampled, _noise(generator, size))
            for name in ("gradient_norm", "weight_norm", "update_norm", "shear_norm")
        }
        second = {
            name: _where(sampled & synced, _noise(generator, size))
            for name in ("adversarial_norm", "perturbation_norm", "adversarial_angle", "freshness")
        }
        second |= {
            name: _where(sampled & synced, generator.standard_normal(size))
            for name in ("secant_gradient", "secant_loss")
        }
        yield {
            "step": at,
            "seconds": 0.01 * at,
            "loss": loss,
            "adversarial_loss": _where(synced, loss * 1.05),
            "surrogate_gap": _where(synced, loss * 0.05),
            "lr": np.full(size, 1e-3),
            "weight_decay": np.full(size, 0.01),
            "passes": 1 + synced.astype(np.int64),
            "synced": synced,
            "phi": 0.1 * generator.standard_normal(size),
            "threshold": -0.05 - 0.01 * generator.random(size),
            "alpha": np.full(size, 0.1),
            **sums,
            **second,
            "injection_angle": _where(at % 100 == 0, _noise(generator, size, 0.3)),
            "remainder_rounding": _where(layers, 1e-8),
            **{
                name: _where(tested, _noise(generator, size, 0.5))
                for name in ("train_accuracy", "test_loss", "test_accuracy")
            },
        }


def _tensors(generator: np.random.Generator, steps: int) -> Iterator[Columns]:
    """Yield columns of `tensors`."""
    names, tracks = list(TRACKS), np.array(list(TRACKS.values()))
    given = {"step", "tensor", "track", "lr", "weight_decay", "alignment", "injection_angle", "remainder", "phi"}
    positive = [column.name for column in TABLES["tensors"] if column.name not in given]
    for at in _groups(steps, 10):
        step = np.repeat(at, len(names))
        size = len(step)
        track = np.tile(tracks, len(at))
        yield {
            "step": step,
            "tensor": names * len(at),
            "track": track,
            "lr": np.full(size, 1e-3),
            "weight_decay": np.full(size, 0.01),
            "alignment": _where(track == "matrix", _noise(generator, size)),
            "phi": 0.1 * generator.standard_normal(size),
            "injection_angle": _where(step % 100 == 0, _noise(generator, size, 0.3)),
            "remainder": _where(step % 600 == 0, _noise(generator, size, 1e-3)),
            **{name: _noise(generator, size) for name in positive},
        }


def _spectra(generator: np.random.Generator, steps: int) -> Iterator[Columns]:
    """Yield columns of `spectra`."""
    for at in _groups(steps, 100):
        step = np.repeat(at, len(MATRICES) * len(OBJECTS))
        size = len(step)
        kinds = np.tile(np.array(OBJECTS), len(at) * len(MATRICES))
        orthogonal = kinds == "orthogonal"
        values = -np.sort(-_noise(generator, size * RANK).reshape(size, RANK), axis=1)
        offsets = np.arange(size + 1, dtype=np.int32) * RANK
        share = {name: generator.random(size) for name in ("entropy_energy", "entropy_nuclear", "excess_order")}
        yield {
            "step": step,
            "tensor": np.tile(np.repeat(np.array(MATRICES), len(OBJECTS)), len(at)).tolist(),
            "object": kinds,
            "values": pa.ListArray.from_arrays(offsets, values.ravel()),
            "norm": np.linalg.norm(values, axis=1),
            **share,
            "stable_rank": (values**2).sum(1) / values[:, 0] ** 2,
            "effective_rank": _noise(generator, size, 10.0),
            "condition": values[:, 0] / values[:, -1],
            "orthogonality_defect": _noise(generator, size, 0.3),
            **{
                name: _where(orthogonal, generator.random(size))
                for name in ("outside_band", "polar_norm", "polar_cosine")
            },
            "method": np.full(size, "gram"),
            "error": np.full(size, 1e-9),
        }


def _pairs(generator: np.random.Generator, steps: int) -> Iterator[Columns]:
    """Yield columns of `pairs`."""
    for at in _groups(steps - max(LAGS), 600):
        lag = np.tile(np.array(LAGS), 2 * len(at))
        size, first = len(lag), lag == 0
        yield {
            "step": np.repeat(at, 2 * len(LAGS)) + lag,
            "object": np.tile(np.repeat(np.array(["gradient", "shear"]), len(LAGS)), len(at)),
            "lag": lag,
            "cosine": 0.3 * np.exp(-lag / 10) + 0.01 * generator.standard_normal(size),
            "square": _where(first, 5.0 + generator.random(size)),
            "pair_square": _where(first, 3.0 + generator.random(size)),
            "samples": _where(first, 32.0),
            "size": np.where(first, 10 * RANK * (RANK + 1), None),
        }


def _probes(steps: int) -> Iterator[dict[str, object]]:
    """Yield rows of `probes`."""
    shared = {"engine": "lossscope", "mode": "eval", "loss_kind": "mean", "data_hash": "5f0c", "converged": True}
    shared |= {"gauge": "raw", "dtype": "float64", "seed": 0, "products": 20, "seconds": 0.5, "gradients": 60.0}
    for step in np.unique(np.geomspace(steps / 50, steps, EVALUATIONS).astype(int)).tolist():
        top = 20.0 + 5.0 * np.log1p(step)
        exact = {**shared, "step": step, "stderr": 0.0}
        yield {**exact, "measure": "loss", "value": 0.2 + 2.0 / np.sqrt(1 + step / 100)}
        ends = {"low": top - 0.25, "high": top + 0.25, "residual": 0.25}
        yield {**shared, "step": step, "measure": "lambda_max", "value": top, **ends}
        mean = {"stderr": 1.5, "samples": 16, "low": 4 * top - 3, "high": 4 * top + 3}
        yield {**shared, "step": step, "measure": "trace", "value": 4 * top, **mean}
        yield {**exact, "measure": "directional_edge_ratio", "value": 0.7}
        flat = {"stderr": 0.125, "low": 2.75, "high": 3.25}
        yield {**shared, "step": step, "measure": "adaptive_trace", "value": 3.0, **flat}
        quality = {"trust_ratio": 0.95, "relative_first": 0.2, "relative_second": 0.05, "secant_curvature": 3.0}
        for measure, value in {**quality, "gradient_cosine": 0.5, "gradient_rayleigh": 0.25}.items():
            yield {**exact, "step": step, "measure": measure, "value": value}
