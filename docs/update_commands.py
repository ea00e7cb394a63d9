"""Write docs/reference/commands.md, the help of every command, from the command line itself.

Usage, from the top of the repository: .venv/bin/python docs/update_commands.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["PAGE", "commands"]

PAGE: Final = Path(__file__).parent / "reference" / "commands.md"
HEAD: Final = "# Commands\n\nThe help of every command. `docs/update_commands.py` writes this page.\n\n"
_SECTION: Final = re.compile(r"^##+ `(?P<command>[\w ]+)`\n\n(?P<words>.*?)(?=\n\n|\Z)", re.M | re.S)
_LISTED: Final = re.compile(r"^(?P<item>\* `(?P<name>\w+)`: ).*\.\.\.$", re.M)


def commands() -> str:
    """Return the page: the Markdown that Typer makes of the command line, with whole sentences in its lists."""
    typer = [sys.executable, "-m", "typer", "lossscope.cli.main", "utils", "docs", "--name", "lossscope"]
    made = subprocess.run(typer, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    made = made.replace("# `lossscope`\n", "## `lossscope`\n", 1)
    words = {one["command"].split()[-1]: " ".join(one["words"].split()) for one in _SECTION.finditer(made)}
    whole = _LISTED.sub(lambda line: f"{line['item']}{words[line['name']]}", made)
    whole = re.sub(r"^Example: (.+)$", r"Example: `\1`", whole, flags=re.M)
    return f"{HEAD}{whole.rstrip()}\n"


if __name__ == "__main__":
    PAGE.write_text(commands(), encoding="utf-8")
