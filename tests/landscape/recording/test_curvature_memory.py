"""Memory of a run's evaluations: rows say what was kept, a resumed run keeps its number, bad input is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import read_manifest
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

MEASURES = ("lambda_max", "trace", "density", "top_share")


def recorded(path: Path, **settings: Any) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 4))
    objective = Objective(model, CrossEntropy(), [(torch.randn(16, 8), torch.randint(0, 4, (16,)))])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(path, model, optimizer, objective, steps=2, overhead=1, measures=MEASURES, **settings) as recorder:
        loss = objective.loss_fn(model, objective.data.batches[0])
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    return Run.open(path)


def test_rows_say_what_was_kept_and_for_which_memory(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", memory="20 KB")
    rows = run.probes.set_index("measure")
    assert set(rows.loc[["lambda_max", "trace"], "basis"]) == {"three vectors"}
    assert set(rows.loc[["lambda_max", "trace"], "memory"]) == {20_000}
    assert set(run.densities["basis"]) == {"three vectors"}
    assert "top_share" not in rows.index


def test_with_enough_memory_rows_name_none(tmp_path: Path) -> None:
    rows = recorded(tmp_path / "run").probes.set_index("measure")
    assert set(rows.loc[["lambda_max", "trace"], "basis"]) == {"whole basis"}
    assert rows.loc[["lambda_max", "trace"], "memory"].isna().all()
    assert "top_share" in rows.index


def test_a_resumed_run_keeps_its_memory(tmp_path: Path) -> None:
    recorded(tmp_path / "run", memory=20_000)
    assert read_manifest(tmp_path / "run")["curvature_memory"] == 20_000
    recorded(tmp_path / "run", resume_at=1)
    assert read_manifest(tmp_path / "run")["curvature_memory"] == 20_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "much"}, "memory must be a positive number"),
        ({"spill": "/none"}, "spill must be an existing folder"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        recorded(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
