"""ARS2-Neo and its relatives; each step hands a record to whoever observes it."""

from lossscope.optimizer.ars2_neo import ARS2Neo, Pass
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.record import StepRecord, TensorRecord
from lossscope.optimizer.registry import DESCRIPTIONS, create, names, settings
from lossscope.optimizer.routing import Routing, routing

__all__ = [
    "DESCRIPTIONS",
    "ARS2Neo",
    "OptimizerError",
    "Pass",
    "Routing",
    "StepRecord",
    "TensorRecord",
    "create",
    "names",
    "routing",
    "settings",
]
