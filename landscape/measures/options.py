"""Measurement target (loss, optimizer, step), and tolerances and budget of the solvers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.step_measures import RecordedStep
from lossscope.probes.objective.objective import Objective

__all__ = ["Engine", "MeasurementTarget", "SolverOptions"]

Engine = Literal["lossscope", "pyhessian"]


@dataclass(frozen=True)
class SolverOptions:
    """Tolerances, budget, seed and engine of a measurement.

    Raises:
        ConfigError: The engine is unknown.
    """

    rel: float  # relative error bound of eigenvalues and of every other quantity with an error bound
    trace_rel: float  # relative standard error of traces and of the Frobenius norm
    max_products: int  # Hessian products that one group of measures may spend
    seed: int = 0
    engine: Engine = "lossscope"
    memory: int | str | None = None  # for the vectors of a measurement, see `measure_spectrum`
    spill: str | Path | None = None  # folder of the basis where it does not fit

    def __post_init__(self) -> None:
        """Reject an unknown engine."""
        if self.engine not in get_args(Engine):
            allowed = ", ".join(map(repr, get_args(Engine)))
            raise ConfigError(f"engine must be one of {allowed}, got {self.engine!r}")


@dataclass(frozen=True)
class MeasurementTarget:
    """A loss on fixed data, and what is known about the training of its parameters."""

    objective: Objective
    optimizer: Optimizer | None = None
    minibatches: Objective | None = None  # the same loss on batches of the size that training uses
    no_optimizer: str = "no optimizer is given"  # the reason if `optimizer` is None
    train: Objective | None = None  # the same loss on all training data
    test: Objective | None = None  # the same loss on data that are not trained on
    step: RecordedStep | None = None  # the step that led to the present parameters, known while training is recorded
