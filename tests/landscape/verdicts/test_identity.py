"""Identities: a counter-example is found where one was planted, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.counter_examples import CHECKS
from lossscope.landscape.verdicts.judge import judge

MODEL = {"parameters": 99, "tensors": [{"name": "0.weight", "shape": [64, 64], "track": "matrix"}]}


def claim(check: str, **keys: Any) -> Claim:
    return Claim("C5", "an identity", "identity", check=check, **keys)


def spectrum(kind: str, values: list[float], **more: Any) -> dict[str, Any]:
    row = {"step": 1, "tensor": "0.weight", "object": kind, "values": values, "error": 1e-6}
    return {**row, "norm": sum(value**2 for value in values) ** 0.5, **more}


def tensor(**more: Any) -> dict[str, Any]:
    return {"step": 1, "tensor": "0.weight", "track": "matrix", **more}


FOUND: dict[str, tuple[str, dict[str, Any], str]] = {
    "condition": (
        "update_condition",
        {"spectra": [spectrum("orthogonal", [1.13, 0.68])]},
        "As stated: step 1, update of 0.weight (64 x 64): singular values 0.68 to 1.13, condition 1.66 (a-s0).",
    ),
    "singular": ("update_condition", {"spectra": [spectrum("orthogonal", [1.2, 0.0])]}, "0 to 1.2, singular"),
    "norm": (
        "update_norm",
        {
            "spectra": [spectrum("orthogonal", [1.0] * 4), spectrum("update", [0.5] * 4)],
            "tensors": [tensor(lr=0.5, energy=1.0)],
        },
        "the step has norm 2 lr E, not lr E",
    ),
    "weights": ("weights_orthogonal", {"spectra": [spectrum("weight", [3.0, 0.1])]}, "singular values 0.1 to 3"),
    "energy": (
        "energy_descent",
        {"tensors": [tensor(step=15, energy_rms=0.25)]},
        "from step 10 to 20 the training loss rose from 0.5 to 0.6 while E / sqrt(numel) of 0.weight was 0.25",
    ),
    "matrices": ("wide_matrices", {}, "0.weight is 64 x 64: m / n = 1"),
}
ABSENT: dict[str, tuple[str, dict[str, Any]]] = {
    "condition": ("update_condition", {"spectra": [spectrum("orthogonal", [1.0, 0.995])]}),
    "condition within the error": ("update_condition", {"spectra": [spectrum("orthogonal", [1.1, 1.0], error=0.06)]}),
    "norm": (
        "update_norm",
        {
            "spectra": [spectrum("orthogonal", [1.0]), spectrum("update", [0.5])],
            "tensors": [tensor(lr=0.5, energy=1.0)],
        },
    ),
    "weights": ("weights_orthogonal", {"spectra": [spectrum("weight", [2.0, 2.0])]}),
    "energy": ("energy_descent", {"tensors": [tensor(step=5, energy_rms=0.25)]}),
}


def with_losses(made: Any, more: dict[str, Any]) -> Any:
    return made.run("a", 0, losses=(1.0, 0.5, 0.6, 0.1), more=more, model=MODEL)


@pytest.mark.parametrize(("check", "more", "words"), FOUND.values(), ids=FOUND)
def test_a_planted_counter_example_is_found_with_its_numbers(made, check, more, words) -> None:
    found = judge(claim(check), [with_losses(made, more)])
    assert found.status == "CONTRADICTED"
    assert words in found.sentence
    assert found.figures["tries"] >= 1
    assert len(found.figures["counter_examples"]) == 1


@pytest.mark.parametrize(("check", "more"), ABSENT.values(), ids=ABSENT)
def test_without_one_the_claim_is_not_supported_either(made, check, more) -> None:
    found = judge(claim(check), [with_losses(made, more)])
    assert (found.status, found.sentence) == ("INCONCLUSIVE", "No counter-example in 1 tries.")


def test_a_wide_matrix_is_no_counter_example(made) -> None:
    model = {"parameters": 99, "tensors": [{"name": "w", "shape": [8, 100], "track": "matrix"}]}
    assert judge(claim("wide_matrices"), [made.run("a", 0, model=model)]).status == "INCONCLUSIVE"


@pytest.mark.parametrize("check", [name for name, one in CHECKS.items() if one.exact is not None])
def test_examples_need_no_run(check) -> None:
    found = judge(claim(check), [])
    assert found.status == "CONTRADICTED"
    assert any(letter.isdigit() for letter in found.sentence)


def test_runs_that_recorded_nothing_of_it_decide_nothing(made) -> None:
    for runs in ([], [made.run("a", 0)]):
        found = judge(claim("update_condition"), runs)
        assert (found.status, found.reasons[0].code) == ("NOT_JUDGED", "NOT_MEASURED")
        assert "--preset full" in found.sentence


def test_only_the_arms_of_the_claim_are_searched(made) -> None:
    more = {"spectra": [spectrum("orthogonal", [1.13, 0.68])]}
    runs = [made.run("a", 0, more=more), made.run("b", 0)]
    assert judge(claim("update_condition", a=("a",)), runs).status == "CONTRADICTED"
    assert judge(claim("update_condition", a=("b",)), runs).status == "NOT_JUDGED"
    missing = judge(claim("update_condition", a=("bb",)), runs)
    assert (missing.status, missing.reasons[0].code) == ("NOT_JUDGED", "NO_PAIRS")
