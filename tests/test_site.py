"""The site of the documentation: what it is made of, and, once `make docs` has built it, that it needs no network."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.storage.schema import TABLES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = ROOT / os.environ.get("LOSSSCOPE_SITE", "site")
MEASURE_PAGES = sorted(path for path in (DOCS / "measures").glob("*.md") if path.stem != "index")
PACKAGES = ("lossscope", "lossscope.optimizer", "lossscope.probes", "lossscope.landscape", "lossscope.reports")
built = pytest.mark.skipif("LOSSSCOPE_SITE" not in os.environ, reason="`make docs` builds the site and runs this test")


@pytest.fixture(scope="module")
def links() -> Iterator[ModuleType]:
    yield from _module(DOCS / "builder", "site_links")


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    yield from _module(DOCS / "builder", "site_tables")


@pytest.fixture(scope="module")
def outside() -> Iterator[ModuleType]:
    yield from _module(DOCS / "builder", "outside_requests")


def _module(folder: Path, name: str) -> Iterator[ModuleType]:
    """Yield a module of a folder that is on the import path meanwhile."""
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def test_links_lead_to_pages_of_the_site_and_files_it_lacks_become_words(links: ModuleType) -> None:
    text = "See [it](../README.md#installation), [code](../landscape/run.py), [all](measures), ![p](report.png)."
    there = "See [it](project/readme.md#installation), code, [all](measures/index.md), ![p](report.png)."
    assert links.relinked(text, "recording.md") == there
    assert links.relinked("[a](docs/howto/ablate.md)", "project/readme.md") == "[a](../howto/ablate.md)"
    assert links.relinked("[RESULTS](../README.md)", "project/benchmarks.md") == "[RESULTS](readme.md)"
    for same in ("[a](#names)", "[a](https://example.org/x)", "```sh\n[a](../README.md)\n```"):
        assert links.relinked(same, "recording.md") == same


def test_a_list_gets_an_empty_line_before_it_and_code_stays_as_it_is(links: ModuleType) -> None:
    assert (
        links.with_lists("**Pitfalls.**\n- one\n  more\n- two\n\nend") == "**Pitfalls.**\n\n- one\n  more\n- two\n\nend"
    )
    for same in ("- a\n- b", "text\n\n- b", "```\ntext\n- b\n```"):
        assert links.with_lists(same) == same


def test_every_measure_of_the_catalogue_has_one_page(tables: ModuleType) -> None:
    named = [name for path in MEASURE_PAGES for name in tables.measures_named(path)]
    assert sorted(named) == sorted(known_measures())


@pytest.mark.parametrize("path", MEASURE_PAGES, ids=lambda path: path.stem)
def test_a_page_of_a_measure_has_formula_error_invariance_pitfalls_and_source(path: Path) -> None:
    text = path.read_text()
    for part in ("Invariance.", "Pitfalls.", "Source."):
        assert f"**{part}**" in text
    assert re.search(r"\*\*(Error bar|Error|The guard)\.\*\*", text)
    assert re.search(r"[=Σ‖⟨]|/|\|", text.partition("**")[0])


def test_a_page_shows_what_the_catalogue_says(tables: ModuleType) -> None:
    made = tables.completed("# T\n\n<!-- catalogue: trace adaptive_trace -->\n", "measures/trace.md")
    assert "| `trace` | sum of the eigenvalues of the Hessian | loss | rotations only |" in made
    assert "| `adaptive_trace` | sum of theta\\_i\\^2 H\\_ii: a flatness measure | loss |" in made
    assert "Shown by `report sharpness`, `report flatness`." in made
    assert "[`lambda_max`](sharpness.md)" in tables.completed("<!-- catalogue -->", "measures/index.md")
    terms = tables.completed("<!-- terms -->", "glossary.md")
    for name, measure in known_measures().items():
        assert f"[`{name}`](measures/" in terms
        assert measure.meaning in terms.replace("\\", "")


def test_words_for_the_repository_are_not_in_the_site(tables: ModuleType) -> None:
    assert tables.completed("One. <!-- repository -->Two.<!-- end --> Three.", "index.md") == "One. Three."


def test_the_page_on_the_run_format_asks_for_the_columns_of_every_table(tables: ModuleType) -> None:
    page = (DOCS / "reference" / "run_format.md").read_text()
    assert re.findall(r"<!-- columns: (\w+) -->", page) == list(TABLES)
    made = tables.completed(page, "reference/run_format.md")
    for table, columns in TABLES.items():
        assert f"`{table}.parquet`" in page
        assert all(f"| `{column.name}` | {column.type}" in made for column in columns)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name_of_a_package(package: str, tables: ModuleType) -> None:
    page = DOCS / "reference" / f"{package.rpartition('.')[2]}.md"
    made = tables.completed(page.read_text(), f"reference/{page.name}")
    wanted = importlib.import_module(package).__all__
    modules = [name for name in wanted if isinstance(getattr(importlib.import_module(package), name), ModuleType)]
    shown = re.findall(r"^::: (lossscope[\w.]*)\.(\w+)$", made, re.M)
    assert sorted(name for _, name in shown) == sorted(set(wanted) - set(modules))
    for module, name in shown:
        assert hasattr(importlib.import_module(module), name)


def test_what_a_page_would_load_from_elsewhere_is_found(outside: ModuleType) -> None:
    loading = (
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="a.png" srcset="a.png 1x, https://example.org/b.png 2x">',
        '<iframe src="HTTP://example.org"></iframe>',
        '<p style="background: url(https://example.org/x.png)">',
        "<style>@import 'https://example.org/x.css';</style>",
        '<meta http-equiv="refresh" content="0; url=https://example.org">',
        '<svg><image xlink:href="https://example.org/x.png"/></svg>',
    )
    assert [len(outside.in_page(one)) for one in loading] == [1] * len(loading)
    assert outside.in_style("a { src: url('https://example.org/f.woff2') }")
    silent = '<a href="https://example.org">x</a><link rel="canonical" href="https://example.org"><script src="x.js">'
    assert outside.in_page(f"{silent}</script><img src='data:image/png;base64,AA//'><svg xmlns='http://w3.org/'>") == []


def test_the_help_of_every_command_stands_in_the_docs() -> None:
    (module,) = _module(DOCS, "update_commands")
    said = "write it again with docs/update_commands.py"
    assert (DOCS / "reference" / "commands.md").read_text(encoding="utf-8") == module.commands(), said


def test_every_example_has_a_small_picture_in_the_gallery() -> None:
    page = (DOCS / "gallery.md").read_text()
    for example in (ROOT / "examples").glob("*.py"):
        assert f"](gallery/{example.stem}.png)" in page
        assert f"<!-- source: examples/{example.name} -->" in page
        assert (DOCS / "gallery" / f"{example.stem}.png").stat().st_size < 80_000


@built
def test_the_built_site_loads_nothing_from_elsewhere(outside: ModuleType) -> None:
    assert list(outside.in_site(SITE)) == []


@built
def test_every_link_of_the_built_site_leads_somewhere() -> None:
    anchors = {path: _Anchors.of(path) for path in SITE.rglob("*.html") if path.name != "404.html"}
    for path, page in anchors.items():
        for target in page.links:
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = unquote(target).partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.exists(), f"{path.relative_to(SITE)} links to {target}"
            assert not anchor or found not in anchors or anchor in anchors[found].ids, f"{path.name}: {target}"


@built
def test_formulas_and_examples_of_docstrings_are_drawn() -> None:
    page = (SITE / "reference" / "probes.html").read_text()
    assert ":math:" not in page
    assert "<math" in page
    assert "Examples:" in page
    assert "<blockquote>" not in page  # an example that was read as text
    for name in importlib.import_module("lossscope.probes").__all__:
        assert re.search(rf'id="lossscope\.probes[\w.]*\.{name}"', page), name


class _Anchors(HTMLParser):
    """The identifiers and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])

    @classmethod
    def of(cls, path: Path) -> _Anchors:
        page = cls()
        page.feed(path.read_text())
        return page
