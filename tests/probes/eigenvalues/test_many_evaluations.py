"""Memory of a process that measures the same objective repeatedly does not grow."""

from __future__ import annotations

import subprocess
import sys

import pytest

RESIDENT = """
import resource, sys, torch
from torch import nn
from lossscope.probes import CrossEntropy, Objective, hessian, measure_spectrum

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)  # MB

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 3))
objective = Objective(net, CrossEntropy(), [(torch.randn(1024, 8), torch.arange(1024) % 3)])
evaluation = lambda: measure_spectrum(hessian(objective), top=1, quantities=("top",), max_products=6)
for _ in range(5):
    evaluation()
before = peak()
for _ in range(25):
    evaluation()
print(peak() - before)
"""


def test_many_evaluations_of_one_objective_do_not_grow_the_process() -> None:
    pytest.importorskip("resource")
    run = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 20  # a kept graph holds 1024 x 256 floats and more, 25 of them at least 25 MB
