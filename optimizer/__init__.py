"""ARS2-Neo and its relatives; each step hands a record to whoever observes it."""

import lossscope.optimizer.family  # noqa: F401  registers what comes with the package
from lossscope.optimizer.ars2_neo import ARS2Neo, Pass
from lossscope.optimizer.ascending import Ascending
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.record import StepRecord, TensorRecord
from lossscope.optimizer.registry import ENTRIES, Entry, create, names, register, settings
from lossscope.optimizer.relative import Relative
from lossscope.optimizer.routing import Routing, routing
from lossscope.optimizer.schedule import RhoSchedule

__all__ = [
    "ENTRIES",
    "ARS2Neo",
    "Ascending",
    "Entry",
    "OptimizerError",
    "Pass",
    "Relative",
    "RhoSchedule",
    "Routing",
    "StepRecord",
    "TensorRecord",
    "create",
    "names",
    "register",
    "routing",
    "settings",
]
