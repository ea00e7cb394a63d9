"""Styles and scripts of the pages, and the policy that lets a browser run these and nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["UPLOT", "PageAssets", "asset", "page_assets"]

UPLOT: Final = "uplot-1.6.32"  # the plotting library, as published: https://github.com/leeoniya/uPlot, MIT license


@dataclass(frozen=True)
class PageAssets:
    """The styles and scripts of a page, in order, and the policy that allows them."""

    styles: tuple[str, ...]
    scripts: tuple[str, ...]
    policy: str


def page_assets(*, plots: bool) -> PageAssets:
    """Return what a page needs.

    Args:
        plots: Include the plotting library.
    """
    library = (f"{UPLOT}/uPlot.min.css",) if plots else ()
    code = (f"{UPLOT}/uPlot.iife.min.js", "page.js", "plots.js") if plots else ("page.js",)
    styles = tuple(map(asset, (*library, "style.css")))
    scripts = tuple(map(asset, code))
    return PageAssets(styles, scripts, _policy(styles, scripts))


@cache
def asset(name: str) -> str:
    """Return the text of a file beside this module, in its folder of assets."""
    return files("lossscope.reports.render").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy: these styles and scripts, images inside the page, and no request at all."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    """Return the source expression of an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
