"""Faults at every instrument, at evaluations, in hooks and on disk: a missing value, and a training bit for bit."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import RecordingWarning, RunError
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.recording import (
    checkpoint_saver,
    curvature_evaluations,
    optimizer_watch,
    run_ends,
    step_sample,
)
from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.recording.minibatch_pairs import MinibatchPairs
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.recording.run_ends import open_at
from lossscope.landscape.run import Run
from lossscope.landscape.storage import journal
from lossscope.landscape.storage.run_store import RunStore
from lossscope.optimizer import ARS2Neo
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

pytestmark = pytest.mark.filterwarnings("default::lossscope.landscape.errors.RecordingWarning")
STEPS = 4


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every instrument within four steps."""
    every = {"tensors_every": 1, "spectra_every": 1, "layers_every": 2, "counterfactual_every": 1}
    windows = {"windows_every": 3, "lags": (1,), "products": 16, "top": 1, "long_every": 2, "checkpoints": 1}
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], **every, **windows))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(STEPS)]


def trained(
    path: Path | None,
    loss_fn: Any = None,
    before: Callable[[int, nn.Module], None] | None = None,
    *,
    measured: bool = True,
    **more: Any,
) -> tuple[nn.Module, list[bytes]]:
    """Return a model and the bits of its training, recorded at a path or not, with an objective or without."""
    model = network()
    optimizer = ARS2Neo(model.named_parameters(), lr=1e-2, mode="lazy", k=2, rho=0.05)
    recorder = None
    if path is not None:
        more["minibatches"] = Objective(model, CrossEntropy(), data()[:2])
        fixed = Objective(model, loss_fn or CrossEntropy(), data()[:1]) if measured else None
        recorder = Recorder(path, model, optimizer, fixed, "full", steps=STEPS, evaluations=1, overhead=1, **more)
    bits = []
    for index, (x, y) in enumerate(data()):
        if before is not None:
            before(index, model)
        for p in optimizer.passes(model):
            p.backward(F.cross_entropy(model(x), y))
        loss = optimizer.step()
        if recorder is not None:
            recorder.step(loss)
        tensors = [*model.state_dict().values(), *(q.grad for q in model.parameters() if q.grad is not None)]
        bits.append(b"".join(t.numpy().tobytes() for t in tensors) + torch.get_rng_state().numpy().tobytes())
        bits.append(repr((random.getstate(), np.random.get_state(), [m.training for m in model.modules()])).encode())
    if recorder is not None:
        recorder.close(quiet=True)
    return model, bits


# What is replaced by a function that raises, and the instrument under which its values are then missing.
PLACES: dict[str, tuple[Any, str, str]] = {
    "rows of tensors": (step_sample, "tensor_rows", "tensors"),
    "norms": (step_sample, "step_numbers", "norms"),
    "spectra": (step_sample, "spectrum_rows", "spectra"),
    "derived spectra": (step_sample, "finished_spectra", "spectra"),
    "counterfactual": (step_sample, "injection_angles", "counterfactual"),
    "copy to the host": (step_sample, "to_host", "rows"),
    "record of the step": (optimizer_watch, "from_record", "tensors"),
    "layers": (curvature_evaluations, "layer_remainders", "layers"),
    "panel": (curvature_evaluations, "Panel", "curvature"),
    "spectrum": (Panel, "spectrum", "curvature"),
    "provenance": (Panel, "with_provenance", "curvature"),
    "minibatches": (MinibatchPairs, "rows", "minibatches"),
    "checkpoints": (checkpoint_saver, "save_checkpoint", "checkpoints"),
    "append": (RunStore, "append", "steps"),
    "flush": (RunStore, "flush_due", "files"),
    "manifest": (RunStore, "update_manifest", "files"),
}
ERRORS = (RuntimeError("no"), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "full"), KeyError(3))


def test_a_fault_at_any_instrument_is_a_missing_value_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain = trained(None)
    for index, (name, (owner, attribute, instrument)) in enumerate(PLACES.items()):
        error = ERRORS[index % len(ERRORS)]

        def fail(*args: Any, error: Exception = error, **kwargs: Any) -> Any:
            raise error

        path = tmp_path / name.replace(" ", "_")
        with monkeypatch.context() as broken:
            broken.setattr(owner, attribute, fail)
            with pytest.warns(RecordingWarning, match="the training goes on|written"):
                _, recorded = trained(path, measured=instrument in ("curvature", "layers"))
        assert recorded == plain, name
        run = Run.open(path)
        if attribute not in ("append", "update_manifest"):
            assert len(run.steps) == STEPS, name
            gaps = [gap for gap in run.manifest["curvature_gaps"] if gap["instrument"] == instrument]
            assert gaps, name
            assert all(type(error).__name__ in gap["why"] and isinstance(gap["step"], int) for gap in gaps), name
        assert run.status == "finished", name


