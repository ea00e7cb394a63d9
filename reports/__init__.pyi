from .content import Report as Report
from .dynamics_report import dynamics as dynamics
from .entropy_report import spectral_entropy as spectral_entropy
from .flatness_report import flatness as flatness
from .output import write_text as write_text
from .overview_report import overview as overview
from .rendering import render as render
from .sharpness_report import sharpness as sharpness
