"""Run the commands and the Python of a page, and put what they print into the blocks of text behind them.

Usage, from the top of the repository: .venv/bin/python docs/update_outputs.py first_ten_minutes.md

A block of text behind the comment `<!-- printed -->` is what the block of `sh` or `python` before it printed. If it
ends with "…" it is the beginning: as many paragraphs as it has. Tests compare the blocks in words; numbers may differ.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from typer.testing import CliRunner

from lossscope.cli.main import app

__all__ = ["in_words", "played"]

DOCS: Final = Path(__file__).parent
_SHOWN: Final = "<!-- printed -->\n```text\n"
_BLOCK: Final = re.compile(rf"^(?P<head>```(?:python|sh)\n|{re.escape(_SHOWN)})(?P<code>.*?)^```$", re.M | re.S)
_NUMBER: Final = re.compile(r"[-−]?\d[\d,.]*(?:e[-+]?\d+)?")


def played(text: str) -> tuple[str, dict[str, Any]]:
    """Run the blocks of a page in order, in this process and the current folder.

    Returns:
        The text with the outputs of this run, and the names that its Python left.

    Raises:
        ValueError: A command failed.
    """
    scope: dict[str, Any] = {}
    printed = ""

    def replaced(block: re.Match[str]) -> str:
        nonlocal printed
        head, code = block["head"], block["code"]
        if head == _SHOWN:
            return f"{head}{_shortened(printed, code)}```"
        printed = _python(code, scope) if "python" in head else _commands(code)
        return block[0]

    return _BLOCK.sub(replaced, text), scope


def in_words(text: str) -> str:
    """Return a text without its line breaks and with one number in place of all."""
    return " ".join(_NUMBER.sub("0", re.sub("─+", "─", text)).split())


def _shortened(printed: str, shown: str) -> str:
    """Return what was printed, cut to the paragraphs of what was shown if that ends with an ellipsis."""
    kept = shown.removesuffix("…\n")
    if kept == shown:
        return printed
    paragraphs = printed.split("\n\n")[: kept.strip("\n").count("\n\n") + 1]
    return "\n\n".join(paragraphs) + "\n…\n"


def _commands(code: str) -> str:
    """Return what the last of some commands printed."""
    printed = ""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        if program != "lossscope":
            raise ValueError(f"only lossscope is run, got {line}")
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        if result.exit_code != 0:
            raise ValueError(f"{line} ended with {result.exit_code}\n{result.output}")
        printed = "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"
    return printed


def _python(code: str, scope: dict[str, Any]) -> str:
    """Return what some Python printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), scope)
    return printed.getvalue()


def main(names: list[str]) -> None:
    """Write the outputs into some pages of this folder."""
    for name in names:
        page = DOCS / name
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            sys.path.insert(0, os.getcwd())
            page.write_text(played(page.read_text())[0])


if __name__ == "__main__":
    main(sys.argv[1:])
