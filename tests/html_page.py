"""A page taken apart by Python's own parser, for tests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

from lossscope.reports.content import Arm, Column, Finding, Missing, Quantity, Report, Statement, Table
from lossscope.reports.figure_content import Axis, Curve, Curves, Threshold
from lossscope.reports.render.page_assets import page_assets

__all__ = ["HOSTILE", "HtmlPage", "assert_inert", "hostile_report"]

# names that would do something, or hide something, where they are not text
HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "style": "</style><b>x</b>",
    "quotes": "\"'`><b onmouseover=alert(2)>",
    "direction": "a\u202eb\u200f\u2066c",
    "terminal": "\x1b[31mred\x1b[0m\x07",
    "rich": "[red]x[/red] :smile:",
    "template": "{{ 7 * 7 }} {% raw %} ${x}",
    "lines": "a\u2028b\u2029c\nd",
    "entity": "&lt;script&gt;&#x202e;",
    "comment": "<!--<script>",
    "long": "long-" * 820,
}
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


def hostile_report(name: str) -> Report:
    """Return a report in which every text of data is the name."""
    columns = (Column("arm", name, "", name, words=True), Column("tensor", name, words=True), Column("x", name, name))
    table = Table("table", name, columns, ((name, name, Quantity(1.0, error=0.1)), (name, None, 2)), name)
    points = ((1.0, 2.0), (3.0, 4.0), (2.0, 3.5), (4.0, 4.5), (0.1, None))
    line = Curve(name, 0, *points, seeds=2)
    limit = (Threshold(3.5, name),)
    figure = Curves("loss", name, name, Axis(name), Axis(name, name), (line,), limit, (name, name), (name,), (name,))
    return Report(
        kind="overview",
        title=name,
        subtitle=name,
        findings=(Finding(name, None, name, name),),
        tables=(table, replace(table, key="again")),
        figures=(figure,),
        notes=(name,),
        missing=(Missing(name, name),),
        provenance=Table("provenance", "Provenance", (Column("what", "what", words=True),), ((name,),)),
        alert=name,
        summary=(Statement(name, "act", "loss"), Statement(name, "look")),
        arms=(Arm(name, 0, (name,)), Arm("other", 1)),
    )
