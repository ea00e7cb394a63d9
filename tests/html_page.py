"""A page taken apart by Python's own parser, for tests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from lossscope.reports.render.page_assets import page_assets

__all__ = ["HtmlPage", "assert_inert"]

OURS = frozenset(script for plots in (True, False) for script in page_assets(plots=plots).scripts)


class HtmlPage(HTMLParser):
    """Tags, attributes, words, and the texts of scripts and styles of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = page
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._inside: list[str] | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = {"script": self.scripts, "style": self.styles}.get(tag)
        if self._inside is not None:
            self._inside.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.parts.append(data)
        else:
            self._inside[-1] += data

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    @property
    def attributes(self) -> list[tuple[str, str | None]]:
        return [one for _, attributes in self.elements for one in attributes.items()]

    @property
    def words(self) -> str:
        """The text, without scripts and styles, as a reader sees it: blanks are one blank."""
        return re.sub(r"\s+", " ", "".join(self.parts))

    @property
    def identifiers(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name == "id"]

    @property
    def data(self) -> dict:
        """The data that the page embeds for its plots."""
        (found,) = (text for text in self.scripts if text.startswith("{"))
        return json.loads(found)

    @property
    def policy(self) -> dict[str, list[str]]:
        (content,) = (
            dict(attributes)["content"]
            for tag, attributes in self.elements
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
        )
        return {name: sources for name, *sources in (one.split() for one in content.split("; "))}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def assert_inert(html: str) -> HtmlPage:
    """Assert that nothing on a page but our own scripts can run or ask for anything, and return the page."""
    page = HtmlPage(html)
    allowed = {"script-src": page.policy["script-src"], "style-src": page.policy["style-src"]}
    executable = [
        text
        for (_, kind), text in zip((one for one in page.elements if one[0] == "script"), page.scripts, strict=True)
        if kind.get("type") != "application/json"
    ]
    assert set(executable) <= OURS
    assert sorted(map(digest, executable)) == sorted(allowed["script-src"])
    assert sorted(map(digest, page.styles)) == sorted(allowed["style-src"])
    assert not {"iframe", "img", "object", "embed", "image", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    links = [value or "" for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith("#") or value == "data:," for value in links)
    bare = {tag for tag, _ in page.elements} - {"script", "style"}
    assert "b" not in bare
    assert not [letter for letter in html if letter != "\n" and not letter.isprintable()]
    return page
