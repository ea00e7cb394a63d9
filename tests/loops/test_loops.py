"""The two lines of a recorder in loops of many kinds: the training keeps its bits, and the report has its numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops.training_loops import LOOPS, SAM, STEPS, batches, loss_of, mlp
from torch import nn

from lossscope.landscape.errors import RecordingWarning
from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.reports.render.text import report_text
from lossscope.reports.sharpness.report import sharpness

pytestmark = [pytest.mark.filterwarnings("default::lossscope.landscape.errors.RecordingWarning")]
# Loops whose objective cannot be made or measured: they are recorded without curvature.
NO_CURVATURE = {"odd_parameters", "sparse_embedding"}
WITH_CURVATURE = {"mnist", "two_optimizers"}  # in the fast run


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample tensors and spectra at every step, and evaluate curvature with few products at two steps."""
    every = {
        "tensors_every": 1,
        "spectra_every": 2,
        "products": 16,
        "top": 1,
        "layers_every": 3,
        "long_every": 2,
        "checkpoints": 1,
    }
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], **every))


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def trained(
    name: str, folder: Path | None, *, curvature: bool = False
) -> tuple[list[nn.Module], list[Recorder], tuple[Any, ...]]:
    """Return the modules, the recorders and the random states after a loop, recorded into a folder or not."""
    torch.manual_seed(0)
    recorders: list[Recorder] = []

    def start(model: nn.Module, optimizer: Any, loss_fn: Any, data: Any) -> Any:
        if folder is None:
            return lambda *args, **kwargs: None
        objective = None
        if curvature:
            objective = Objective(model, loss_fn, data)
        path = folder / f"run{len(recorders)}"
        recorders.append(Recorder(path, model, optimizer, objective, "full", steps=STEPS, evaluations=2, overhead=1))
        return recorders[-1].step

    modules = LOOPS[name](start)
    for recorder in recorders:
        recorder.close(quiet=True)
    return modules, recorders, states()


def bits(modules: list[nn.Module]) -> Iterator[bytes]:
    for module in modules:
        for value in module.state_dict().values():
            yield torch.view_as_real(value).numpy().tobytes() if value.is_complex() else value.numpy().tobytes()
        for p in module.parameters():
            if p.grad is not None and p.grad.layout == torch.strided:
                yield torch.view_as_real(p.grad).numpy().tobytes() if p.is_complex() else p.grad.numpy().tobytes()
        yield bytes([one.training for one in module.modules()])


CASES = [(name, False) for name in LOOPS if name not in WITH_CURVATURE]
CASES += [(name, True) for name in LOOPS if name not in NO_CURVATURE]


@pytest.mark.parametrize(
    ("name", "curvature"),
    [
        pytest.param(name, curved, marks=pytest.mark.slow if curved and name not in WITH_CURVATURE else ())
        for name, curved in CASES
    ],
)
def test_a_recorded_loop_keeps_its_bits_and_has_a_report_with_its_numbers(
    name: str, curvature: bool, tmp_path: Path
) -> None:
    modules, recorders, drawn = trained(name, tmp_path, curvature=curvature)
    plain, _, expected = trained(name, None)
    assert list(bits(modules)) == list(bits(plain))
    assert drawn == expected
    for recorder in recorders:
        run = Run.open(recorder.path)
        assert run.status == "finished"
        assert run.steps["step"].tolist() == list(range(1, STEPS + 1))
        assert run.steps["loss"].notna().all()
        assert (run.steps["update_norm"] > 0).all()
        assert (run.tensors.groupby("tensor")["update_norm"].count() > 0).all()
        assert run.steps["gradient_norm"].notna().all()
        if curvature:
            top = run.probes[run.probes["measure"] == "lambda_max"]
            assert top["step"].tolist() == [0, STEPS]
        norm = run.steps["weight_norm"].iloc[-1]
        text = report_text(sharpness([run]))
        assert any(shown in text for shown in (f"{norm:.3g}", f"{norm:.4g}", str(norm)[:4]))


def rows(name: str, folder: Path, *, curvature: bool = False) -> Run:
    _, (recorder,), _ = trained(name, folder, curvature=curvature)
    return Run.open(recorder.path)


def test_both_optimizers_of_a_list_are_recorded_with_their_own_rates(tmp_path: Path) -> None:
    run = rows("two_optimizers", tmp_path)
    at = run.tensors[run.tensors["step"] == 3].set_index("tensor")
    assert (at["update_norm"] > 1e-3).all()
    assert at["lr"].to_dict() == {"0.weight": 0.02, "2.weight": 0.02, "0.bias": 0.01, "2.bias": 0.01}
    step = run.steps.set_index("step").loc[3]
    assert math.isnan(step["lr"])  # the groups differ
    for norm in ("update_norm", "gradient_norm", "weight_norm"):
        assert step[norm] == pytest.approx(float(np.sqrt((at[norm] ** 2).sum())), rel=1e-6)
    assert run.manifest["optimizer"] == "Muon+AdamW"
    assert [one["class"].rsplit(".", 1)[1] for one in run.manifest["optimizer_facts"]["optimizers"]] == [
        "Muon",
        "AdamW",
    ]