HELD: list[weakref.ref[Tensor]] = []  # not an attribute of the loss, which an evaluation puts back


class Spoiling(CrossEntropy):
    """Changes all that a loss function can change, and then fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.armed = error, False

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        if self.armed:
            held = torch.zeros(1000)
            HELD.append(weakref.ref(held))
            torch.rand(3), np.random.rand(), random.random()
            model.eval()
            for p in self.parameters:
                p.grad = torch.ones_like(p)
            for buffer in self.buffers:
                buffer.add_(1)
            raise self.error
        return super().logits(model, batch)

    def arm(self, index: int, model: nn.Module) -> None:
        # taken here, as an objective puts substitutes into the model
        self.parameters, self.buffers, self.armed = list(model.parameters()), list(model.buffers()), index > 0


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_loss_that_spoils_everything_and_fails_changes_no_bit_and_is_told_once(
    error: Exception, tmp_path: Path
) -> None:
    _, plain = trained(None)
    loss = Spoiling(error)
    HELD.clear()
    gc.disable()
    try:
        with pytest.warns(RecordingWarning) as told:
            _, recorded = trained(tmp_path / "run", loss, loss.arm)
        assert HELD
        assert all(held() is None for held in HELD)  # the frames of the exception are released at once
    finally:
        gc.enable()
    assert recorded == plain
    words = [str(one.message) for one in told if one.category is RecordingWarning]
    told_of = {one.split(": ")[1].split(" could")[0] for one in words}
    assert {"layers", "loss (curvature)"} <= told_of
    assert all("curvature" in one for one in told_of - {"layers"})
    assert len(words) == len(told_of)
    assert all(Path(one.filename).name == "test_faults.py" for one in told if one.category is RecordingWarning)
    gaps = Run.open(tmp_path / "run").manifest["curvature_gaps"]
    assert {gap["step"] for gap in gaps if gap["instrument"] == "curvature"} == {STEPS}
    assert {"loss"} in [set(gap.get("measures", ())) for gap in gaps]
    assert f"{type(error).__name__}: {error}" in {gap["why"] for gap in gaps}
    assert all(str(error).split()[-1] in gap["why"] for gap in gaps)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_ends_a_program_passes_and_leaves_the_state_as_it_was(error: BaseException, tmp_path: Path) -> None:
    loss = Spoiling(error)
    kept: list[Any] = []

    def before(index: int, model: nn.Module) -> None:
        loss.arm(index, model)
        kept[:] = [model, torch.get_rng_state()]

    with pytest.raises(type(error)):
        trained(tmp_path / "run", loss, before)
    assert kept[0].training
    assert kept[0][1].num_batches_tracked == 2  # the second step of the training, and no more
    assert all((p.grad != 1).any() for p in kept[0].parameters())


def test_strict_raises_what_the_instrument_raised(tmp_path: Path) -> None:
    loss = Spoiling(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        trained(tmp_path / "run", loss, loss.arm, strict=True)


def test_rows_that_a_full_disk_refused_are_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = journal._SegmentWriter.write

    def full(self: Any, batch: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def room(index: int, model: nn.Module) -> None:
        monkeypatch.setattr(journal._SegmentWriter, "write", full if index < 3 else write)

    monkeypatch.setattr(RunStore, "flush_due", lambda self: True)  # at every step
    _, plain = trained(None)
    with pytest.warns(RecordingWarning, match="No space left on device"):
        _, recorded = trained(tmp_path / "run", before=room)
    assert recorded == plain
    run = Run.open(tmp_path / "run")
    assert (run.status, run.steps["step"].tolist()) == ("finished", [1, 2, 3, 4])


def test_a_strict_recorder_that_is_dropped_while_the_disk_is_full_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, batch: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run", model, optimizer, strict=True)
    (x, y), *_ = data()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    recorder.step(0.5)
    with monkeypatch.context() as patch:
        patch.setattr(journal._SegmentWriter, "write", full)
        del recorder
        gc.collect()  # an exception in a finalizer is a warning, which pytest makes an error
    assert "rows could not be written: cannot write into" in capsys.readouterr().err
    writer = open_at(tmp_path / "run")
    assert writer is not None
    writer.end("finished", "by the test")


def _no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("again", [True, False])
def test_an_end_that_a_full_disk_refused_is_written_by_a_second_close_or_at_the_end_of_the_process(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run", model, optimizer)
    for x, y in data()[:3]:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.warns(RecordingWarning, match="could not be written to its end"):
        recorder.close("failed", "as I say", quiet=True)
    monkeypatch.undo()
    assert "No space left" in recorder.lost
    if again:
        recorder.close(quiet=True)
    else:
        run_ends._end_all()
    run = Run.open(tmp_path / "run")
    assert (run.status, run.manifest["how_it_ended"]) == ("failed", "as I say")
    assert (run.steps["step"].tolist(), recorder.lost) == ([1, 2, 3], "")
    recorder.close()  # nothing is left to write


def test_a_new_recorder_writes_the_end_that_a_full_disk_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run", model, optimizer)
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.warns(RecordingWarning, match="could not be written to its end"):
        recorder.close(quiet=True)
    monkeypatch.undo()
    with pytest.raises(RunError, match="already holds a run"):
        Recorder(tmp_path / "run", model, optimizer)
    assert Run.open(tmp_path / "run").status == "finished"
    Recorder(tmp_path / "run", model, optimizer, force=True).close(quiet=True)


def test_a_recorder_called_in_inference_mode_misses_nothing(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = Objective(model, CrossEntropy(), data())
    recorder = Recorder(tmp_path / "run", model, optimizer, objective, "full", steps=2, evaluations=3, overhead=1)
    for x, y in data()[:2]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.inference_mode():
            recorder.step(0.5)
    recorder.close(quiet=True)
    run = Run.open(tmp_path / "run")
    assert sorted(run.probes["step"].unique()) == [0, 1, 2]
    assert "curvature_gaps" not in run.manifest


def test_a_removed_folder_is_told_and_ends_no_training(tmp_path: Path) -> None:
    def remove(index: int, model: nn.Module) -> None:
        if index == 2:
            shutil.rmtree(tmp_path / "run")

    _, plain = trained(None)
    with pytest.warns(RecordingWarning, match=r"written to its end: .* was removed or renamed"):
        _, recorded = trained(tmp_path / "run", before=remove)
    assert recorded == plain
    assert not (tmp_path / "run").exists()  # a checkpoint does not make it again


def simple(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, given: list[Any]) -> None:
    """Train with these values in place of the losses."""
    (x, y), *_ = data()
    recorder = Recorder(path, model, optimizer, preset="full", overhead=1)
    for value in given:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        recorder.step(value)
    recorder.close(quiet=True)


def test_missing_values_of_every_step_are_counted_and_do_not_rewrite_the_manifest_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    update = RunStore.update_manifest
    monkeypatch.setattr(RunStore, "update_manifest", lambda self, **facts: (writes.append(1), update(self, **facts)))

    def fail(*args: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(step_sample, "step_numbers", fail)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(RecordingWarning, match="norms could not be recorded at step 1: RuntimeError: no"):
        simple(tmp_path / "run", model, optimizer, [0.5] * 240)
    assert len(writes) < 20
    gaps = Run.open(tmp_path / "run").manifest["curvature_gaps"]
    assert len(gaps) == 100
    assert (gaps[-1]["until"], gaps[-1]["more"]) == (240, 140)


def test_a_value_that_is_no_number_is_missing(tmp_path: Path) -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = [torch.ones(64), {"loss": 1.0}, "high", torch.tensor(1j), np.float32(0.5), 0.25]
    with pytest.warns(RecordingWarning, match=r"loss must be one real number, got a tensor of shape \(64,\)"):
        simple(tmp_path / "run", model, optimizer, given)
    run = Run.open(tmp_path / "run")
    assert run.steps["loss"].isna().tolist() == [True] * 4 + [False] * 2
    assert {tuple(gap["measures"]) for gap in run.manifest["curvature_gaps"]} == {("loss",)}


@pytest.mark.filterwarnings("ignore::lossscope.landscape.errors.RecordingWarning")
@pytest.mark.parametrize("given", [torch.ones(64), {"loss": 1.0}, "high"])
def test_a_loss_that_is_no_number_costs_no_other_measure(given: Any, tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objective = Objective(model, CrossEntropy(), data())
    recorder = Recorder(tmp_path / "run", model, optimizer, objective, "economy", steps=1, overhead=1)
    F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
    optimizer.step()
    recorder.step(given)
    recorder.close(quiet=True)
    missing = Run.open(tmp_path / "run").manifest["curvature_gaps"]
    found = {(gap["instrument"], *gap.get("measures", ())) for gap in missing}
    assert found == {("steps", "loss"), ("spikes",)}
