"""`lossscope doctor`: what it prints, and that a defect ends in exit code 3."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from lossscope.cli import doctor as module
from lossscope.cli.doctor import doctor
from lossscope.landscape.errors import ConfigError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.product_choice import Choice
from lossscope.probes.operators.timing import Trial
from lossscope.probes.selfcheck.check import Judge, NotJudgedError, Place
from lossscope.probes.selfcheck.products import PRODUCT_CHECKS

app = typer.Typer()
app.command()(doctor)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def unjudged(place: Place) -> tuple[float, float, str]:
    raise NotJudgedError("oracle is not installed: run `pip install oracle==1` to have it")


HOLDS = Judge("holds", "one is one", lambda place: (0.0, 1.0, "integers"))
FAILS = Judge("fails", "one is two", lambda place: (1.0, 0.5, "integers apart"))
UNKNOWN = Judge("unknown", "an oracle agrees", unjudged)
PRODUCTS = {
    "network": "digits-mlp",
    "parameters": 6570,
    "samples": 512,
    "gradient_seconds": 0.001,
    "chosen": [{"expected": 200, "method": "reverse", "width": 1, "why": "by rule"}],
    "candidates": [
        {"method": "reverse", "width": 1, "setup_gradients": 1.0, "product_gradients": 2.0, "refused": ""},
        {"method": "batched", "width": 8, "setup_gradients": float("nan"), "product_gradients": float("nan"),
         "refused": "RuntimeError: no rule"},
    ],
    "untried": ["compile"],
}  # fmt: skip


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what is checked, and leaves the products out."""

    def chosen(*judges: Judge) -> None:
        monkeypatch.setattr("lossscope.probes.selfcheck.suite.CHECKS", judges)
        monkeypatch.setattr(module, "_chosen", lambda place: PRODUCTS)

    return chosen


def test_when_all_holds_the_exit_code_is_0(checks: Any) -> None:
    checks(HOLDS, UNKNOWN)
    result = invoke()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "1 pass, 0 FAIL, 1 not judged" in result.stdout


def test_when_one_fails_the_exit_code_is_3_and_the_rest_is_printed_too(checks: Any) -> None:
    checks(FAILS, HOLDS, UNKNOWN)
    result = invoke()
    assert result.exit_code == 3
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert " ".join(lines["fails"].split()) == "fails FAIL 1.0 0.50 one is two: integers apart"
    assert " ".join(lines["holds"].split()) == "holds pass 0 1.0 one is one"
    assert lines["unknown"].split()[1:5] == ["not", "judged", "–", "–"]
    assert "pip install oracle==1" in " ".join(result.stdout.split())
    assert "1 pass, 1 FAIL, 1 not judged" in result.stdout
    assert "for 200 products auto takes reverse" in result.stdout
    assert "RuntimeError: no rule" in result.stdout


def test_what_could_not_be_judged_is_never_counted_as_passed(checks: Any) -> None:
    checks(UNKNOWN, UNKNOWN)
    assert json.loads(invoke("--json").stdout)["counts"] == {"pass": 0, "FAIL": 0, "not judged": 2}


def test_json_holds_the_same_with_null_for_a_gap(checks: Any) -> None:
    checks(HOLDS, FAILS, UNKNOWN)
    result = invoke("--json", "--dtype", "float64")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["schema"] == 1
    held, failed, unknown = found["checks"]
    assert held == {"name": "holds", "what": "one is one", "figure": 0, "bound": 1, "held": True, "why": "integers"}
    assert failed["held"] is False
    assert (unknown["held"], unknown["figure"], unknown["bound"]) == (None, None, None)
    assert found["counts"] == {"pass": 1, "FAIL": 1, "not judged": 1}
    assert found["products"]["candidates"][1]["product_gradients"] is None
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
    assert "0 pass, 4 FAIL, 0 not judged" in result.stdout


def test_products_that_raise_are_one_more_failure(monkeypatch: pytest.MonkeyPatch, checks: Any) -> None:
    checks(HOLDS)

    def broken(place: Place) -> Any:
        raise RuntimeError("no kernel\nhere")

    monkeypatch.setattr(module, "_chosen", broken)
    result = invoke("--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["products"] is None
    assert found["checks"][-1]["why"] == "it raised RuntimeError: no kernel here"
    assert "1 pass, 1 FAIL" in invoke().stdout


def test_the_methods_of_a_real_network_are_measured_in_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_JOBS", (200, 1000))
    found = module._chosen(Place(torch.float32, torch.device("cpu")))
    assert [one["expected"] for one in found["chosen"]] == [200, 1000]
    names = {one["method"] for one in found["candidates"]} | set(found["untried"])
    assert {one["method"] for one in found["chosen"]} <= names
    assert {"reverse", "batched", "forward", "linearize", "compile", "differences"} <= names
    plain = next(one for one in found["candidates"] if one["method"] == "reverse")
    assert 0 < plain["product_gradients"] < 100
    assert found["gradient_seconds"] > 0
    assert found["parameters"] == 6570


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


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], "no other method was worth the time to try it"),
        ([("batched", "RuntimeError: no rule")], "every other method that was tried is wrong here or raises"),
        ([("batched", "RuntimeError: no rule"), ("forward", "")], "the cheapest of 2"),
    ],
)
def test_a_method_without_a_rival_says_why_it_has_none(others, words):
    trials = (Trial("reverse", 1, 1e-3, 1e-3), *(Trial(name, 1, 1e-3, 1e-3, refused=why) for name, why in others))
    count = sum(not trial.refused for trial in trials)
    assert words in module._why(Choice("reverse", 1, f"measured: the cheapest of {count}", trials))


def test_a_method_by_rule_says_its_rule():
    assert module._why(Choice("reverse", 1, "30 products are too few")) == "30 products are too few"
