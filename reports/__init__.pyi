from .content import Report as Report
from .dynamics.report import dynamics as dynamics
from .entropy.report import spectral_entropy as spectral_entropy
from .flatness.report import flatness as flatness
from .overview.report import overview as overview
from .render.output import write_text as write_text
from .render.rendering import render as render
from .sharpness.report import sharpness as sharpness
