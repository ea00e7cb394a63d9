"""`lossscope budget`: one line on a product, a table of groups, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lossscope.cli.amounts import bytes_text, duration_text
from lossscope.cli.main import app
from lossscope.errors import LossscopeError

MINE = """
import torch
from lossscope.probes import CrossEntropy, Objective

def objective():
    data = [(torch.ones(4, 3), torch.arange(4) % 2)]
    return Objective(torch.nn.Linear(3, 2), CrossEntropy(), data)
"""


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["budget", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:objective"


def test_the_table_has_a_line_for_each_group(mine: str) -> None:
    text = invoke("--objective", mine, "--measures", "lambda_max,trace,loss", "--max-products", "50")
    first, *_ = text.splitlines()
    assert first.startswith("8 parameters; a product takes ")
    assert " gradients (reverse), and " in first
    (row,) = (line for line in text.splitlines() if line.startswith("spectrum"))
    assert " - 50 " in row
    assert any(line.startswith("loss ") and "a few" in line for line in text.splitlines())
    assert "Beside products, loss: one loss." in text


def test_json_has_the_numbers(mine: str) -> None:
    found: dict[str, Any] = json.loads(invoke("--objective", mine, "--memory", "2MB", "--json", "--measures", "trace"))
    assert found["memory"] == 2_000_000
    (group,) = found["groups"]
    assert (group["group"], group["measures"], group["products"]) == ("spectrum", ["trace"], 200)
    product = found["product"]
    least = (200 + 3 * 3.5) * product["product_seconds"]  # three are compared with float64
    assert group["seconds"] == pytest.approx(least + 200 * 12 * product["sum_seconds"])
    assert group["bytes"] == group["vectors"] * 32 + found["product"]["product_bytes"]


def test_a_workload_is_priced_by_its_name() -> None:
    assert invoke("digits-mlp", "--measures", "lambda_max").startswith("6570 parameters; ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a run or a workload, or --objective"),
        (("digits-mpl",), "digits-mlp"),
        (("digits-mlp", "--objective", "mine.py:objective"), "and not both"),
        (("digits-mlp", "--memory", "much"), 'memory must be a positive number of bytes or text such as "6GB"'),
        (("digits-mlp", "--measures", "lambda"), "unknown measure 'lambda'"),
        (("digits-mlp", "--measures", "trace", "--max-products", "1"), "need at least"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(LossscopeError, match=words) as found:
        invoke(*arguments)
    assert "\n" not in str(found.value)


def test_amounts_have_units() -> None:
    assert [bytes_text(n) for n in (500, 2_500_000, 6 * 10**9)] == ["0.5 kB", "2.5 MB", "6 GB"]
    assert [duration_text(s) for s in (0.0123, 5.4, 125.0)] == ["12.3 ms", "5 s", "2 min 5 s"]
