"""Logbooks of trackio: pages of Markdown in `.trackio/logbook`, from which trackio makes its site."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Final

from lossscope.landscape.storage.manifest import utc_now

__all__ = ["logbook"]

_ROOT: Final = ".trackio/logbook/pages"


def logbook(title: str, pages: Sequence[tuple[str, str]], command: str) -> dict[str, bytes]:
    """Return the files of a logbook, by their path below the folder in which `trackio logbook` runs.

    Args:
        title: Its title.
        pages: Title and Markdown of each page.
        command: Command that makes the pages again, the first page.

    Source:
        https://huggingface.co/docs/trackio/logbooks, schema 2 of trackio 0.43.
    """
    written = [("Command", f"````bash\n{command}\n````"), *pages]
    names = _names([name for name, _ in written])
    rows = "".join(f"| [{_plain(name)}](#/{slug}) |\n" for slug, (name, _) in zip(names, written, strict=True))
    facts = {"space_id": None, "emoji": "🎯", "created_at": utc_now()}
    files = {
        ".trackio/metadata.json": json.dumps(facts, indent=2),
        f"{_ROOT}/index.md": f"# {_plain(title)}\n\n## Pages\n\n| Page |\n| --- |\n{rows}",
    }
    for slug, (name, body) in zip(names, written, strict=True):
        files[f"{_ROOT}/{slug}/page.md"] = f"# {_plain(name)}\n\n\n---\n{_cell(slug, name, body)}"
    return {path: text.encode() for path, text in files.items()}


def _cell(slug: str, title: str, body: str) -> str:
    """Return a cell of Markdown with its mark."""
    digest = hashlib.sha256(f"{slug}\n{body}".encode()).hexdigest()[:12]
    facts = {"type": "markdown", "id": f"cell_{digest}", "created_at": utc_now(), "title": _plain(title)}
    mark = json.dumps(facts).replace("--", "\\u002d-")  # no end of a comment
    return f"<!-- trackio-cell\n{mark}\n-->\n{body}\n"


def _names(titles: Sequence[str]) -> list[str]:
    """Return a name for the folder of each page: letters, digits and dashes, each once."""
    found: list[str] = []
    for title in titles:
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "page"
        found.append(slug if slug not in (*found, "index") else f"{slug}-{len(found)}")
    return found


def _plain(title: str) -> str:
    """Return a title on one line without marks of Markdown and HTML."""
    return re.sub(r"\s+", " ", re.sub(r"[<>`\[\]|#*\\]", " ", title)).strip()
