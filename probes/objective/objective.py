"""Mean loss over fixed data as a function of the parameters, evaluated without changing the model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.additivity import BATCHES, SAMPLES, UNCHECKED, Additivity
from lossscope.probes.objective.batchwise import BatchwiseLoss, LossFunction
from lossscope.probes.objective.data import FixedData, fixed_data
from lossscope.probes.objective.evaluation import ULPS, on_parts
from lossscope.probes.objective.isolation import Mode, without_statistics
from lossscope.probes.objective.loss_terms import counts_exactly, own_count, settings_in_words
from lossscope.probes.objective.parameters import ParameterVector

__all__ = ["LossFunction", "Objective"]


class Objective(BatchwiseLoss):
    """Mean loss over fixed data, without weight decay, as a function of the parameters that require grad.

    The model is unchanged bit for bit afterwards: a loss is evaluated on substitutes (detached views of the parameters,
    copies of the buffers) that are in the model during a forward pass only, so parameters, their `.grad`,
    `requires_grad` and hooks, and the buffers are never written. Modes and random state are restored by `evaluating`.
    Attributes, lists and dictionaries that a forward pass changes are put back after each evaluation, so that all find
    the same state. The same holds for networks beside the model that the loss reaches through closures, globals,
    defaults, bound methods and attributes; they keep their own modes.

    A loss may differentiate: by its inputs (PINN, gradient penalty, forces) or by the parameters (an inner step).

    Args:
        model: Any module. Tied parameters count once, frozen ones are excluded.
        loss_fn: `loss_fn(model, batch)` returns the mean loss of a batch, a scalar; its unit is that of the curvature.
        batches: The data; read once and kept in memory. Tensors in a list are kept by reference and must not change;
            those of a loader are copied.
        mode: `eval`; `frozen`, train mode with the same buffers in each forward pass; or `train`, where each batch
            updates the buffers for the next within one evaluation.
        count: `count(batch)` returns the number of terms over which the loss of a batch is a mean (tokens, say).
            Default: the method `count` of the loss (`CrossEntropy` has one), or else the length of the first tensor in
            the batch. Batches are weighted by it. On first use the loss of two joined batches is compared with their
            weighted mean, unless the loss is one of lossscope's that counts its terms; see `additivity`.
        additive: False for a loss that is no mean over the samples of a batch, such as a contrastive one: the objective
            is then the mean over the batches, weighted by `count` if that is given, and nothing is compared.

    Raises:
        ProbeError: there is no batch or no trainable parameter, one is not real and floating or not initialized, or the
            mode is unknown. Using the objective raises it if the loss is not a finite scalar, if two evaluations differ
            by more than 100 units in the last place (at the parameters or, if random numbers are drawn, at nearby
            ones), if the loss of joined batches is not their weighted mean, if the data changed, if the model uses a
            reentrant checkpoint, or if a backward pass inside the loss writes `.grad`.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> loss = lambda model, x: (model(x) - 1).square().mean()
        >>> objective = Objective(net, loss, [torch.ones(3, 1), torch.zeros(1, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     objective.value(), objective.gradient()
        (3.25, tensor([3.]))
    """

    is_distributed: ClassVar[bool] = False  # True if its batches lie on several processes

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        mode: Mode = "eval",
        count: Callable[[Any], float] | None = None,
        additive: bool = True,
    ) -> None:
        if mode not in get_args(Mode):
            raise ProbeError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        vector = ParameterVector(model)
        data = fixed_data(batches, count or (own_count(loss_fn) if additive else None), additive=additive)
        exact = count is None and additive and counts_exactly(loss_fn, data.batches)
        known = Additivity(SAMPLES) if exact and not without_statistics(model) else None
        super().__init__(
            model,
            loss_fn,
            vector,
            data,
            mode,
            additivity=known if additive else Additivity(BATCHES),
            counted=exact or count is not None,
        )

    @property
    def loss_kind(self) -> str:
        """Name of the loss function, or of its class with its settings."""
        function = getattr(self.loss_fn, "func", self.loss_fn)
        return str(getattr(function, "__name__", None) or f"{type(function).__name__}{settings_in_words(function)}")

    @property
    def data_hash(self) -> str:
        """SHA-256 over path, dtype, shape and bytes of the data, in hexadecimal."""
        return self.data.hash

    @property
    def additivity(self) -> str:
        """Relation of the loss to its batches.

        `mean of samples`: the loss is one of lossscope's, which count their terms, or on first use that of joined
        batches was found to be their weighted mean. `mean of batches`: declared by `additive=False`, or the loss of a
        single batch as a whole. `unchecked`: not known, or not yet.
        """
        return self._additivity[0].kind if self._additivity else UNCHECKED

    @property
    def samples(self) -> float:
        """Number of terms over which the mean is taken, an `int` where it is whole; class weights may add up to any."""
        return self.data.samples

    def value(self) -> float:
        """Return the mean loss."""
        if not self._inside:
            self._require_same_data(thorough=True)
        with self.evaluating():
            return math.fsum(at.weight * float(self.loss(self.copies(), at).detach()) for at in self.passes())

    def value_at(self, vector: Tensor) -> float:
        """Return the mean loss at other parameters, which need not be finite there; the model is not written.

        Args:
            vector: `(n,)`, the trainable parameters in the order of `names`.

        Returns:
            The loss; nan or infinite where it is.
        """
        moved = self.vector.fitting(vector)
        with self.evaluating():
            self.require_repeatable()
            losses = [at.weight * self._near(moved, at) for at in self._starts(None)]
        return math.fsum(losses) if all(map(math.isfinite, losses)) else sum(losses)

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss as a flat vector `(n,)`."""
        with self.evaluating():
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            targets = self.vector.leaves(total, graph=False)
            for batch in self.gradients():
                for target, part in zip(targets, batch.parts, strict=True):
                    target.add_(part, alpha=batch.weight)
            return total

    def operator(self, make: Callable[[Objective], Any]) -> Any:
        """Return a matrix of the loss; that of a loss over several processes is averaged over them.

        Args:
            make: Makes the matrix of an objective whose batches are all in this process.

        Returns:
            The matrix.
        """
        return make(self)

    def require_repeatable(self) -> None:
        """Raise if the loss is not a deterministic function of the parameters; `losses` includes this check."""
        if not self._checked:
            self.value()

    def restricted(self, names: Collection[str]) -> Objective:
        """Return the loss as a function of some of the parameters, with the others constant.

        Args:
            names: Some of `names`, in any order; the flat vector keeps the order of the whole.

        Returns:
            The objective; it shares model and data with this one.

        Raises:
            ProbeError: a name is unknown, or there is none.
        """
        part = copy.copy(self)
        part.vector = ParameterVector(self.model, self.vector.known(names), self.vector.cast_to)
        part.vector.unit = max(part.vector.unit, self.graph.unit if self.graph else 0.0)
        part._whole, part._inside, part._shared = False, False, None
        return part

    def in_double(self) -> Objective:
        """Return the loss evaluated in float64: parameters, buffers and data are cast, the model is not modified."""
        return self.in_dtype(torch.float64)

    def in_dtype(self, dtype: torch.dtype) -> Objective:
        """Return the loss evaluated in another dtype: parameters, buffers and data are cast, the model is not modified.

        Inside the loss function a conversion to another floating dtype, such as `logits.float()`, is one to this dtype.
        """
        other = self._function_in(dtype)
        other.data = self.data.cast(dtype)
        return other

    def split(self, count: int, *, seed: int) -> tuple[Objective, ...]:
        """Return the objective on disjoint random parts of the data of nearly equal size.

        Args:
            count: Number of parts, at least 2.
            seed: Seed of the shuffle.

        Returns:
            The parts; their losses, weighted by their `samples`, add up to the whole. Cost: two evaluations.

        Raises:
            ProbeError: there are fewer samples than parts, a batch cannot be split, the loss fails on a part, or the
                losses of the parts do not add up: the loss is no mean over samples.
        """
        whole, parts = self.value(), tuple(self._part(data) for data in self.data.split(count, seed=seed))
        with on_parts(part.samples for part in parts):
            losses = [part.value() for part in parts]
        counts = [math.fsum(part.data.counts) for part in parts]
        mean = math.fsum(n * loss for n, loss in zip(counts, losses, strict=True)) / math.fsum(counts)
        unit = max(ULPS * torch.finfo(torch.float32).eps, 4 * self.vector.unit)
        if abs(mean - whole) > unit * max(map(abs, losses)):
            raise ProbeError(
                f"the data cannot be split: the loss is {whole:.6g} on all the data but {mean:.6g} as the mean over "
                f"{count} parts: the loss must be a mean over samples (batch norm in mode='frozen' or 'train' is not, "
                "nor is a wrong count); use mode='eval'"
            )
        return parts

    def with_model(self, model: nn.Module) -> Objective:
        """Return the same loss on the same data of another model.

        Args:
            model: Any module that the loss function can be given, such as a copy with other weights.

        Returns:
            The objective, in the dtype of this one.

        Raises:
            ProbeError: The loss function reaches the present model past its argument, or the new one has no trainable
                parameter.
        """
        other = copy.copy(self)
        known = self._additivity[0] if self._additivity else None
        vector = ParameterVector(model, None, self.vector.cast_to)
        BatchwiseLoss.__init__(
            other, model, self.loss_fn, vector, self.data, self.mode, additivity=known, counted=self._counted
        )
        if any(module is self.model for module in other.reached.modules):
            raise ProbeError("loss_fn must use the model that it is given, but it reaches the other one by itself")
        return other if self.vector.cast_to is None else other._function_in(self.vector.cast_to)

    def batch(self, index: int) -> Objective:
        """Return the objective on one of its batches.

        Args:
            index: Index of the batch, from 0.

        Returns:
            The objective; its loss is that batch's own mean.
        """
        return self._part(self.data.batch(index))

    def _part(self, data: FixedData) -> Objective:
        """Return the objective on a part of its data; what is known of the whole need not be found again."""
        part = copy.copy(self)
        part.data, part._inside = data, False
        part._additivity = self._additivity or self._of_parts
        part._counted = True  # the note belongs to the whole
        return part

    @contextmanager
    def at(self, vector: Tensor) -> Iterator[None]:
        """Set other parameters inside this context; the old ones are restored bit for bit.

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
            try:
                self.vector.place(old)
            except BaseException:  # an interruption in between
                self.vector.place(old)
                raise
