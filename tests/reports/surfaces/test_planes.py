"""Planes on a page and as pictures: points and lines, what a picture cannot show in every format, holes, escapes."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from dataclasses import replace
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from html_page import HOSTILE
from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.surfaces.pictures import Fan, Mark, Nulls, Path, Plane, Trail
from lossscope.reports import render
from lossscope.reports.content import Report
from lossscope.reports.figure_content import Contours
from lossscope.reports.render.contours import contour_figure, mark_size
from lossscope.reports.render.interactive import interactive_page
from lossscope.reports.render.picture import PICTURES, picture
from lossscope.reports.render.raised import has_logarithmic_height, raised_figure
from lossscope.reports.surfaces.fan_page import fan_report
from lossscope.reports.surfaces.made import Made
from lossscope.reports.surfaces.path_page import path_report
from lossscope.reports.surfaces.plane_page import figure, plane_report

KINDS = ("random", "eigen", "pca", "points")
WITH_PLOTLY = pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is not installed")
AXES = ("first axis", "second axis")
MADE = Made("0.2.0", "lossscope surface", "ab" * 32, "12", "nats")


def plane(planes: int = 1, *, name: str = "run", held: float = 0.99, hole: bool = True, **more: Any) -> Plane:
    """Return a bowl on a grid of 7 by 5 with a training of three checkpoints, one of them outside."""
    x, y = np.linspace(-3, 3, 7), np.linspace(-2, 2, 5)
    losses = np.stack([1 + place + x**2 + 2 * y[:, None] ** 2 for place in range(planes)])
    if hole:
        losses[:, 0, 0] = math.nan
    marks = (Mark(f"{name} at step 0", 2.0, 1.0, 9.5, 3.0), Mark(f"{name} at step 1", 9.0, 0.0, 5.5, 1.0))
    marks += (Mark(f"{name} at step 2", 0.0, 0.0, 1.0, 0.0),)
    trails = tuple(Trail(name, place, marks, held) for place in range(planes))
    return Plane(x, y, losses, AXES, 1.0, trails=trails, **more)


def walk() -> Plane:
    return plane(explained=(0.6, 0.15), walk=(0.61, 0.15), hole=False, held=0.75)


def fan_page() -> Report:
    sigmas = np.linspace(-1, 1, 5)
    losses = np.stack([sigmas**2 * k for k in range(8)])
    fan = Fan(sigmas, losses, losses, sigmas**2, 1.0, 0.1, 0.0, 0, 0.1)
    return fan_report({"a": fan}, MADE)


def path_page(**more: Any) -> Report:
    shares = np.linspace(0, 1, 5)
    one = Path(shares, 1 + shares * (1 - shares), None, 2.0, 0.1, **more)
    return path_report({"a to b": one}, Nulls(), MADE)


PAGES = {
    **{kind: lambda kind=kind: plane_report(plane(), kind, "run at step 2", MADE) for kind in KINDS},
    "3d": lambda: plane_report(plane(), "pca", "run at step 2", MADE, raised=True),
    "fan": fan_page,
    "path": path_page,
}


def without_spaces(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"<[^>]*>", "", text))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_picture_cannot_show_is_said_in_every_format(page: str) -> None:
    report = PAGES[page]()
    for drawn in report.figures:
        assert 1 <= len(drawn.limits) <= 3
        for form in ("text", "markdown", "html", "json"):
            shown = without_spaces(render(report, form).replace("&#39;", "'"))
            for line in drawn.limits:
                assert without_spaces(line) in shown, form
        assert without_spaces(drawn.limits[0]) in without_spaces(report._repr_html_())
        saved = without_spaces(picture(drawn, ".svg").decode())
        assert without_spaces(drawn.title) in saved
        assert all(without_spaces(line) in saved for line in drawn.limits)


@pytest.mark.parametrize("page", ["random", "3d", "path"])
def test_a_saved_png_has_room_for_its_lines_above_the_drawing(page: str) -> None:
    drawn = PAGES[page]().figures[0]
    bare = replace(drawn, limits=())
    whole, without = (np.asarray(Image.open(BytesIO(picture(one, ".png"))).convert("L")) for one in (drawn, bare))
    more = len(whole) - len(without)
    assert more > 20  # pixels of the lines
    assert (whole[:more] < 200).any()
    assert (whole[-400:] == without[-400:]).all()  # the drawing itself


@pytest.mark.parametrize("ending", PICTURES)
def test_equal_figures_give_equal_files_on_white(ending: str) -> None:
    first, second = (picture(PAGES["pca"]().figures[0], ending) for _ in range(2))
    assert first == second
    if ending == ".svg":
        root = ElementTree.fromstring(first)
        assert root[0].attrib["fill"] == "white"
    else:
        assert Image.open(BytesIO(first)).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("held", "lines"), [(0.89, ()), (0.9, ((0, 1, 2),))])
def test_a_line_joins_checkpoints_only_where_the_plane_holds_nine_tenths(held: float, lines: object) -> None:
    found = figure(plane(held=held), "eigen", "nats")
    assert found.lines == lines
    assert [one.value for one in found.marks] == [9.5, 5.5, 1.0]
    assert ("No line joins" in found.caption) == (not lines)
    assert "1 points lie outside of the picture" in found.caption
    (ax, *_) = contour_figure(found).axes
    assert sum(len(line.get_xdata()) == 3 for line in ax.lines) == len(lines)  # type: ignore[arg-type]


def test_two_checkpoints_are_no_line() -> None:
    one = plane()
    trail = replace(one.trails[0], marks=one.trails[0].marks[:2])
    assert figure(replace(one, trails=(trail,)), "eigen", "nats").lines == ()


def test_distances_from_the_plane_are_in_the_table_and_in_the_size() -> None:
    report = plane_report(plane(), "eigen", "run at step 2", MADE)
    assert [row[4] for row in report.tables[0].rows] == [3.0, 1.0, 0.0]
    assert report.tables[1].rows == (("run", 1, 0.99, "line"),)
    found = report.figures[0]
    assert isinstance(found, Contours)
    sizes = [mark_size(found, one) for one in found.marks]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 7.0


def test_planes_have_their_own_points() -> None:
    found = figure(plane(3), "random", "nats")
    assert [one.panel for one in found.marks] == [0] * 3 + [1] * 3 + [2] * 3
    axes = contour_figure(found).axes[:3]
    assert [ax.get_title() for ax in axes] == ["plane 1", "plane 2", "plane 3"]


def test_labels_do_not_cover_each_other() -> None:
    near = tuple(Mark(f"{k}", k * 1e-3, 0.0, 1.0, 0.0) for k in range(20))
    crowded = replace(plane(), trails=(Trail("run", 0, near, 1.0),))
    labels = [one.words for one in figure(crowded, "pca", "nats").marks if one.words]
    assert labels == ["20: 1.00"]


def test_a_random_walk_is_told_on_the_picture() -> None:
    report = plane_report(walk(), "pca", "run at step 2", MADE)
    assert any(
        "75 % of their variance" in line or "76 % of their variance" in line for line in report.figures[0].limits
    )


def test_three_checkpoints_are_no_evidence_of_a_plane() -> None:
    one = walk()
    report = plane_report(replace(one, marks=one.trails[0].marks), "pca", "run at step 2", MADE)
    assert any("three checkpoints lie in a plane whatever" in one.words for one in report.summary)


@pytest.mark.parametrize("hole", [False, True])
def test_a_surface_has_a_hole_where_a_cell_is_missing(hole: bool) -> None:
    drawn = raised_figure(figure(plane(hole=hole), "pca", "nats", raised=True))
    drawn.draw_without_rendering()
    (surface,) = drawn.axes[0].collections
    assert len(surface.get_paths()) == 6 * 4 - hole


def test_heights_are_logarithmic_only_where_it_is_said() -> None:
    flat = figure(plane(), "pca", "nats", raised=True)
    assert not has_logarithmic_height(flat)
    steep = replace(flat, panels=tuple(tuple(tuple(v and v**8 for v in row) for row in one) for one in flat.panels))
    assert has_logarithmic_height(steep)
    labels = [raised_figure(one).axes[0].get_zlabel() for one in (flat, steep)]
    assert labels == ["loss", "loss, logarithmic"]
    below = replace(steep, panels=tuple(tuple(tuple(v and v - 2 for v in row) for row in one) for one in steep.panels))
    assert not has_logarithmic_height(below)


def test_a_plane_without_any_loss_is_an_empty_picture() -> None:
    lost = replace(plane(), losses=np.full((1, 5, 7), math.nan), trails=())
    for raised in (False, True):
        assert picture(figure(lost, "eigen", "nats", raised=raised), ".png")


def test_without_plotly_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(LandscapeError, match=r"needs plotly: install it with pip install 'lossscope\[interactive\]'$"):
        interactive_page(PAGES["pca"]().figures[0])


@WITH_PLOTLY
def test_only_planes_have_a_page_to_turn() -> None:
    with pytest.raises(LandscapeError, match="has no planes"):
        interactive_page(fan_page().figures[0])


@WITH_PLOTLY
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_are_text_on_the_page_to_turn(name: str) -> None:
    report = plane_report(replace(plane(name=name), axes=(name, name)), "points", name, MADE, raised=True)
    page = interactive_page(replace(report.figures[0], title=name, limits=(name,), caption=name))
    own = page[: page.index("<script>")] + page[page.rindex("<body>") :]
    assert "alert(1)</script>" not in own
    assert not re.search(r"<(b|img|a|style)\b", own[own.index("<h1>") :])
    assert "\x1b" not in own


@WITH_PLOTLY
def test_the_page_to_turn_has_all_cells_and_no_address() -> None:
    page = interactive_page(figure(plane(2), "random", "nats"))
    own = page[page.rindex("<body>") :]
    data = json.loads(re.search(r'Plotly\.newPlot\(\s*"surface",\s*(\[.*?\]),\s*\{"', own, re.S)[1])  # type: ignore[index]
    surfaces = [one for one in data if one["type"] == "surface"]
    assert [one["scene"] for one in surfaces] == ["scene", "scene2"]
    assert surfaces[0]["customdata"][0][0] is None
    assert surfaces[0]["customdata"][2][3] == 1.0
    assert "http" not in own.replace("https://plot.ly", "")
    assert page.count("default-src 'none'") == 1
