"""Ablations: what is trained, kept, resumed and listed, and that none of it changes a number."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.experiments.ablation import Ablation, ablate
from lossscope.landscape.experiments.grid import Grid, grid_of
from lossscope.landscape.experiments.grid_check import resolved_configs
from lossscope.landscape.experiments.one_run import Task, folder_of, work
from lossscope.landscape.experiments.plan import planned
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_folder import RunLock
from lossscope.landscape.training import parallel
from lossscope.landscape.training.config import TrainConfig

TABLES = ("steps", "tensors", "spectra", "probes")
TIMES = ["seconds", "gradients"]  # columns that hold times
HERE = "sequential"  # backend that trains in this process
MINE = """
from lossscope.landscape.training.workloads import Workload, digits, digits_mlp
import helper_of_mine

def task():
    return Workload("mine", "digits", digits_mlp, lambda: digits(flat=True), size=1797, train_share=0.8,
                    batch_size=64, steps=4, eval_every=2)

def clash():
    import dataclasses
    return dataclasses.replace(task(), name="digits-mlp")

def wrong():
    return 3

def broken():
    import dataclasses
    return dataclasses.replace(task(), network=lambda: 1 / 0)
"""


def grid(out: Path, **more: Any) -> Grid:
    arms = {"base": {"optimizer": "ars2-base"}, "sync": {"optimizer": "ars2-sync"}}
    few = {"steps": 8, "evaluations": 3, "curvature_samples": 32, "measures": ["lambda_max"]}
    return grid_of({"name": "t", "out": str(out), "seeds": 2, "arms": arms, **few, **more})


def statuses(made: Ablation) -> dict[str, str]:
    return {one.name: one.status for one in made.outcomes}


def same_numbers(a: Path, b: Path) -> None:
    """Assert that two runs hold the same rows, times apart, and end with the same weights."""
    one, other = Run.open(a), Run.open(b)
    for table in TABLES:
        rows = [getattr(run, table).drop(columns=TIMES, errors="ignore").reset_index(drop=True) for run in (one, other)]
        assert len(rows[0])
        pd.testing.assert_frame_equal(*rows, check_exact=True)
    last = "checkpoints/step-000000008/weights.safetensors"
    assert (a / last).read_bytes() == (b / last).read_bytes()


def interrupted(config: TrainConfig, step: int) -> None:
    """Train a run until a step, and end as an interrupt does."""

    def stop(taken: int, steps: int, loss: float) -> None:
        if taken == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(Task(config), stop)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """Return an ablation that was trained in one go, for reading only."""
    return ablate(grid(tmp_path_factory.mktemp("made")), backend=HERE)


@pytest.fixture
def warm_workers(warm: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers that have loaded torch."""
    monkeypatch.setattr(parallel, "get_context", lambda method: warm)


def test_all_is_trained_once_and_kept_afterwards(made: Ablation) -> None:
    assert set(statuses(made).values()) == {"trained"}
    before = {one.name: (made.grid.folder / one.name / "run.json").read_bytes() for one in made.outcomes}
    again = ablate(made.grid, jobs=3)
    assert set(statuses(again).values()) == {"kept"}
    assert before == {one.name: (made.grid.folder / one.name / "run.json").read_bytes() for one in made.outcomes}


def test_an_interrupted_ablation_that_goes_on_equals_an_uninterrupted_one(made: Ablation, tmp_path: Path) -> None:
    mine = grid(tmp_path)
    configs = resolved_configs(mine)
    interrupted(configs[1], 6)  # after an evaluation and a checkpoint
    saved = [path.name for path in (folder_of(configs[1]) / "checkpoints").iterdir()]
    assert "step-000000008" not in saved
    assert len(saved) >= 2
    assert planned(mine, time_arms=False).states == {"absent": 3, "resumable": 1}
    found = ablate(mine, backend=HERE)
    assert statuses(found) == {"base-s0": "trained", "sync-s0": "resumed", "base-s1": "trained", "sync-s1": "trained"}
    for one in found.outcomes:
        same_numbers(mine.folder / one.name, made.grid.folder / one.name)


