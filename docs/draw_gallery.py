"""Run the examples and keep their pictures for docs/gallery.md.

Usage, from the top of the repository: .venv/bin/python docs/draw_gallery.py [EXAMPLE...]
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "gallery"
WIDTH = 720  # pixels
COLORS = 128


def main(names: Sequence[str]) -> None:
    """Draw the named examples, all if none is named."""
    for example in sorted((ROOT / "examples").glob("*.py")):
        if names and example.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            runpy.run_path(str(example), run_name="__main__")
            picture = Image.open(f"{example.stem}.png").convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        small = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        small.quantize(COLORS).save(PICTURES / f"{example.stem}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
