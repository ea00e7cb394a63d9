"""Tests of the rules of diagnosis: each on a run with the illness, on one without, and on its null model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.landscape.analysis.false_alarms import NULLS, alarms

from lossscope.landscape.analysis.diagnosis.rule import Verdict
from lossscope.landscape.analysis.diagnosis.rules import RULES, diagnose
from lossscope.landscape.analysis.diagnosis.signals import first_outlier
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

Row = tuple[str, dict[str, object]]
CERTAIN = {"unconverged", "overhead"}  # rules about which nothing is random


def run(path: Path, rows: Iterable[Row], **manifest: object) -> Run:
    store = RunStore.create(path / "run", {"arm": "sgd", **manifest})
    for table, row in rows:
        store.append(table, row)
    store.flush()
    store.close("finished", "the loop ended")
    return Run.open(path / "run")


def verdict(found: Run, key: str) -> Verdict | None:
    return next((one for rule, one in diagnose(found).items() if rule.key == key), None)


def steps(losses: Iterable[float]) -> list[Row]:
    return [("steps", {"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]


def probes(measure: str, values: Iterable[float], **columns: object) -> list[Row]:
    return [
        ("probes", {"step": 10 * i, "measure": measure, "value": v, "low": v - 0.01, "high": v + 0.01, **columns})
        for i, v in enumerate(values)
    ]


def spectra(kind: str, column: str, values: Iterable[float]) -> list[Row]:
    return [
        ("spectra", {"step": 10 * i, "tensor": "0.weight", "object": kind, "values": [1.0], column: v})
        for i, v in enumerate(values)
    ]


def gaps(share: float) -> list[Row]:
    return [
        ("steps", {"step": i, "loss": 1.0, "surrogate_gap": 1.0 if i <= 100 * share else -1.0}) for i in range(1, 101)
    ]


def energies(last: float) -> list[Row]:
    values = [0.2 + 0.01 * (i % 3) for i in range(30)] + [last]
    return [
        ("tensors", {"step": i, "tensor": "0.weight", "track": "matrix", "energy_rms": v}) for i, v in enumerate(values)
    ]


def shears(mean: float) -> list[Row]:
    return [
        ("pairs", {"step": 10 * i, "object": "shear", "lag": 0, "cosine": mean + 0.01 * (-1) ** i, "size": 100})
        for i in range(10)
    ]


def triggered(share: float) -> list[Row]:
    random = np.random.default_rng(0)
    fires = random.random(500) < share
    return [
        ("steps", {"step": i, "loss": 1.0, "synced": bool(f), "phi": -1.0 if f else 1.0, "threshold": -0.5})
        for i, f in enumerate(fires, 1)
    ]


def spike(update: float) -> list[Row]:
    at = np.arange(1.0, 33)
    flat = 1 + 0.01 * (at % 3)
    rows: list[Row] = []
    for tensor in ("0.weight", "1.weight", "2.weight"):
        moved = np.where(at == 31, update, flat) if tensor == "1.weight" else flat
        norms = {"gradient_norm": flat, "update_norm": moved, "weight_norm": flat, "largest_update": moved}
        cells = {"step": 32, "tensor": tensor, "cause": "loss", "loss": 9.0, "level": 2.0, "at": at}
        rows.append(("spikes", {**cells, **norms}))
    return [*rows, *steps([1.0] * 31 + [9.0])]


ANY_STEP = "directional_edge_ratio"
TRIGGER = {"trigger": {"mode": "aga", "lambda": 1.0, "k": 1000}}
CAPPED = {"overhead_cap": 0.1}
# rule, rows with the illness, rows without, manifest with, manifest without
CASES = [
    ("divergence", steps([1.0] * 20 + [math.inf]), steps([1.0] * 20), {}, {}),
    ("loss_spike", spike(50.0), spike(1.0), {}, {}),
    ("edge", probes(ANY_STEP, [0.5, 1.02, 0.9]), probes(ANY_STEP, [0.5, 1.005, 0.9]), {}, {}),
    ("negative_mass", probes("negative_mass", np.arange(8) / 8), probes("negative_mass", [0.3, 0.1] * 4), {}, {}),
    (
        "collapse",
        spectra("weight", "effective_rank", [20.0, 9.0, 5.0, 4.0]),
        spectra("weight", "effective_rank", [20.0, 18.0, 15.0, 13.0]),
        {},
        {},
    ),
    ("entropy", spectra("orthogonal", "excess_order", [0.4]), spectra("orthogonal", "excess_order", [-0.4]), {}, {}),
    ("energy_spike", energies(0.9), energies(0.22), {}, {}),
    ("ascent", gaps(0.2), gaps(0.9), {}, {}),
    ("shear", shears(0.0), shears(0.2), {}, {}),
    ("trigger", triggered(0.5), triggered(0.7), TRIGGER, TRIGGER),
    ("unconverged", probes("lambda_max", [1.0], converged=False), probes("lambda_max", [1.0], converged=True), {}, {}),
    (
        "overhead",
        steps([1.0]),
        steps([1.0]),
        {**CAPPED, "overhead": {"share": 0.4, "curvature_share": 0.3}},
        {**CAPPED, "overhead": {"share": 0.1, "curvature_share": 0.1}},
    ),
]


@pytest.mark.parametrize(
    ("key", "ill", "healthy", "ill_manifest", "healthy_manifest"), CASES, ids=[c[0] for c in CASES]
)
def test_a_rule_tells_the_illness_from_a_healthy_run(
    tmp_path: Path, key: str, ill: list[Row], healthy: list[Row], ill_manifest: dict, healthy_manifest: dict
) -> None:
    bad, good = (
        verdict(run(tmp_path / "ill", ill, **ill_manifest), key),
        verdict(run(tmp_path / "healthy", healthy, **healthy_manifest), key),
    )
    assert bad is not None
    assert bad.level in ("look", "act")
    assert any(letter.isdigit() for letter in bad.evidence)
    assert good is not None
    assert good.level == "fine"


def test_every_rule_has_a_case_and_a_null_model() -> None:
    keys = {rule.key for rule in RULES}
    assert {case[0] for case in CASES} == keys
    assert set(NULLS) | CERTAIN == keys
    assert all(rule.false_alarms == 0 for rule in RULES if rule.key in CERTAIN)


def test_rules_about_parts_that_an_optimizer_does_not_have_are_silent(tmp_path: Path) -> None:
    found = {rule.key for rule in diagnose(run(tmp_path, steps([1.0] * 20)))}
    assert found == {"divergence", "loss_spike"}


def test_the_spike_names_the_module_and_the_distance(tmp_path: Path) -> None:
    found = verdict(run(tmp_path, spike(50.0)), "loss_spike")
    assert found is not None
    assert found.step == 32
    assert "the first layer to leave the range of its earlier steps was 1, whose update norm was" in found.evidence
    assert "at step 31" in found.evidence


@pytest.mark.parametrize("key", NULLS)
@pytest.mark.parametrize("runs", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_stated_rate_of_false_alarms_covers_the_measured_one(key: str, runs: int) -> None:
    stated = next(rule.false_alarms for rule in RULES if rule.key == key)
    allowed = stated * runs + 3 * math.sqrt(stated * runs)  # of a Poisson count
    assert alarms(key, runs) <= allowed


def slow_first_outlier(values: np.ndarray) -> tuple[int, float] | None:
    """Return what `first_outlier` should, place by place."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    for place in range(16, len(logs)):
        past = logs[max(0, place - 32) : place]
        past = past[np.isfinite(past)]
        if len(past) < 16 or not np.isfinite(logs[place]):
            continue
        mad = max(float(np.median(np.abs(past - np.median(past)))), 0.02)
        rise = float(logs[place]) - float(np.median(past))
        if rise > 8 * mad and rise > float(past.max() - past.min()):
            return place, rise / mad
    return None


def test_the_first_outlier_is_that_of_a_search_place_by_place() -> None:
    random, found = np.random.default_rng(0), 0
    for case in range(150):
        count = int(random.integers(0, 120))
        values = np.exp(0.1 * random.standard_normal(count).cumsum() * random.random())
        values *= np.exp(0.1 * random.standard_normal(count))
        if count and case % 3 == 0:
            values[random.integers(0, count, 4)] = random.choice([np.nan, 0.0, np.inf], 4)
        if count and case % 2 == 0:
            values[random.integers(0, count, 2)] *= 30
        expected = slow_first_outlier(values)
        assert first_outlier(values) == expected
        found += expected is not None
    assert found > 20
