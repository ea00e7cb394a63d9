"""Entry point of the `lossscope` command: registers the commands and turns known errors into one line."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final, Literal

import typer

from lossscope.cli.ablate import ablate
from lossscope.cli.budget import budget
from lossscope.cli.catalogue import list_app
from lossscope.cli.check import check
from lossscope.cli.compare import compare
from lossscope.cli.demo import demo
from lossscope.cli.diff import diff
from lossscope.cli.doctor import doctor
from lossscope.cli.export import export
from lossscope.cli.measure import measure
from lossscope.cli.probe import probe
from lossscope.cli.report import report_app
from lossscope.cli.runs import runs
from lossscope.cli.serve import serve
from lossscope.cli.surface import surface
from lossscope.cli.terminal import OutputError, echo, safe_streams
from lossscope.cli.train import train
from lossscope.cli.watch import watch
from lossscope.errors import LossscopeError
from lossscope.landscape.storage.files import reason, remedy

__all__ = ["app", "main"]

_LONG_WORD: Final = re.compile(r"(\S{100})\S{200,}(\S{40})")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # inherited by every command
)


def _print_version(requested: bool) -> None:
    """Print the version and exit if `--version` was given."""
    if requested:
        from lossscope import __version__

        echo(f"lossscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Loss-landscape analysis of training runs, with error bars: train, record, probe, report, and compare."""


app.command()(demo)
app.command()(train)
app.command()(ablate)
app.command()(budget)
app.command()(probe)
app.command()(measure)
app.command()(surface)
app.command()(diff)
app.command()(runs)
app.command()(watch)
app.command()(serve)
app.command()(export)
app.command()(compare)
app.command()(check)
app.command()(doctor)
app.add_typer(report_app, name="report")
app.add_typer(list_app, name="list")


def main() -> None:
    """Run the command in `sys.argv`; a known error becomes one line on stderr and exit code 1."""
    with safe_streams(), _warnings_in_lines():
        try:
            app()
        except LossscopeError as error:
            if not (isinstance(error, OutputError) and error.quiet):
                _say("error", str(error))
            sys.exit(1)
        except OSError as error:
            what = f"{error.filename}: " if error.filename is not None else ""
            _say("error", f"{what}{reason(error)}; {remedy(error)}")
            sys.exit(1)


@contextmanager
def _warnings_in_lines() -> Iterator[None]:
    """Show each warning of lossscope as one line on stderr, without the place in the source, within the context."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_in_line(message: Warning | str, category: type[Warning], *place: Any, **others: Any) -> None:
            """Show a warning; those of other packages as ever."""
            if category.__module__.startswith("lossscope."):
                _say("warning", str(message))
            else:
                show(message, category, *place, **others)

        warnings.showwarning = show_in_line
        yield


def _say(kind: Literal["error", "warning"], message: str) -> None:
    """Write a message as one line to stderr, if that can be written; words of hundreds of letters are shortened."""
    line = _LONG_WORD.sub(r"\1…\2", " ".join(message.split()))
    with suppress(OutputError, AttributeError):
        sys.stderr.write(f"{kind}: {line}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
