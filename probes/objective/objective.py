"""The mean loss over fixed data as a function of the parameters, which leaves the model as it found it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.autograd_guards import custom_functions, no_reentrant_checkpoint
from lossscope.probes.objective.data import FixedData, fixed_data
from lossscope.probes.objective.evaluation import (
    ULPS,
    BatchEvaluation,
    BatchGradient,
    check_deterministic,
    validated_loss,
)
from lossscope.probes.objective.functional import Substitution
from lossscope.probes.objective.isolation import Mode, isolated, random_state
from lossscope.probes.objective.losses import own_count
from lossscope.probes.objective.parameters import ParameterVector

__all__ = ["LossFunction", "Objective"]

LossFunction = Callable[[Any, Any], Tensor]
_CLOSE: Final = 0.1  # of the root mean square of the parameters, how far a second look is taken from


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
        count: `count(batch)` says over how many terms the loss of a batch is a mean (tokens, say); by default
            `CrossEntropy` is asked, which knows, and for any other loss the length of the first tensor in the batch
            is taken. Unequal batches are weighted by it.

    Raises:
        ProbeError: there is no batch, no trainable parameter, one that is not real and floating or has no shape yet,
            or the mode is unknown. Using it raises one where the loss is no finite scalar, where two evaluations differ
            by more than 100 units in the last place (here or, if random numbers are drawn, close by), or where it goes
            through a reentrant checkpoint.

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
        self.data: FixedData = fixed_data(batches, count or own_count(loss_fn))
        self.call = self.substitution(loss_fn)
        self.custom: list[str] | None = None  # functions with a backward pass of their own; None until a first gradient
        self.second_derivative_checked = False  # True once it was found right
        self._whole = True  # whether the coordinates are all of the trainable parameters, as they stand in the model
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
        with self.evaluating(), torch.no_grad():
            return math.fsum(weight * float(loss) for weight, loss in self.losses(self.copies()))

    def gradient(self) -> Tensor:
        """The gradient of the mean loss as a flat vector `(n,)`."""
        with self.evaluating():
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            for batch in self.gradients():
                total.add_(batch.gradient, alpha=batch.weight)
            return total

    def restricted(self, names: Collection[str]) -> Objective:
        """The same loss as a function of some of the parameters, the others standing where they are.

        Args:
            names: Some of `names`; their order is that of the whole.

        Returns:
            The objective; it shares model and data with this one.

        Raises:
            ProbeError: a name is none of the parameters', or there is none.
        """
        part = copy.copy(self)
        part.vector = ParameterVector(self.model, self.vector.known(names))
        part._whole, part._inside = False, False
        return part

    def in_double(self) -> Objective:
        """The same loss evaluated in float64: parameters, buffers and data are cast, the model is not touched."""
        wide = copy.copy(self)
        wide.vector = ParameterVector(self.model, self.names, torch.float64)
        wide.call = wide.substitution(self.loss_fn)
        wide.data = self.data.cast(torch.float64)
        wide._whole, wide._inside = False, False
        return wide

    def split(self, count: int, *, seed: int) -> tuple[Objective, ...]:
        """The same objective on disjoint parts of the data: samples shuffled and dealt out nearly equally.

        Args:
            count: How many parts, at least 2.
            seed: Of the shuffle.

        Returns:
            The parts; their losses, weighted by their `samples`, add up to the whole.

        Raises:
            ProbeError: there are fewer samples than parts, or a batch cannot be cut.
        """
        parts = []
        for data in self.data.split(count, seed=seed):
            part = copy.copy(self)
            part.data, part._inside = data, False
            parts.append(part)
        return tuple(parts)

    def batch(self, index: int) -> Objective:
        """The same objective on one of its batches.

        Args:
            index: From 0.

        Returns:
            The objective; its loss is that batch's own mean.
        """
        part = copy.copy(self)
        part.data, part._inside = fixed_data([self.data.batches[index]], self.data.count), False
        return part

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
                yield
            finally:
                self._inside = False

    def copies(self) -> list[Tensor]:
        """Copies of the parameters: a model may write into them."""
        return self.vector.views(self.parameters(), apart=True)

    def leaf(self) -> Tensor:
        """A copy of the parameters as the leaf of a graph, `(n,)`."""
        return self.parameters().requires_grad_()

    def substitution(self, function: Callable[[Any, Any], Any]) -> Substitution:
        """Another function of model and batch, to be evaluated in the dtype that the loss is evaluated in."""
        return Substitution(self.model, function, self.vector.cast_to)

    def passes(self) -> Iterator[BatchEvaluation]:
        """The batches in order, as they are to be evaluated.

        Call it inside `evaluating`; in train mode evaluate every batch before you ask for the next. At the first use
        all batches are evaluated once beforehand, and `loss` refuses those whose second value is another.
        """
        before = None if self._checked else self._values()
        yield from self._starts(before)

    def evaluated(self, function: Substitution, leaves: Sequence[Tensor], at: BatchEvaluation) -> Any:
        """A function of model and batch at the leaves, without any check."""
        buffers = at.buffers if self.mode == "train" else function.buffers()
        parameters = dict(zip(self.names, leaves, strict=True))
        if not self._whole:
            parameters |= self.vector.others()
        return function(parameters, buffers, self.data.batches[at.index])

    def validated_loss(self, loss: Any, at: BatchEvaluation) -> Tensor:
        """The loss of a batch, once it is known to be one finite number and the same as before."""
        found = validated_loss(loss, at, self.model)
        if at.before is not None and at.index + 1 == len(self.data.batches):
            self._checked = True
        return found

    def loss(self, leaves: Sequence[Tensor], at: BatchEvaluation) -> Tensor:
        """The loss of one batch with the graph down to the leaves, sound."""
        return self.validated_loss(self.evaluated(self.call, leaves, at), at)

    def losses(self, leaves: Sequence[Tensor]) -> Iterator[tuple[float, Tensor]]:
        """The weight and the loss of each batch, with the graph down to the leaves.

        Call it inside `evaluating`.
        """
        for at in self.passes():
            yield at.weight, self.loss(leaves, at)

    def derivative(self, of: Tensor, theta: Tensor, *, graph: bool = False, keep: bool = False) -> Tensor:
        """The derivative of a number by a leaf, `(n,)`, with its `graph` if asked for; `keep` that of the number."""
        found = None
        if of.requires_grad:
            with no_reentrant_checkpoint():
                found = torch.autograd.grad(
                    of, theta, create_graph=graph, retain_graph=graph or keep, allow_unused=True
                )[0]
        if found is None and self._whole:
            raise ProbeError(
                f"the loss depends on none of the {len(self.names)} trainable parameters: does loss_fn use "
                "the model it is given, without detach() or no_grad()?"
            )
        return torch.zeros_like(theta) if found is None else found

    def slope(self, theta: Tensor, at: BatchEvaluation, *, graph: bool = False) -> BatchGradient:
        """The gradient of one batch by a leaf, with its graph if asked for; call it inside `evaluating`."""
        loss = self.loss(self.vector.views(theta, apart=True), at)
        if self.custom is None:
            self.custom = custom_functions(loss)
        return BatchGradient(at.weight, theta, self.derivative(loss, theta, graph=graph))

    def gradients(self, *, graph: bool = False) -> Iterator[BatchGradient]:
        """The gradient of each batch by a fresh leaf, with its graph if asked for.

        Call it inside `evaluating`.
        """
        theta = self.leaf()
        for at in self.passes():
            yield self.slope(theta, at, graph=graph)

    def require_repeatable(self) -> None:
        """Refuse a loss that is no function of the parameters; what evaluates `losses` need not ask."""
        if not self._checked:
            self.value()

    def _starts(self, before: list[float] | None) -> Iterator[BatchEvaluation]:
        """The batches with the buffers to begin with, which in train mode move from one to the next."""
        buffers = self.call.buffers() if self.mode == "train" else {}
        slack = ULPS * torch.finfo(self.dtype).eps * max(map(abs, before)) if before else 0.0
        for index, weight in enumerate(self.data.weights):
            where = f"on batch {index} of {len(self.data.batches)}"
            yield BatchEvaluation(index, weight, where, buffers, before[index] if before else None, slack)

    def _values(self) -> list[float]:
        """The loss of each batch."""
        devices = {self.device} | self.data.devices
        with torch.no_grad():
            copies, before = self.copies(), random_state(devices)
            with no_reentrant_checkpoint():
                found = [float(self.loss(copies, at)) for at in self._starts(None)]
            if random_state(devices) != before:
                self._require_idle_draws()
            return found

    def _require_idle_draws(self) -> None:
        """Refuse random numbers that show close by, though not here: behind a last layer of zeros, say."""
        theta = self.parameters()
        size = float(theta.square().mean().sqrt()) or 1.0
        moved = torch.randn(self.size, generator=torch.Generator().manual_seed(0)).to(theta)
        theta.add_(moved, alpha=_CLOSE * size)
        first, again = ([self._near(theta, at) for at in self._starts(None)] for _ in range(2))
        for at, number in zip(self._starts(first), again, strict=True):
            if math.isfinite(number):  # else the second look tells nothing
                check_deterministic(number, replace(at, where=f"{at.where}, at parameters close by"), self.model)

    def _near(self, theta: Tensor, at: BatchEvaluation) -> float:
        """The loss of one batch at other parameters."""
        return float(self.evaluated(self.call, self.vector.views(theta.clone(), apart=True), at))
