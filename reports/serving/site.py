"""Pages of a folder of runs: an index and the reports of each run, rendered anew when files of the run change."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from lossscope.landscape.errors import RunError
from lossscope.landscape.run import Run, open_runs, run_folders
from lossscope.landscape.storage.compaction import CHECKPOINTS
from lossscope.landscape.storage.journal import JOURNAL
from lossscope.landscape.storage.run_folder import is_recorded
from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Report, Table

if TYPE_CHECKING:
    from lossscope.reports.listings.run_list import Unreadable

__all__ = ["PAGES", "Page", "Site"]

PAGES: Final = ("overview", "sharpness", "entropy", "flatness", "dynamics", "all")
_KEPT: Final = 32  # rendered pages
_REFRESH: Final = 5  # seconds between two looks of a page at a run that is recorded
_SHARE: Final = 10  # a page that took long to render is looked at after so many times that
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_META: Final = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"')

Content = tuple[str, float]  # HTML, and the seconds that it took


@dataclass(frozen=True)
class Page:
    """A page as HTML, with what its headers need."""

    html: str
    tag: str  # changes if and only if a file behind the page does
    changed: float  # time of the last change, seconds since the epoch
    refresh: int | None  # seconds after which a browser looks again; None if no run on it is recorded

    @property
    def policy(self) -> str:
        """The Content-Security-Policy of the page, or the strictest one that lets it look as it does."""
        found = _META.search(self.html)
        return f"{unescape(found[1]) if found else _POLICY}; frame-ancestors 'none'"


class Site:
    """The pages of a folder. Several threads may ask; one page is rendered at a time.

    A run is found by its path relative to the folder among the runs that are there; no path is put together of what a
    browser sends. A run with a link that leads out of the folder is not opened.

    Args:
        folder: A run, or a folder of runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, bytes], tuple[str, Content]] = OrderedDict()

    def check(self) -> int:
        """Return the number of runs.

        Raises:
            RunError: The folder holds no run, cannot be listed, or is a run that cannot be read.
        """
        found = run_folders(self.folder)
        if found == [self.folder]:
            Run.open(self.folder)
        return len(found)

    def index(self) -> Page:
        """Return the list of the runs, with links to their reports.

        Raises:
            RunError: The folder cannot be listed, or holds no run.
        """
        found = run_folders(self.folder)
        inside = [path for path in found if not self._why_outside(path)]
        return self._page("", b"", inside, lambda: _index_html(self.folder, [self._opened(path) for path in found]))

    def report(self, kind: str, name: bytes) -> Page | None:
        """Return a report of a run, or of all runs together; None if there is no such run.

        Args:
            kind: One of `PAGES`.
            name: Path of the run relative to the folder, with slashes; b"" for all runs together.

        Raises:
            RunError: A run cannot be read, or a link in it leads out of the folder.
        """
        paths = [path for path in run_folders(self.folder) if not name or _key(path, self.folder) == name]
        if not paths:
            return None
        for path in paths:
            if why := self._why_outside(path):
                raise RunError(why)
        return self._page(kind, name, paths, lambda: _report_html(kind, paths))

    def _page(self, kind: str, name: bytes, paths: Sequence[Path], make: Callable[[], str]) -> Page:
        """Return a page, made anew if a file of its runs changed since it was made."""
        print_, changed, recorded = _state(paths)
        with self._lock:
            known = self._kept.get((kind, name))
            if known is None or known[0] != print_:
                begun = time.monotonic()
                content = (make(), time.monotonic() - begun)
                self._kept[kind, name] = (print_, content)
            else:
                content = known[1]
            self._kept.move_to_end((kind, name))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        html, seconds = content
        return Page(html, print_, changed, max(_REFRESH, int(_SHARE * seconds)) if recorded else None)

    def _opened(self, path: Path) -> Run | Unreadable:
        """Return the run, or the reason why it cannot be opened."""
        from lossscope.reports.listings.run_list import Unreadable

        if why := self._why_outside(path):
            return Unreadable(path, why)
        try:
            return Run.open(path)
        except RunError as error:
            return Unreadable(path, " ".join(str(error).split()))

    def _why_outside(self, path: Path) -> str:
        """Return which link of a run leads out of the folder; "" if none does."""
        for place in _files(path):
            if os.path.islink(place) and not Path(os.path.realpath(place)).is_relative_to(self.folder):
                shown = os.path.relpath(place, self.folder)
                return f"{shown} is a link out of the folder that is served: no such link is followed"
        return ""


def _key(path: Path, folder: Path) -> bytes:
    """Return the path of a run relative to the folder, as bytes with slashes."""
    return b"" if path == folder else os.fsencode(path.relative_to(folder).as_posix())


def _files(path: Path) -> Iterator[Path]:
    """Yield the folders that lead to a run and what a report may read in it, which are no checkpoints.

    What lies behind a link is not listed before the link was yielded.
    """
    yield path.parent
    for place in (path, path / JOURNAL):
        yield place
        try:
            with os.scandir(place) as entries:
                yield from (Path(entry.path) for entry in entries if entry.name != CHECKPOINTS)
        except OSError:  # reading the run says why
            continue


def _state(paths: Sequence[Path]) -> tuple[str, float, bool]:
    """Return a hash of the state of all files of runs, the time of their last change, and True if one is recorded."""
    digest, changed, recorded = hashlib.sha256(), 0.0, False
    for path in paths:
        digest.update(os.fsencode(path))
        for place in _files(path):
            with_status = _status(place)
            digest.update(repr((os.fsencode(place), with_status)).encode())
            changed = max(changed, with_status[0] / 1e9 if with_status else 0.0)
        now = is_recorded(path)
        digest.update(b"recorded" if now else b"ended")
        recorded = recorded or now
    return digest.hexdigest(), min(changed, time.time()), recorded


def _status(path: Path) -> tuple[int, ...]:
    """Return what changes with a file; nothing for one that is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _report_html(kind: str, paths: Sequence[Path]) -> str:
    """Return a report of runs as HTML."""
    from lossscope.reports.render.rendering import render

    return render(_report(kind, [run for path in paths for run in open_runs(path)]), "html")


def _report(kind: str, runs: Sequence[Run]) -> Report:
    """Return a report of runs."""
    from lossscope.reports import dynamics, flatness, overview, sharpness, spectral_entropy
    from lossscope.reports.shared.merged import merged

    pages: dict[str, Callable[[Sequence[Run]], Report]] = {
        "overview": overview,
        "sharpness": sharpness,
        "entropy": spectral_entropy,
        "flatness": flatness,
        "dynamics": dynamics,
    }
    return pages[kind](runs) if kind in pages else merged([page(runs) for page in pages.values()])


def _index_html(folder: Path, runs: Sequence[Run | Unreadable]) -> str:
    """Return the list of runs as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from lossscope.reports.listings.run_list import run_alert, run_list
    from lossscope.reports.shared.number_format import cell_text, header

    table: Table = run_list(runs, folder)
    links = [[(kind, f"/{kind}/{quote(_key(run.path, folder))}") for kind in PAGES] for run in runs]
    environment = Environment(
        loader=PackageLoader("lossscope.reports.serving", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(cell=cell_text, header=header, printable=printable)
    return environment.get_template("index.html.j2").render(
        table=table,
        rows=list(zip(table.rows, links, strict=True)),
        alert=run_alert(runs, folder),
        every=[(kind, f"/{kind}/") for kind in PAGES],
    )
