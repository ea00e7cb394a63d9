"""The trainable parameters of a model as one flat vector."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lossscope.probes.errors import ProbeError

__all__ = ["ParameterVector", "cast", "joined", "shaped"]

_SHARDED: Final = ("DTensor", "FlatParameter")  # of FSDP2 and FSDP


class ParameterVector:
    """The parameters that require grad, in the order of the model, tied ones once.

    The set of parameters is fixed at construction; their tensors are looked up by name each time.

    Args:
        model: Any module.
        names: Names of some of the parameters that require grad; None for all of them.
        dtype: Dtype to which the parts are cast; None to keep that of each parameter.

    Raises:
        ProbeError: no parameter requires grad, one is not real and floating, they are on several devices, they are all
            empty, two of them share memory or one is expanded, or a lazy module is not initialized.
    """

    def __init__(
        self, model: nn.Module, names: Collection[str] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        found = _differentiable(model, names)
        self._model = model
        self._shapes = tuple(p.shape for _, p in found)
        self._dtypes = tuple(dtype or p.dtype for _, p in found)
        self.cast_to = dtype  # dtype to which the parts are cast; None to keep theirs
        self.unit = max(torch.finfo(dtype).eps for dtype in self._dtypes)  # rounding unit of the coarsest parameter
        self._sizes = [shape.numel() for shape in self._shapes]
        self.names = tuple(name for name, _ in found)
        self.size = sum(self._sizes)
        if not self.size:
            raise ProbeError(f"the {len(found)} trainable parameters have 0 entries in total, need at least 1")
        self.dtype: torch.dtype = reduce(torch.promote_types, self._dtypes, torch.float32)  # float32 at least

    @property
    def device(self) -> torch.device:
        """Device of the vector."""
        try:
            return self._model.get_parameter(self.names[0]).device
        except AttributeError:
            return self.tensors()[0].device  # raises and names the parameter that is missing

    def tensors(self) -> list[Tensor]:
        """Return the current parameters of the model, detached, sharing their memory."""
        present: Mapping[str, Tensor] = dict(self._model.named_parameters())
        found = []
        for name, shape in zip(self.names, self._shapes, strict=True):
            p = present.get(name)
            if p is None or p.shape != shape:
                state = "is gone" if p is None else f"has shape {tuple(p.shape)}"
                raise ProbeError(
                    f"parameter {name} {state}, was {tuple(shape)}: make a new Objective for the new model"
                )
            found.append(p.detach())
        return found

    def others(self, *, differentiable: bool = False) -> dict[str, Tensor]:
        """Return the parameters that are not part of the vector, detached, by name.

        Args:
            differentiable: True if those that require grad shall do so here, as views of leaves of their own.
        """
        mine = set(self.names)
        found = {}
        for name, p in self._model.named_parameters():
            if name not in mine:
                found[name] = cast(p.detach(), self.cast_to)
                if differentiable and p.requires_grad:  # functorch transforms refuse any call of requires_grad_
                    # a view, so that no leaf of the graph is what stands in the model, as a held parameter is
                    found[name] = found[name].requires_grad_().view(p.shape)
        return found

    def known(self, names: Collection[str]) -> tuple[str, ...]:
        """Return names in the order of the vector after checking that each is known."""
        wanted = {names} if isinstance(names, str) else set(names)
        if unknown := sorted(wanted - set(self.names)):
            raise ProbeError(
                f"unknown parameter {unknown[0]!r}: use names of the {len(self.names)} trainable parameters, "
                f"objective.names, such as {self.names[0]!r}"
            )
        if not wanted:
            raise ProbeError(f"names must have at least 1 of the {len(self.names)} trainable parameters, got 0")
        return tuple(name for name in self.names if name in wanted)

    def indices(self, names: Collection[str]) -> Tensor:
        """Return the indices of some of the parameters in the vector, `(m,)` int64 in ascending order."""
        starts = torch.split(torch.arange(self.size), self._sizes)
        return torch.cat([start for name, start in zip(self.names, starts, strict=True) if name in names])

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate tensors of the parameters' shapes to one vector `(n,)`."""
        vector = torch.empty(self.size, dtype=self.dtype, device=parts[0].device)
        for target, part in zip(shaped(vector, parts), parts, strict=True):
            target.copy_(part.detach())
        return vector

    def fitting(self, vector: Tensor) -> Tensor:
        """Move a vector `(n,)` to the device and dtype of this one after checking its length."""
        if tuple(vector.shape) != (self.size,):
            raise ProbeError(
                f"vector must have shape ({self.size},), one entry per trainable parameter, got {tuple(vector.shape)}"
            )
        return vector.detach().to(self.device, self.dtype)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Split a vector `(n,)` into tensors of the parameters' shapes and dtypes."""
        return self.views(self.fitting(vector).contiguous())

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector with the parameters' shapes and dtypes, differentiable with respect to the vector.

        Args:
            vector: `(n,)` on the right device.
        """
        return self.placeable(self._shaped(torch.split_with_sizes(vector, self._sizes)))

    def leaves(self, vector: Tensor, *, graph: bool = True) -> list[Tensor]:
        """Return views of a vector with the parameters' shapes, each a leaf of a graph of its own.

        A model may modify one in place (an embedding with `max_norm` does) without spoiling the graphs of the others.

        Args:
            vector: `(n,)` on the right device, without a graph.
            graph: True if they require grad.
        """
        parts = self._shaped(torch.unsafe_split_with_sizes(vector.detach(), self._sizes))
        return [part.detach().requires_grad_(graph) for part in parts]

    def placeable(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors that may stand in the model for its parameters: in their dtypes, and no leaves themselves.

        A leaf that stands in the model would look like a parameter that the loss holds past the model.
        """
        return [
            leaf.to(d) if leaf.dtype != d else leaf.view(leaf.shape)
            for leaf, d in zip(leaves, self._dtypes, strict=True)
        ]

    def _shaped(self, parts: Iterable[Tensor]) -> list[Tensor]:
        """Return views of the parts of a vector with the parameters' shapes."""
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def place(self, parts: Sequence[Tensor]) -> None:
        """Copy tensors into the parameters of the model.

        They are written through `.data`, so a graph that a caller keeps for a later backward pass is not invalidated,
        which is right as long as the old values are restored.
        """
        present = dict(self._model.named_parameters())
        for name, part in zip(self.names, parts, strict=True):
            present[name].data.copy_(part)


