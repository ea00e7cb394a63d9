"""The benchmark of a CUDA card: its table on the CPU, and its sentence where there is no card."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from helpers import BENCHMARKS

SCRIPT = BENCHMARKS / "device.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.mark.slow
def test_a_row_has_times_memory_rounding_and_eigenvalue() -> None:
    done = run("--device", "cpu", "--shapes", "tiny")
    assert done.returncode == 0, done.stderr
    (first,) = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert first[1].strip() == "float32"
    assert 0 < float(first[6]) < 1e-4  # rounding of float32
    assert "[" in first[7]
    assert first[8].strip() == "reverse"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_stops_with_a_sentence() -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr.strip().startswith("no CUDA card is here")
