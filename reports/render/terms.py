"""Terms that a page explains: those of the glossary and the names of measures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.measures.measure import Measure
from lossscope.reports.content import Column, Document, Report, Table
from lossscope.reports.figure_content import FigureData
from lossscope.reports.render.page_assets import asset

__all__ = ["Term", "explanation", "terms_of"]


@dataclass(frozen=True)
class Term:
    """A term with its other names."""

    words: tuple[str, ...]
    meaning: str

    @property
    def pattern(self) -> str:
        """Regular expression of the term in a text, in a form that Python and JavaScript share."""
        names = "|".join(re.escape(word).replace("\\ ", " ").replace("\\-", "-") for word in self.words)
        return f"(?:{names})(?:s|es)?"


def terms_of(page: Report | Document) -> list[Term]:
    """Return the terms that stand on a page, in alphabetical order."""
    text = "\n".join(_texts(page))
    found = [one for one in (*_glossary(), *_measures()) if re.search(rf"(?<!\w){one.pattern}(?!\w)", text, re.I)]
    return sorted(found, key=lambda one: one.words[0].casefold())


def explanation(column: Column) -> str:
    """Return the meaning of a column: its own, else that of the measure or the term of its name; "" if none."""
    measure = known_measures().get(column.key)
    if column.meaning or measure is None:
        named = {word.casefold(): one.meaning for one in _glossary() for word in one.words}
        return column.meaning or named.get(column.title.casefold(), "")
    return _in_words(measure)


@cache
def _glossary() -> tuple[Term, ...]:
    """Return the terms of the glossary."""
    return tuple(Term(tuple(one["words"]), one["meaning"]) for one in json.loads(asset("glossary.json")))


def _measures() -> list[Term]:
    """Return the measures of the catalogue whose names are no plain words."""
    return [Term((name,), _in_words(one)) for name, one in known_measures().items() if "_" in name]


def _in_words(measure: Measure) -> str:
    """Return the meaning, the unit and the invariance of a measure."""
    unit = "" if measure.unit == "1" else f" Unit: {measure.unit}."
    return f"{measure.meaning}.{unit} Invariant under: {measure.invariance}."


def _texts(page: Report | Document) -> Iterator[str]:
    """Yield the texts of a page in which terms are explained."""
    yield from page.notes
    if isinstance(page, Report):
        yield from (one.words for one in page.summary)
        yield from (one.claim for one in page.findings)
        yield from (one.what for one in page.missing)
        yield from _of_figures(page.figures)
    else:
        for section in page.sections:
            yield from (section.question, section.sentence, *section.facts, *section.change)
            yield from _of_figures(section.figures)
            yield from _of_tables(section.tables)
    yield from _of_tables(page.tables)


def _of_figures(figures: Iterable[FigureData]) -> Iterator[str]:
    for figure in figures:
        yield from (figure.title, figure.caption)


def _of_tables(tables: Iterable[Table]) -> Iterator[str]:
    for table in tables:
        yield from (table.title, table.note, *(column.title for column in table.columns))