def _differentiable(model: nn.Module, names: Collection[str] | None) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that require grad, or some of them, by name after checking that they fit one vector."""
    if not isinstance(model, nn.Module):
        raise ProbeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise ProbeError(
            "model must be a module of Python, got one of TorchScript, whose parameters cannot be replaced: give "
            "the module that was traced or scripted, with load_state_dict(scripted.state_dict())"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ProbeError(f"{len(lazy)} tensors, such as {lazy[0]}, have no shape yet: run one forward pass first")
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not found:
        raise ProbeError(_no_trainable_parameter(model))
    if names is not None:
        found = [(name, p) for name, p in found if name in names]
    for name, p in found:
        if type(p).__name__ in _SHARDED:
            raise ProbeError(
                f"parameters must be whole on this process, got {name} ({type(p).__name__}), of which it has a "
                "part: use ShardedObjective for a model under fully_shard, or measure a copy that was not sharded, "
                "with the full state dictionary"
            )
        if not p.is_floating_point():
            raise ProbeError(f"parameters must be real and floating, got {name} of {p.dtype}: freeze or convert it")
    if len(devices := {str(p.device) for _, p in found}) > 1:
        raise ProbeError(f"parameters must be on one device, got {' and '.join(sorted(devices))}: move the model")
    if names is None:
        _require_own_memory(dict(model.named_parameters()))
    return found


def _require_own_memory(parameters: Mapping[str, Tensor]) -> None:
    """Raise if an entry of a trainable parameter is also another one: neither could be moved alone."""
    by_storage: dict[int, list[str]] = {}
    for name, p in parameters.items():
        if p.layout == torch.strided and p.device.type != "meta" and p.numel():
            by_storage.setdefault(p.untyped_storage().data_ptr(), []).append(name)
    for names in by_storage.values():
        if not any(parameters[name].requires_grad for name in names):
            continue
        found = [parameters[name] for name in names]
        ends = sorted((p.storage_offset(), p.storage_offset() + _span(p)) for p in found)
        apart = all(before[1] <= after[0] for before, after in pairwise(ends))
        if (apart and all(map(_is_dense, found))) or _is_apart(found):
            continue
        what = f"{names[0]} and {names[1]} share memory" if len(names) > 1 else f"{names[0]} is expanded"
        raise ProbeError(
            f"every entry of a parameter must have memory of its own, but {what}: make tied parameters one object, "
            "or clone() one"
        )


def _span(p: Tensor) -> int:
    """Return the number of entries of the storage from the first of a tensor to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))


def _is_dense(p: Tensor) -> bool:
    """Return True if a tensor has each entry between its first and last in memory once, in any order of its axes."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(p.stride(), p.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _is_apart(tensors: Sequence[Tensor]) -> bool:
    """Return True if no entry of the storage of some tensors is used twice."""
    places = torch.arange(max(int(p.storage_offset()) + _span(p) for p in tensors))
    used = [places.as_strided(p.shape, p.stride(), p.storage_offset()).reshape(-1) for p in tensors]
    return int(torch.bincount(torch.cat(used)).max()) <= 1


def _no_trainable_parameter(model: nn.Module) -> str:
    """Return the reason that a model has no trainable parameter."""
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    integral = [name for name, dtype in kinds.items() if not dtype.is_floating_point]
    if integral and len(integral) == len(kinds):
        return (
            f"parameters must be real and floating, got {integral[0]} of {kinds[integral[0]]}: convert it with .float()"
        )
    return f"0 of {len(kinds)} parameters require grad, need at least 1: call requires_grad_() on some"


def shaped(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the parts of a vector in the shapes of some tensors.

    Args:
        vector: `(..., n)`, with as many entries on its last axis as the tensors have together.
        like: The tensors.

    Returns:
        Tensors `(..., *shape)`.
    """
    parts = torch.split_with_sizes(vector, [one.numel() for one in like], -1)
    return [part.view(part.shape[:-1] + one.shape) for part, one in zip(parts, like, strict=True)]


def joined(parts: list[Tensor]) -> Tensor:
    """Join tensors to one vector; each is freed as soon as it is copied, so that there is never a second whole copy.

    Args:
        parts: The tensors, at least one, of one dtype. The list is emptied.

    Returns:
        The vector `(n,)`, without a graph.
    """
    vector = parts[0].new_empty(sum(part.numel() for part in parts))
    for target, part in zip(shaped(vector, parts), _taken(parts), strict=True):
        target.copy_(part.detach())
        del part
    return vector


def _taken(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Yield tensors from the first to the last and take each off the list."""
    while tensors:
        yield tensors.pop(0)


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Cast a floating tensor to another dtype.

    Args:
        value: Anything.
        dtype: The dtype; None to keep the tensor's.

    Returns:
        The tensor in that dtype; any other value unchanged.
    """
    if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(dtype)
