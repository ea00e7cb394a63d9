"""Cap on the recording overhead, with a clock that advances by a fixed time per training step and per product."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError, LandscapeError
from lossscope.landscape.measures.forward_mode import load_forward_mode
from lossscope.landscape.recording import checkpoint_saver, step_sample
from lossscope.landscape.recording.cost_cap import CostCap, MeasurementCosts, overhead_share
from lossscope.landscape.recording.disk_cap import byte_count
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.recording.step_ring import _OptimizerRing, ring_bytes
from lossscope.landscape.run import Run
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator

STEP, PRODUCT = 1.0, 0.05  # seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one number."""
    load_forward_mode()  # otherwise the first evaluation of the process would be predicted to take a second more
    now = [100.0]
    product = ObjectiveOperator.__matmul__

    def timed(self: ObjectiveOperator, V: Tensor) -> Tensor:
        now[0] += PRODUCT * (V.shape[1] if V.ndim > 1 else 1)
        return product(self, V)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(ObjectiveOperator, "__matmul__", timed)
    return now


def train(
    path: Path,
    clock: list[float],
    count: int,
    preset: str = "standard",
    error: Exception | None = None,
    **settings: Any,
) -> Run:
    """Return a run of so many steps. An error is raised after the last one, and caught outside the recorder."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = Objective(model, CrossEntropy(), [(x, y)])
    with (
        nullcontext() if error is None else pytest.raises(type(error)),
        Recorder(path, model, optimizer, objective, preset, **settings) as recorder,
    ):
        for _ in range(count):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            clock[0] += STEP
            recorder.step(loss)
        if error is not None:
            raise error
    return Run.open(path)


def measured(run: Run) -> dict[int, set[str]]:
    return {int(step): set(rows["measure"]) for step, rows in run.probes.groupby("step")}


CAPS = {"economy": 0.02, "standard": 0.1, "full": 0.5}
FAST = {("economy", True), ("standard", False)}


@pytest.mark.parametrize(
    ("preset", "share", "planned"),
    [
        pytest.param(preset, share, planned, marks=() if (preset, planned) in FAST else pytest.mark.slow)
        for planned in (True, False)
        for preset, share in CAPS.items()
    ],
)
def test_recording_stays_under_the_presets_cap(
    clock: list[float], preset: str, share: float, planned: bool, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", clock, 400, preset, steps=400 if planned else None)
    assert 0 < run.manifest["overhead"]["share"] <= share
    found = measured(run)
    assert "trace" not in found[0]  # the first one is cut
    assert {"loss", "lambda_max"} <= found[0]
    assert any("trace" in names for names in found.values())
    assert 400 in found


def test_without_a_cap_every_evaluation_takes_place(clock: list[float], tmp_path: Path) -> None:
    run = train(tmp_path / "run", clock, 40, steps=40, evaluations=6, overhead=1)
    assert len(measured(run)) == 6
    assert all({"loss", "lambda_max", "trace"} <= names for names in measured(run).values())
    assert not run.manifest.get("curvature_gaps")
    assert run.manifest["overhead"]["share"] > 0.1


def test_a_skipped_evaluation_is_missing_with_its_reason(clock: list[float], tmp_path: Path) -> None:
    run = train(tmp_path / "run", clock, 60, steps=60, evaluations=10, spacing="linear")
    due = {round(i * 60 / 9) for i in range(10)}
    gaps = run.manifest["curvature_gaps"]
    missing = {one["step"]: one["why"] for one in gaps if one["instrument"] == "curvature"}
    assert set(measured(run)) | set(missing) == due
    assert all(why.startswith("overhead: ") for why in missing.values())
    assert "would exceed the cap of 10 % of the wall time" in missing[7]
    assert {"loss"} <= measured(run)[60]  # the last one takes the loss at least


@pytest.mark.parametrize("planned", [True, False])
def test_where_no_whole_evaluation_fits_cut_ones_take_place(clock: list[float], planned: bool, tmp_path: Path) -> None:
    run = train(tmp_path / "run", clock, 90, steps=90 if planned else None)
    found = measured(run)
    assert run.manifest["overhead"]["share"] <= 0.1
    assert sum("lambda_max" in names for names in found.values()) >= 3  # one without cut evaluations
    assert "lambda_max" in found[90]
    missing = {one["step"]: one for one in run.manifest["curvature_gaps"] if one["instrument"] == "curvature"}
    assert "density" in missing[0]["measures"]
    for step in found.keys() & missing.keys():
        assert missing[step]["why"].startswith("overhead: ")
        assert not found[step] & set(missing[step]["measures"])


def test_the_other_evaluations_leave_what_a_whole_last_one_takes(clock: list[float], tmp_path: Path) -> None:
    run = train(tmp_path / "run", clock, 200, steps=200, spacing="linear")
    assert {"lambda_max", "trace", "adaptive_trace"} <= measured(run)[200]
    assert run.manifest["overhead"]["share"] <= 0.1


def test_evaluations_that_do_not_fit_cause_no_further_samples(clock: list[float], tmp_path: Path) -> None:
    for name, steps in (("open", None), ("planned", 60)):
        run = train(tmp_path / name, clock, 60, overhead=0.001, steps=steps)
        assert sorted(set(run.tensors["step"])) == [1, 10, 20, 30, 40, 50, 60]
        assert sorted(set(run.spectra["step"])) == [1]
    run = train(tmp_path / "all", clock, 60, overhead=1)
    assert sorted(set(run.spectra["step"])) == [1, 10, 15, 23, 35, 53]


@pytest.mark.parametrize("overhead", [None, 1])
def test_samples_that_take_too_much_alone_become_rarer(
    clock: list[float], overhead: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = step_sample.tensor_rows

    def costly(snapshots: Any) -> Any:
        clock[0] += 1.1  # of 10 s: more than twice the half of the cap
        return rows(snapshots)

    monkeypatch.setattr(step_sample, "tensor_rows", costly)
    run = train(tmp_path / "run", clock, 400, evaluations=0, overhead=overhead)
    late = [step for step in sorted(set(run.tensors["step"])) if step > 100 and step % 100]
    gaps = [one for one in run.manifest.get("curvature_gaps", []) if one["instrument"] == "tensors"]
    if overhead is None:
        assert {step % 40 for step in late} == {0}
        assert "norms are sampled every 40 steps from here on in place of every 10, and" in gaps[0]["why"]
        assert len(gaps) == 1
        assert "evaluate_at" not in gaps[0]["why"]  # which would not sample norms more often
        assert any(text.startswith(f"step {gaps[0]['step']}: norms are sampled") for text in run.manifest["warnings"])
        assert not any("tensors could not be recorded" in text for text in run.manifest["warnings"])
    else:
        assert late == [step for step in range(110, 401, 10) if step % 100]
        assert not gaps


def test_layers_and_pairs_leave_three_quarters_of_the_cap(clock: list[float]) -> None:
    overhead = Overhead()
    cap = CostCap(0.1, overhead)
    clock[0] += 100.0
    assert cap.left == pytest.approx(10.0)
    with overhead.counted("layers"):
        clock[0] += 2.0
    assert not cap.affords("layers")  # 2 + 2 of 10.2 seconds
    assert cap.affords("minibatches")
    narrower = cap.narrowed(1.0)
    assert narrower.left == pytest.approx(1.0)
    with overhead.counted("curvature"):
        clock[0] += 0.4
    assert narrower.left == pytest.approx(0.6)


def test_a_cut_measurement_teaches_what_it_takes_beyond_its_products(clock: list[float]) -> None:
    model = nn.Linear(3, 2)
    objective = Objective(model, CrossEntropy(), [(torch.randn(8, 3), torch.randint(0, 2, (8,)))])
    costs, operator = MeasurementCosts(), hessian(objective)
    assert costs.predicted(("trace",), 64, operator) == pytest.approx(64 * PRODUCT)
    for beyond, learned in ((5.0, 14 * PRODUCT), (1.2, 1.2), (0.3, 0.3)):  # the first one may have loaded kernels
        with costs.timed(("lambda_max",), 8):
            clock[0] += 8 * PRODUCT + beyond
        assert costs.predicted(("trace",), 64, operator) == pytest.approx(64 * PRODUCT + learned)
    assert costs.fitting(0.3 + 9.5 * PRODUCT, operator) == 9
    with costs.timed(("trace",)):
        clock[0] += 0.7
    assert costs.predicted(("trace",), 64, operator) == pytest.approx(0.7)


def test_a_cap_that_is_broken_is_named_at_the_end_and_the_price_at_the_start(
    clock: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", clock, 3, steps=3, overhead=0.01)
    told = capsys.readouterr().err
    assert re.search(r"a curvature evaluation takes up to [\d.]+ s; recording may take 1 % of the time", told)
    assert re.search(r"needs up to \d[\d.]* [kMG]?B of memory, \d+ copies of the parameters, beside the graphs", told)
    # weights of 4·6 + 6 + 6·3 + 3 numbers, 32 steps of 4 norms of 4 tensors, the 4·6 + 6·3 entries of the matrices
    assert f"keeps up to {4 * (51 + 32 * 4 * 4 + 42) / 1000:.3g} kB: the norms of the last steps" in told
    assert re.search(r"of which recording took [\d.]+ %.*, [\d.]+ points above the cap of 1 %", told)
    train(tmp_path / "free", clock, 3, steps=3, overhead=1)
    told = capsys.readouterr().err
    assert "evaluation takes up to" not in told
    assert "above the cap" not in told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_the_ring_takes_the_bytes_that_are_stated(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3, 5), (7,), (0, 2))]
    ring = _OptimizerRing({p: str(place) for place, p in enumerate(parameters)})
    for p in parameters:
        p.grad = torch.ones_like(p)
    ring.begin(1)
    kept = [tensor for part in ring._parts for tensor in (part._ring, *part._before)]
    assert sum(one.numel() * one.element_size() for one in kept) == ring_bytes(parameters)


def test_an_evaluation_on_demand_takes_every_measure_at_any_step(clock: list[float], tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    data = [(torch.randn(8, 3), torch.randint(0, 2, (8,)))]
    recorder = Recorder(
        tmp_path / "run",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        Objective(model, CrossEntropy(), data),
        evaluations=0,
    )
    recorder.evaluate()
    recorder.close()
    assert {"loss", "lambda_max", "trace", "adaptive_trace"} <= measured(Run.open(tmp_path / "run"))[0]
    with pytest.raises(LandscapeError, match=re.escape("evaluate() was called after close(): the run has ended")):
        recorder.evaluate()
    plain = Recorder(tmp_path / "plain", model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(
        LandscapeError, match=re.escape("evaluate() needs an objective: pass objective= to the Recorde")
    ):
        plain.evaluate()
    plain.close(quiet=True)


def test_evaluations_take_the_chosen_measures_at_the_given_steps(clock: list[float], tmp_path: Path) -> None:
    chosen = {"evaluate_at": [2, 5], "measures": ["trace", "logits"], "overhead": 1}
    run = train(tmp_path / "run", clock, 6, **chosen)
    assert measured(run) == {step: {"loss", "trace", "logit_norm", "mean_margin"} for step in (2, 5)}


def test_a_loss_that_fails_before_its_first_evaluation_is_tried_at_due_steps_only(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*given: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(MeasurementCosts, "price", fail)
    run = train(tmp_path / "run", clock, 60)
    missing = [one for one in run.manifest["curvature_gaps"] if one["instrument"] == "curvature"]
    assert [one["step"] for one in missing] == [0, 10, 15, 23, 35, 53, 60]
    assert {one["why"] for one in missing} == {"ValueError: no"}


def test_an_early_end_has_an_evaluation(clock: list[float], tmp_path: Path) -> None:
    run = train(tmp_path / "run", clock, 7, steps=100, evaluations=3, overhead=1)
    assert 7 in measured(run)


def test_checkpoints_stay_below_their_bound_and_the_last_one_is_kept(clock: list[float], tmp_path: Path) -> None:
    train(tmp_path / "a", clock, 20, steps=20, evaluations=0, disk=55_000, preset="full")
    saved = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert saved[-1] == "step-000000020"
    assert 1 <= len(saved) <= 3
    train(tmp_path / "b", clock, 20, steps=20, evaluations=0, checkpoints=2)
    assert len(list((tmp_path / "b" / "checkpoints").iterdir())) == 2
    small = train(tmp_path / "c", clock, 20, steps=20, evaluations=0, disk=10)
    assert not (tmp_path / "c" / "checkpoints").exists()
    assert small.manifest["curvature_gaps"][0]["why"].startswith("disk: a checkpoint takes")


@pytest.mark.parametrize("overhead", [None, 1])
def test_checkpoints_wait_for_their_place_under_the_cap(
    clock: list[float], overhead: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save = checkpoint_saver.save_checkpoint

    def costly(*given: Any) -> Any:
        clock[0] += 1.0
        return save(*given)

    monkeypatch.setattr(checkpoint_saver, "save_checkpoint", costly)
    run = train(tmp_path / "run", clock, 200, steps=200, evaluations=0, overhead=overhead)
    saved = [int(path.name.partition("-")[2]) for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    gaps = [one for one in run.manifest.get("curvature_gaps", []) if one["instrument"] == "checkpoints"]
    if overhead is None:
        assert saved == [
            0,
            79,
            118,
            200,
        ]  # a quarter of 10 % of 80 and of 120 seconds; the last one always
        assert [one["step"] for one in gaps] == [2, 4, 9, 20]
        assert gaps[0]["why"].endswith("the cap of 10 % of the wall time; to record more pass overhead=0.5")
    else:
        assert saved == [0, 2, 4, 9, 20, 43, 93, 200]
        assert not gaps


@pytest.mark.parametrize(
    ("count", "error", "missing"), [(9, None, [2, 4]), (10, None, [2, 4, 9]), (10, OSError(), [2, 4, 9])]
)
def test_a_checkpoint_that_still_waits_at_the_end_is_missing(
    clock: list[float],
    count: int,
    error: Exception | None,
    missing: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(CostCap, "affords", lambda self, kind, *given: kind != "checkpoints")
    run = train(tmp_path / "run", clock, count, steps=200, evaluations=0, error=error)
    gaps = [one for one in run.manifest["curvature_gaps"] if one["instrument"] == "checkpoints"]
    assert [one["step"] for one in gaps] == [0, *missing]
    saved = [int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoints/*")]
    assert saved == ([] if error else [count])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overhead": 0}, "overhead must be a share of the wall time in (0, 1], got 0; use overhead=1 for no cap"),
        ({"overhead": 5}, "overhead must be a share of the wall time in (0, 1], got 5"),
        ({"overhead": "0.1"}, "overhead must be a share of the wall time in (0, 1], got '0.1'"),
        ({"overhead": True}, "overhead must be a share of the wall time in (0, 1], got True"),
        ({"measures": ["lambda_maxx"]}, "got 'lambda_maxx'; did you mean 'lambda_max'?"),
        ({"measures": 5}, "measures must be a list of names of recorded measures or groups, got 5"),
        ({"measures": [["trace"]]}, "measures must be names of recorded measures or groups, got ['trace']"),
        ({"disk": "much"}, "disk must be a positive number of bytes or text such as \"2GB\", got 'much'"),
        ({"disk": 0}, "disk must be a positive number of bytes"),
        ({"steps": 5, "evaluate_at": [9]}, "evaluate_at must lie within the 5 planned steps, got 9; raise steps="),
    ],
)
def test_bad_settings_are_one_line_and_leave_no_folder(
    settings: dict[str, Any], message: str, clock: list[float], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(tmp_path / "run", clock, 1, **settings)
    assert not (tmp_path / "run").exists()


def test_the_cap_may_be_a_number_of_another_library() -> None:
    assert overhead_share(np.float32(0.5), 0.1) == overhead_share(torch.tensor(0.5), 0.1) == 0.5


def test_sizes_are_read_with_their_units() -> None:
    assert byte_count("2GB", "disk") == 2 * 10**9
    assert byte_count(" 1.5 MiB ", "disk") == 3 * 2**19
    assert byte_count(7, "disk") == 7


def test_a_chosen_measure_is_all_that_a_capped_run_lacks(clock: list[float], tmp_path: Path) -> None:
    run = train(tmp_path / "run", clock, 10, measures=["lambda_max"], steps=10, evaluations=3)
    assert pd.unique(run.probes["measure"]).tolist() == ["loss", "lambda_max"]