def test_a_replay_is_trained_after_the_run_of_its_seed_and_ascends_as_often(tmp_path: Path) -> None:
    arms = {"timer": {"optimizer": "ars2-timer", "replay": "aga"}, "aga": {"optimizer": "ars2-aga"}}
    mine = grid(tmp_path, arms=arms, steps=100, evaluations=0)
    found = ablate(mine, backend=HERE)
    assert set(statuses(found).values()) == {"trained"}
    for seed in (0, 1):
        aga, timer = (Run.open(mine.folder / f"{arm}-s{seed}") for arm in ("aga", "timer"))
        both = [run.steps["synced"].to_numpy(dtype=bool) for run in (aga, timer)]
        windows = [one.reshape(50, 2).sum(1).tolist() for one in both]
        assert windows[0] == windows[1]
        assert both[0].tolist() != both[1].tolist()
    assert list(by_arm(found.runs)) == ["timer", "aga"]  # the numbers replayed differ between seeds, and split no arm


def test_a_run_without_a_checkpoint_is_made_again(tmp_path: Path) -> None:
    mine = grid(tmp_path, seeds=1, checkpoints=0)
    interrupted(resolved_configs(mine)[0], 2)
    assert set(statuses(ablate(mine, backend=HERE)).values()) == {"trained"}


def test_processes_of_any_number_make_the_same_runs_and_a_diverged_one_is_listed(
    warm_workers: None, made: Ablation, tmp_path: Path
) -> None:
    samples: list[tuple[int, int, str]] = []
    mine = grid(tmp_path, arms={"far": {"optimizer": "sgd", "lr": 1e30}, **made.grid.arms})
    found = ablate(mine, jobs=2, progress=lambda *sample: samples.append(sample))
    assert samples[-1][2] == "6 of 6 runs"
    lost = {one.name: (one.status, one.why) for one in found.lost}
    assert {name: status for name, (status, _) in lost.items()} == {"far-s0": "diverged", "far-s1": "diverged"}
    assert lost["far-s0"][1].startswith("the loss became nan at step")
    for one in found.finished:
        same_numbers(mine.folder / one.name, made.grid.folder / one.name)
    assert statuses(ablate(mine, backend=HERE)) == {
        name: "diverged" if name.startswith("far") else "kept" for name in statuses(found)
    }


def test_a_killed_process_loses_its_own_run_and_the_next_ablation_goes_on_with_it(
    warm_workers: None, made: Ablation, tmp_path: Path
) -> None:
    mine = grid(tmp_path)
    place = tmp_path / "deadly.py"
    place.write_text(
        "import os, signal, pathlib, dataclasses\n"
        "from lossscope.landscape.training.workloads import WORKLOADS\n"
        "def task():\n"
        "    return dataclasses.replace(WORKLOADS['digits-mlp'], name='deadly', network=network)\n"
        "calls = []\n"
        "def network():\n"
        f"    spot = pathlib.Path({str(tmp_path / 'armed')!r})\n"
        "    calls.append(1)\n"
        "    if spot.exists() and len(calls) == 2 and os.getpid() != int(spot.read_text()):\n"
        "        spot.unlink()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return WORKLOADS['digits-mlp'].network()\n"
    )
    (tmp_path / "armed").write_text(str(os.getpid()))
    found = ablate(mine, jobs=1, workload=f"{place}:task")
    assert list(statuses(found).values()) == ["killed", "trained", "trained", "trained"]
    assert "its process was killed" in found.lost[0].why
    again = ablate(mine, backend=HERE, workload=f"{place}:task")
    assert list(statuses(again).values()) == ["trained", "kept", "kept", "kept"]
    for one in again.outcomes:
        same_numbers(mine.folder / one.name, made.grid.folder / one.name)


def test_a_run_with_another_config_is_refused_by_name_before_anything_is_trained(made: Ablation) -> None:
    other = replace(made.grid, settings={**made.grid.settings, "steps": 9}, seeds=(0, 1, 2))
    with pytest.raises(ConfigError, match=r"run .*base-s0 was made with steps = 8, the grid says 9: rename the grid"):
        ablate(other, backend=HERE)
    assert not (made.grid.folder / "base-s2").exists()


def test_force_replaces_the_runs(tmp_path: Path) -> None:
    mine = grid(tmp_path, seeds=1, arms={"base": {"optimizer": "ars2-base"}})
    ablate(mine, backend=HERE)
    longer = replace(mine, settings={**mine.settings, "steps": 9})
    assert statuses(ablate(longer, backend=HERE, force=True)) == {"base-s0": "trained"}
    assert Run.open(mine.folder / "base-s0").manifest["steps"] == 9


