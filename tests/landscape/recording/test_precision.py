"""A bound that rounding prevents is named with cause and remedy wherever its value is shown, and the remedy works."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.landscape.errors import RecordingWarning
from lossscope.landscape.measures.precision import REMEDY, REMEDY_IN_DOUBLE, unreachable
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.objective.objective import Objective
from lossscope.reports.flatness.report import flatness
from lossscope.reports.overview.report import overview
from lossscope.reports.sharpness.report import sharpness

SAYS = "missed the requested bound at"
CAUSE = "products in float32 are off by up to"

FITTED = """
import torch
from torch import nn
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

def fitted():
    torch.manual_seed(0)
    x = torch.randn(40, 20)
    y = (x[:, 0] > 0).long()
    x[:, 0] += 2.0 * x[:, 0].sign()
    net = nn.Linear(20, 2)
    with torch.no_grad():
        net.weight.mul_(0.1)
        net.weight[:, 0] = torch.tensor([-4.2, 4.2])
    return Objective(net, CrossEntropy(), [(x, y)])

def in_double():
    return fitted().in_double()
"""


def fitted() -> Objective:
    """Return the loss of a classifier that fits its data, where p (1 - p) cancels in float32."""
    scope: dict[str, object] = {}
    exec(FITTED, scope)
    return scope["fitted"]()  # type: ignore[operator, no-any-return]


def record(path: Path, objective: Objective) -> Run:
    optimizer = torch.optim.SGD(objective.model.parameters(), 1e-6)
    x, y = objective.data.batches[0]
    with Recorder(path, objective.model, optimizer, objective, "standard", steps=2, overhead=1) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(objective.model(x.float()), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    return Run.open(path)


def test_recorder_and_reports_name_cause_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(RecordingWarning, match=SAYS) as given:
        run = record(tmp_path / "single", fitted())
    assert sum(SAYS in str(one.message) for one in given) == 1
    rows = run.probes[run.probes["measure"] == "lambda_max"]
    assert rows["cause"].str.contains(CAUSE, regex=False).all()
    assert rows["cause"].str.contains("large terms cancel", regex=False).all()
    assert not rows["converged"].any()
    assert run.probes[run.probes["converged"].fillna(False).astype(bool)]["cause"].isna().all()
    closing = capsys.readouterr().err.splitlines()[-1]
    assert SAYS in closing
    assert REMEDY in closing
    assert any(SAYS in one for one in run.manifest["warnings"])
    for report in (sharpness, flatness, overview):
        (note,) = [note for note in report([run]).notes if SAYS in note]
        assert note.startswith("single: lambda_max")
        assert CAUSE in note
        assert REMEDY in note


def test_the_remedy_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        run = record(tmp_path / "double", fitted().in_double())
    assert not [one for one in given if SAYS in str(one.message)]
    assert run.probes["cause"].isna().all()
    assert run.probes[run.probes["measure"] == "lambda_max"]["converged"].all()
    assert SAYS not in capsys.readouterr().err
    assert not [note for note in sharpness([run]).notes if SAYS in note]


def test_probe_names_cause_and_remedy_and_the_remedy_works(tmp_path: Path) -> None:
    record(tmp_path / "run", fitted().in_double())
    (tmp_path / "mine.py").write_text(FITTED)

    def probe(name: str, *more: str) -> str:
        given = ["probe", str(tmp_path / "run"), "--objective", f"{tmp_path / 'mine.py'}:{name}"]
        found = CliRunner().invoke(app, [*given, "--measures", "lambda_max", *more], catch_exceptions=False)
        assert found.exit_code == 0
        return " ".join(found.stdout.split())

    said = probe("fitted")
    assert f"Bounds not met: lambda_max {SAYS} 1 evaluation (step 2): {CAUSE}" in said
    assert REMEDY in said
    assert "raise --max-products" not in said
    assert CAUSE in json.loads(probe("fitted", "--json"))["rows"][0]["cause"]
    assert "Bounds not met" not in probe("in_double")
    (row,) = json.loads(probe("in_double", "--json"))["rows"]
    assert row["cause"] is None
    assert row["converged"]


def test_causes_are_summed_up_by_the_last_and_only_where_a_bound_was_requested() -> None:
    row = {"step": 1, "measure": "lambda_max", "cause": "a", "dtype": "float32"}
    assert unreachable([]) is None
    assert unreachable([{**row, "cause": None}, {**row, "cause": float("nan")}, {**row, "cause": ""}]) is None
    assert unreachable([{**row, "measure": "loss"}]) is None
    found = unreachable([{**row, "step": 7, "cause": "b", "dtype": "float64"}, row, {**row, "measure": "trace"}])
    assert found is not None
    assert (found.measures, found.steps, found.cause) == (("lambda_max", "trace"), (1, 7), "b")
    assert found.remedy == REMEDY_IN_DOUBLE
    assert str(found).startswith("lambda_max, trace missed the requested bound at 2 evaluations (last: step 7): b; ")
