"""Entry point of the `lossscope` command: registers the commands and turns known errors into one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lossscope.cli.catalogue import list_app
from lossscope.cli.demo import demo
from lossscope.cli.doctor import doctor
from lossscope.cli.probe import probe
from lossscope.cli.report import report_app
from lossscope.cli.runs import runs
from lossscope.cli.train import train
from lossscope.errors import LossscopeError

__all__ = ["app", "main"]

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

        typer.echo(f"lossscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Loss-landscape analysis of training runs, with error bars: train, record, probe and report."""


app.command()(demo)
app.command()(train)
app.command()(probe)
app.command()(runs)
app.command()(doctor)
app.add_typer(report_app, name="report")
app.add_typer(list_app, name="list")


def main() -> None:
    """Run the command in `sys.argv`; a known error becomes one line on stderr and exit code 1."""
    try:
        app()
    except LossscopeError as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"error: {message}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
