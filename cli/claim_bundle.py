"""Claim bundle of `lossscope check --export`: what it holds, made from the documents of the verdicts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from lossscope.cli.terminal import safe_text

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.landscape.verdicts.claims import ClaimsFile
    from lossscope.landscape.verdicts.verdict import Verdict
    from lossscope.reports.content import Document

__all__ = ["write_claim_bundle"]

_README: Final = """

## What this folder is

`claims.toml` are the claims, byte for byte as they were read; `runs` what was recorded, without checkpoints;
`verdicts.json` and `verdicts.html` the verdicts in full; `environment.json` versions and machines. To check that
nothing was changed, and to decide again:

```sh
sha256sum --check --quiet SHA256SUMS
{command}
```

`trackio logbook serve` shows the verdicts as a logbook.
"""


def write_claim_bundle(
    folder: Path,
    claims: ClaimsFile,
    verdicts: Sequence[Verdict],
    runs: Sequence[Run],
    document: Document,
    *,
    minutes: float | None,
    force: bool,
) -> None:
    """Write claims, runs and verdicts into a folder, and say so on stderr.

    Args:
        folder: The folder.
        claims: The file of claims.
        verdicts: The verdicts.
        runs: The runs that were looked at.
        document: The document of the verdicts.
        minutes: Only claims that take at most so many minutes were decided; None: all.
        force: Replace an earlier bundle.
    """
    from lossscope import __version__
    from lossscope.landscape.export.claim_bundle import CLAIMS, RUNS, environments, write_bundle
    from lossscope.landscape.export.logbook import logbook
    from lossscope.reports import render
    from lossscope.reports.comparison.report import check_report

    words = ["lossscope", "check", CLAIMS, "--in", RUNS]
    command = shlex.join([*words, *([] if minutes is None else ["--minutes", f"{minutes:g}"])])
    single = [(one.claim, check_report([one], runs, version=__version__, claims=claims)) for one in verdicts]
    files = {
        "verdicts.json": render(document, "json").encode(),
        "verdicts.html": render(document, "html").encode(),
        "environment.json": environments(runs, command),
        "README.md": (render(document, "markdown").rstrip() + _README.format(command=command)).encode(),
        **logbook(document.title, [(name, render(one, "markdown")) for name, one in single], command),
    }
    size = write_bundle(folder, claims, files, runs, force=force)
    said = f"{folder}: {len(verdicts)} verdicts and {len(runs)} runs, {size / 1e6:.1f} MB"
    typer.echo(safe_text(said, sys.stderr), err=True)
