"""Measurement of checkpoints that nobody recorded: the numbers, the run, continuing it, and what is refused."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lossscope.landscape import Run, checkpoints, measure
from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.measures.options import SolverOptions
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.reprobe.checkpoint_probe import probe
from lossscope.landscape.storage.missing_values import MISSING_VALUES
from lossscope.probes import CrossEntropy, Objective
from lossscope.probes.step_tensors.singular_values import singular_spectrum

EFFORT = SolverOptions(0.05, 0.05, 60)
COSTS = ["seconds", "gradients"]
MINE = """
import torch
from lossscope.landscape.storage.missing_values import MISSING_VALUES
from lossscope.probes import CrossEntropy, Objective

def objective():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    return Objective(net, CrossEntropy(), [(x, torch.arange(40) % 2)])

def images():
    return Objective(torch.nn.Conv2d(3, 2, 3), lambda m, b: m(b[0]).square().mean(), [(torch.ones(2, 3), )])

def strange():
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    return Objective(net, lambda model, batch: model(batch["pixels"]).mean(), [torch.ones(4, 3)])
"""


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def objective(seed: int = 1) -> Objective:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    return Objective(net(), CrossEntropy(), [(x, torch.arange(40) % 2)])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    for step in (10, 20, 30):
        torch.save(net(step).state_dict(), folder / f"step_{step}.pt")
    (tmp_path / "mine.py").write_text(MINE)
    return folder


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=COSTS).sort_values(["step", "measure", "tensor"], na_position="first", ignore_index=True)


def test_checkpoints_of_a_recorded_run_measure_as_its_probe_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    loss, model = objective(), net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(tmp_path / "run", model, optimizer, steps=6, evaluations=2, overhead=1) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            value = loss.loss_fn(model, loss.data.batches[0])
            value.backward()
            optimizer.step()
            recorder.step(value)
    place = f"{tmp_path / 'mine.py'}:objective"
    names = ["loss", "lambda_max", "trace", "density", "adaptive_trace", "log_fisher_rao"]
    probe(tmp_path / "run", at=[1, 6], measures=names, effort=EFFORT, objective=place)
    folders = [checkpoints(tmp_path / "run")[step] for step in (1, 6)]
    measure(folders, into=tmp_path / "measured", objective=place, measures=names, effort=EFFORT)
    probed, measured = Run.open(tmp_path / "run"), Run.open(tmp_path / "measured")
    assert len(measured.probes) == 10
    assert set(measured.probes["step"]) == {1, 6}
    pd.testing.assert_frame_equal(comparable(measured.probes), comparable(probed.probes), check_exact=True)
    assert measured.densities["nodes"].map(tuple).tolist() == probed.densities["nodes"].map(tuple).tolist()
    weights = probed.spectra[(probed.spectra["object"] == "weight") & (probed.spectra["step"] == 1)]
    ours = measured.spectra[measured.spectra["step"] == 1]
    assert ours["tensor"].tolist() == weights["tensor"].tolist() == ["0.weight", "2.weight"]
    for mine, theirs, bound in zip(ours["values"], weights["values"], weights["error"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=bound)


def test_without_a_loss_spectra_and_norms_are_those_of_the_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {
        "module.conv.weight": torch.randn(4, 3, 2, 2),
        "module.heads": torch.randn(3, 5, 2),
        "module.norm.running_mean": torch.full((4,), 100.0),
        "module.norm.num_batches_tracked": torch.tensor(7),
        "module.out.weight": torch.randn(6, 4).bfloat16(),
        "module.out.bias": torch.randn(6, dtype=torch.float64),
        "module.vector": torch.randn(5).half(),
    }
    save_file(state, tmp_path / "step_3.safetensors")
    torch.save(state, tmp_path / "step_4.pt")
    done = measure(tmp_path, into=tmp_path / "run")
    assert done.notes == ("The names of the files begin with 'module.', which was left out.",)
    run = Run.open(tmp_path / "run")
    parameters = {name.removeprefix("module."): t.double() for name, t in state.items() if "norm." not in name}
    for step in (3, 4):
        spectra = run.spectra[run.spectra["step"] == step].set_index(["tensor", "slice"])
        expected = {
            ("conv.weight", None): parameters["conv.weight"].flatten(1),
            ("out.weight", None): parameters["out.weight"],
        }
        expected |= {("heads", n): parameters["heads"][n] for n in range(3)}
        assert len(spectra) == len(expected)
        for (name, index), matrix in expected.items():
            row = run.spectra[(run.spectra["step"] == step) & (run.spectra["tensor"] == name)]
            row = row if index is None else row[row["slice"] == index]
            known = singular_spectrum(matrix)
            np.testing.assert_allclose(row["values"].item(), known.values, rtol=1e-12, atol=known.error)
            assert row["entropy_energy"].item() == pytest.approx(known.entropy(), abs=1e-12)
        tensors = run.tensors[run.tensors["step"] == step].set_index("tensor")["weight_norm"]
        assert tensors.to_dict() == pytest.approx({name: float(t.norm()) for name, t in parameters.items()})
        total = run.steps.loc[run.steps["step"] == step, "weight_norm"].item()
        assert total == pytest.approx(math.sqrt(sum(float(t.norm()) ** 2 for t in parameters.values())))
    assert run.manifest["model"]["parameters"] == sum(t.numel() for t in parameters.values())


def test_tied_weights_count_once_and_other_files_of_weights_are_read(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    torch.save({"state_dict": {"a": tied, "b": tied}, "epoch": 1, "global_step": 5}, tmp_path / "epoch=0-step=5.ckpt")
    done = measure(tmp_path / "epoch=0-step=5.ckpt", into=tmp_path / "run")
    assert done.notes == ("B share memory with a and count once.",)
    assert Run.open(tmp_path / "run").tensors["tensor"].tolist() == ["a"]


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    whole = {"a": torch.randn(4, 3), "b": torch.randn(2, 2)}
    files = {f"model-0000{n}-of-00002.safetensors": name for n, name in enumerate(whole, 1)}
    for file, name in files.items():
        save_file({name: whole[name]}, folder / file)
    index = {"weight_map": {name: file for file, name in files.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    measure(folder, into=tmp_path / "run")
    assert Run.open(tmp_path / "run").spectra["tensor"].tolist() == ["a", "b"]
    save_file({"a": whole["a"]}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ConfigError, match="has the tensor a in two shards"):
        measure(folder, into=tmp_path / "twice")


def test_numbers_that_have_no_spectrum_are_missing_with_their_reason(tmp_path: Path) -> None:
    torch.save(
        {"a": torch.full((2, 2), math.nan), "q": torch.ones(3, 3, dtype=torch.int8), "b": torch.eye(2)},
        tmp_path / "1.pt",
    )
    done = measure(tmp_path / "1.pt", into=tmp_path / "run")
    assert {one.measures: one.why.split(",")[0] for one in done.absent} == {
        ("spectrum of a",): "all entries of the matrix must be finite",
        ("spectrum of q",): "it holds numbers of type int8",
    }
    run = Run.open(tmp_path / "run")
    assert run.spectra["tensor"].tolist() == ["b"]
    assert run.steps["weight_norm"].isna().all()  # a part of the parameters is unknown
    assert len(run.manifest[MISSING_VALUES]) == 2


def test_safetensors_are_measured_without_torch(tmp_path: Path) -> None:
    save_file({"w": torch.randn(5, 4).bfloat16(), "b": torch.zeros(4)}, tmp_path / "step_1.safetensors")
    program = (
        "import sys\n"
        "from lossscope.landscape import Run, measure\n"
        "done = measure('step_1.safetensors', into='run')\n"
        "assert len(Run.open('run').spectra) == 1 and done.rows == 4, done\n"
        "from lossscope.cli.main import main\n"
        "sys.argv = ['lossscope', 'measure', 'step_1.safetensors', '--into', 'run2']\n"
        "main()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_a_second_call_skips_what_is_finished_and_measures_what_is_new(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = ["loss", "lambda_max"]
    first = measure([saved / "step_10.pt", saved / "step_30.pt"], into=run, objective=objective(), measures=names)
    again = measure(saved, into=run, objective=objective(), measures=names)  # one in between
    assert (first.steps, again.steps, again.before) == ((10, 30), (20,), (10, 30))
    more = measure(saved, into=run, objective=objective(), measures=[*names, "trace"])
    assert more.steps == (10, 20, 30)
    torch.save(net(40).state_dict(), saved / "step_40.pt")
    last = measure(saved, into=run, objective=objective(), measures=[*names, "trace"])
    assert (last.steps, last.before) == ((40,), (10, 20, 30))
    none = measure(saved, into=run, objective=objective(), measures=names)
    assert none.rows == 0
    at_once = measure(saved, into=tmp_path / "other", objective=objective(), measures=[*names, "trace"])
    assert at_once.steps == (10, 20, 30, 40)
    ours, others = Run.open(run), Run.open(tmp_path / "other")
    columns = ["step", "measure", "data_hash"]
    assert comparable(ours.probes)[columns].equals(comparable(others.probes)[columns])
    losses = [run.probes.loc[run.probes["measure"] == "loss", "value"].tolist() for run in (ours, others)]
    assert losses[0] == losses[1]
    assert ours.spectra[["step", "tensor"]].equals(others.spectra[["step", "tensor"]])
    assert ours.status == "finished"


SLOW = """
import sys, time
import lossscope.landscape.unrecorded.measure as module
from lossscope.landscape import measure
rows = module.matrix_rows
def slow(tensors, step, tell):
    if step == 20:
        print("reached", flush=True)
        time.sleep(60)
    return rows(tensors, step, tell)
