"""Planes in Chromium: a report of them, and the page with a surface to turn: silent, no request, drawn and turned."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from html_page import HOSTILE
from lossscope.landscape.surfaces.pictures import Mark, Plane, Trail
from lossscope.reports import render
from lossscope.reports.content import Report
from lossscope.reports.render.interactive import interactive_page
from lossscope.reports.surfaces.made import Made
from lossscope.reports.surfaces.plane_page import plane_report

PICTURES = Path(__file__).parents[2] / ".browser"
CAMERA = "() => JSON.stringify(document.querySelector('#surface')._fullLayout.scene._scene.getCamera())"
DRAWN = "() => document.querySelectorAll('#surface canvas').length > 0"
HINT = "warning: "  # of Chromium, about the speed of canvas and WebGL without a graphics card

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("plotly") is None, reason="no plotly: pip install '.[browser]'"
)


def report(name: str, *, raised: bool = False) -> Report:
    """Return a report of a plane with a hole and a training."""
    x, y = np.linspace(-3, 3, 7), np.linspace(-2, 2, 5)
    losses = (1 + x**2 + 2 * y[:, None] ** 2)[None]
    losses[:, 0, 0] = math.nan
    marks = tuple(Mark(f"{name} at step {k}", 2.0 - k, 0.3 * k, 5.0 - k, 0.1 * k) for k in range(3))
    plane = Plane(x, y, losses, (name, name), 1.0, trails=(Trail(name, 0, marks, 0.95),))
    return plane_report(plane, "pca", name, Made("0.2.0", "lossscope surface", "ab" * 32, "12", "nats"), raised=raised)


def test_the_page_to_turn_is_silent_and_asks_for_nothing(visit: Any, tmp_path: Path) -> None:
    page = tmp_path / "turn.html"
    page.write_text(interactive_page(report("run").figures[0]), encoding="utf-8")
    opened = visit(page)
    opened.tab.wait_for_function(DRAWN)
    box = opened.tab.query_selector("#surface").bounding_box()
    before = opened.tab.evaluate(CAMERA)
    opened.tab.mouse.move(box["x"] + box["width"] / 8, box["y"] + box["height"] / 2)
    opened.tab.mouse.down()
    opened.tab.mouse.move(box["x"] + box["width"] / 6, box["y"] + box["height"] / 3, steps=4)
    opened.tab.mouse.up()
    assert opened.tab.evaluate(CAMERA) != before
    assert [one for one in opened.said if not one.startswith(HINT)] == []
    assert opened.asked == [page.as_uri()]
    assert opened.tab.evaluate("() => blocked") == []
    assert "WebGL is not supported" not in opened.tab.inner_text("body")
    for line in report("run").figures[0].limits:
        assert line in opened.tab.inner_text("main")
    PICTURES.mkdir(exist_ok=True)
    opened.tab.screenshot(path=PICTURES / "turn.png")


def test_hostile_names_do_nothing_on_the_page_to_turn(visit: Any, tmp_path: Path) -> None:
    name = " ".join(HOSTILE.values())
    figure = report(name).figures[0]
    page = tmp_path / "turn.html"
    page.write_text(interactive_page(replace(figure, title=name, caption=name)), encoding="utf-8")
    opened = visit(page)
    opened.tab.wait_for_function(DRAWN)
    assert [one for one in opened.said if not one.startswith(HINT)] == []
    assert opened.asked == [page.as_uri()]
    assert opened.tab.evaluate("() => blocked") == []
    assert opened.tab.query_selector_all("main b, main img, main a[href^=javascript]") == []


@pytest.mark.parametrize("raised", [False, True])
def test_a_report_of_planes_is_silent_and_shows_its_picture(visit: Any, tmp_path: Path, raised: bool) -> None:
    page = tmp_path / "planes.html"
    page.write_text(render(report("run", raised=raised), "html"), encoding="utf-8")
    opened = visit(page)
    assert opened.said == []
    assert opened.asked == [page.as_uri()]
    assert opened.tab.evaluate("() => blocked") == []
    assert opened.tab.query_selector("#plane > svg").is_visible()
    assert len(opened.tab.query_selector_all("#plane > .limit")) == len(report("run").figures[0].limits)
