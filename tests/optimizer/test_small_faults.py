"""Reading the optimizer has no effect, and no product file reads its local variables by `locals()`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.optimizer import ARS2Neo, create

ROOT = Path(__file__).parents[2]
FOLDERS = ("optimizer", "probes", "landscape", "reports", "cli", "typings/lossscope")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("name", ["ars2-sync", "sgd"])
def test_reading_the_attributes_of_an_optimizer_changes_nothing(name):
    """Lightning reads `_step_supports_amp_scaling` before it clips, then steps by a closure."""
    model, twin = network(), network()
    optimizer, untouched = create(name, model, lr=0.01), create(name, twin, lr=0.01)

    def step(model: nn.Module, optimizer: Any) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(5, 4)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    for _ in range(2):
        assert getattr(optimizer, "_step_supports_amp_scaling", False) is False
        for attribute in dir(optimizer):
            getattr(optimizer, attribute, None)
        step(model, optimizer)
        step(twin, untouched)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_scaler_is_found_behind_wrappers_and_a_function_named_step_is_none():
    model = network()
    optimizer: Any = create("ars2-sync", model, lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # wraps step
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)

    class Trainer:
        def step(self, take: Any) -> None:
            for _ in optimizer.passes(model, scaler=scaler):
                scaler.scale(model(torch.ones(5, 4)).square().mean()).backward()
            take(optimizer)

    with pytest.raises(ValueError, match="passes\\(\\) was given a GradScaler and step\\(\\) was called without it"):
        Trainer().step(lambda o: o.step())
    Trainer().step(scaler.step)
    scaler.update()
    assert optimizer.trigger_state.clock == 1


def test_an_optimizer_is_made_under_a_debugger():
    """A trace function reads the local variables of frames, as debuggers and coverage do."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        frame.f_locals  # noqa: B018
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        optimizer = ARS2Neo(network().named_parameters(), lr=0.5, mode="lazy", k=3)
    finally:
        sys.settrace(before)
    first = optimizer.param_groups[0]
    assert (first["lr"], first["mode"], first["k"], first["rho"]) == (0.5, "lazy", 3, 0.1)


def local_reads(path: Path) -> list[int]:
    """Return the lines that call `locals()` or `vars()` without an argument."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [node for node in calls if isinstance(node.func, ast.Name) and not node.args]
    return [node.lineno for node in named if node.func.id in ("locals", "vars")]


def test_no_product_file_reads_its_local_variables_by_name(tmp_path):
    paths = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert len(paths) > 100
    assert not {path: lines for path in paths if (lines := local_reads(path))}
    planted = tmp_path / "planted.py"
    planted.write_text("def f(a):\n    return {k: v for k, v in locals().items()}\n")
    assert local_reads(planted) == [2]
