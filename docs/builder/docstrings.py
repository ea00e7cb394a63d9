"""Docstrings as the site shows them: the section "Example" as code, and pages that they name as links."""

from __future__ import annotations

import re
from typing import Any, Final

from griffe import Extension, Object

__all__ = ["Docstrings", "shown"]

_PAGE: Final = re.compile(r"docs/([\w/]+)\.md")
_EXAMPLE: Final = re.compile(r"^Example:$", re.M)  # "Examples" is the name of the section of code that griffe knows


class Docstrings(Extension):
    """Extension of griffe that changes each docstring once, when its object is made."""

    def on_object(self, *, obj: Object, **others: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(docstring: str) -> str:
    """Return a docstring with its examples as code, and links from the folder `reference` to the pages it names."""
    return _PAGE.sub(r"[\1](../\1.md)", _EXAMPLE.sub("Examples:", docstring))
