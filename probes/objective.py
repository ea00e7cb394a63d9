"""The mean loss over fixed data as a function of the parameters, which leaves the model as it found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.fixed_data import FixedData, fixed_data
from lossscope.probes.isolation import Mode, isolated, random_modules
from lossscope.probes.parameter_vector import ParameterVector
from lossscope.probes.substitution import Substitution

__all__ = ["BatchGradient", "LossFunction", "Objective"]

LossFunction = Callable[[Any, Any], Tensor]
_ULPS: Final = 100  # two evaluations of one loss may differ by this many units in the last place


@dataclass(frozen=True)
class BatchGradient:
    """The gradient of one batch's loss, with its graph where one was asked for."""

    weight: float  # share of the batch in the mean
    leaves: list[Tensor]  # what was differentiated by, one for each name
    gradients: list[Tensor | None]  # None where the loss does not contain the leaf


class Objective:
    """Mean loss over fixed data, without weight decay, as a function of the parameters that require grad.

    Why the model is found again bit for bit: a loss is evaluated on substitutes (detached views of the
    parameters, copies of the buffers) that stand in the model for the length of a forward pass only, so
    parameters, their `.grad`, `requires_grad` and hooks, and the buffers are never written. Modes and
    random state are restored by `evaluating`.

    Args:
        model: Any module. Tied parameters count once, frozen ones not at all.
        loss_fn: `loss_fn(model, batch)` returns the mean loss of a batch, a scalar in nats.
        batches: The data; read once and kept.
        mode: `eval`; `frozen`, that is train mode with each forward pass seeing the same running statistics;
            or `train`, where buffers move from batch to batch within one evaluation.
        count: `count(batch)` says over how many terms the loss of a batch is a mean (tokens, say);
            by default the length of the first tensor in the batch. Unequal batches are weighted by it.

    Raises:
        ProbeError: there is no batch, no trainable parameter, one that is not real and floating, or the mode is
            unknown. Using it raises one where the loss is no finite scalar, or where two evaluations differ
            by more than 100 units in the last place.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> loss = lambda model, x: (model(x) - 1).square().mean()
        >>> objective = Objective(net, loss, [torch.ones(3, 1), torch.zeros(1, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     objective.value(), objective.gradient()
        (3.25, tensor([3.]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        mode: Mode = "eval",
        count: Callable[[Any], float] | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise ProbeError(f"mode={mode!r} is unknown: use one of {', '.join(get_args(Mode))}")
        self.model = model
        self.loss_fn = loss_fn
        self.mode: Mode = mode
        self.vector = ParameterVector(model)
        self.data: FixedData = fixed_data(batches, count)
        self._call = Substitution(model, loss_fn)
        self._inside = False
        self._checked = False

    @property
    def loss_kind(self) -> str:
        """The name of the loss: of its function, or of its class."""
        function = getattr(self.loss_fn, "func", self.loss_fn)
        return str(getattr(function, "__name__", type(function).__name__))

    @property
    def data_hash(self) -> str:
        """The sha256 over place, dtype, shape and bytes of the data, in hexadecimal."""
        return self.data.hash

    @property
    def samples(self) -> int:
        """How many terms the mean is taken over."""
        return self.data.samples

    @property
    def names(self) -> tuple[str, ...]:
        """The trainable parameters by name, in the order of the flat vector."""
        return self.vector.names

    @property
    def size(self) -> int:
        """`n`, the length of the flat vector."""
        return self.vector.size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of flat vectors: that of the parameters, float32 at least."""
        return self.vector.dtype

    @property
    def device(self) -> torch.device:
        """Where flat vectors live."""
        return self.vector.device

    def parameters(self) -> Tensor:
        """A copy of the trainable parameters as a flat vector `(n,)`."""
        return self.vector.joined(self.vector.tensors())

    def value(self) -> float:
        """The mean loss, in nats."""
        with self.evaluating():
            return self._value()

    def gradient(self) -> Tensor:
        """The gradient of the mean loss as a flat vector `(n,)`."""
        with self.evaluating():
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            for batch in self.gradients():
                pairs = zip(batch.gradients, batch.leaves, strict=True)
                total += batch.weight * self.vector.joined([torch.zeros_like(p) if g is None else g for g, p in pairs])
            return total

    @contextmanager
    def at(self, vector: Tensor) -> Iterator[None]:
        """A context in which the model stands at other parameters; they are put back bit for bit.

        Args:
            vector: `(n,)`, the trainable parameters in the order of `names`.

        Yields:
            Nothing.
        """
        new = self.vector.split(vector)
        old = [p.clone() for p in self.vector.tensors()]
        try:
            self.vector.place(new)
            yield
        finally:
            self.vector.place(old)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context around evaluations: modes are set, and modes and random state are restored at its end.

        Every method enters it by itself; enter it around several calls to pay for it once.

        Yields:
            Nothing.
        """
        if self._inside:
            yield
            return
        with isolated(self.model, training=self.mode != "eval", devices={self.device} | self.data.devices):
            self._inside = True
            try:
                self._check_repeatable()
                yield
            finally:
                self._inside = False

    def leaves(self) -> list[Tensor]:
        """Fresh leaves of a graph, one for each trainable parameter, sharing its memory."""
        return [p.requires_grad_() for p in self.vector.tensors()]

    def losses(self, leaves: Sequence[Tensor]) -> Iterator[tuple[float, Tensor]]:
        """The weight and the loss of each batch, with the graph down to the leaves.

        Call it inside `evaluating`.
        """
        parameters = dict(zip(self.names, leaves, strict=True))
        buffers = self._call.buffers()
        for index, (weight, batch) in enumerate(zip(self.data.weights, self.data.batches, strict=True)):
            if index and self.mode != "train":
                buffers = self._call.buffers()
            yield weight, self._sound(self._call(parameters, buffers, batch), index)

    def gradients(self, *, graph: bool = False) -> Iterator[BatchGradient]:
        """The gradient of each batch by fresh leaves, with its graph if asked for.

        Call it inside `evaluating`.
        """
        leaves = self.leaves()
        for weight, loss in self.losses(leaves):
            found: Sequence[Tensor | None] = [None]
            if loss.requires_grad:
                found = torch.autograd.grad(loss, leaves, create_graph=graph, allow_unused=True)
            if all(g is None for g in found):
                raise ProbeError(
                    f"the loss depends on none of the {len(leaves)} trainable parameters: does loss_fn use "
                    "the model it is given, without detach() or no_grad()?"
                )
            yield BatchGradient(weight, leaves, list(found))

    def _value(self) -> float:
        with torch.no_grad():
            return math.fsum(weight * float(loss) for weight, loss in self.losses(self.vector.tensors()))

    def _sound(self, loss: Any, index: int) -> Tensor:
        """The loss, once it is known to be one finite number."""
        where = f"on batch {index} of {len(self.data.batches)}"
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            what = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ProbeError(f"loss_fn returned {what} {where}, need one real number: return the mean over the batch")
        if not math.isfinite(number := float(loss.detach())):
            raise ProbeError(f"the loss is {number} {where}: nothing can be measured at these parameters")
        return loss.reshape(())

    def _check_repeatable(self) -> None:
        """Refuse a loss that is not a function of the parameters; asked once, at the first use."""
        if self._checked:
            return
        first, second = self._value(), self._value()
        unit = torch.finfo(self.dtype).eps * max(abs(first), abs(second))
        if abs(first - second) > _ULPS * unit:
            active = random_modules(self.model)
            cause = f"{', '.join(active[:3])} is active" if active else "loss_fn or the model draws random numbers"
            raise ProbeError(
                f"two evaluations of one loss gave {first:.9g} and {second:.9g}, more than {_ULPS} units in the last "
                f"place apart: {cause}; use mode='eval', or take the randomness out"
            )
        self._checked = True
