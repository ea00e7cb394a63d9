"""Event files of an export, imported by trackio's own reader and read back from its store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lossscope.landscape.export.event_files import event_file, event_file_name
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

pytest.importorskip("trackio")
pytest.importorskip("tbparse", reason="trackio imports event files with its extra tensorboard")

# in a process of its own: trackio fixes its folder when it is imported
SCRIPT = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
trackio.import_tf_events(sys.argv[1], project="lossscope")
logs = {name: SQLiteStorage.get_logs("lossscope", name) for name in SQLiteStorage.get_runs("lossscope")}
print(json.dumps(logs, default=str))
"""


def written(path: Path, factor: float) -> Run:
    store = RunStore.create(path, {"arm": path.name, "seeds": {"init": 0}, "loss_unit": "nats"})
    for step in range(1, 6):
        store.append("steps", {"step": step, "seconds": float(step), "loss": factor / step, "lr": 0.5})
    store.append("probes", {"step": 5, "measure": "lambda_max", "value": 2.5 * factor, "converged": True})
    store.close("finished", "done")
    return Run.open(path)


def test_trackio_imports_every_number_with_its_name_and_step(tmp_path: Path) -> None:
    factors = {"adamw": 1.0, "sync": 2.0}
    for name, factor in factors.items():
        run = written(tmp_path / "runs" / name, factor)
        (tmp_path / "events" / name).mkdir(parents=True)
        (tmp_path / "events" / name / event_file_name(run)).write_bytes(event_file(run))
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "events")],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    logs = json.loads(found.stdout.splitlines()[-1])
    assert len(logs) == len(factors)
    for name, factor in factors.items():
        (rows,) = [some for one, some in logs.items() if name in one]
        values = {
            key: {row["step"]: row[key] for row in rows if key in row} for key in ("loss", "curvature/lambda_max")
        }
        assert values["loss"] == pytest.approx({step: factor / step for step in range(1, 6)})
        assert values["curvature/lambda_max"] == pytest.approx({5: 2.5 * factor})
