"""Pages of reports, and Debian's Chromium to open them in: `make browser-test`.

Nothing here is collected by `make test`. Without a Chromium or without the extra `browser` every test is skipped.
"""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lossscope.landscape.run import Run, open_runs
from lossscope.landscape.verdicts.judge import compare
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.comparison.report import compare_report
from lossscope.reports.shared.merged import merged

ROOT = Path(__file__).parents[2]
PAGES = ("overview", "sharpness", "dynamics", "flatness", "all", "compare")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
BLOCKED = (
    "window.blocked = []; addEventListener('securitypolicyviolation', (one) => blocked.push(one.violatedDirective));"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def runs(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Return runs of two arms with two seeds; the loss of the second arm is half of that of the first."""
    folder = tmp_path_factory.mktemp("runs")

    def halved(table: str, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "loss": row["loss"] / 2} if table == "steps" else row

    settings = {"ars2-base": {}, "ars2-sync": {"rows": halved}}
    return [
        shelf.written(folder / f"{arm}-s{seed}", arm, seed, **more) for arm, more in settings.items() for seed in (0, 1)
    ]


@pytest.fixture(scope="session")
def pages(runs: list[Run], study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of the pages, made of small runs without training."""
    folder = tmp_path_factory.mktemp("pages")
    # runs with every table of the dynamics report
    dynamic = runpy.run_path(str(ROOT / "tests" / "reports" / "conftest.py"))["dynamic"]
    moved = [
        dynamic(folder / "runs" / f"{arm}-s{seed}", arm, seed) for arm in ("ars2-aga", "ars2-sync") for seed in (0, 1)
    ]
    verdict = compare("sync", "base", open_runs(study), level=0.02)
    every = [one(runs) for one in (overview, sharpness, spectral_entropy, flatness, dynamics)]
    made = {
        "overview": every[0],
        "sharpness": every[1],
        "dynamics": dynamics(moved),
        "flatness": every[3],
        "all": merged(every),
        "compare": compare_report(verdict, open_runs(study), version="0.2.0", command="lossscope compare sync base"),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_text(render(page, "html"), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Return a headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -e '.[browser]'")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


class Visit:
    """A page that is open, and all that it said and asked for."""

    def __init__(self, tab: Any) -> None:
        self.tab, self.said, self.asked = tab, list[str](), list[str]()
        tab.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: self.asked.append(request.url))
        tab.add_init_script(BLOCKED)

    def through(self) -> None:
        """Scroll to the end, so that everything is drawn, and back."""
        self.tab.evaluate(
            """async () => {
                for (let y = 0; y < document.body.scrollHeight; y += 600) {
                    scrollTo(0, y);
                    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                }
                scrollTo(0, 0);
            }"""
        )
        self.tab.wait_for_function(
            "() => Object.keys(lossscope.data.plots).every((key) => document.getElementById(key).matches('.drawn'))"
        )


@pytest.fixture
def visit(chromium: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens a page by its name, or a file."""
    contexts = []

    def open_page(page: str | Path, *, width: int = 1280, **settings: Any) -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        context.set_default_timeout(60_000)  # software draws surfaces slowly
        found = Visit(context.new_page())
        found.tab.goto((page if isinstance(page, Path) else pages[page]).as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()
