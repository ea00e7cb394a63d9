"""ARS2-Neo and other optimizers; every step can be observed through its record."""

import lossscope.optimizer.registry  # noqa: F401  registers the optimizers of the package
from lossscope.optimizer.ars2_neo import ARS2Neo, Pass
from lossscope.optimizer.base import TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.registry import ENTRIES, Entry, create, names, register, settings
from lossscope.optimizer.rho_schedule import RhoSchedule
from lossscope.optimizer.rule_optimizer import RuleOptimizer
from lossscope.optimizer.update.adam import ParameterStep, Update, decay, move
from lossscope.optimizer.update.routing import Routing, routing
from lossscope.optimizer.update.rule import Bound, Direction, Need, Rule, zeros

__all__ = [
    "ENTRIES",
    "ARS2Neo",
    "Bound",
    "Direction",
    "Entry",
    "Need",
    "OptimizerError",
    "ParameterStep",
    "Pass",
    "RhoSchedule",
    "Routing",
    "Rule",
    "RuleOptimizer",
    "StepRecord",
    "TensorRecord",
    "TwoPassOptimizer",
    "Update",
    "create",
    "decay",
    "move",
    "names",
    "register",
    "routing",
    "settings",
    "zeros",
]
