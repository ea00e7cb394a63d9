"""Probing of checkpoints: rows added, errors, and the state after a kill."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.measures.options import SolverOptions
from lossscope.landscape.recording.checkpoints import checkpoints
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.reprobe.checkpoint_probe import probe
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.training import recorded_config, train
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

EFFORT = SolverOptions(rel=0.05, trace_rel=0.5, max_products=16)
OBJECTIVE = """
import torch
from lossscope.probes import CrossEntropy, Objective

def network(width=4):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))

def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 3, generator=generator), torch.arange(12) % 2

def objective():
    return Objective(network(), CrossEntropy(), [batch()])

def elsewhere():
    x, y = batch()
    return Objective(network(), CrossEntropy(), [(2 * x, y)])

def wider():
    return Objective(network(5), CrossEntropy(), [batch()])

def frozen():
    model = network()
    model[0].requires_grad_(False)
    return Objective(model, CrossEntropy(), [batch()])

def parallel():
    return Objective(torch.nn.DataParallel(network()), CrossEntropy(), [batch()])

def squared():
    return Objective(network(), lambda model, batch: model(batch[0]).square().mean(), [batch()])

def broken():
    raise ValueError("the data are not here\\nand a second line")

def nothing():
    return None

number = 3
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of a workload, with its checkpoints."""
    out = tmp_path_factory.mktemp("trained")
    config = TrainConfig(
        optimizer="adamw", name="a", out=str(out), steps=4, evaluations=2, preset="economy", batch_size=16
    )
    return train(config).path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run to write into."""
    return Path(shutil.copytree(trained, tmp_path / "a"))


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A run recorded by a user's own loop with its checkpoints, and the user's file beside it."""
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    scope: dict[str, object] = {}
    exec(OBJECTIVE, scope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = scope["network"]()
    x, y = scope["batch"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    goal = Objective(model, CrossEntropy(), [(x, y)])
    with Recorder(
        tmp_path / "mine", model, optimizer, goal, "economy", steps=2, evaluations=2, arm="sgd", overhead=1
    ) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def rows(path: Path, measure: str) -> list[tuple[int, float]]:
    found = Run.open(path).probes
    found = found[found["measure"] == measure]
    return list(zip(found["step"], found["value"], strict=True))


def test_the_last_checkpoint_is_measured_by_default_and_agrees_with_what_was_recorded(run):
    recorded = rows(run, "lambda_max")
    found = probe(run, effort=SolverOptions(0.05, 0.5, 64))
    assert found.steps == (4,)
    assert {row["step"] for row in found.rows} == {4}
    after = rows(run, "lambda_max")
    assert after[: len(recorded)] == recorded
    assert len(after) == len(recorded) + 1
    assert after[-1] == (4, pytest.approx(recorded[-1][1], rel=0.1))
    assert rows(run, "loss")[-2:] == [(4, pytest.approx(rows(run, "loss")[-1][1], rel=1e-6))] * 2
    row = Run.open(run).estimates.query("measure == 'lambda_max' and step == 4").iloc[0]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["gradients"] > 0
    assert row["data_hash"] == Run.open(run).manifest["data_hash"]


def test_every_number_of_a_probe_is_known_and_has_a_certificate(run):
    found = probe(run, effort=EFFORT, measures=["spectrum", "metric", "batch_sharpness"])
    assert {row["measure"] for row in found.rows} <= set(known_measures())
    probes = Run.open(run).probes.tail(len(found.rows))
    for column in (
        "mode",
        "loss_kind",
        "additivity",
        "dtype",
        "seed",
        "engine",
        "data_hash",
        "seconds",
        "products",
        "converged",
    ):
        assert probes[column].notna().all(), column
    assert {"preconditioned_sharpness", "preconditioned_edge_ratio", "lambda_5"} <= {r["measure"] for r in found.rows}
    assert {row["probe"] for row in found.densities} == {0, 1}
    assert len(found.whole_densities) == 1
    (absent,) = found.absent
    assert absent.measures == ("sharpness_edge_ratio",)


def test_all_checkpoints_are_measured_for_what_is_named_alone(run):
    found = probe(run, at="all", measures=["trace"], effort=EFFORT)
    assert found.steps == tuple(checkpoints(run))
    assert [row["measure"] for row in found.rows] == ["trace"] * len(found.steps)
    assert found.absent == ()


def test_a_measure_that_a_checkpoint_cannot_have_is_told_and_the_rest_is_there(run):
    found = probe(run, at=[0, 4], measures=["loss", "preconditioned_sharpness"], effort=EFFORT)
    assert [(row["step"], row["measure"]) for row in found.rows] == [
        (0, "loss"),
        (4, "loss"),
        (4, "preconditioned_sharpness"),
    ]
    (absent,) = found.absent
    assert (absent.step, absent.measures) == (0, ("preconditioned_sharpness",))
    assert "second moment" in absent.why
    with pytest.raises(RunError, match=r"nothing could be measured .* second moment"):
        probe(run, at=[0], measures=["metric"], effort=EFFORT)


def test_weights_without_an_optimizer_lack_what_needs_it_alone(run):
    (checkpoints(run)[4] / "optimizer.pt").unlink()  # the weights of an evaluation are such a folder
    found = probe(run, at=[0, 4], measures=["loss", "test_loss", "train_loss", "sharpness_edge_ratio"], effort=EFFORT)
    assert {row["measure"] for row in found.rows if row["step"] == 4} == {"loss", "test_loss", "train_loss"}
    (absent,) = [one for one in found.absent if one.step == 4]
    assert absent.measures == ("sharpness_edge_ratio",)
    assert absent.why.startswith(
        "the checkpoint holds weights only, without the state of the optimizer; use lambda_max"
    )
    recorded = Run.open(run).probes.query("step == 4 and measure == 'test_loss'")["value"]
    assert len(recorded) == 2
    assert recorded.nunique() == 1
    usual = probe(run, effort=EFFORT)  # the last one, and nothing is named
    assert {name for one in usual.absent for name in one.measures} >= {"preconditioned_sharpness"}


def test_the_optimizer_of_an_own_loop_comes_from_a_full_checkpoint(mine):
    (checkpoints(mine)[0] / "optimizer.pt").unlink()
    asked = {"measures": ["sharpness_edge_ratio"], "effort": EFFORT, "objective": "mine.py:objective"}
    found = probe(mine, at="all", **asked)
    assert [row["step"] for row in found.rows] == [1, 2]
    assert [one.step for one in found.absent] == [0]
    for folder in checkpoints(mine, resumable=True).values():
        (folder / "optimizer.pt").unlink()
    with pytest.raises(RunError, match=r"nothing could be measured in .*: the checkpoint holds weights only"):
        probe(mine, at="all", **asked)


def test_a_crashed_run_is_measured_and_stays_crashed(run):
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "status": "running"}))
    probe(run, measures=["loss"], effort=EFFORT)
    assert Run.open(run).status == "crashed"
    assert len(rows(run, "loss")) == 3


def test_a_live_run_is_left_alone(run):
    store = RunStore.resume(run, 4)
    before = (run / "run.json").read_bytes()
    with pytest.raises(RunError, match="is being recorded: wait until that has ended, then probe it"):
        probe(run, effort=EFFORT)
    assert (run / "run.json").read_bytes() == before
    store.close("finished", "done")


def test_data_that_are_not_those_of_the_run_are_refused(run):
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "data_hash": "0" * 64}))
    with pytest.raises(RunError, match=r"have the hash [0-9a-f]{12}, the run was recorded on 000000000000"):
        probe(run, effort=EFFORT)
    assert len(rows(run, "loss")) == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"measures": ["lambda_mx"]}, "unknown measure 'lambda_mx'; did you mean lambda_max"),
        ({"measures": ["directional_edge_ratio"]}, "directional_edge_ratio needs the step that was taken"),
        (
            {"measures": ["lambda_min"], "effort": SolverOptions(0.1, 0.1, 16, 0, "pyhessian")},
            "pyhessian has no lambda_min",
        ),
        ({"objective": "mine.py"}, "is not FILE.py:NAME"),
        ({"objective": "absent.py:objective"}, "there is no file absent.py"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(trained, asked, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as error:
        probe(trained, **{"effort": EFFORT, **asked})
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_not_there_is_told_with_those_that_are(trained):
    with pytest.raises(RunError, match=r"has no checkpoint at step 3: there is one at 0, .*4"):
        probe(trained, at=[3], effort=EFFORT)


def test_a_run_without_checkpoints_is_told_how_to_get_them(tmp_path):
    RunStore.create(tmp_path / "a", {}).close("finished", "done")
    with pytest.raises(RunError, match="has no checkpoint to measure"):
        probe(tmp_path / "a", effort=EFFORT)


def test_a_function_of_the_users_own_gives_model_and_data(mine):
    with pytest.raises(RunError, match=r"was not made by `lossscope train`.*--objective FILE.py:NAME"):
        probe(mine, effort=EFFORT)
    recorded = rows(mine, "lambda_max")
    found = probe(mine, at="all", measures=["loss", "lambda_max"], effort=EFFORT, objective="mine.py:objective")
    assert [row["step"] for row in found.rows if row["measure"] == "loss"] == [0, 1, 2]
    again = [(row["step"], row["value"]) for row in found.rows if row["measure"] == "lambda_max"]
    assert again[0] == (0, pytest.approx(recorded[0][1], rel=1e-3))
    assert again[-1] == (2, pytest.approx(recorded[-1][1], rel=1e-3))
    edge = probe(mine, measures=["sharpness_edge_ratio"], effort=EFFORT, objective="mine.py:objective").rows[0]
    assert edge["value"] == pytest.approx(again[-1][1] * 0.1 / 2, rel=1e-3)


def test_other_data_than_the_runs_own_are_kept_out_of_its_curves(mine):
    before = Run.open(mine).estimates
    probe(mine, measures=["loss"], effort=EFFORT, objective="mine.py:elsewhere")
    after = Run.open(mine)
    assert len(after.probes) == len(before) + 1
    assert after.estimates["value"].tolist() == before["value"].tolist()


def test_a_partly_frozen_model_is_kept_out_of_the_curves_and_its_rows_say_of_how_many_parameters_they_are(mine):
    before = Run.open(mine).estimates
    assert set(before["parameters"].dropna()) == {26}
    found = probe(mine, measures=["lambda_max"], effort=EFFORT, objective="mine.py:frozen")
    assert [row["parameters"] for row in found.rows] == [10]
    assert found.notes == (
        "these rows are of 10 parameters and the recorded ones of 26, so reports show them in no curve together: "
        "freeze the same parameters as in training for comparable numbers",
    )
    after = Run.open(mine)
    assert len(after.probes) == len(Run.open(mine).estimates) + 1
    assert after.estimates["value"].tolist() == before["value"].tolist()


def test_a_wrapped_model_is_probed_and_the_prefix_is_named(mine):
    plain = probe(mine, measures=["lambda_max", "sharpness_edge_ratio"], effort=EFFORT, objective="mine.py:objective")
    found = probe(mine, measures=["lambda_max", "sharpness_edge_ratio"], effort=EFFORT, objective="mine.py:parallel")
    assert plain.notes == ()
    assert found.notes == ("the names of the model begin with 'module.' and the others do not: the prefix was ignored",)
    assert [row["value"] for row in found.rows] == pytest.approx([row["value"] for row in plain.rows], rel=1e-6)
    assert found.absent == plain.absent == ()


def test_an_infinite_setting_is_stored_resumed_and_probed(tmp_path):
    options = {"aga_lambda": math.inf}
    config = TrainConfig(
        optimizer="ars2-aga", name="a", out=str(tmp_path), steps=2, preset="economy", batch_size=16, options=options
    )
    path = train(config).path
    assert recorded_config(path).options["aga_lambda"] == math.inf
    assert Run.open(path).manifest["trigger"]["lambda"] == math.inf
    run = train(config.with_settings({"steps": 3}), resume=True)
    assert (run.status, len(run.steps)) == ("finished", 3)
    found = probe(path, measures=["loss"], effort=EFFORT)
    assert [row["step"] for row in found.rows] == [3]


def test_a_loss_without_logits_lacks_what_needs_them_alone(mine):
    found = probe(mine, effort=EFFORT, objective="mine.py:squared")
    assert [absent.measures for absent in found.absent] == [("log_fisher_rao",), ("logit_norm", "mean_margin")]
    assert {"loss", "lambda_max", "trace", "adaptive_trace"} <= {row["measure"] for row in found.rows}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("objectiv", "mine.py has no 'objectiv'; did you mean objective"),
        ("number", "number of mine.py is int, need a function"),
        ("nothing", r"nothing\(\) of mine.py returned NoneType, need a lossscope.probes.Objective"),
        ("broken", r"broken\(\) of mine.py raised ValueError: the data are not here$"),
        ("wider", "do not fit the model: size mismatch for 0.weight"),
    ],
)
def test_a_function_that_gives_no_fitting_objective_is_one_sentence(mine, name, words):
    before = (mine / "run.json").read_bytes()
    with pytest.raises((ConfigError, RunError), match=words) as error:
        probe(mine, effort=EFFORT, objective=f"mine.py:{name}")
    assert "\n" not in str(error.value)
    assert (mine / "run.json").read_bytes() == before


def test_a_file_that_cannot_be_loaded_is_one_sentence(mine, tmp_path):
    (tmp_path / "bad.py").write_text("import not_here_at_all\n")
    with pytest.raises(ConfigError, match=r"bad.py cannot be loaded: ModuleNotFoundError: No module named"):
        probe(mine, effort=EFFORT, objective="bad.py:objective")


def test_pyhessian_gives_a_second_row_and_ours_goes_on_counting(mine):
    pytest.importorskip("pyhessian")
    effort = SolverOptions(0.05, 0.5, 40, 0, "pyhessian")
    ours = Run.open(mine).estimates
    found = probe(mine, effort=effort, objective="mine.py:objective")
    engines = {row["measure"]: row["engine"] for row in found.rows}
    assert engines == {"lambda_max": "pyhessian", "trace": "pyhessian"}
    assert found.densities == ()  # ours at pyhessian's precision would displace a better one of our own
    after = Run.open(mine).estimates
    assert after["engine"].eq("lossscope").all()
    assert len(after) == len(ours)


def test_a_probe_leaves_the_import_path_and_a_workloads_random_stream_alone(mine, run):
    path = list(sys.path)
    probe(mine, measures=["trace"], effort=EFFORT, objective="mine.py:objective")
    assert sys.path == path
    before = torch.get_rng_state()
    probe(run, measures=["trace"], effort=EFFORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_goes_from_nothing_to_all(run):
    told: list[tuple[int, int, str]] = []
    probe(run, at=[0, 4], measures=["loss", "trace"], effort=EFFORT, progress=lambda *args: told.append(args))
    assert [one[0] for one in told] == [0, 1, 2, 2, 3, 4]
    assert {one[1] for one in told} == {4}


_KILLED = """
import os, signal
from lossscope.landscape.measures.measure_group import MeasureGroup
from lossscope.landscape.measures.options import SolverOptions
from lossscope.landscape.reprobe import checkpoint_probe as probing
measure, calls = MeasureGroup.measure, []

def dying(self, panel, names):
    calls.append(self.name)
    if len(calls) == 4:  # the second group at the second checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(self, panel, names)

MeasureGroup.measure = dying
measures, objective = ["loss", "trace", "density"], "mine.py:objective"
probing.probe(run, at="all", measures=measures, effort=SolverOptions(0.1, 0.5, 8), objective=objective)
"""


def test_a_killed_probe_loses_the_checkpoint_it_is_at_and_no_other(warm, mine):
    recorded = Run.open(mine).probes
    before, traces = len(recorded), recorded["measure"].tolist().count("trace")
    process = warm.Process(target=exec, args=(_KILLED, {"run": str(mine)}))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = Run.open(mine)
    assert left.status == "finished"
    assert len(left.probes) == before + 2
    assert left.probes["measure"].tolist().count("trace") == traces + 1
    measures, objective = ["loss", "trace", "density"], "mine.py:objective"
    found = probe(mine, at="all", measures=measures, effort=SolverOptions(0.1, 0.5, 8), objective=objective)
    assert len(Run.open(mine).probes) == before + 2 + len(found.rows)
