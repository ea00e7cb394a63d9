"""CLAIMS.toml: what is read, and one clear line for everything else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.verdicts.claims import Claim, founding_claims, read_claims
from lossscope.landscape.verdicts.counter_examples import CHECKS
from lossscope.landscape.verdicts.judge import judge

GOOD = """
[[claim]]
id = "C1b"
text = "... and than AdamW"
source = "README"
kind = "flatter"
a = "sync"
b = ["adamw", "adamw-2lr"]
level = 0.02

[[claim]]
id = "C3"
text = "groks four times as fast"
kind = "bound"
statistic = "first_step(test_accuracy >= 0.99)"
a = "aga"
b = "adamw"
at_least = 4

[[claim]]
id = "C5"
text = "condition one"
kind = "identity"
check = "update_condition"

[[claim]]
id = "C18"
text = "synergy"
kind = "untestable"
reason = "has no definition"
"""


def written(path: Path, text: str) -> Path:
    file = path / "claims.toml"
    file.write_text(text)
    return file


def test_every_kind_is_read_with_hash_and_date(tmp_path) -> None:
    file = written(tmp_path, GOOD)
    os.utime(file, (0, 86_400))
    found = read_claims(file)
    assert found.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert found.modified == "1970-01-02T00:00:00+00:00"
    flatter, bound, identity, untestable = found.claims
    shared = {"file": str(file), "file_hash": found.sha256, "modified": found.modified}
    assert flatter == Claim(
        "C1b", "... and than AdamW", "flatter", "README", ("sync",), ("adamw", "adamw-2lr"), 0.02, **shared
    )
    assert (bound.statistic, bound.at_least, bound.at_most) == ("first_step(test_accuracy >= 0.99)", 4.0, None)
    assert (identity.check, untestable.reason) == ("update_condition", "has no definition")


HEAD = '[[claim]]\nid = "C1"\ntext = "x"\n'
FLATTER = HEAD + 'kind = "flatter"\na = "x"\nb = "y"\n'
BOUND = HEAD + 'kind = "bound"\na = "x"\nb = "y"\n'
BAD = {
    "no toml": ("[[claim", "is not valid TOML"),
    "too deep": ("x = " + "[" * 5000, "TOML|too deeply"),
    "nothing": ("", "holds no claim; each begins with"),
    "no table": ("claim = 3", "holds no claim"),
    "top key": ("claims = 3", "unknown key 'claims'; each claim begins with"),
    "kind": (HEAD + 'kind = "flater"', "claim 'C1': the kind is unknown, got 'flater'; did you mean flatter"),
    "no kind": (HEAD, "the kind is missing"),
    "key": (
        FLATTER + "levle = 0.1",
        "claim 'C1': unknown key 'levle' of a claim of kind 'flatter'; did you mean level",
    ),
    "key of another kind": (FLATTER + "at_least = 1", "unknown key 'at_least'"),
    "missing key": (HEAD + 'kind = "flatter"\na = "x"', "the key b is missing"),
    "level": (FLATTER + "level = 0", "level must be above 0"),
    "level, words": (FLATTER + 'level = "low"', "level must be a number or \"lowest\", got 'low'"),
    "level, nan": (FLATTER + "level = nan", "level must be a number"),
    "level, true": (FLATTER + "level = true", "level must be a number"),
    "level, large": (FLATTER + "level = " + "9" * 400, "level must be a number.*an integer of"),
    "margin": (FLATTER + "margin = 0.8", "margin is a ratio above 1"),
    "measure": (FLATTER + 'measures = "adaptive_trce"', "no measure of the panel; did you mean adaptive_trace"),
    "both sides": (HEAD + 'kind = "flatter"\na = "x"\nb = ["y", "x"]', "x stands on both sides"),
    "twice": (HEAD + 'kind = "flatter"\na = ["x", "x"]\nb = "y"', "a holds a name twice"),
    "no name": (HEAD + 'kind = "flatter"\na = []\nb = "y"', "a must be a name or a list"),
    "name": (HEAD + 'kind = "flatter"\na = [3]\nb = "y"', "a must hold names, got 3"),
    "many names": (HEAD + f'kind = "flatter"\na = {[str(k) for k in range(99)]}\nb = "y"', "list of 1 to 64 names"),
    "text": ('[[claim]]\nid = "C1"\ntext = 3\nkind = "identity"\ncheck = "x"', "text must be a text"),
    "long text": (f'[[claim]]\nid = "C1"\ntext = "{"x" * 5000}"\nkind = "identity"\ncheck = "x"', "1 to 4096 char"),
    "check": (HEAD + 'kind = "identity"\ncheck = "update_conditon"', "unknown check.*did you mean update_condition"),
    "statistic": (
        BOUND + 'statistic = "tst_loss"\nat_most = 0',
        "unknown statistic 'tst_loss'; did you mean test_loss",
    ),
    "column": (BOUND + 'statistic = "first_step(loss >= 1)"\nat_most = 1', "first_step knows the columns"),
    "number": (BOUND + 'statistic = "first_step(test_accuracy >= 1.e)"\nat_most = 1', "needs a number x"),
    "no bound": (BOUND + 'statistic = "test_loss"', "needs one of at_least and at_most"),
    "two bounds": (BOUND + 'statistic = "test_loss"\nat_least = 0\nat_most = 0', "needs one of at_least and at_most"),
    "ratio": (BOUND + 'statistic = "step_ratio"\nat_least = 0', "is a ratio; its bound must be above 0"),
    "no b": (HEAD + 'kind = "bound"\na = "x"\nstatistic = "test_loss"\nat_most = 0', "the key b is missing"),
    "b": (BOUND + 'statistic = "overfit"\nat_most = 1', "leave out the key b"),
    "equal ids": (FLATTER + FLATTER, "two claims have the id 'C1'"),
    "many claims": ("[[claim]]\n" * 1001, "1,001 claims, at most 1,000"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, words) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        read_claims(written(tmp_path, text))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_files_that_cannot_be_read_are_one_clear_line(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_claims(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="folder"):
        read_claims(tmp_path)
    with pytest.raises(ConfigError, match="at most 1,048,576 are read"):
        read_claims(written(tmp_path, "#" * (2**20 + 1)))
    (tmp_path / "claims.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_claims(tmp_path / "claims.toml")


def test_the_founding_claims_are_complete_and_need_no_runs_to_be_read() -> None:
    found = founding_claims()
    numbers = {"".join(letter for letter in claim.id[1:] if letter.isdigit()) for claim in found.claims}
    assert numbers == {str(number) for number in range(1, 24)}
    assert "C5b" in {claim.id for claim in found.claims}
    assert found.modified == ""
    for claim in found.claims:
        assert claim.source.startswith("ARS2-Neo")
        assert claim.kind == "untestable" or (claim.needs and claim.minutes is not None)
        assert judge(claim, []).status == ("CONTRADICTED" if exact(claim) else "NOT_JUDGED")


def exact(claim: Claim) -> bool:
    """Return True if a claim is decided by an example that needs no run."""
    return claim.kind == "identity" and CHECKS[claim.check].exact is not None
