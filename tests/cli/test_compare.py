"""`lossscope compare`, `lossscope check` and `lossscope list claims`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.landscape.errors import ConfigError, LandscapeError, RunError

CLAIM = '[[claim]]\nid = "{id}"\ntext = "a text"\nkind = "flatter"\na = "{a}"\nb = "{b}"\nlevel = {level}\n'


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture
def claims(tmp_path):
    """A function that writes a file of claims (id, a, b, level) and returns its path."""

    def write(*found):
        path = tmp_path / "claims.toml"
        path.write_text("\n".join(CLAIM.format(id=id, a=a, b=b, level=level) for id, a, b, level in found))
        return path

    return write


def test_two_arms_of_a_folder_are_compared(study):
    text = invoke("compare", "sync", "base", "--in", study, "--level", "0.02")
    assert text.startswith("sync against base on digits-mlp at training loss 0.02: 6 pairs of seeds\n")
    assert "SUPPORTED: sync is flatter than base on all four measures" in text
    assert invoke("compare", "base", "sync", "--in", study).count("CONTRADICTED") >= 1


def test_arms_are_looked_up_in_the_folder_runs_by_default(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="sync is no run and no folder of runs"):
        invoke("compare", "sync", "base")
    shutil.copytree(study, tmp_path / "runs")
    assert "6 pairs" in invoke("compare", "sync", "base")


def test_two_runs_are_one_pair_and_no_verdict(study):
    text = invoke("compare", study / "sync-s0", study / "base-s1")
    assert "1 pair of seeds" in text
    assert "NOT JUDGED: One pair" in text


def test_two_folders_of_runs_are_two_sides(study, tmp_path):
    for side, arm in (("left", "sync"), ("right", "base")):
        for seed in range(6):
            shutil.copytree(study / f"{arm}-s{seed}", tmp_path / side / f"s{seed}")
    assert "SUPPORTED: sync is flatter than base" in invoke("compare", tmp_path / "left", tmp_path / "right")


def test_two_recordings_of_one_arm_are_named_by_their_folders(study, tmp_path):
    for side in ("left", "right"):
        for seed in range(6):
            shutil.copytree(study / f"sync-s{seed}", tmp_path / side / f"s{seed}")
    text = invoke("compare", tmp_path / "left", tmp_path / "right")
    assert text.startswith("left against right on digits-mlp")
    assert "EQUIVALENT" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "snc", "base"], "no run of arm snc is here; did you mean sync"),
        (["compare", "sync", "sync"], "cannot be compared with itself"),
        (
            ["compare", "sync", "base", "--level", "deep"],
            "--level must be a training loss above 0, or lowest, got deep",
        ),
        (["compare", "sync", "base", "--level", "-1"], "--level must be"),
        (["compare", "sync", "base", "--level", "nan"], "--level must be"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_nearest_name(study, arguments, words):
    with pytest.raises(ConfigError, match=words):
        invoke(*arguments, "--in", study)


def test_a_folder_of_several_arms_is_no_side(study, tmp_path):
    with pytest.raises(ConfigError, match=r"holds runs of several arms \(base, sync\); compare two of them with --in"):
        invoke("compare", study, study / "base-s0")
    with pytest.raises(ConfigError, match="the same place"):
        invoke("compare", study / "base-s0", study / "base-s0")
    with pytest.raises(RunError):
        invoke("compare", "sync", "base", "--in", tmp_path)


def test_formats_and_files(study, tmp_path):
    page = tmp_path / "page.html"
    arguments = ("compare", "sync", "base", "--in", study)
    assert invoke(*arguments, "--format", "html", "--output", page) == ""
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(LandscapeError, match="add --force"):
        invoke(*arguments, "--output", page)
    invoke(*arguments, "--output", page, "--force")
    one, other = invoke(*arguments, "--json"), invoke(*arguments, "--format", "json")
    assert one == other
    assert json.loads(one)["sections"][0]["data"]["status"] == "SUPPORTED"


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([("C1", "sync", "base", 0.02)], 0),
        ([("C1", "sync", "base", 0.02), ("C2", "base", "sync", 0.02)], 3),
        ([("C1", "sync", "base", 0.02), ("C2", "sync", "nobody", 0.02)], 4),
        ([("C1", "sync", "base", 1e-9)], 4),
        ([("C1", "nobody", "base", 0.02), ("C2", "base", "sync", 0.02)], 3),
    ],
)
def test_check_ends_with_the_code_of_its_claims(study, claims, found, code):
    text = invoke("check", claims(*found), "--in", study, code=code)
    assert f"(exit code {code})" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("C")] == [one[0] for one in found]


def test_a_page_of_claims_has_their_hash_and_date(study, claims, tmp_path):
    import hashlib

    path, page = claims(("C1a", "sync", "base", 0.02)), tmp_path / "verdict.html"
    invoke("check", path, "--in", study, "--format", "html", "-o", page)
    words = page.read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in words
    assert "last changed 20" in words
    assert "last changed on" in words  # the claim is younger than its runs


def test_a_wrong_file_of_claims_is_one_line_before_any_run_is_opened(study, tmp_path):
    with pytest.raises(ConfigError):
        invoke("check", tmp_path / "nothing.toml", "--in", study)
    path = tmp_path / "claims.toml"
    path.write_text('[[claim]]\nid = "C1"\ntext = "t"\nkind = "flater"\n')
    with pytest.raises(ConfigError, match="flatter"):
        invoke("check", path, "--in", tmp_path / "no-folder")


def test_a_folder_is_needed_for_claims_of_a_file(claims, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--in DIR"):
        invoke("check", claims(("C1", "sync", "base", 0.02)))


def test_founding_claims_beyond_the_minutes_are_left_out_and_named(study):
    text = invoke("check", "founding", "--in", study, "--minutes", "10", code=3)
    assert "Left out, their runs take more than 10 minutes:" in text
    assert "C3" not in [line.split()[0] for line in text.splitlines() if line[:1] == "C"]
    assert next(line for line in text.splitlines() if line.startswith("C1a")).split()[1] == "SUPPORTED"


def test_founding_claims_are_listed_with_their_sources():
    text = invoke("list", "claims")
    assert "C1a (flatter, 3 minutes)" in text
    assert "source: ARS2-Neo README 1.3 and 3.1" in text
    found = json.loads(invoke("list", "claims", "--json"))["claims"]
    assert {"C1a", "C5", "C23"} <= {one["id"] for one in found}
    assert all(one["text"] and one["kind"] for one in found)


def test_compare_loads_no_torch_and_help_nothing_heavy(study):
    import subprocess
    import sys

    code = (
        "import sys\nfrom lossscope.cli.main import app\n"
        "try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(' '.join({names!r} & set(sys.modules)))\n"
    )
    for arguments, names in (
        (["compare", "sync", "base", "--in", str(study)], {"torch", "matplotlib", "jinja2"}),
        (["check", "--help"], {"torch", "matplotlib", "pandas", "numpy", "scipy", "jinja2"}),
        (["compare", "--help"], {"torch", "matplotlib", "pandas", "numpy", "scipy", "jinja2"}),
    ):
        script = code.format(arguments=arguments, names=names)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stderr == "", arguments


def test_paths_that_are_no_runs_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    with pytest.raises(ConfigError, match="b is no run"):
        invoke("compare", "a", "b")


def test_a_run_and_an_arm_are_no_pair(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    words = r"base is no run and no folder of runs, as runs/sync-s0 is; give two of them, or two arms"
    for sides in (("runs/sync-s0", "base"), ("base", "runs/sync-s0")):
        with pytest.raises(ConfigError, match=words):
            invoke("compare", *sides)


def test_founding_claims_that_fit_the_minutes_have_their_runs_trained(study, tmp_path, monkeypatch):
    from lossscope.cli import founding_runs

    monkeypatch.chdir(tmp_path)
    asked = []

    def train(claims):
        asked.extend(claim.id for claim in claims)
        return study

    monkeypatch.setattr(founding_runs, "train_founding_runs", train)
    text = invoke("check", "founding", "--minutes", "10", code=3)
    assert "C1a" in asked
    assert "C3" not in asked
    assert next(line for line in text.splitlines() if line.startswith("C1a")).split()[1] == "SUPPORTED"
    invoke("check", "founding", "--minutes", "10", "--in", study, code=3)
    invoke("check", "founding", code=3)  # identities that need no run
    assert asked.count("C1a") == 1
