"""Snapshots of an optimizer step: each parameter before and after it, and the passes that led to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lossscope.optimizer import StepRecord, TensorRecord

__all__ = ["ParameterSnapshot", "StepSnapshot", "copied_gradients", "from_hooks", "from_record", "real"]


@dataclass(frozen=True)
class ParameterSnapshot:
    """One parameter before and after a step of any optimizer. Complex tensors are real views of shape (..., 2)."""

    name: str
    track: str  # "matrix" or "vector"
    parameter: Tensor  # after the step
    before: Tensor  # copy from before the step
    gradient: Tensor | None
    displacement: Tensor  # after minus before, weight decay included
    record: TensorRecord | None  # tensors of the step, which only lossscope's optimizers provide
    no_spectrum: str = ""  # the reason why its singular values cannot be measured

    def as_matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the matrix view of the parameter that the step used: `(m, n)` or `(batch, m, n)`."""
        if self.record is not None and self.record.matrix_shape is not None:
            return tensor.reshape(self.record.matrix_shape)
        return tensor if tensor.ndim in (2, 3) else tensor.flatten(1)


@dataclass(frozen=True)
class StepSnapshot:
    """One step of an optimizer: its parameters, and what is known of its passes."""

    parameters: Sequence[ParameterSnapshot]
    record: StepRecord | None = None  # which only lossscope's optimizers provide
    # first and second gradient of each parameter, in a step of two gradients without a record
    second: Mapping[Tensor, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def losses(self) -> tuple[Tensor | None, Tensor | None]:
        """Losses of the first and of the second pass, if known."""
        return (None, None) if self.record is None else (self.record.loss, self.record.adversarial_loss)


def from_record(record: StepRecord, names: Mapping[Tensor, str], before: Mapping[Tensor, Tensor]) -> StepSnapshot:
    """Return the snapshot of a step of one of lossscope's optimizers.

    Args:
        record: The record of the step.
        names: Names of the model's parameters. Parameters of the record that are not among them are left out.
        before: Copies of the parameters from before the step.
    """
    mine = [t for t in record.tensors if t.parameter in before and t.parameter in names]
    found = [_snapshot(names[t.parameter], t.parameter, before[t.parameter], t.gradient, t) for t in mine]
    return StepSnapshot(found, record)


def from_hooks(
    names: Mapping[Tensor, str],
    before: Mapping[Tensor, Tensor],
    gradients: Mapping[Tensor, Tensor],
    second: Mapping[Tensor, Tensor],
) -> StepSnapshot:
    """Return the snapshot of a step of any optimizer.

    Args:
        names: Names of the parameters of the optimizer.
        before: Copies of the parameters from before the step.
        gradients: The gradients that the step used; a parameter without one is missing.
        second: The second gradients of a step of two.
    """
    found = [_snapshot(name, p, before[p], gradients.get(p), None) for p, name in names.items() if p in before]
    return StepSnapshot(found, second={p: (g, second[p]) for p, g in gradients.items() if p in second})


def copied_gradients(parameters: Iterable[Tensor], scale: Tensor | float | None = None) -> dict[Tensor, Tensor]:
    """Return dense copies of the current gradients.

    Args:
        parameters: The parameters; one without a gradient is left out.
        scale: The factor of the loss by which a GradScaler has scaled the gradients; None if they are unscaled.
    """
    found = {}
    for p in parameters:
        if p.grad is not None:
            gradient = p.grad.detach()
            # a sparse gradient lists rows, some of them twice: to_dense adds them up
            dense = gradient.clone() if gradient.layout == torch.strided else gradient.to_dense()
            found[p] = dense if scale is None else dense / scale
    return found


def real(tensor: Tensor) -> Tensor:
    """Return a tensor, or the real view of a complex one, whose norm is the same."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def _snapshot(
    name: str, parameter: Tensor, before: Tensor, gradient: Tensor | None, record: TensorRecord | None
) -> ParameterSnapshot:
    """Return a snapshot with its displacement."""
    moved = parameter.detach() - before
    return ParameterSnapshot(
        name=name,
        track=record.track if record is not None else "matrix" if parameter.ndim >= 2 else "vector",
        parameter=real(parameter),
        before=real(before),
        gradient=None if gradient is None else real(gradient),
        displacement=real(moved),
        record=record,
        no_spectrum=_no_spectrum(name, parameter),
    )


def _no_spectrum(name: str, parameter: Tensor) -> str:
    """Return the reason why the singular values of a matrix cannot be measured, "" if they can."""
    shape = tuple(parameter.shape)
    if parameter.ndim >= 2 and parameter.numel() == 0:
        return f"parameter {name!r} of shape {shape} has no entries, and so no singular values"
    if parameter.ndim >= 2 and parameter.is_complex():
        return f"parameter {name!r} of shape {shape} is complex, and only real matrices are decomposed"
    return ""
