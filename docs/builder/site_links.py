"""Markdown of the repository as Markdown of the site: links between pages, and lists as GitHub reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["MOVED", "ROOT", "page_of", "relinked", "source_of", "with_lists"]

ROOT: Final = Path(__file__).parents[2]
# Pages that stand outside docs/ in the repository: their places in the site.
MOVED: Final = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "benchmarks/RESULTS.md": "project/benchmarks.md",
}

_FENCE: Final = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.M | re.S)
_LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_ITEM: Final = re.compile(r"(?:[-*+]|\d+\.) ")


def page_of(path: str) -> str | None:
    """Return the place in the site of a file or folder of the repository, None if the site does not have it."""
    if path in MOVED:
        return MOVED[path]
    if not path.startswith("docs/") or not (ROOT / path).exists() or path.endswith(".py"):
        return None
    if (ROOT / path).is_dir():
        return page_of(f"{path}/index.md")
    return path.removeprefix("docs/")


def source_of(page: str) -> str:
    """Return the file of the repository that a page of the site is made from."""
    return next((path for path, moved in MOVED.items() if moved == page), f"docs/{page}")


def relinked(markdown: str, page: str) -> str:
    """Return a page's text with links that lead to pages of the site.

    Links to files that the site does not have, such as code, become their text.

    Args:
        markdown: Text of the page, with links relative to its place in the repository.
        page: Place of the page in the site.
    """
    folder = PurePosixPath(source_of(page)).parent

    def replaced(link: re.Match[str]) -> str:
        """Return a link that leads to its page of the site, or its text."""
        image, text, target = link.groups()
        file, anchor = target.partition("#")[::2]
        if not file or ":" in file:
            return link[0]
        found = page_of(os.path.normpath(folder / file))
        if found is None:
            return text
        place = os.path.relpath(found, PurePosixPath(page).parent)
        return f"{image}[{text}]({place}{'#' if anchor else ''}{anchor})"

    return _outside_code(markdown, lambda text: _LINK.sub(replaced, text))


def with_lists(markdown: str) -> str:
    """Return the text with an empty line before each list that follows a line of a paragraph.

    GitHub begins a list there, Python-Markdown goes on with the paragraph.
    """
    return _outside_code(markdown, _separated)


def _separated(text: str) -> str:
    lines: list[str] = []
    in_list = False
    for line in text.split("\n"):
        item = _ITEM.match(line) is not None
        if item and not in_list and lines and lines[-1].strip():
            lines.append("")
        in_list = item or (in_list and bool(line.strip()))  # a paragraph inside a list ends at an empty line
        lines.append(line)
    return "\n".join(lines)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return the text with all but its fenced blocks changed."""
    parts, end = [], 0
    for block in _FENCE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])
