"""Resources that a built page would load from another place than its own folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

__all__ = ["in_page", "in_site", "in_style"]

# Attributes by which an element loads something when its page opens. A link that is followed by hand loads nothing.
_LOADING: Final = {
    **dict.fromkeys(
        ("script", "img", "iframe", "embed", "audio", "video", "source", "track", "input"), ("src", "srcset")
    ),
    "link": ("href",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
_SILENT_LINKS: Final = {"canonical", "next", "prev", "alternate", "license", "author"}
_OUTSIDE: Final = re.compile(r"(?:^|[\s,])(?:[a-z]+:)?//", re.I)
_IN_STYLE: Final = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:[a-z]+:)?//[^"')\s;]+)""", re.I)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element loads."""
        values = {name: value or "" for name, value in attrs}
        self.style = tag == "style"
        self.found += in_style(values.get("style", ""))
        if tag == "link" and set(values.get("rel", "").split()) <= _SILENT_LINKS:
            return
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh" and "//" in values.get("content", ""):
            self.found.append(values["content"])
        for name in _LOADING.get(tag, ()):
            if _OUTSIDE.search(values.get(name, "")):
                self.found.append(values[name])

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        """Note what a style sheet inside the page loads."""
        if self.style:
            self.found += in_style(data)


def in_page(html: str) -> list[str]:
    """Return the addresses from which a page would load something."""
    page = _Page()
    page.feed(html)
    return page.found


def in_style(css: str) -> list[str]:
    """Return the addresses from which a style sheet would load something."""
    return _IN_STYLE.findall(css)


def in_site(site: Path) -> Iterator[str]:
    """Yield each file of a built site and the address from which it would load something."""
    for path in sorted(site.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text()
            found = in_style(text) if path.suffix == ".css" else in_page(text)
            yield from (f"{path.relative_to(site)}: {address}" for address in found)
