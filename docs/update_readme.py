"""Redraw docs/report.png, and write the README's comparison and table, from the runs of a demo.

Usage, from the top of the repository: make demo && .venv/bin/python docs/update_readme.py runs/demo

With the runs of the study of the founding claims on digits behind it (runs/founding-digits), also the README's table of
that study, and the comparison in which raw curvature misleads.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from lossscope import Run, __version__, open_runs
from lossscope.cli.demo import COMPARED
from lossscope.landscape import compare
from lossscope.landscape.experiments.grid import read_grid
from lossscope.landscape.experiments.judgement import judged
from lossscope.reports import overview, render
from lossscope.reports.comparison.contrasts import contrasts_report
from lossscope.reports.comparison.report import compare_report
from lossscope.reports.figure_content import FigureData
from lossscope.reports.render.drawing import draw_figure
from lossscope.reports.render.text import table_text

DOCS = Path(__file__).parent
SHOWN = ("loss", "lambda_max", "adaptive_trace", "entropy")
STUDY = DOCS.parent / "benchmarks" / "studies" / "founding" / "digits.toml"
MISLEADING = ("base", "adamw")  # arms of the study whose raw curvature tells another story than the panel
WIDTH = 110  # characters
TABLE_WIDTH = 120  # of the table of contrasts, whose verdicts stand in the last column
MARGIN = 16  # pixels
BLOCK = r"(<!-- {} by docs/update_readme.py -->\n```text\n).*?(```)"


def drawn(figure: FigureData) -> Image.Image:
    """Return a figure as it stands in the page, below its title, on white."""
    out = io.BytesIO()
    draw_figure(figure).savefig(out, format="png", dpi=110, facecolor="white")
    panel = Image.open(out).convert("RGB")
    framed = Image.new("RGB", (panel.width + 2 * MARGIN, panel.height + 3 * MARGIN), "white")
    framed.paste(panel, (MARGIN, 2 * MARGIN + MARGIN // 2))
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 15)
    ImageDraw.Draw(framed).text((MARGIN, MARGIN // 2), figure.title, fill="#22262b", font=font)
    return framed


def main(demo: Path, study: Path | None = None) -> None:
    """Write the picture, the comparison and the table, and those of the study."""
    runs = open_runs(demo)
    report = overview(runs)
    figures = {figure.key: figure for figure in report.figures}
    panels = [drawn(figures[key]) for key in SHOWN]
    width, height = panels[0].size
    picture = Image.new("RGB", (2 * width, 2 * height), "white")
    for place, panel in enumerate(panels):
        picture.paste(panel, (place % 2 * width, place // 2 * height))
    picture.quantize(64).save(DOCS / "report.png", optimize=True)

    readme = DOCS.parent / "README.md"
    text = readme.read_text()
    blocks = {"compared": compared(COMPARED, runs), "written": table_text(report.tables[0])}
    for word, content in {**blocks, **({} if study is None else studied(study))}.items():
        text, count = replaced(text, word, content)
        if count != 1:
            sys.exit(f"README.md must have one block behind '<!-- {word} by docs/update_readme.py -->', got {count}")
    readme.write_text(text)


def compared(arms: tuple[str, str], runs: list[Run], level: float | None = None) -> str:
    """Return the comparison of two arms as text."""
    return render(compare_report(compare(*arms, runs, level=level), runs, version=__version__), "text", width=WIDTH)


def studied(folder: Path) -> dict[str, str]:
    """Return the blocks of the study: its table, and a comparison."""
    runs, grid = open_runs(folder), read_grid(STUDY)
    table = judged(grid, runs)
    first, *_ = contrasts_report(table, runs, version=__version__).tables
    return {"studied": table_text(first, TABLE_WIDTH), "misled": compared(MISLEADING, runs, grid.level)}


def replaced(text: str, word: str, content: str) -> tuple[str, int]:
    """Return a text with the content of its block replaced, and the number of such blocks."""
    pattern = re.compile(BLOCK.format(word), re.S)
    return pattern.subn(lambda block: block[1] + content.rstrip() + "\n" + block[2], text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
