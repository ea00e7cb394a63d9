"""Loss that is measured at checkpoints: its settings for the run, its rows, and its price."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import nn

from lossscope.landscape.measures.costs import costs_of
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.recording.run_metadata import environment
from lossscope.landscape.reprobe.measured_rows import measured_rows
from lossscope.landscape.reprobe.result import Absent
from lossscope.landscape.reprobe.selection import check_budget, select_measures
from lossscope.landscape.reprobe.user_objective import errors_of_loss, evaluated_once, objective_from
from lossscope.landscape.unrecorded.sources import Checkpoint
from lossscope.landscape.unrecorded.stored_tensors import StoredTensor
from lossscope.landscape.unrecorded.torch_weights import load_checkpoint, numbers
from lossscope.probes.budget import price_of
from lossscope.probes.eigenvalues.memory_plan import memory_for
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian

__all__ = ["CheckpointLoss", "checkpoint_loss"]

_NO_OPTIMIZER: Final = "checkpoints that were not recorded have no optimizer that lossscope can rebuild"
_FEW: Final = 4  # products that a group without a budget is counted as
_DEFAULT: Final = SolverOptions(0.01, 0.01, 200)


@dataclass(frozen=True)
class CheckpointLoss:
    """A loss, and what is measured of it at each checkpoint.

    Attributes:
        objective: The loss; the weights of each checkpoint are loaded into its model.
        place: `FILE.py:NAME`, or another name of where it comes from.
        chosen: Measures by group.
        effort: Tolerances, budget, seed and engine.
        named: True if measures were named.
        details: Further settings of the loss, such as the number of samples.
    """

    objective: Objective
    place: str
    chosen: Mapping[str, tuple[str, ...]]
    effort: SolverOptions
    named: bool
    details: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(name for names in self.chosen.values() for name in names)

    def settings(self) -> dict[str, Any]:
        """Return what the numbers depend on beside the checkpoints."""
        effort = self.effort
        return {
            "objective": self.place,
            **self.details,
            "data_hash": self.objective.data_hash,
            "loss_kind": self.objective.loss_kind,
            "mode": self.objective.mode,
            "rel": effort.rel,
            "trace_rel": effort.trace_rel,
            "max_products": effort.max_products,
            "seed": effort.seed,
            "engine": effort.engine,
        }

    def facts(self) -> dict[str, Any]:
        """Return the facts of loss, data and machine for the manifest."""
        loss = self.objective
        unit = getattr(getattr(loss.loss_fn, "func", loss.loss_fn), "unit", None)
        return {
            "data_hash": loss.data_hash,
            "curvature_of": {"tensors": len(loss.names), "parameters": loss.size},
            "curvature_samples": int(loss.samples) if float(loss.samples).is_integer() else None,
            "loss_unit": unit if isinstance(unit, str) else None,
            "environment": environment(),
        }

    def load(self, checkpoint: Checkpoint) -> str:
        """Load the weights of a checkpoint; return a sentence about prefixes, or nothing."""
        return load_checkpoint(checkpoint, self.objective.model)

    def try_once(self) -> None:
        """Take the loss and its gradient once, so that errors of the user's code are told first."""
        evaluated_once(self.objective, self.place, slope=set(self.chosen) != {"loss"})

    def rows(
        self, step: int, wanted: Collection[str], tell: Callable[[int, str], None]
    ) -> tuple[Rows, Sequence[Absent]]:
        """Return the rows of some of the measures at the weights that are loaded, and what is missing."""
        chosen = {group: tuple(name for name in names if name in wanted) for group, names in self.chosen.items()}
        chosen = {group: names for group, names in chosen.items() if names}
        target = MeasurementTarget(self.objective, no_optimizer=_NO_OPTIMIZER)
        with errors_of_loss(self.place):
            return measured_rows(target, self.effort, chosen, step, tell, named=self.named)

    def parameters(self) -> list[StoredTensor]:
        """Return the trainable parameters as tensors of a checkpoint."""
        return parameters_of(self.objective.model)

    def seconds(self) -> float:
        """Return the predicted time of all measures at one checkpoint at most, from one timed product.

        Raises:
            ProbeError: A product cannot be taken at the weights that are loaded.
        """
        operator = hessian(self.objective)
        price = price_of(operator, weighed=False)
        costs = costs_of(self.chosen, self.effort, price, memory_for(operator, self.effort.memory))
        return sum(price.seconds(_FEW) if one.seconds is None else one.seconds for one in costs)


def checkpoint_loss(
    objective: str | Objective,
    measures: Sequence[str] | None,
    effort: SolverOptions | None,
    place: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> CheckpointLoss:
    """Return the loss and its measures, checked before any checkpoint is read.

    Args:
        objective: The loss, or `FILE.py:NAME` of a function that returns it.
        measures: Names of measures or of groups; None for the usual groups.
        effort: Tolerances, budget, seed and engine.
        place: Name of where the loss comes from.
        details: Further settings of the loss.

    Raises:
        ConfigError: A name or a number is invalid, or the objective cannot be made.
    """
    options = _DEFAULT if effort is None else effort
    chosen = select_measures(measures, options.engine)
    loss = objective_from(objective) if isinstance(objective, str) else objective
    where = place or (objective if isinstance(objective, str) else f"Objective of {loss.loss_kind}")
    check_budget(chosen, options, loss.size)
    return CheckpointLoss(loss, where, chosen, options, measures is not None, details or {})


def parameters_of(model: nn.Module) -> list[StoredTensor]:
    """Return the trainable parameters of a model as tensors of a checkpoint; tied ones once."""
    return [
        StoredTensor(name, tuple(p.shape), str(p.dtype).removeprefix("torch."), True, partial(numbers, p))
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
