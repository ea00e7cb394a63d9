r"""Formulas of docstrings, :math:`x` and `.. math::` with TeX inside, as MathML, which needs no script."""

from __future__ import annotations

import re
from typing import Any, Final

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

__all__ = ["Mathematics"]

_INLINE: Final = r":math:`([^`]+)`"
_BLOCK: Final = re.compile(r"^( *)\.\. math::[ \n]+(\S.*(?:\n\1 +\S.*)*)$", re.M)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # noqa: N802  the name is Markdown's
        """Return a formula inside a line."""
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class _Blocks(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        """Return the lines with each formula on its own line as one paragraph."""
        return _BLOCK.sub(self._formula, "\n".join(lines)).split("\n")

    def _formula(self, block: re.Match[str]) -> str:
        tex = " ".join(block[2].split())
        return block[1] + self.md.htmlStash.store(convert(tex, display="block"))


class Mathematics(Extension):
    """Extension of Python-Markdown for the formulas of docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  the name is Markdown's
        """Read formulas before code in backticks, and before paragraphs."""
        md.inlinePatterns.register(_Inline(_INLINE, md), "formula", 200)  # code in backticks has 190
        md.preprocessors.register(_Blocks(md), "formulas", 24)  # after fenced code, which has 25