module.matrix_rows = slow
measure("out", into="run")
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interruption_loses_nothing_finished(end: int, saved: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", SLOW]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"reached\n"
        child.send_signal(end)
    run = Run.open(tmp_path / "run")
    assert run.status == ("crashed" if end == signal.SIGKILL else "stopped")
    assert run.steps["step"].tolist() == [10]
    done = measure(saved, into=tmp_path / "run")
    assert (done.before, done.steps) == ((10,), (20, 30))
    run = Run.open(tmp_path / "run")
    assert run.status == "finished"
    assert run.steps["step"].tolist() == [10, 20, 30]


def test_rows_of_a_checkpoint_that_was_not_finished_are_superseded(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossscope.landscape.storage.run_store import RunStore

    update, calls = RunStore.update_manifest, []

    def fails(store: RunStore, **changes: Any) -> None:
        calls.append(changes)
        if len(calls) == 2:
            raise KeyboardInterrupt
        update(store, **changes)

    monkeypatch.setattr(RunStore, "update_manifest", fails)  # after the rows of step 20 are written
    with pytest.raises(KeyboardInterrupt):
        measure(saved, into=tmp_path / "run")
    monkeypatch.undo()
    assert Run.open(tmp_path / "run").steps["step"].tolist() == [10, 20]
    assert measure(saved, into=tmp_path / "run").steps == (20, 30)
    assert Run.open(tmp_path / "run").steps["step"].tolist() == [10, 20, 30]
    assert len(Run.open(tmp_path / "run").spectra) == 6


def test_a_run_keeps_its_settings_and_its_files(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    measure(saved, into=run, objective=objective(), measures=["loss"])
    for call, words in (
        (lambda: measure(saved, into=run, objective=objective(2), measures=["loss"]), "measured with data_hash"),
        (
            lambda: measure(saved, into=run, objective=objective(), measures=["loss"], effort=EFFORT),
            "with rel 0.01, now it is 0.05",
        ),
        (lambda: measure(saved, into=run), "was measured with objective Objective of CrossEntropy, now it is none"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()
    torch.save(net(99).state_dict(), saved / "step_20.pt")
    with pytest.raises(ConfigError, match=r"has step 20 of another file: .*step_20.pt had the checksum"):
        measure(saved, into=run, objective=objective(), measures=["loss"])
    assert Run.open(run).probes["step"].tolist() == [10, 20, 30]


def test_what_is_not_a_measured_run_is_left_alone(saved: Path, tmp_path: Path) -> None:
    model = net()
    with Recorder(tmp_path / "recorded", model, torch.optim.SGD(model.parameters(), 0.1)):
        pass
    with pytest.raises(RunError, match=r"holds a run that was recorded, not measured: choose another name"):
        measure(saved, into=tmp_path / "recorded")
    with pytest.raises(RunError, match="holds files but no run"):
        measure(saved, into=saved)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (
            lambda s: {"model." + k: v for k, v in s.items()} | {"head.weight": torch.ones(2)},
            "objective",
            r"without the prefix 'model.' of the file, 4 of 4 names fit",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "0.bias"}, "objective", r"it lacks 0.bias"),
        (
            lambda s: s | {"0.weight": torch.ones(8, 4)},
            "objective",
            r"0.weight has the shape \(8, 4\), the model \(8, 3\)",
        ),
        (lambda s: s, "strange", r"loss of .*mine.py:strange raised"),
        (
            lambda s: {"optimizer": Path()},
            "objective",
            r"holds more than tensors, and loading it could run code \(pathlib",
        ),
        (
            lambda s: {"hyper_parameters": {"lr": 1}, "epoch": 3},
            "objective",
            r"holds no weights \(found epoch, hyper_parameters\)",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(
    change: Callable[[dict[str, Tensor]], Any], name: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    torch.save(change(dict(net().state_dict())), tmp_path / "step_1.pt")
    with pytest.raises(ConfigError, match=words):
        measure(
            tmp_path / "step_1.pt", into=tmp_path / "run", objective=f"{tmp_path / 'mine.py'}:{name}", measures=["loss"]
        )
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_safetensors_is_refused_without_torch(tmp_path: Path) -> None:
    save_file({"w": torch.randn(50, 4)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    for broken in (
        data[:-5],
        data[:20],
        b"",
        b"\xff" * 50,
        data.replace(b"F32", b"F64"),
        data.replace(b"shape", b"shope"),
    ):
        (tmp_path / "step_1.safetensors").write_bytes(broken)
        with pytest.raises(ConfigError, match="cannot be read as safetensors"):
            measure(tmp_path / "step_1.safetensors", into=tmp_path / "run")


def test_checkpoints_of_two_networks_are_not_mixed(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3)}, tmp_path / "step_1.pt")
    torch.save({"a": torch.ones(3, 4)}, tmp_path / "step_2.pt")
    with pytest.raises(
        ConfigError, match=r"step_2.pt is of another network than the checkpoints before it: a has another"
    ):
        measure(tmp_path, into=tmp_path / "run")
    run = Run.open(tmp_path / "run")  # the first one is kept
    assert (run.status, run.steps["step"].tolist()) == ("stopped", [1])


def test_measures_need_a_loss_and_something_is_measured(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trace cannot be measured without a loss"):
        measure(saved, into=tmp_path / "run", measures=["trace"])
    with pytest.raises(ConfigError, match="nothing is left to measure"):
        measure(saved, into=tmp_path / "run", matrices=False)


def test_progress_counts_the_parts_of_all_checkpoints(saved: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    measure(
        saved,
        into=tmp_path / "run",
        objective=objective(),
        measures=["loss", "trace"],
        progress=lambda *one: told.append(one),
    )
    assert told[0] == (0, 9, "loss")
    assert told[-1] == (9, 9, "")
    assert [one[0] for one in told] == sorted(one[0] for one in told)
