"""Width of text output."""

from __future__ import annotations

import shutil
import sys

__all__ = ["text_width"]


def text_width() -> int:
    """Return the width of text printed to stdout, in columns.

    On a terminal this is its width, or `COLUMNS` if set, limited to 80..120. A pipe or a file always gets 120, whatever
    `COLUMNS` says, so that saved output does not depend on the window it was made in.
    """
    from lossscope.reports.render.text import NARROWEST, WIDEST

    if not sys.stdout.isatty():
        return WIDEST
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
