"""The trainable parameters of a model as one flat vector."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lossscope.probes.errors import ProbeError

__all__ = ["ParameterVector", "cast"]


class ParameterVector:
    """The parameters that require grad, in the model's order, tied ones once.

    Which ones is settled when it is made; their tensors are looked up by name each time.

    Args:
        model: Any module.
        names: The parameters to take, out of those that require grad; None for all of them.
        dtype: What their parts are to be cast to; None for what they are.

    Raises:
        ProbeError: no parameter requires grad, one is not real and floating, they lie on several devices, they hold
            no number, or a lazy module has none yet.
    """

    def __init__(
        self, model: nn.Module, names: Collection[str] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ProbeError(f"model is a {type(model).__name__}, need a torch.nn.Module")
        tensors = [*model.named_parameters(), *model.named_buffers()]
        if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
            raise ProbeError(f"{len(lazy)} tensors, such as {lazy[0]}, have no shape yet: run one forward pass first")
        found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not found:
            raise ProbeError(_nothing_to_move(model))
        if names is not None:
            found = [(name, p) for name, p in found if name in names]
        for name, p in found:
            if not p.is_floating_point():
                raise ProbeError(f"parameter {name} is {p.dtype}, need a real floating dtype: freeze or convert it")
        if len(devices := {str(p.device) for _, p in found}) > 1:
            raise ProbeError(f"parameters lie on {' and '.join(sorted(devices))}, need one device: move the model")
        self._model = model
        self._shapes = tuple(p.shape for _, p in found)
        self._dtypes = tuple(dtype or p.dtype for _, p in found)
        self.cast_to = dtype  # what its parts are cast to; None for what they are
        self.unit = max(torch.finfo(dtype).eps for dtype in self._dtypes)  # rounding unit of the coarsest parameter
        self._sizes = [shape.numel() for shape in self._shapes]
        self.names = tuple(name for name, _ in found)
        self.size = sum(self._sizes)
        if not self.size:
            raise ProbeError(f"the {len(found)} trainable parameters hold 0 numbers, need at least 1")
        self.dtype: torch.dtype = reduce(torch.promote_types, self._dtypes, torch.float32)  # float32 at least

    @property
    def device(self) -> torch.device:
        """Where the vector lives."""
        try:
            return self._model.get_parameter(self.names[0]).device
        except AttributeError:
            return self.tensors()[0].device  # which tells what is gone

    def tensors(self) -> list[Tensor]:
        """The parameters as they stand in the model now, detached, sharing their memory."""
        present: Mapping[str, Tensor] = dict(self._model.named_parameters())
        found = []
        for name, shape in zip(self.names, self._shapes, strict=True):
            p = present.get(name)
            if p is None or p.shape != shape:
                what = "is gone" if p is None else f"has shape {tuple(p.shape)}"
                raise ProbeError(f"parameter {name} {what}, was {tuple(shape)}: make a new Objective for the new model")
            found.append(p.detach())
        return found

    def others(self) -> dict[str, Tensor]:
        """The parameters that are not part of the vector, detached, by name."""
        mine = set(self.names)
        return {name: cast(p.detach(), self.cast_to) for name, p in self._model.named_parameters() if name not in mine}

    def known(self, names: Collection[str]) -> tuple[str, ...]:
        """Some of the names in the order of the vector, refused where one is none of them."""
        wanted = {names} if isinstance(names, str) else set(names)
        if unknown := sorted(wanted - set(self.names)):
            raise ProbeError(
                f"{unknown[0]!r} is none of the {len(self.names)} trainable parameters: take names from "
                f"objective.names, such as {self.names[0]!r}"
            )
        if not wanted:
            raise ProbeError(f"got 0 names out of {len(self.names)} trainable parameters, need at least 1")
        return tuple(name for name in self.names if name in wanted)

    def indices(self, names: Collection[str]) -> Tensor:
        """Where the entries of some of the parameters stand in the vector, `(m,)` int64 in ascending order."""
        starts = torch.split(torch.arange(self.size), self._sizes)
        return torch.cat([start for name, start in zip(self.names, starts, strict=True) if name in names])

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one vector `(n,)`."""
        return torch.cat([part.detach().reshape(-1).to(self.dtype) for part in parts])

    def fitting(self, vector: Tensor) -> Tensor:
        """A vector `(n,)` on the device and in the dtype of this one, refused where it has another length."""
        if tuple(vector.shape) != (self.size,):
            raise ProbeError(f"a vector of shape {tuple(vector.shape)} does not fit {self.size} trainable parameters")
        return vector.detach().to(self.device, self.dtype)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector `(n,)` cut into tensors of the parameters' shapes and dtypes."""
        return self.views(self.fitting(vector).contiguous())

    def views(self, vector: Tensor, *, apart: bool = False) -> list[Tensor]:
        """A vector `(n,)` as tensors of the parameters' shapes and dtypes, with the graph down to the vector.

        Args:
            vector: `(n,)` on the right device.
            apart: Whether autograd takes each part for a tensor of its own, so that a model may write into
                one (an embedding that limits its norms does); transforms of torch.func have no rule for it.
        """
        cut = torch.unsafe_split_with_sizes if apart else torch.split_with_sizes
        parts = zip(cut(vector, self._sizes), self._shapes, self._dtypes, strict=True)
        return [part.view(shape) if part.dtype == d else part.view(shape).to(d) for part, shape, d in parts]

    def place(self, parts: Sequence[Tensor]) -> None:
        """Copy tensors into the parameters.

        Through `.data`: a graph that a caller holds for a backward pass of his own does not notice, which is
        right as long as the old values come back.
        """
        present = dict(self._model.named_parameters())
        for name, part in zip(self.names, parts, strict=True):
            present[name].data.copy_(part)


def _nothing_to_move(model: nn.Module) -> str:
    """Why a model has no trainable parameter."""
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    whole = [name for name, dtype in kinds.items() if not dtype.is_floating_point]
    if whole and len(whole) == len(kinds):
        return f"parameter {whole[0]} is {kinds[whole[0]]}, need a real floating dtype: convert it with .float()"
    return f"0 of {len(kinds)} parameters require grad, need at least 1: call requires_grad_() on some"


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A floating tensor in another dtype.

    Args:
        value: Anything.
        dtype: The dtype; None for what it is.

    Returns:
        The tensor in that dtype; anything but a floating tensor as it is.
    """
    if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(dtype)
