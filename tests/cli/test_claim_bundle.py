"""`lossscope check --export`: a folder from which the same verdicts follow."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lossscope.cli.main import app
from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.export.logbook import logbook

CLAIMS = """
[[claim]]
id = "sync-is-flatter"
text = "sync is flatter than base <script>alert(1)</script>"
kind = "flatter"
a = "sync"
b = "base"
level = 0.02

[[claim]]
id = "base-is-flatter"
text = "base is flatter"
kind = "flatter"
a = "base"
b = "sync"
level = 0.02
"""


def invoke(*arguments: object, code: int) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def bundle(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "claims.toml").write_text(CLAIMS)
    found = tmp_path / "bundle"
    result = invoke("check", "claims.toml", "--in", study, "--export", found, code=3)
    assert "2 verdicts and" in result.stderr
    return found


def test_the_folder_decides_the_same_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads((bundle / "verdicts.json").read_text())
    monkeypatch.chdir(bundle)
    command = json.loads((bundle / "environment.json").read_text())["command"].split()
    assert command == ["lossscope", "check", "claims.toml", "--in", "runs"]
    again = json.loads(invoke(*command[1:], "--json", code=3).stdout)
    assert again["sections"] == first["sections"]
    assert [one["status"] for one in first["sections"]] == ["SUPPORTED", "CONTRADICTED"]


def test_it_holds_claims_and_tables_and_no_checkpoint(bundle: Path, study: Path) -> None:
    assert (bundle / "claims.toml").read_text() == CLAIMS
    assert {path.name for path in (bundle / "runs").iterdir()} == {path.name for path in study.iterdir()}
    for path in (bundle / "runs").rglob("*"):
        assert path.is_dir() or path.read_bytes() == (study / path.relative_to(bundle / "runs")).read_bytes()
    assert not list(bundle.rglob("checkpoints"))
    recorded = json.loads((bundle / "environment.json").read_text())["recorded"]
    assert recorded["sync-s0"]["torch"] == "2.13.0"


def test_every_file_has_its_hash_and_a_change_is_seen(bundle: Path) -> None:
    lines = [line.split("  ", 1) for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {name for _, name in lines} == files - {"SHA256SUMS"}
    for digest, name in lines:
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    with (bundle / "runs" / "sync-s0" / "probes.parquet").open("ab") as table:
        table.write(b"x")
    found = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stdout == "runs/sync-s0/probes.parquet: FAILED\n"


def test_texts_of_claims_come_out_inert(bundle: Path) -> None:
    for path in [bundle / "README.md", bundle / "verdicts.html", *(bundle / ".trackio").rglob("*.md")]:
        assert "<script>alert" not in path.read_text()


def test_a_folder_is_replaced_only_if_it_is_a_bundle(bundle: Path, study: Path, tmp_path: Path) -> None:
    again = ("check", tmp_path / "claims.toml", "--in", study, "--export")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LandscapeError, match="exists; add --force"):
        invoke(*again, bundle, code=1)
    (bundle / "runs" / "sync-s0" / "run.json").unlink()
    invoke(*again, bundle, "--force", code=3)
    assert (bundle / "runs" / "sync-s0" / "run.json").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(LandscapeError, match="is no claim bundle"):
        invoke(*again, tmp_path / "mine", "--force", code=1)
    with pytest.raises(LandscapeError, match="No such file"):
        invoke(*again, tmp_path / "nowhere" / "deep", code=1)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "mine"])


def test_a_logbook_has_a_page_for_each_claim(bundle: Path) -> None:
    pages = bundle / ".trackio" / "logbook" / "pages"
    assert "[sync-is-flatter](#/sync-is-flatter)" in (pages / "index.md").read_text()
    assert "SUPPORTED" in (pages / "sync-is-flatter" / "page.md").read_text()
    assert "lossscope check claims.toml --in runs" in (pages / "command" / "page.md").read_text()


def test_names_of_pages_are_unlike_and_plain() -> None:
    files = logbook("t --> x", [("../../etc", "a"), ("--> <b>", "b"), ("Index", "c"), ("etc", "d")], "run")
    assert sorted(path.split("/")[3] for path in files if path.endswith("page.md")) == [
        "b",
        "command",
        "etc",
        "etc-4",
        "index-3",
    ]
    for path, content in files.items():
        assert ".." not in path
        assert content.decode().count("-->") == path.endswith("page.md")
