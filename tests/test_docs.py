"""Documentation: pages with code run as they stand, links lead somewhere, names in tables exist."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

import lossscope
from lossscope.landscape.run import Run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

few_products = pytest.mark.usefixtures("few_products")  # curvature evaluations whose numbers no page shows

Page: TypeAlias = Callable[[str], dict[str, object]]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A function that runs the Python and the commands of a page in order, in this process and an empty folder.

    It returns the names that the Python of the page left, and asserts that what the page shows is what they print.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(DOCS))
    outputs = importlib.import_module("update_outputs")

    def run(name: str) -> dict[str, object]:
        text = (DOCS / name).read_text()
        printed, scope = outputs.played(text)
        assert outputs.in_words(printed) == outputs.in_words(text), f"write it again with docs/update_outputs.py {name}"
        return scope

    return run


def test_the_first_ten_minutes_run(page: Page) -> None:
    scope = page("first_ten_minutes.md")
    first, own = Run.open("runs/first"), Run.open("runs/own")
    assert (len(first.steps), len(own.steps)) == (40, 10)
    assert "logit_norm" in set(first.probes["measure"])
    assert "lambda_max" in set(own.probes["measure"])
    assert len(scope["rows"]) > 4  # type: ignore[arg-type]
    assert Path("entropy.html").read_text().startswith("<!doctype html>")


@few_products
def test_the_page_on_recording_a_loop_runs(page: Page) -> None:
    scope = page("howto/record_a_loop.md")
    plain, curved, resumed = (Run.open(f"runs/{name}") for name in ("plain", "curved", "two_passes"))
    assert (len(plain.steps), len(curved.steps), len(resumed.steps)) == (20, 120, 40)
    assert len(plain.probes) == 0
    assert "lambda_max" in set(curved.probes["measure"])
    assert len(curved.pairs) == 16
    assert len(scope["shapes"]) == 20  # type: ignore[arg-type]
    assert len(scope["sharpness"]) == 20  # type: ignore[arg-type]
    assert resumed.steps["passes"].eq(2).all()
    passes = {name: int(Run.open(f"runs/{name}").steps["passes"].sum()) for name in ("sophia-g", "adahessian", "zo-gd")}
    assert passes == {"sophia-g": 22, "adahessian": 20, "zo-gd": 40}


@few_products
def test_the_page_on_large_networks_runs(page: Page) -> None:
    scope = page("howto/measure_a_large_network.md")
    cost, found = scope["cost"], scope["found"]
    assert cost.basis == found.basis == "three vectors"  # type: ignore[attr-defined]
    assert found.top.vectors.shape[1] == 0  # type: ignore[attr-defined]
    assert found.trace.low < found.trace.high  # type: ignore[attr-defined]


@few_products
def test_the_page_on_a_loop_of_your_own_runs(page: Page) -> None:
    page("howto/record_your_own_loop.md")
    faulty, two = Run.open("runs/faulty"), Run.open("runs/two")
    assert (len(faulty.steps), len(two.steps)) == (6, 6)
    assert faulty.manifest["curvature_gaps"][0]["why"] == "RuntimeError: a bug of mine"
    assert set(two.tensors["lr"]) == {0.02, 1e-3}


@few_products
def test_the_page_on_exporting_runs_runs(page: Page) -> None:
    scope = page("howto/export_runs.md")
    assert scope["top"].columns.tolist() == ["sync"]  # type: ignore[attr-defined]
    assert {path.name for path in Path("csv").iterdir()} >= {"steps.csv", "probes.csv"}
    assert Path("lines/sync.jsonl").read_text().count("\n") >= 20
    medians, joined, counts = scope["medians"], scope["joined"], scope["counts"]
    top = Run.open("runs/sync").estimates.query("measure == 'lambda_max'")
    assert medians["lambda_max"].tolist() == top["value"].tolist()  # type: ignore[index]
    assert medians["runs"].eq(1).all()  # type: ignore[index]
    assert joined["loss"].notna().all()  # type: ignore[index]
    assert counts["rows"].tolist() == [len(Run.open("runs/sync").probes)]  # type: ignore[index]


@few_products
@pytest.mark.slow
def test_the_page_on_reading_a_report_runs(page: Page) -> None:
    scope = page("howto/read_a_report.md")
    assert scope["outcomes"]
    assert str(scope["text"]).startswith("Sharpness\n")


@few_products
@pytest.mark.slow
def test_the_page_on_ablations_runs(page: Page) -> None:
    page("howto/ablate.md")
    assert not Path("runs").exists()


@few_products
@pytest.mark.slow
def test_the_page_on_comparing_two_optimizers_runs(page: Page) -> None:
    scope = page("howto/compare_two_optimizers.md")
    assert scope["verdict"].status == "NOT_JUDGED"  # type: ignore[attr-defined]
    assert "average, relative" in [name for name, *_ in scope["table"]]  # type: ignore[attr-defined]
    assert Path("verdict.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_page_on_drawing_a_landscape_runs(page: Page) -> None:
    scope = page("howto/draw_a_landscape.md")
    assert scope["planes"].losses.shape == (3, 5, 5)  # type: ignore[attr-defined]
    assert (scope["found"].median >= scope["found"].band[0]).all()  # type: ignore[attr-defined]
    assert Path("fan.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_page_on_comparing_two_checkpoints_runs(page: Page) -> None:
    found = page("howto/compare_two_checkpoints.md")["found"]
    assert len(found.seeds) == 1  # type: ignore[attr-defined]
    assert found.change.remainder == pytest.approx(  # type: ignore[attr-defined]
        found.change.change - found.change.linear - found.change.quadratic  # type: ignore[attr-defined]
    )
    assert Path("diff.html").read_text().startswith("<!doctype html>")


@few_products
@pytest.mark.slow
def test_the_page_on_probing_a_recorded_run_runs(page: Page) -> None:
    scope = page("howto/probe_a_recorded_run.md")
    digits, mine = Run.open("runs/digits"), Run.open("runs/mine")
    assert {"lambda_max", "trace", "logit_norm"} <= set(digits.probes["measure"])
    assert digits.probes["step"].nunique() > 1  # --checkpoint all
    assert "trace_share" in set(mine.probes["measure"])
    assert [name for name, _ in _table(scope)] == ["0", "2"]


@few_products
@pytest.mark.slow
def test_the_page_on_measuring_checkpoints_runs(page: Page) -> None:
    scope = page("howto/measure_checkpoints.md")
    matrices, mine = Run.open("runs/matrices"), Run.open("runs/mine")
    assert matrices.spectra["step"].tolist() == [0, 0, 20, 20, 40, 40]
    assert set(mine.probes["measure"]) == {"loss", "lambda_max", "trace"}
    assert len(scope["rows"]) == 6  # type: ignore[arg-type]


def _table(scope: dict[str, object]) -> list[tuple[str, float]]:
    return [(row.name, row.lambda_max.value) for row in scope["table"].rows]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in _anchors(found), f"{path.name} links to {target}"


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_all_of_the_root_package() -> None:
    (row,) = re.findall(r"^\| `lossscope` \| (.+) \|$", (DOCS / "index.md").read_text(), re.M)
    assert set(re.findall(r"`(\w+)`", row)) == {*lossscope.__all__, "__version__"}


def test_every_new_module_in_the_changelog_s_table_exists_and_no_old_one_does() -> None:
    text = (ROOT / "CHANGELOG.md").read_text().partition("## Renamed in 0.2.0")[2]
    rows = re.findall(r"^\| `(lossscope\.[\w.]+)` \| `(lossscope\.[\w.]+)` \|$", text, re.M)
    assert len(rows) > 150
    for old, new in rows:
        assert _source(new) is not None, f"{new} is not there"
        assert _source(old) in (None, "package"), f"{old} is still there"  # a room may have the name of an old module


def _source(module: str) -> str | None:
    """Return "package" or "file" for a module of the five folders, None for one that is not there; import nothing."""
    path = ROOT.joinpath(*module.split(".")[1:])
    if (path / "__init__.py").exists():
        return "package"
    return "file" if path.with_suffix(".py").exists() else None
