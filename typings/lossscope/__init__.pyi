from .errors import LossscopeError as LossscopeError
from .landscape import Recorder as Recorder, Run as Run, open_runs as open_runs, train as train
from .optimizer import ARS2Neo as ARS2Neo, create as create, routing as routing
from .probes import (
    EigenTracker as EigenTracker,
    Estimate as Estimate,
    Objective as Objective,
    gauss_newton as gauss_newton,
    hessian as hessian,
    measure_spectrum as measure_spectrum,
    per_module as per_module,
    singular_spectrum as singular_spectrum,
)

__version__: str
