"""`lossscope check`: decide the claims of a file from recorded runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lossscope.cli.claim_bundle import write_claim_bundle
from lossscope.cli.compare import write_document
from lossscope.cli.options import ForceOption, FormatOption, JsonOption, OutputOption

if TYPE_CHECKING:
    from lossscope.landscape.verdicts.claims import Claim, ClaimsFile

__all__ = ["check"]

FOUNDING: Final = "founding"
_FOLDER: Final = Path("runs")

_Claims = Annotated[
    str,
    typer.Argument(metavar="CLAIMS.toml|founding", help="A file of claims, or those that ship.", show_default=False),
]
_In = Annotated[
    list[Path] | None,
    typer.Option("--in", metavar="DIR", help="A run or folder of runs; may be repeated.", show_default=False),
]
_Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", metavar="M", min=0, help="Only claims whose runs take at most M minutes.", show_default=False
    ),
]
_Export = Annotated[
    Path | None,
    typer.Option(
        "--export", metavar="DIR", help="Write a claim bundle: claims, runs, verdicts, hashes.", show_default=False
    ),
]


def check(
    claims: _Claims,
    folders: _In = None,
    minutes: _Minutes = None,
    export: _Export = None,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide claims from recorded runs: one line a claim.

    The exit code is 0 if every claim is supported, 3 if the runs speak against one (CONTRADICTED, EQUIVALENT, MIXED),
    and 4 if none is of these but one is INCONCLUSIVE or NOT JUDGED.

    Without --in, claims are decided from the runs in runs; `founding --minutes M` first trains those missing of
    the arms that its claims name, in runs/parts.

    --export DIR writes a folder from which anybody decides the same again: the claims, the tables of the runs, the
    verdicts, versions and machines, the SHA-256 of each file, the command, and a logbook of trackio.

    Example: lossscope check founding --in runs/parts --format html --output verdict.html
    """
    from lossscope import __version__
    from lossscope.cli.report import opened
    from lossscope.landscape.verdicts.judge import judge
    from lossscope.reports.comparison.report import check_report, exit_code
    from lossscope.reports.render.output import refuse_taken

    if output is not None:
        refuse_taken(output, force=force)
    file = _read(claims)
    asked = [one for one in file.claims if minutes is None or one.minutes is None or one.minutes <= minutes]
    places = _folders(folders or [], claims, asked if minutes else [])
    runs = opened(places)
    verdicts = [judge(claim, runs) for claim in asked]
    document = check_report(
        verdicts,
        runs,
        version=__version__,
        claims=file,
        commands=[_command(claims, places, minutes)],
        notes=_left_out(file, asked, minutes),
    )
    if export is not None:
        write_claim_bundle(export, file, verdicts, runs, document, minutes=minutes, force=force)
    write_document(document, "json" if as_json else format, output, force=force)
    raise typer.Exit(exit_code(verdicts))


def _read(claims: str) -> ClaimsFile:
    """Return the claims of a file, or those that ship."""
    from lossscope.landscape.verdicts.claims import founding_claims, read_claims

    return founding_claims() if claims == FOUNDING else read_claims(claims)


def _folders(given: Sequence[Path], claims: str, affordable: Sequence[Claim]) -> Sequence[Path]:
    """Return the folders of runs: those given, else those trained for claims that ship, else `runs`.

    Args:
        given: Folders that were named.
        claims: The file of claims, or `founding`.
        affordable: Claims for which runs are to be trained.

    Raises:
        ConfigError: There is no folder for the claims of a file.
    """
    from lossscope.cli.founding_runs import train_founding_runs
    from lossscope.landscape.errors import ConfigError

    if given:
        return given
    if claims == FOUNDING and affordable:
        made = train_founding_runs(affordable)
        return [] if made is None else [made]
    if _FOLDER.is_dir():
        return [_FOLDER]
    if claims != FOUNDING:
        raise ConfigError("no folder of runs: name one with --in DIR, or train its runs with lossscope ablate")
    return []


def _left_out(file: ClaimsFile, asked: Sequence[Claim], minutes: float | None) -> list[str]:
    """Return a sentence that names the claims left out."""
    names = [one.id for one in file.claims if one not in asked]
    return [f"Left out, their runs take more than {minutes:g} minutes: {', '.join(names)}."] if names else []


def _command(claims: str, folders: Sequence[Path], minutes: float | None) -> str:
    """Return the command that makes the document again."""
    words = ["lossscope", "check", claims, *(word for one in folders for word in ("--in", str(one)))]
    return shlex.join([*words, *([] if minutes is None else ["--minutes", f"{minutes:g}"])])
