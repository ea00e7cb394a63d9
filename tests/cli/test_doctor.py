"""`lossscope doctor`: its output, and exit code 3 for a defect."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from lossscope.cli import doctor as module
from lossscope.cli.doctor import TESTED_VERSIONS, doctor
from lossscope.landscape.errors import ConfigError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.selfcheck.check import Check, InconclusiveError, Place
from lossscope.probes.selfcheck.products import PRODUCT_CHECKS

app = typer.Typer()
app.command()(doctor)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def unjudged(place: Place) -> tuple[float, float, str]:
    raise InconclusiveError("oracle is not installed: run `pip install oracle==1`")


HOLDS = Check("holds", "one is one", lambda place: (0.0, 1.0, "integers"))
FAILS = Check("fails", "one is two", lambda place: (1.0, 0.5, "integers apart"))
UNKNOWN = Check("unknown", "an oracle agrees", unjudged)
PRODUCTS = {
    "network": "digits-mlp",
    "parameters": 6570,
    "samples": 512,
    "method": "differences",
    "fallback_reason": "reverse cannot take products here (RuntimeError: no rule)",
    "gradient_seconds": 0.001,
    "product_gradients": float("nan"),
}


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that replaces the checks; the products are not measured."""

    def chosen(*checks: Check) -> None:
        monkeypatch.setattr("lossscope.probes.selfcheck.suite.CHECKS", checks)
        monkeypatch.setattr(module, "_product_cost", lambda place: PRODUCTS)

    return chosen


def test_when_all_checks_pass_the_exit_code_is_0(checks: Any) -> None:
    checks(HOLDS, UNKNOWN)
    result = invoke()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "1 pass, 0 FAIL, 1 inconclusive" in result.stdout


def test_when_one_fails_the_exit_code_is_3_and_the_rest_is_printed_too(checks: Any) -> None:
    checks(FAILS, HOLDS, UNKNOWN)
    result = invoke()
    assert result.exit_code == 3
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert " ".join(lines["fails"].split()) == "fails FAIL 1.0 0.50 one is two: integers apart"
    assert " ".join(lines["holds"].split()) == "holds pass 0 1.0 one is one"
    assert lines["unknown"].split()[1:4] == ["inconclusive", "–", "–"]
    assert "pip install oracle==1" in " ".join(result.stdout.split())
    assert "1 pass, 1 FAIL, 1 inconclusive" in result.stdout
    assert "differences" in result.stdout
    assert "reverse cannot take products here (RuntimeError: no rule)." in " ".join(result.stdout.split())


def test_an_inconclusive_check_is_never_counted_as_passed(checks: Any) -> None:
    checks(UNKNOWN, UNKNOWN)
    assert json.loads(invoke("--json").stdout)["counts"] == {"pass": 0, "FAIL": 0, "inconclusive": 2}


def test_json_contains_the_same_with_null_for_a_missing_value(checks: Any) -> None:
    checks(HOLDS, FAILS, UNKNOWN)
    result = invoke("--json", "--dtype", "float64")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["schema"] == 1
    passed, failed, unknown = found["checks"]
    assert passed == {
        "name": "holds",
        "statement": "one is one",
        "error": 0,
        "bound": 1,
        "passed": True,
        "detail": "integers",
    }
    assert failed["passed"] is False
    assert (unknown["passed"], unknown["error"], unknown["bound"]) == (None, None, None)
    assert found["counts"] == {"pass": 1, "FAIL": 1, "inconclusive": 1}
    assert found["products"]["product_gradients"] is None
    assert (found["environment"]["device"], found["environment"]["dtype"]) == ("cpu", "float64")
    assert {"python", "torch", "numpy", "scipy", "lossscope", "threads", "pyhessian"} <= set(found["environment"])


def test_a_product_that_is_off_by_a_thousandth_ends_in_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, checks: Any
) -> None:
    checks(*PRODUCT_CHECKS[:4])
    assert invoke().exit_code == 0
    true = SymmetricOperator.__matmul__
    monkeypatch.setattr(SymmetricOperator, "__matmul__", lambda self, V: 1.001 * true(self, V))
    result = invoke()
    assert result.exit_code == 3
    assert "0 pass, 4 FAIL, 0 inconclusive" in result.stdout


def test_products_that_raise_are_one_more_failure(monkeypatch: pytest.MonkeyPatch, checks: Any) -> None:
    checks(HOLDS)

    def broken(place: Place) -> Any:
        raise RuntimeError("no kernel\nhere")

    monkeypatch.setattr(module, "_product_cost", broken)
    result = invoke("--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["products"] is None
    assert found["checks"][-1]["detail"] == "it raised RuntimeError: no kernel here"
    assert "1 pass, 1 FAIL" in invoke().stdout


def test_products_of_a_real_network_are_measured_in_gradients() -> None:
    found = module._product_cost(Place(torch.float32, torch.device("cpu")))
    assert (found["method"], found["fallback_reason"]) == ("reverse", "")
    assert 0 < found["product_gradients"] < 100
    assert found["gradient_seconds"] > 0
    assert found["parameters"] == 6570


def test_tested_versions_are_those_of_the_constraints_and_cover_all_dependencies() -> None:
    root = Path(__file__).parents[2]
    pinned = dict(
        line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    dependencies = [re.split(r"[<>=!~\[; ]", one)[0] for one in project["dependencies"]]
    assert {name: pinned[name] for name in dependencies} == TESTED_VERSIONS


@pytest.mark.parametrize("as_json", [True, False])
def test_versions_outside_of_those_tested_are_named(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, checks: Any
) -> None:
    checks(HOLDS)
    installed: dict[str, str | None] = {**TESTED_VERSIONS, "numpy": "9.8.7", "pyhessian": None}
    installed["torch"] = TESTED_VERSIONS["torch"] + "+cpu"  # a build of the same release
    monkeypatch.setattr(module, "_installed", lambda name: installed.get(name))
    result = invoke(*(["--json"] if as_json else []))
    assert result.exit_code == 0
    if as_json:
        expected = {"numpy": {"installed": "9.8.7", "tested": TESTED_VERSIONS["numpy"]}}
        assert json.loads(result.stdout)["untested_versions"] == expected
    else:
        table = result.stdout.partition("Untested versions")[2].partition("Checks")[0]
        assert ["numpy", "9.8.7", TESTED_VERSIONS["numpy"]] in [line.split() for line in table.splitlines()]
        assert "torch" not in table


def test_without_untested_versions_there_is_no_table(monkeypatch: pytest.MonkeyPatch, checks: Any) -> None:
    checks(HOLDS)
    monkeypatch.setattr(module, "_installed", TESTED_VERSIONS.get)
    assert "Untested versions" not in invoke().stdout


def test_a_device_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no cuda device here: use --device cpu"):
        invoke("--device", "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no mps device here: use --device cpu"):
        invoke("--device", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="mps has no float64: use --dtype float32"):
        invoke("--device", "mps", "--dtype", "float64")


@pytest.mark.parametrize("wrong", [("--device", "tpu"), ("--dtype", "float16"), ("--slow",)])
def test_a_wrong_option_exits_2(wrong: tuple[str, ...]) -> None:
    result = invoke(*wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr
