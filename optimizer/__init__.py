"""ARS2-Neo and its relatives; each step hands a record to whoever observes it."""

import lossscope.optimizer.registry  # noqa: F401  registers what comes with the package
from lossscope.optimizer.ars2_neo import ARS2Neo, Pass
from lossscope.optimizer.base import TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.registry import ENTRIES, Entry, create, names, register, settings
from lossscope.optimizer.rho_schedule import RhoSchedule
from lossscope.optimizer.rule_optimizer import RuleOptimizer
from lossscope.optimizer.update.routing import Routing, routing

__all__ = [
    "ENTRIES",
    "ARS2Neo",
    "Entry",
    "OptimizerError",
    "Pass",
    "RhoSchedule",
    "Routing",
    "RuleOptimizer",
    "StepRecord",
    "TensorRecord",
    "TwoPassOptimizer",
    "create",
    "names",
    "register",
    "routing",
    "settings",
]
