"""What a step shows of each parameter, whichever optimizer took it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lossscope.optimizer import StepRecord, TensorRecord

__all__ = ["ParameterSnapshot", "from_hooks", "from_record"]


@dataclass(frozen=True)
class ParameterSnapshot:
    """One parameter of one step, whichever optimizer took it."""

    name: str
    parameter: Tensor  # after the step
    before: Tensor
    gradient: Tensor | None
    displacement: Tensor  # after minus before, decay included
    record: TensorRecord | None  # what only our own optimizers show

    @property
    def track(self) -> str:
        """`matrix` or `vector`."""
        return self.record.track if self.record else ("matrix" if self.parameter.ndim >= 2 else "vector")

    def as_matrix(self, tensor: Tensor) -> Tensor:
        """The tensor cut as the step cut its parameter: `(m, n)` or `(batch, m, n)`."""
        if self.record is not None and self.record.matrix_shape is not None:
            return tensor.reshape(self.record.matrix_shape)
        return tensor if tensor.ndim in (2, 3) else tensor.flatten(1)


def from_record(record: StepRecord, names: dict[Tensor, str], before: dict[Tensor, Tensor]) -> list[ParameterSnapshot]:
    """What one of our own optimizers shows, with the displacement from a copy taken before the step.

    Parameters go by the model's names; those that are none of the model's are left out.
    """
    mine = [t for t in record.tensors if t.parameter in before]
    return [_seen(names[t.parameter], t.parameter, before[t.parameter], t.gradient, t) for t in mine]


def from_hooks(
    names: dict[Tensor, str], before: dict[Tensor, Tensor], gradients: dict[Tensor, Tensor]
) -> list[ParameterSnapshot]:
    """What any optimizer shows: parameters before and after, and the gradients it was given."""
    return [_seen(names[p], p, old, gradients.get(p), None) for p, old in before.items()]


def _seen(
    name: str, parameter: Tensor, before: Tensor, gradient: Tensor | None, record: TensorRecord | None
) -> ParameterSnapshot:
    return ParameterSnapshot(name, parameter, before, gradient, parameter.detach() - before, record)
