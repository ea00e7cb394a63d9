"""What a measurement is about, and how precise it is to be."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim.optimizer import Optimizer

from lossscope.probes.objective.objective import Objective
from lossscope.probes.spectrum.measure import Engine

__all__ = ["MeasurementTarget", "SolverOptions"]


@dataclass(frozen=True)
class SolverOptions:
    """How precise, and at what price."""

    rel: float  # relative bound asked of eigenvalues and of everything else that has one
    trace_rel: float  # relative standard error asked of traces and of the norm
    max_products: int  # Hessian products that one call may spend
    seed: int = 0
    engine: Engine = "lossscope"


@dataclass(frozen=True)
class MeasurementTarget:
    """What is measured: a loss on fixed data, and what is known of the training that moves its parameters."""

    objective: Objective
    optimizer: Optimizer | None = None
    minibatches: Objective | None = None  # the same loss on batches of the size that training uses
    no_optimizer: str = "no optimizer is given"  # why there is none, where there is none