def test_a_run_that_another_process_records_is_waited_for(made: Ablation, tmp_path: Path) -> None:
    mine = grid(tmp_path, seeds=1)
    config = resolved_configs(mine)[0]
    interrupted(config, 6)
    manifest = folder_of(config) / "run.json"
    manifest.write_text(manifest.read_text().replace('"status": "failed"', '"status": "running"'))
    lock = RunLock(folder_of(config).absolute())
    said: list[str] = []

    def tell(step: int, steps: int, words: str) -> None:
        said.append(words)
        if words.startswith("waiting"):
            lock.release()

    found = ablate(mine, backend=HERE, progress=tell)
    assert "waiting for 1 runs that another process records" in said
    assert statuses(found) == {"base-s0": "resumed", "sync-s0": "trained"}
    same_numbers(mine.folder / "base-s0", made.grid.folder / "base-s0")


def _both(folder: str) -> dict[str, str]:
    return statuses(ablate(grid(Path(folder)), backend=HERE))


def test_two_ablations_in_one_folder_make_each_run_once(
    warm: ForkServerContext, made: Ablation, tmp_path: Path
) -> None:
    with warm.Pool(2) as pool:
        found = pool.map(_both, [str(tmp_path)] * 2, chunksize=1)
    assert all(set(one.values()) <= {"trained", "kept"} for one in found)
    assert [[one[name] for one in found].count("trained") for name in found[0]] == [1] * 4
    for name in found[0]:
        same_numbers(tmp_path / "t" / name, made.grid.folder / name)


def test_a_workload_of_the_user_is_trained_in_other_processes_and_other_code_is_refused(
    warm_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("helper_of_mine.py").write_text("")
    mine = grid(tmp_path, seeds=1)
    found = ablate(mine, jobs=1, workload="mine.py:task")
    assert {(one.workload, one.status) for one in found.outcomes} == {("mine", "trained")}
    for name, words in {
        "tusk": "has no 'tusk'; did you mean task",
        "clash": "named 'digits-mlp', a name that is taken",
        "wrong": "returned int, need a lossscope.landscape.training.workloads.Workload",
        "broken": "cannot be built: ZeroDivisionError",
    }.items():
        with pytest.raises(ConfigError, match=words):
            ablate(mine, workload=f"mine.py:{name}")
    with pytest.raises(ConfigError, match=r"--workload .mine\.py. is not FILE\.py:NAME"):
        ablate(mine, workload="mine.py")
    Path("other.py").write_text(MINE.replace("64", "32"))
    with pytest.raises(ConfigError, match="a name that is taken"):
        ablate(mine, workload="other.py:task")


def test_jobs_and_backends_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs must be >= 1, got 0"):
        ablate(grid(tmp_path), jobs=0)
    with pytest.raises(ConfigError, match=r"unknown joblib backend .lokey.; did you mean loky\?"):
        ablate(grid(tmp_path), backend="lokey")
    if (os.cpu_count() or 1) > 1:
        with pytest.raises(ConfigError, match=r"999 jobs of 2 threads need 1998 cores"):
            ablate(grid(tmp_path, threads=2), jobs=999)
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_loky_makes_the_same_runs_and_goes_on_after_its_processes_were_killed(made: Ablation, tmp_path: Path) -> None:
    mine = grid(tmp_path)
    killed: list[bool] = []

    def kill(step: int, steps: int, words: str) -> None:
        if not killed:
            from joblib.externals.loky import get_reusable_executor

            killed.append(True)
            for pid in get_reusable_executor()._processes:
                os.kill(pid, signal.SIGKILL)

    found = ablate(mine, jobs=2, backend="loky", progress=kill)
    assert set(statuses(found).values()) <= {"trained", "resumed", "kept"}
    for one in found.outcomes:
        same_numbers(mine.folder / one.name, made.grid.folder / one.name)


@pytest.mark.slow
def test_a_local_cluster_of_dask_with_two_workers_makes_the_same_runs(made: Ablation, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    mine = grid(tmp_path)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        found = ablate(mine, jobs=2, backend="dask")
    assert set(statuses(found).values()) == {"trained"}
    for one in found.outcomes:
        same_numbers(mine.folder / one.name, made.grid.folder / one.name)
