"""The language of the code: docstrings, spelling, and words that were dropped for the field's own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("optimizer", "probes", "landscape", "reports", "cli", "typings/lossscope", "benchmarks", "examples")
SOURCES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
QUESTION_WORDS = {"what", "whether", "how", "which", "when", "where", "why"}
BRITISH = re.compile(
    r"(normalis|orthogonalis|optimis|parametris|initialis|penalis|generalis|summaris|minimis|maximis|colour|centred|"
    r"neighbour|labelled|behaviour|favour)",
    re.IGNORECASE,
)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


def test_there_are_sources_and_documents() -> None:
    assert len(SOURCES) > 150
    assert len(DOCUMENTS) > 20


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_docstring_opens_with_a_question_word(folder: str) -> None:
    opened = [
        f"{place}: {text.splitlines()[0]}"
        for path in SOURCES
        if path.is_relative_to(ROOT / folder)
        for place, text in docstrings(path)
        if re.split(r"\W+", text.lstrip("r\"' `"), maxsplit=1)[0].lower() in QUESTION_WORDS
    ]
    assert not opened, "\n".join(opened)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_spelling_is_that_of_torch(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group(0)}"
        for path in SOURCES
        if path.is_relative_to(ROOT / folder)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := BRITISH.search(line))
    ]
    assert not found, "\n".join(found)


def test_documents_are_spelled_so_too() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group(0)}"
        for path in DOCUMENTS
        if path.name != "CHANGELOG.md"  # its table of renamed names has the old ones
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := BRITISH.search(line))
    ]
    assert not found, "\n".join(found)
