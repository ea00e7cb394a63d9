"""`lossscope serve`: the reports of a folder of runs in the browser."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from lossscope.cli.terminal import echo
from lossscope.landscape.errors import LandscapeError

__all__ = ["serve"]


def serve(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, or a folder of runs.", show_default=False)],
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="PORT", help="Port; 0 takes one that is free.")
    ] = 8765,
) -> None:
    """Serve the reports of runs to a browser on this machine until Ctrl-C; it touches no run.

    The first page lists the runs with links to their reports. A page of a run that is still training is made anew when
    its files change, and loads itself again. Only this machine can open the pages.

    Example: lossscope serve runs --port 8765
    """
    from lossscope.reports.serving.server import ADDRESS, Server
    from lossscope.reports.serving.site import Site

    site = Site(folder)
    count = site.check()
    try:
        server = Server(site, port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used by this account"
        raise LandscapeError(
            f"port {port} of {ADDRESS} {why}: choose another --port, or 0 for one that is free"
        ) from None
    with server, suppress(KeyboardInterrupt):
        echo(f"{count} run{'' if count == 1 else 's'} of {folder} at {server.url} until Ctrl-C")
        server.serve_forever()
