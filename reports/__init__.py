"""Reports: content as data first, then a renderer per format."""

from lossscope.reports.content import Report
from lossscope.reports.entropy_report import spectral_entropy
from lossscope.reports.flatness_report import flatness
from lossscope.reports.output import write_text
from lossscope.reports.overview_report import overview
from lossscope.reports.rendering import render
from lossscope.reports.sharpness_report import sharpness

__all__ = ["Report", "flatness", "overview", "render", "sharpness", "spectral_entropy", "write_text"]
