"""Tables that the site shows and the code declares: measures of the catalogue, columns of a run, public names.

A page asks for one by a comment, which no reader of the Markdown sees: `<!-- catalogue: lambda_max trace -->`,
`<!-- catalogue -->`, `<!-- terms -->`, `<!-- columns: steps -->`, `<!-- names: lossscope.probes -->`,
`<!-- source: examples/rosenbrock.py -->`. Words between `<!-- repository -->` and `<!-- end -->` are not in the site.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from site_links import ROOT

from lossscope.landscape.measures.catalogue import GROUPS, known_measures
from lossscope.landscape.measures.measure import Measure
from lossscope.landscape.measures.measure_group import MeasureGroup
from lossscope.landscape.storage.schema import TABLES

__all__ = ["completed", "measures_named", "pages_of_measures", "public_names"]

_COMMENT: Final = re.compile(r"^<!-- (catalogue|terms|columns|names|source)(?:: (.*?))? -->$", re.M)
_NOT_HERE: Final = re.compile(r" ?<!-- repository -->.*?<!-- end -->", re.S)
_MEASURE_PAGES: Final = ROOT / "docs" / "measures"


def completed(markdown: str, page: str) -> str:
    """Return the text of a page with its comments replaced by what they ask for."""
    made: Mapping[str, Callable[[str], str]] = {
        "catalogue": lambda names: _rows_of(names.split()) if names else _catalogue(page),
        "terms": lambda _: _terms(page),
        "columns": _columns,
        "names": _names,
        "source": _source,
    }
    return _COMMENT.sub(lambda comment: made[comment[1]](comment[2] or ""), _NOT_HERE.sub("", markdown))


def measures_named(path: Path) -> list[str]:
    """Return the measures that a page of the folder `measures` says it is about."""
    found = (names for kind, names in _COMMENT.findall(path.read_text()) if kind == "catalogue")
    return [name for names in found for name in names.split()]


@cache
def pages_of_measures() -> Mapping[str, str]:
    """Return the page that each measure is explained on, by its place in the site."""
    pages = sorted(_MEASURE_PAGES.glob("*.md"))
    return {name: f"measures/{path.name}" for path in pages for name in measures_named(path)}


def public_names(package: str) -> dict[str, str]:
    """Return the public names of a package with the modules that define them, in alphabetical order."""
    folder = ROOT.joinpath("typings", *package.split("."))
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else folder / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name: f"{package}.{node.module}" if node.level else f"{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    listed = importlib.import_module(package).__all__
    return {name: imported[name] for name in sorted(listed, key=str.lower) if name in imported}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return the text of a cell, in which a bar would end it and signs of Markdown would change it."""
    parts = re.split(r"(`[^`]*`|\[`[^)]*\))", text)  # code and links stay
    return "".join(part if i % 2 else re.sub(r"([|*_^\\<])", r"\\\1", part) for i, part in enumerate(parts))


def _group(name: str) -> MeasureGroup:
    return next(group for group in GROUPS.values() if name in group.names)


def _taken(group: MeasureGroup) -> str:
    """Return in words when a group is measured."""
    if group.needs_step:
        return "while training only"
    by_probe = "`probe`" if group.usual else f"`probe --measures {group.name}`"
    return f"while training, {by_probe}" if group.recorded is not None else by_probe


def _rows_of(names: Sequence[str]) -> str:
    """Return the catalogue's entries of some measures, as a table below a heading."""
    found = [known_measures()[name] for name in names]
    head = ("measure", "is", "unit", "unchanged by", "`low` and `high`")
    rows = [[f"`{one.name}`", one.meaning, one.unit, one.invariance, one.bound.value] for one in found]
    taken = dict.fromkeys(_taken(_group(name)) for name in names)
    shown = dict.fromkeys(f"`report {report}`" for name in names for report in _group(name).reports)
    return f"## Recorded as\n\n{_table(head, rows)}\n\nTaken: {'; '.join(taken)}. Shown by {', '.join(shown)}."


def _linked(one: Measure, page: str) -> str:
    place = os.path.relpath(pages_of_measures()[one.name], PurePosixPath(page).parent)
    return f"[`{one.name}`]({place})"


def _catalogue(page: str) -> str:
    """Return all measures of the catalogue as a table."""
    head = ("measure", "is", "unit", "unchanged by", "taken", "shown by")
    rows = [
        [_linked(one, page), one.meaning, one.unit, one.invariance, f"{_taken(group)}", ", ".join(group.reports)]
        for group in GROUPS.values()
        for one in group.measures
    ]
    return _table(head, rows)


def _terms(page: str) -> str:
    """Return all measures of the catalogue in the form of the glossary."""
    measures = sorted(known_measures().values(), key=lambda one: one.name)
    return "\n".join(f"* {_linked(one, page)}: {_cell(one.meaning)}" for one in measures)


def _columns(table: str) -> str:
    head = ("column", "type", "unit", "is")
    rows = [
        [f"`{one.name}`", f"{one.type}{'' if one.required else ' or missing'}", one.unit, one.meaning]
        for one in TABLES[table]
    ]
    return _table(head, rows)


def _names(package: str) -> str:
    """Return a directive of mkdocstrings for each public name of a package."""
    blocks = [
        f'::: {module}.{name}\n    options:\n      heading: "{name}"\n      toc_label: "{name}"'
        for name, module in public_names(package).items()
    ]
    return "\n\n".join(blocks)


def _source(path: str) -> str:
    """Return a file of the repository, folded."""
    code = "\n".join(f"    {line}".rstrip() for line in (ROOT / path).read_text().splitlines())
    return f'??? example "{path}"\n\n    ```python\n{code}\n    ```'
