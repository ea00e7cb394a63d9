"""The `lossscope` command: thin commands over the library, and one place where known errors become one line."""

from __future__ import annotations

import sys

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
    help="What a training run's loss landscape looks like, measured with error bars.",
)
app.command()(demo)
app.command()(train)
app.command()(probe)
app.command()(runs)
app.command()(doctor)
app.add_typer(report_app, name="report")
app.add_typer(list_app, name="list")


def main() -> None:
    """Run the command in `sys.argv`; a known error is one line on stderr and exit code 1."""
    try:
        app()
    except LossscopeError as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"error: {message}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
