"""Mean loss over fixed data as a function of the parameters, evaluated without changing the model."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossscope.probes.errors import ProbeError, ProbeWarning
from lossscope.probes.objective.additivity import (
    BATCHES,
    SAMPLES,
    UNCHECKED,
    Additivity,
    BatchLosses,
    checked_additivity,
)
from lossscope.probes.objective.autograd_guards import (
    GraphFacts,
    graph_facts,
    held_parameters,
    refuse_backward,
    refuse_held,
)
from lossscope.probes.objective.batch_tree import mapped
from lossscope.probes.objective.data import FixedData, copied, fixed_data, versions
from lossscope.probes.objective.evaluation import (
    ULPS,
    BatchEvaluation,
    BatchGradient,
    check_deterministic,
    on_parts,
    validated_loss,
)
from lossscope.probes.objective.functional import Substitution
from lossscope.probes.objective.isolation import Mode, isolated, random_state, without_statistics
from lossscope.probes.objective.loss_terms import counts_exactly, own_count, settings_in_words
from lossscope.probes.objective.parameters import ParameterVector, cast
from lossscope.probes.objective.reached import reached

__all__ = ["LossFunction", "Objective"]

LossFunction = Callable[[Any, Any], Tensor]
_CLOSE: Final = 0.1  # distance of the second evaluation point, relative to the root mean square of the parameters


class Objective:
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
        self.model = model
        self.loss_fn = loss_fn
        self.mode: Mode = mode
        self.vector = ParameterVector(model)
        self.data: FixedData = fixed_data(
            batches, count or (own_count(loss_fn) if additive else None), additive=additive
        )
        self._without_statistics = without_statistics(model)
        exact = count is None and additive and counts_exactly(loss_fn, self.data.batches)
        self._counted = exact or count is not None  # the note is for weights that nobody declared
        known = [Additivity(SAMPLES)] if exact and not self._without_statistics else []
        self._additivity: list[Additivity] = known if additive else [Additivity(BATCHES)]  # empty until it is checked
        self._of_parts: list[Additivity] = []  # shared by all parts that are evaluated before the whole
        self.reached = reached(loss_fn, model)
        self._held: list[str] = []  # parameters that the loss uses past the model; shared by all copies
        self._writes: list[bool] = []  # not empty if the loss writes into its batch; shared by all copies
        self.call = Substitution(model, loss_fn, None, self.reached, self._held)
        self.graph: GraphFacts | None = None  # what the graph of the loss tells; None until a first gradient
        self.verified: frozenset[str] = frozenset()  # methods whose products were found right
        self._differentiated = False  # True if the loss itself differentiates by the parameters
        self._whole = True  # True if the coordinates are all trainable parameters, in their own dtype
        self._inside = False
        self._checked = False

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

    def parameters(self) -> Tensor:
        """Return a copy of the trainable parameters as a flat vector `(n,)`."""
        return self.vector.joined(self.vector.tensors())

    def value(self) -> float:
        """Return the mean loss."""
        if not self._inside:
            self._require_same_data(thorough=True)
        with self.evaluating():
            return math.fsum(at.weight * float(self.loss(self.copies(), at).detach()) for at in self.passes())

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss as a flat vector `(n,)`."""
        with self.evaluating():
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            for batch in self.gradients():
                total.add_(batch.gradient, alpha=batch.weight)
            return total

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
        part._whole, part._inside = False, False
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

    def _function_in(self, dtype: torch.dtype) -> Objective:
        """Return the loss evaluated in another dtype, with the data as they are."""
        other = copy.copy(self)
        other.vector = ParameterVector(self.model, self.names, dtype)
        other.call = Substitution(self.model, self.loss_fn, dtype, self.reached, self._held)
        other.graph = None
        other._whole, other._inside = False, False
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
        return self.vector.views(self.leaf() if self._differentiated else self.parameters(), apart=True)

    def leaf(self) -> Tensor:
        """Return a copy of the parameters as the leaf of a graph, `(n,)`."""
        return self.parameters().requires_grad_()

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

    def derivative(self, of: Tensor, theta: Tensor, *, graph: bool = False, keep: bool = False) -> Tensor:
        """Return the derivative of a scalar by a leaf, `(n,)`; `graph` gives it a graph, `keep` retains the old one."""
        found = None
        if of.requires_grad:
            found = torch.autograd.grad(of, theta, create_graph=graph, retain_graph=graph or keep, allow_unused=True)[0]
        if theta.grad is not None:
            refuse_backward(self.names[0] if len(self.names) == 1 else f"one of {len(self.names)}")
        if found is None and self._whole:
            raise ProbeError(
                f"the loss depends on none of the {len(self.names)} trainable parameters: does loss_fn use "
                "the model it is given, without detach() or no_grad()?"
            )
        return torch.zeros_like(theta) if found is None else found

    def slope(self, theta: Tensor, at: BatchEvaluation, *, graph: bool = False) -> BatchGradient:
        """Return the gradient of one batch by a leaf, with its graph if requested; call it inside `evaluating`."""

        def gradient(found: Any) -> Tensor:
            loss = self.validated_loss(found, at)
            self.inspect(loss)
            return self.derivative(loss, theta, graph=graph)

        return BatchGradient(at.weight, theta, self.within(gradient, theta, at))

    def within(self, compute: Callable[[Any], Tensor], theta: Tensor, at: BatchEvaluation) -> Tensor:
        """Return what a function makes of the loss of one batch, computed while a leaf is in the model.

        A checkpoint inside the model recomputes its activations in the backward pass, with the parameters that are
        there at that time.
        """
        call = self.substitution(lambda model, batch: compute(self.loss_fn(model, batch)))
        found: Tensor = self.evaluated(call, self.vector.views(theta, apart=True), at)
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
        """Yield the gradient of each batch by a new leaf, with its graph if requested.

        Call it inside `evaluating`.
        """
        theta = self.leaf()
        for at in self.passes():
            yield self.slope(theta, at, graph=graph)

    def require_repeatable(self) -> None:
        """Raise if the loss is not a deterministic function of the parameters; `losses` includes this check."""
        if not self._checked:
            self.value()

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
        if self._without_statistics and self.mode == "eval" and self.additivity == UNCHECKED:
            note = (
                f"additivity: unchecked. {self._without_statistics[0]} is a batch norm without running statistics, so "
                "that the loss of a batch depends on its other samples: the numbers are those of these batches. Pass "
                "additive=False for the plain mean over batches, which says so in every row"
            )
        if note:
            warnings.warn(note, ProbeWarning, stacklevel=2)

    def _batch_losses(self, values: Sequence[float], theta: Tensor | None = None) -> BatchLosses:
        """Return the losses of any batches at given parameters, the present ones by default."""

        def evaluate(batch: Any, of: Objective = self) -> float:
            leaves = of.copies() if theta is None else of.vector.views(theta.to(of.dtype, copy=True), apart=True)
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
        leaf = theta.clone().requires_grad_(self._differentiated)
        return float(self.evaluated(self.call, self.vector.views(leaf, apart=True), at).detach())


def _normalizes(network: nn.Module) -> bool:
    """Return True if a network normalizes by the statistics of its batch: batch norm in train mode."""
    return any(isinstance(part, _BatchNorm) and part.training for part in network.modules())
