"""Distributed training of two processes; `test_words` has the second rank in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lossscope.landscape.run import Run

pytestmark = pytest.mark.slow


def spawned(folder: Path, who: str) -> list[bytes]:
    script = Path(__file__).with_name("ddp_loop.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(folder), who], check=True, timeout=600)
    return [(folder / f"{who}-rank{rank}").read_bytes() for rank in (0, 1)]


def test_a_recorder_on_one_rank_or_on_all_changes_no_bit_and_ends_no_rank(tmp_path: Path) -> None:
    plain = spawned(tmp_path, "none")
    for who in ("first", "all"):
        assert spawned(tmp_path, who) == plain
        run = Run.open(tmp_path / who)
        assert (run.status, run.steps["step"].tolist()) == ("finished", list(range(1, 9)))
        assert run.probes.loc[run.probes["measure"] == "lambda_max", "step"].tolist() == [0, 8]


def test_sharded_parameters_are_refused_by_name(tmp_path: Path) -> None:
    for words in spawned(tmp_path, "sharded"):
        assert b"is a shard of a DTensor" in words
    assert not (tmp_path / "sharded").exists()
