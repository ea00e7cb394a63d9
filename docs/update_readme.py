"""Redraw docs/report.png and the README's table from the runs of a demo.

Usage, from the top of the repository: make demo && .venv/bin/python docs/update_readme.py runs/demo
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from lossscope import open_runs
from lossscope.reports import overview
from lossscope.reports.content import FigureData
from lossscope.reports.render.drawing import draw_figure
from lossscope.reports.render.text import table_text

DOCS = Path(__file__).parent
SHOWN = ("loss", "lambda_max", "adaptive_trace", "entropy")
MARGIN = 16  # pixels
BLOCK = re.compile(r"(<!-- written by docs/update_readme.py -->\n```text\n).*?(```)", re.S)


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


def main(demo: Path) -> None:
    """Write the picture and the table."""
    report = overview(open_runs(demo))
    figures = {figure.key: figure for figure in report.figures}
    panels = [drawn(figures[key]) for key in SHOWN]
    width, height = panels[0].size
    picture = Image.new("RGB", (2 * width, 2 * height), "white")
    for place, panel in enumerate(panels):
        picture.paste(panel, (place % 2 * width, place // 2 * height))
    picture.quantize(64).save(DOCS / "report.png", optimize=True)

    readme = DOCS.parent / "README.md"
    table = table_text(report.tables[0])
    text, count = BLOCK.subn(lambda block: block[1] + table.rstrip() + "\n" + block[2], readme.read_text())
    if count != 1:
        sys.exit(f"README.md must have one block behind '<!-- written by docs/update_readme.py -->', got {count}")
    readme.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
