"""Cells that fail today, each with its finding; a mended cell fails its strict xfail, and its name is deleted here."""

from __future__ import annotations

import re

from zoo.measures import MEASURES

__all__ = ["FAULTS"]

# a member and its finding, then its failing measures, or "all but" the others
LIST = """
"""


def _parsed(text: str) -> dict[tuple[str, str], str]:
    """Return the finding of each member and measure."""
    found: dict[tuple[str, str], str] = {}
    for member, why, cells in re.findall(r"^(\S+) \| (.+)\n((?:    .+\n)+)", text, re.MULTILINE):
        names = {name.strip() for name in cells.replace("all but: ", "").split(";") if name.strip()}
        names = {" ".join(name.split()) for name in names}
        assert names <= set(MEASURES), names - set(MEASURES)
        found |= {(member, name): why for name in (set(MEASURES) - names if "all but: " in cells else names)}
    return found


FAULTS = _parsed(LIST)
