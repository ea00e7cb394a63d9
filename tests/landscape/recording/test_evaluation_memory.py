"""Memory of an evaluation: peak of live tensors, as the allocator counts them, against the stated number of copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

from lossscope.landscape.measures.catalogue import GROUPS, group_of, recorded_groups
from lossscope.landscape.measures.memory import EVALUATION_COPIES, METRIC_COPIES, evaluation_copies, measure_copies
from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.recording.curvature_evaluations import CurvatureEvaluations, wanted_measures
from lossscope.probes import sums
from lossscope.probes.eigenvalues import extreme_pairs, orthonormal_rows, trace_and_norm
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

DOCS = Path(__file__).parents[3] / "docs" / "recording.md"


@pytest.fixture(autouse=True)
def _as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the buffers whose size does not depend on the parameters, as if these were many times as large."""
    monkeypatch.setattr(sums, "_CHUNK", {"cpu": 2**13})
    monkeypatch.setattr(sums, "_SHORT", 2**10)
    monkeypatch.setattr(orthonormal_rows, "_WIDTHS", (2**10, 2**22))
    monkeypatch.setattr(extreme_pairs, "_SMALL", 0)
    monkeypatch.setattr(trace_and_norm, "_SMALL", 0)


def network() -> tuple[nn.Module, Objective, torch.optim.Optimizer]:
    """Return a network that needs all products that it is given: random labels of few samples, at the start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 120), nn.ReLU(), nn.Linear(120, 120), nn.ReLU(), nn.Linear(120, 10))
    data = [(torch.randn(8, 32), torch.randint(0, 10, (8,)))]
    return model, Objective(model, CrossEntropy(), data), torch.optim.AdamW(model.parameters(), 1e-3)


def peak_bytes(run: Callable[[], object]) -> int:
    with profile(use_kineto=True, profile_memory=True) as recorded:
        run()
    live = most = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def measured_copies(preset: str, measures: tuple[str, ...] | None, memory: int | None = None) -> tuple[float, int]:
    """Return the peak of one long evaluation after a step, and the stated number, in copies of the parameters."""
    model, objective, optimizer = network()
    before = {p: p.detach().clone() for p in model.parameters()}
    objective.loss_fn(model, objective.data.batches[0]).backward()
    optimizer.step()
    displacement = {p: p.detach() - old for p, old in before.items()}
    evaluations = CurvatureEvaluations(
        objective,
        PRESETS[preset],
        optimizer,
        wanted=wanted_measures(measures),
        memory=None if memory is None else memory * 4 * objective.size,
    )
    most = peak_bytes(lambda: evaluations.rows(1, before, displacement))
    assert not evaluations.missing
    return most / (4 * objective.size), evaluations.copies


@pytest.mark.parametrize(
    ("preset", "measures"),
    [
        *(pytest.param(preset, None, marks=pytest.mark.slow) for preset in ("economy", "standard", "full")),
        ("economy", ("lambda_max",)),
        ("standard", ("lambda_max",)),
        ("standard", ("trace",)),
        *(
            pytest.param(preset, (measure,), marks=pytest.mark.slow)
            for preset in ("economy", "standard", "full")
            for measure in ("lambda_min", "density", "metric", "adaptive_trace", "alignment")
        ),
    ],
)
def test_an_evaluation_holds_no_more_copies_of_the_parameters_than_stated(
    preset: str, measures: tuple[str, ...] | None
) -> None:
    found, stated = measured_copies(preset, measures)
    assert found <= 1.1 * stated
    assert found >= 0.4 * stated or preset == "full"  # which needs a part of its budget only


@pytest.mark.parametrize(
    ("preset", "memory"),
    [("economy", 6), *(pytest.param(preset, 25, marks=pytest.mark.slow) for preset in ("economy", "standard"))],
)
def test_an_evaluation_keeps_to_its_memory_but_for_a_metric_and_what_is_kept(preset: str, memory: int) -> None:
    found, stated = measured_copies(preset, None, memory)
    assert found <= 1.1 * stated
    assert stated == memory + METRIC_COPIES + EVALUATION_COPIES
    assert found >= 0.5 * stated


def stated_bytes(preset: str, measures: frozenset[str] | None) -> int:
    """Return the bytes per float32 parameter that an evaluation is stated to need; None stands for all measures."""
    if measures is not None:
        return 4 * evaluation_copies([(GROUPS[group_of(min(measures))], measures)], PRESETS[preset].products)
    _, objective, optimizer = network()
    return 4 * CurvatureEvaluations(objective, PRESETS[preset], optimizer).copies


def test_the_docs_state_the_same_bytes_per_parameter() -> None:
    rows = {
        "all recorded measures": None,
        "`lambda_max` alone": frozenset({"lambda_max"}),
        "`lambda_max` and `lambda_min`": frozenset({"lambda_max", "lambda_min"}),
        "five eigenvalues": frozenset({"lambda_max", "lambda_5"}),
        "`trace`, `frobenius` or the density": frozenset({"trace", "density"}),
        "measures along the step, norms": frozenset({"directional_sharpness"}),
    }
    text = DOCS.read_text()
    for name, measures in rows.items():
        numbers = [str(stated_bytes(preset, measures)) for preset in ("economy", "standard", "full")]
        assert f"| {name} | {' | '.join(numbers)} |" in text, (name, numbers)


def test_the_stated_copies_grow_with_what_is_asked() -> None:
    budget = PRESETS["standard"].products
    steps = [{"loss"}, {"lambda_max"}, {"lambda_max", "lambda_min"}, {"lambda_max", "lambda_min", "trace"}]
    spectrum = GROUPS["spectrum"]
    copies = [measure_copies(GROUPS[group_of(min(names))], frozenset(names), budget) for names in steps]
    assert copies == sorted(copies)
    assert copies[1] < 45 < budget < copies[3]
    assert measure_copies(spectrum, frozenset({"lambda_max"}), 10**6) == copies[1]  # a budget costs no memory by itself
    known = [(group, name) for _, group in recorded_groups() for name in group.names]
    assert all(measure_copies(group, frozenset({name}), budget) > 0 for group, name in known)