@pytest.mark.parametrize("name", ["two_step_sam", "sam_with_closure"])
def test_a_sam_in_two_halves_is_recorded_with_its_first_gradient_and_two_passes(name: str, tmp_path: Path) -> None:
    run = rows(name, tmp_path)
    torch.manual_seed(0)
    model = mlp()
    optimizer = SAM(model.parameters(), lr=0.1, momentum=0.9)
    for batch, row in zip(batches(), run.steps.itertuples(), strict=True):
        loss = loss_of(model, batch)
        loss.backward()
        first = torch.cat([p.grad.flatten() for p in model.parameters()])
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        optimizer.first_step(zero_grad=True)
        loss_of(model, batch).backward()
        second = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.second_step(zero_grad=True)
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        assert row.loss == pytest.approx(loss.item())
        assert row.gradient_norm == pytest.approx(float(first.norm()), rel=1e-5)
        assert row.update_norm == pytest.approx(float(moved.norm()), rel=1e-5)
        assert row.passes == 2
        if name == "two_step_sam":
            assert row.adversarial_norm == pytest.approx(float(second.norm()), rel=1e-5)
    assert "first_step" not in vars(optimizer)


@pytest.mark.parametrize("name", ["grad_scaler", "fused_grad_scaler"])
def test_scaled_gradients_are_recorded_unscaled_and_a_skipped_step_has_no_row(name: str, tmp_path: Path) -> None:
    run = rows(name, tmp_path)
    torch.manual_seed(0)
    loss_of(model := mlp(), batches(1)[0]).backward()
    true = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert run.steps["gradient_norm"][0] == pytest.approx(float(true), rel=1e-5)
    assert len(run.steps) == STEPS  # of the seven calls
    assert run.steps["gradient_norm"].max() < 10


def test_parameters_join_and_leave_with_a_word(tmp_path: Path) -> None:
    with pytest.warns(RecordingWarning, match=r"0\.bias, 0\.weight joined the recorded parameters before step 4"):
        run = rows("unfreezing", tmp_path, curvature=True)
    body = run.tensors[run.tensors["tensor"] == "0.weight"]
    assert body["step"].tolist() == [4, 5, 6]
    assert (body["lr"] == 1e-3).all()
    assert run.manifest["curvature_of"] == {"tensors": 2, "parameters": 27}
    assert any("joined the recorded parameters" in words for words in run.manifest["warnings"])


def test_what_odd_parameters_have_is_recorded_and_the_rest_is_missing_once(tmp_path: Path) -> None:
    with pytest.warns(RecordingWarning) as told:
        run = rows("odd_parameters", tmp_path)
    assert len([one for one in told if one.category is RecordingWarning]) == 1
    at = run.tensors[run.tensors["step"] == 2].set_index("tensor")
    assert at.loc["wave", "gradient_norm"] > 0
    assert math.isnan(at.loc["unused", "gradient_norm"])
    assert at.loc["empty", "update_norm"] == 0
    gaps = run.manifest["curvature_gaps"]
    assert {(one["instrument"], *one["measures"]) for one in gaps} == {("spectra", "empty"), ("spectra", "wave")}
    assert (run.steps["lr"] == 0.1).all()  # the first group is empty
    assert {"layer.weight", "turned", "unused"} == set(run.spectra["tensor"])


def test_the_norm_of_a_sparse_gradient_is_that_of_the_dense_one(tmp_path: Path) -> None:
    run = rows("sparse_embedding", tmp_path)
    assert (run.tensors.loc[run.tensors["tensor"] == "embed.weight", "gradient_norm"] > 0).all()
    assert "embed.weight" in set(run.spectra["tensor"])


def test_an_optimizer_without_lr_has_missing_rates_and_one_word(tmp_path: Path) -> None:
    with pytest.warns(RecordingWarning, match="has a setting 'lr'") as told:
        run = rows("without_lr", tmp_path)
    assert len([one for one in told if "'lr'" in str(one.message)]) == 1
    assert run.steps["lr"].isna().all()
    assert run.steps["weight_decay"].isna().all()


def test_an_objective_of_complex_parameters_is_refused_by_name() -> None:
    with pytest.raises(ProbeError, match="wave"):
        Objective(LOOPS["odd_parameters"](lambda *_: lambda *_: None)[0], loss_of, batches(1))


def test_a_replaced_module_is_recorded_in_place_of_the_old_one(tmp_path: Path) -> None:
    modules, (recorder,), _ = trained("replaced_module", tmp_path, curvature=True)
    run = Run.open(recorder.path)
    assert run.tensors.loc[run.tensors["tensor"] == "2.weight", "step"].tolist() == list(range(1, STEPS + 1))
    loss = run.probes[(run.probes["measure"] == "loss") & (run.probes["step"] == STEPS)]["value"].item()
    assert loss == pytest.approx(Objective(modules[0], loss_of, batches(2)).value(), rel=1e-6)
