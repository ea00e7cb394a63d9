"""Reports: content as data first, then a renderer per format.

Names are loaded when first used, so that a report loads no more than it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossscope.reports.content import Report
    from lossscope.reports.dynamics_report import dynamics
    from lossscope.reports.entropy_report import spectral_entropy
    from lossscope.reports.flatness_report import flatness
    from lossscope.reports.output import write_text
    from lossscope.reports.overview_report import overview
    from lossscope.reports.rendering import render
    from lossscope.reports.sharpness_report import sharpness

_HOMES = {
    "Report": "content",
    "dynamics": "dynamics_report",
    "flatness": "flatness_report",
    "overview": "overview_report",
    "render": "rendering",
    "sharpness": "sharpness_report",
    "spectral_entropy": "entropy_report",
    "write_text": "output",
}

__all__ = ["Report", "dynamics", "flatness", "overview", "render", "sharpness", "spectral_entropy", "write_text"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lossscope.reports.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
