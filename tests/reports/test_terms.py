"""The glossary: every term in the tables and figures of reports that these do not explain themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lossscope import reports
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.run import Run
from lossscope.reports.content import Report

DOCS = Path(__file__).parents[2] / "docs"
GLOSSARY = (DOCS / "glossary.md").read_text()
TERMS = [
    word.replace("\\", "").casefold()
    for head in re.findall(r"^\* \*\*(.+?)(?<!\\)\*\*", GLOSSARY, re.M)
    for word in re.split(r", | \(|\)", head)
    if word
]
# Words that say what they mean, or name a thing of the run itself.
PLAIN = {
    *("arms", "at step", "first", "largest", "last", "matrices", "matrix", "measure", "over the run", "run", "shape"),
    *("spectra", "step", "tensor", "unit", "test loss", "test accuracy", "gradient", "update", "value"),
    *("cos(g, hg)", "loss rose", "steps"),
}


def titles(report: Report) -> Iterator[str]:
    """Yield the titles of the columns without a meaning of their own, and of the figures of a report."""
    yield from (column.title for table in report.tables for column in table.columns if not column.meaning)
    yield from (figure.title for figure in report.figures)


def explained(title: str) -> bool:
    """Return True if a title contains a term of the glossary as whole words, or is plain."""
    title = title.casefold()
    found = any(re.search(rf"(?<!\w){re.escape(term)}(?:s|es)?(?!\w)", title) for term in TERMS)
    return found or title in PLAIN or title in known_measures()


def test_the_glossary_explains_the_terms_of_every_report(dynamic_run: Callable[..., Run], demo_runs: list[Run]) -> None:
    kinds = ([dynamic_run("a")], demo_runs)
    arms = {str(run.manifest["arm"]) for runs in kinds for run in runs}
    pages = (reports.overview, reports.sharpness, reports.spectral_entropy, reports.flatness, reports.dynamics)
    found = {title for page in pages for runs in kinds for title in titles(page(runs))}
    assert len(found) > 40
    unknown = [title for title in sorted(found - arms) if not explained(title)]
    assert not unknown, ", ".join(unknown)


def test_the_glossary_leads_to_the_page_of_every_measure() -> None:
    for path in (DOCS / "measures").glob("*.md"):
        assert path.stem == "index" or f"](measures/{path.name})" in GLOSSARY, path.stem


@pytest.mark.parametrize("title", ["ζ of the step", "sharpnesses unheard of?", "xphi"])
def test_a_title_without_a_term_is_noticed(title: str) -> None:
    assert explained(title) == (title == "sharpnesses unheard of?")
