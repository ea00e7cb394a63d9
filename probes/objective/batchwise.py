"""Losses of single batches and their derivatives, evaluated without changing the model and checked on first use."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossscope.probes.errors import ProbeError, ProbeWarning
from lossscope.probes.objective.additivity import UNCHECKED, Additivity, BatchLosses, checked_additivity
from lossscope.probes.objective.autograd_guards import (
    GraphFacts,
    graph_facts,
    held_parameters,
    refuse_backward,
    refuse_held,
)
from lossscope.probes.objective.batch_tree import mapped
from lossscope.probes.objective.data import FixedData, copied, versions
from lossscope.probes.objective.evaluation import (
    ULPS,
    BatchEvaluation,
    BatchGradient,
    check_deterministic,
    validated_loss,
)
from lossscope.probes.objective.functional import Substitution
from lossscope.probes.objective.isolation import Mode, isolated, random_state, without_statistics
from lossscope.probes.objective.parameters import ParameterVector, cast
from lossscope.probes.objective.reached import reached

__all__ = ["BatchwiseLoss", "LossFunction"]

LossFunction = Callable[[Any, Any], Tensor]
_Found = TypeVar("_Found")
_CLOSE: Final = 0.1  # distance of the second evaluation point, relative to the root mean square of the parameters


class BatchwiseLoss:
    """Loss of each batch as a function of the parameters: what an `Objective` averages, and operators differentiate.

    Args:
        model: Any module.
        loss_fn: `loss_fn(model, batch)` returns the mean loss of a batch.
        vector: The parameters that the loss is a function of.
        data: The batches and their weights.
        mode: As in `Objective`.
        additivity: Relation of the loss to its batches; None if it must be found on first use.
        counted: True if the weights of the batches were declared.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        vector: ParameterVector,
        data: FixedData,
        mode: Mode,
        *,
        additivity: Additivity | None,
        counted: bool,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.vector = vector
        self.data = data
        self.mode: Mode = mode
        self._without_statistics = without_statistics(model)
        self._counted = counted  # the note of additivity is for weights that nobody declared
        self._additivity = [] if additivity is None else [additivity]  # empty until it is checked
        self._of_parts: list[Additivity] = []  # shared by all parts that are evaluated before the whole
        self.reached = reached(loss_fn, model)
        self._held: list[str] = []  # parameters that the loss uses past the model; shared by all copies
        self._writes: list[bool] = []  # not empty if the loss writes into its batch; shared by all copies
        self.call = Substitution(model, loss_fn, None, self.reached, self._held)
        self.graph: GraphFacts | None = None  # what the graph of the loss tells; None until a first gradient
        self.verified: frozenset[str] = frozenset()  # methods whose products were found right
        # shared by all copies, by dtype: step of differences of gradients, and relative error of products by them
        self.difference_steps: dict[torch.dtype, float] = {}
        self.difference_errors: dict[torch.dtype, float] = {}
        self.replaced: dict[Any, str] = {}  # method of products -> name of the one that replaced it
        self._differentiated = False  # True if the loss itself differentiates by the parameters
        self._whole = True  # True if the coordinates are all trainable parameters, in their own dtype
        self._inside = False
        self._shared: list[Tensor] | None = None  # leaves inside `fixed`, empty until there are some
        self._checked = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, in the order of the flat vector."""
        return self.vector.names

    @property
    def size(self) -> int:
        """Length `n` of the flat vector."""
        return self.vector.size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of flat vectors: that of the parameters, float32 at least."""
        return self.vector.dtype

    @property
    def device(self) -> torch.device:
        """Device of flat vectors."""
        return self.vector.device

    @property
    def writes_batches(self) -> bool:
        """True if the loss was found to write into its batch."""
        return bool(self._writes)

    @property
    def differentiates(self) -> bool:
        """True if the loss was found to differentiate by the parameters."""
        return self._differentiated

    def parameters(self) -> Tensor:
        """Return a copy of the trainable parameters as a flat vector `(n,)`."""
        return self.vector.joined(self.vector.tensors())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set modes for evaluations inside this context; modes and random state are restored at its end.

        Every method enters it by itself; enter it around several calls to set up only once.

        Yields:
            Nothing.
        """
        if self._inside:
            yield
            return
        self._require_same_data()
        before, self.reached = self.reached, reached(self.loss_fn, self.model)
        if before.identity != self.reached.identity:
            self.call = Substitution(self.model, self.loss_fn, self.vector.cast_to, self.reached, self._held)
        with self._isolated():
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
                self.data.mark(changed_only=True)  # a loss may write into its batch

    def _require_same_data(self, *, thorough: bool = False) -> None:
        """Raise if the data changed since they were first evaluated or hashed."""
        if self._checked or self.data.hashed:
            self.data.require_unchanged(thorough=thorough)
        else:
            self.data.mark()

    def _isolated(self) -> AbstractContextManager[None]:
        """Return the context of an evaluation."""
        inputs = self.data.tensors
        devices = {self.device, *(tensor.device for tensor in inputs)}
        return isolated(self.model, training=self.mode != "eval", devices=devices, reached=self.reached, inputs=inputs)

    def copies(self) -> list[Tensor]:
        """Return copies of the parameters, which a model may modify in place; call it after `passes`.

        They require grad only if the loss itself differentiates by the parameters, so that no graph is kept for others.
        """
        return self.moved(self.parameters())

    def moved(self, theta: Tensor) -> list[Tensor]:
        """Return a vector `(n,)` as tensors that stand for the parameters in `loss`; a model may modify it in place."""
        return self.vector.placeable(self.vector.leaves(theta, graph=self._differentiated))

    def leaves(self, theta: Tensor | None = None) -> list[Tensor]:
        """Return parameters as leaves of a graph, in their shapes: views of one vector.

        Args:
            theta: The vector `(n,)`, which a model may modify in place. Default: a copy of the present parameters.
        """
        if theta is not None:
            return self.vector.leaves(theta)
        if self._shared is None:
            return self.vector.leaves(self.parameters())
        if not self._shared or _are_modified(self._shared):
            self._shared[:] = self.vector.leaves(self.parameters())
        return list(self._shared)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Make only one copy of the parameters inside this context, in which they must not move; it may be nested.

        Yields:
            Nothing.
        """
        before = self._shared
        if before is None:
            self._shared = []
        try:
            yield
        finally:
            self._shared = before

    def substitution(self, function: Callable[[Any, Any], Any]) -> Substitution:
        """Return another function of model and batch, evaluated in the dtype of the loss."""
        return self.call.of(function)

    def passes(self) -> Iterator[BatchEvaluation]:
        """Yield the batches in the order in which they must be evaluated.

        Call it inside `evaluating`; in train mode evaluate each batch before requesting the next. On first use all
        batches are evaluated once beforehand, and `loss` raises if the second value differs.
        """
        before = None if self._checked else self._values()
        yield from self._starts(before)

    def evaluated(self, function: Substitution, leaves: Sequence[Tensor], at: BatchEvaluation) -> Any:
        """Evaluate a function of model and batch at the leaves, without any check."""
        buffers = at.buffers if self.mode == "train" else function.buffers()
        return self._evaluated_on(self.data.batches[at.index], function, leaves, buffers)

    def _evaluated_on(
        self, batch: Any, function: Substitution, leaves: Sequence[Tensor], buffers: dict[str, Tensor]
    ) -> Any:
        """Evaluate a function of model and batch at the leaves, on any batch."""
        parameters = dict(zip(self.names, leaves, strict=True))
        if not self._whole:
            parameters |= self.vector.others(differentiable=self._differentiated)
        return function(parameters, buffers, copied(batch) if self._writes else batch)

    def validated_loss(self, loss: Any, at: BatchEvaluation) -> Tensor:
        """Return the loss of a batch after checking that it is finite and equal to that of the earlier evaluation."""
        found = validated_loss(loss, at, self.model)
        if at.before is not None and at.index + 1 == len(self.data.batches):
            self._checked = True
        return found

    def loss(self, leaves: Sequence[Tensor], at: BatchEvaluation) -> Tensor:
        """Return the validated loss of one batch, differentiable with respect to the leaves."""
        return self.validated_loss(self.evaluated(self.call, leaves, at), at)

    def losses(self, leaves: Sequence[Tensor]) -> Iterator[tuple[float, Tensor]]:
        """Yield the weight and the loss of each batch, differentiable with respect to the leaves.

        Call it inside `evaluating`.
        """
        for at in self.passes():
            yield at.weight, self.loss(leaves, at)

    def derivative(
        self, of: Tensor, leaves: Sequence[Tensor], *, graph: bool = False, keep: bool = False
    ) -> list[Tensor]:
        """Return the derivative of a scalar by each leaf; `graph` gives it a graph, `keep` retains the old one."""
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if of.requires_grad:
            retained = graph or keep
            found = torch.autograd.grad(of, leaves, create_graph=graph, retain_graph=retained, allow_unused=True)
        if written := [name for name, leaf in zip(self.names, leaves, strict=True) if leaf.grad is not None]:
            refuse_backward(written[0])
        if self._whole and all(part is None for part in found):
            raise ProbeError(
                f"the loss depends on none of the {len(self.names)} trainable parameters: does loss_fn use "
                "the model it is given, without detach() or no_grad()?"
            )
        pairs = zip(found, leaves, strict=True)
        return [torch.zeros_like(leaf, requires_grad=False) if part is None else part for part, leaf in pairs]

    def slope(self, leaves: Sequence[Tensor], at: BatchEvaluation, *, graph: bool = False) -> BatchGradient:
        """Return the gradient of one batch by leaves, with its graph if requested; call it inside `evaluating`."""

        def gradient(found: Any) -> list[Tensor]:
            loss = self.validated_loss(found, at)
            self.inspect(loss)
            return self.derivative(loss, leaves, graph=graph)

        return BatchGradient(at.weight, leaves, self.within(gradient, leaves, at))

    def within(self, compute: Callable[[Any], _Found], leaves: Sequence[Tensor], at: BatchEvaluation) -> _Found:
        """Return what a function makes of the loss of one batch, computed while leaves are in the model.

        A checkpoint inside the model recomputes its activations in the backward pass, with the parameters that are
        there at that time.
        """
        call = self.substitution(lambda model, batch: compute(self.loss_fn(model, batch)))
        found: _Found = self.evaluated(call, self.vector.placeable(leaves), at)
        return found

    def inspect(self, loss: Tensor) -> GraphFacts:
        """Return what the graph of the loss tells, once; the unit of `vector` is made that of its coarsest dtype."""
        if self.graph is None:
            self.graph = graph_facts(loss)
            if held := held_parameters(loss, self.model):
                refuse_held(held)
            self.vector.unit = max(self.vector.unit, self.graph.unit)
        return self.graph

    def gradients(self, *, graph: bool = False) -> Iterator[BatchGradient]:
        """Yield the gradient of each batch by new leaves, with its graph if requested.

        Call it inside `evaluating`.
        """
        leaves = self.leaves()
        for at in self.passes():
            leaves = self.leaves() if _are_modified(leaves) else leaves
            yield self.slope(leaves, at, graph=graph)

    def _starts(self, before: list[float] | None) -> Iterator[BatchEvaluation]:
        """Yield the batches with the initial buffers, which in train mode each batch updates for the next."""
        buffers = self.call.buffers() if self.mode == "train" else {}
        slack = ULPS * torch.finfo(self.dtype).eps * max(map(abs, before)) if before else 0.0
        for index, weight in enumerate(self.data.weights):
            where = f"on batch {index} of {len(self.data.batches)}"
            yield BatchEvaluation(index, weight, where, buffers, before[index] if before else None, slack)

    def _values(self) -> list[float]:
        """Return the loss of each batch; find out whether it can be evaluated without a graph of the parameters."""
        devices = {self.device} | self.data.devices
        before = random_state(devices)
        try:
            found = self._plain_values()
        except RuntimeError as error:
            found = self._values_otherwise(error)
        drawn = random_state(devices) != before
        if drawn:
            self._require_unused_random_numbers()
        self._check_additivity(found, drawn=drawn)
        return found

    def _values_otherwise(self, error: RuntimeError) -> list[float]:
        """Return the loss of each batch after an attempt that raised, in another way that the error suggests."""
        differentiated, held = self._differentiated, list(self._held)
        if "grad" in str(error):  # the loss differentiates by the parameters
            self._differentiated = True
        elif "dtype" in str(error) and not held:  # it may hold parameters itself, in their own dtype
            self._held += self.names
        else:
            raise error
        try:
            return self._plain_values()
        except RuntimeError:
            self._differentiated, self._held[:] = differentiated, held
            raise error from None

    def _plain_values(self) -> list[float]:
        """Return the loss of each batch, without a comparison; put the parameters that it holds itself into `_held`."""
        values = []
        for at in self._starts(None):
            batch = copied(self.data.batches[at.index])
            before = versions(batch)
            buffers = at.buffers if self.mode == "train" else self.call.buffers()
            loss = self.validated_loss(self._evaluated_on(batch, self.call, self.copies(), buffers), at)
            if not self._writes and before != versions(batch):
                self._writes.append(True)
            if loss.requires_grad and (held := held_parameters(loss, self.model)):
                if self._held:
                    refuse_held(held)
                self._held += held
                return self._plain_values()
            values.append(float(loss.detach()))
        return values

    def _check_additivity(self, values: list[float], *, drawn: bool) -> None:
        """Compare the loss of joined batches with their weighted mean, once; give the note of a check that fails."""
        if self._additivity:
            return
        if drawn:  # the random numbers of joined batches are others
            self._additivity.append(Additivity(UNCHECKED))
            return
        with self._isolated():
            self._additivity.append(checked_additivity(self._batch_losses(values)))
        note = self._additivity[0].note
        if self._without_statistics and self.mode == "eval" and self._additivity[0].kind == UNCHECKED:
            note = (
                f"additivity: unchecked. {self._without_statistics[0]} is a batch norm without running statistics, so "
                "that the loss of a batch depends on its other samples: the numbers are those of these batches. Pass "
                "additive=False for the plain mean over batches, which says so in every row"
            )
        if note:
            warnings.warn(note, ProbeWarning, stacklevel=2)

    def _batch_losses(self, values: Sequence[float], theta: Tensor | None = None) -> BatchLosses:
        """Return the losses of any batches at given parameters, the present ones by default."""

        def evaluate(batch: Any, of: BatchwiseLoss = self) -> float:
            leaves = of.copies() if theta is None else of.moved(theta.to(of.dtype, copy=True))
            return float(of._evaluated_on(batch, of.call, leaves, of.call.buffers()).detach())

        return BatchLosses(
            self.data,
            values,
            evaluate,
            lambda batch: evaluate(mapped(batch, partial(cast, dtype=torch.float64)), self._function_in(torch.float64)),
            self.vector.unit,
            self._counted,
            self.mode != "eval" or bool(self._without_statistics) or any(map(_normalizes, self.reached.modules)),
            self.loss_fn,
            lambda: self._batch_losses(values, self._close()),
        )

    def _close(self) -> Tensor:
        """Return parameters near the present ones."""
        theta = self.parameters()
        size = float(theta.square().mean().sqrt()) or 1.0
        moved = torch.randn(self.size, generator=torch.Generator().manual_seed(0)).to(theta)
        return theta.add_(moved, alpha=_CLOSE * size)

    def _require_unused_random_numbers(self) -> None:
        """Raise if random numbers change the loss at nearby parameters: dropout before a layer of zeros, say."""
        theta = self._close()
        first, again = ([self._near(theta, at) for at in self._starts(None)] for _ in range(2))
        for at, number in zip(self._starts(first), again, strict=True):
            if math.isfinite(number):  # otherwise a comparison is meaningless
                check_deterministic(number, replace(at, where=f"{at.where}, at nearby parameters"), self.model)

    def _near(self, theta: Tensor, at: BatchEvaluation) -> float:
        """Return the loss of one batch at other parameters."""
        return float(self.evaluated(self.call, self.moved(theta.clone()), at).detach())

    def _function_in(self, dtype: torch.dtype) -> Self:
        """Return the loss evaluated in another dtype, with the data as they are."""
        other = copy.copy(self)
        other.vector = ParameterVector(self.model, self.names, dtype)
        other.call = Substitution(self.model, self.loss_fn, dtype, self.reached, self._held)
        other.graph = None
        other._whole, other._inside, other._shared = False, False, None
        return other


def _are_modified(leaves: Sequence[Tensor]) -> bool:
    """Return True if a model has modified a parameter in place since the leaves were made."""
    return any(leaf._version for leaf in leaves)


def _normalizes(network: nn.Module) -> bool:
    """Return True if a network normalizes by the statistics of its batch: batch norm in train mode."""
    return any(isinstance(part, _BatchNorm) and part.training for part in network.modules())
