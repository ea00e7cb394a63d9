"""Write the terms of docs/glossary.md for the pages of reports, which explain them: python docs/update_glossary.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
TERMS = DOCS.parent / "reports" / "render" / "assets" / "glossary.json"
ENTRY = re.compile(r"^\* \*\*(?P<name>.+?)(?<!\\)\*\*(?P<more>[^:]*): (?P<meaning>.+)$", re.M)
LINK = re.compile(r"\s*\[[^\]]*\]\([^)]*\)")
SYMBOL = re.compile(r"(?P<words>\S+ .+) (?P<symbol>\S*_\S*)")  # "critical learning rate η_c", not "adaptive λ_max"
NO_TERMS = {"unit of cost", "of the Hessian"}  # remarks in parentheses
NO_TERMS |= {"curvature", "layers", "total"}  # heads of one table, and words that text has for other things


def terms() -> list[dict[str, object]]:
    """Return each entry of the glossary: the words that name it, and its meaning without markup."""
    found = ENTRY.finditer((DOCS / "glossary.md").read_text(encoding="utf-8"))
    return [
        {"words": list(_words(one["name"] + one["more"])), "meaning": _plain(LINK.sub("", one["meaning"]))}
        for one in found
    ]


def _words(name: str) -> dict[str, None]:
    """Return the names in the head of an entry; single letters, which text has for other things too, are left out."""
    parts = [part.split(" = ")[0] for part in re.split(r", | \((.*)\)$", _plain(name)) if part]
    matches = ((part, SYMBOL.fullmatch(part)) for part in parts)
    pairs = [(part,) if match is None else match.group("words", "symbol") for part, match in matches]
    return dict.fromkeys(word for pair in pairs for word in pair if len(word) > 1 and word not in NO_TERMS)


def _plain(words: str) -> str:
    """Return text without Markdown's marks."""
    return re.sub(r"\\(.)", r"\1", words.replace("`", "").replace("**", "")).strip()


def text() -> str:
    """Return the content of the file of terms."""
    return json.dumps(terms(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    TERMS.write_text(text(), encoding="utf-8")
