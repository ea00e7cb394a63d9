"""Snapshot of one parameter before and after an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lossscope.optimizer import StepRecord, TensorRecord

__all__ = ["ParameterSnapshot", "from_hooks", "from_record"]


@dataclass(frozen=True)
class ParameterSnapshot:
    """One parameter before and after a step of any optimizer."""

    name: str
    parameter: Tensor  # after the step
    before: Tensor  # copy from before the step
    gradient: Tensor | None
    displacement: Tensor  # after minus before, weight decay included
    record: TensorRecord | None  # tensors of the step, which only lossscope's optimizers provide

    @property
    def track(self) -> str:
        """`matrix` or `vector`."""
        return self.record.track if self.record else ("matrix" if self.parameter.ndim >= 2 else "vector")

    def as_matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the matrix view of the parameter that the step used: `(m, n)` or `(batch, m, n)`."""
        if self.record is not None and self.record.matrix_shape is not None:
            return tensor.reshape(self.record.matrix_shape)
        return tensor if tensor.ndim in (2, 3) else tensor.flatten(1)


def from_record(record: StepRecord, names: dict[Tensor, str], before: dict[Tensor, Tensor]) -> list[ParameterSnapshot]:
    """Return the snapshots of a step of one of lossscope's optimizers.

    Args:
        record: The record of the step.
        names: Names of the model's parameters. Parameters of the record that are not among them are left out.
        before: Copies of the parameters from before the step.
    """
    mine = [t for t in record.tensors if t.parameter in before]
    return [_snapshot(names[t.parameter], t.parameter, before[t.parameter], t.gradient, t) for t in mine]


def from_hooks(
    names: dict[Tensor, str], before: dict[Tensor, Tensor], gradients: dict[Tensor, Tensor]
) -> list[ParameterSnapshot]:
    """Return the snapshots of a step of any optimizer.

    Args:
        names: Names of the model's parameters.
        before: Copies of the parameters from before the step.
        gradients: The gradients that the step used; a parameter without one is missing.
    """
    return [_snapshot(names[p], p, old, gradients.get(p), None) for p, old in before.items()]


def _snapshot(
    name: str, parameter: Tensor, before: Tensor, gradient: Tensor | None, record: TensorRecord | None
) -> ParameterSnapshot:
    """Return a snapshot with its displacement."""
    return ParameterSnapshot(name, parameter, before, gradient, parameter.detach() - before, record)
