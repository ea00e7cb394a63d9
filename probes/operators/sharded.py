"""A loss of a model of which each process has a part (FSDP2), and its Hessian by differences with sharded vectors.

    torchrun --nproc-per-node 2 measure.py

where each rank of `measure.py` shards the model, loads its own batches and calls the same measures:

    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    fully_shard(model)
    objective = ShardedObjective(model, CrossEntropy(), my_batches)
    print(measure_spectrum(objective.hessian(), top=1, quantities=["top"]).top.values)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.data import fixed_data
from lossscope.probes.objective.loss_terms import own_count
from lossscope.probes.operators import random_vectors
from lossscope.probes.operators.base import ProductFacts, Reference, SymmetricOperator
from lossscope.probes.operators.finite_differences import COMPARED_STEP, ERROR_SHARE, EXPONENT, line_error, tuned
from lossscope.probes.operators.ranks import Ranks
from lossscope.probes.sums import all_finite, dot, norm, of_parts

__all__ = ["ShardedObjective"]

_ULPS: Final = 100  # two evaluations of one loss may differ by this many units in the last place
_CHANGE: Final = 1e-2  # relative change of the loss by the step with which the gradient is checked
_SCALE: Final = 1.5  # factor by which the gradient may differ from the slope of the loss


class ShardedObjective:
    """Mean loss over the batches of all ranks of a model under `fully_shard`, in eval mode.

    A vector is sharded as the parameters are: each rank holds the entries of its shards, one after the other, and zeros
    up to the length of the longest rank. Inner products are summed over the ranks in float64. Gradients are those of
    `backward()`, with whatever kernels, mixed precision and compilation the model has; parameters, gradients, modes,
    buffers and random states are put back. Ranks with fewer batches repeat their last one with the weight zero, as each
    forward pass gathers parameters on all.

    Args:
        model: The module to which `fully_shard` was applied, over a mesh of one dimension.
        loss_fn: `loss_fn(model, batch)` returns the mean loss of a batch.
        batches: The batches of this rank, on its device.
        count: The number of terms of a batch, as in `Objective`. That the loss is their mean is not checked.

    Attributes:
        size: Number of parameters on all ranks.
        length: Length of a vector on each rank.
        own: Number of entries of this rank's shards: the other entries of its part of a vector are zero.
        rank: Index of this process.
        ranks: Number of processes.

    Raises:
        ProbeError: There is no process group, a trainable parameter is not sharded over one dimension, it has hooks
            that run after its gradient (an optimizer in the backward pass), the gradient is not that of the mean loss
            (see `set_gradient_divide_factor`), two evaluations differ, or a rank has failed or is gone.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Iterable[Any],
        *,
        count: Callable[[Any], float] | None = None,
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        _require_sharded(model, named)
        self.model = model
        self.loss_fn = loss_fn
        self._parameters: list[Any] = [p for _, p in named]
        self._ranks = Ranks(self._parameters[0].device_mesh.get_group(), apart=True)
        shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in named]
        data, found = self._ranks.together(
            lambda: fixed_data(batches, count or own_count(loss_fn)),
            lambda data: (shapes, data.counts, sum(p.to_local().numel() for p in self._parameters)),
        )
        self._ranks.require_equal([one[0] for one in found], "the parameters of the models", "shard one model")
        counts = [one[1] for one in found]
        total = math.fsum(map(math.fsum, counts))
        passes, own = max(map(len, counts)), len(data.batches)
        self._passes = [
            (data.batches[min(i, own - 1)], data.counts[i] / total if i < own else 0.0) for i in range(passes)
        ]
        self.own = found[self._ranks.rank][2]
        self.rank, self.ranks = self._ranks.rank, self._ranks.count
        self.length = max(one[2] for one in found)
        self.size = sum(one[2] for one in found)
        local = self._parameters[0].to_local()
        self.dtype, self.device = local.dtype, local.device
        self._inside = False
        self._checked = False

    def value(self) -> float:
        """Return the mean loss over all ranks; a collective call."""
        with self.evaluating():
            return self._value()

    def gradient(self) -> Tensor:
        """Return this rank's part of the gradient of the mean loss, `(length,)`; a collective call."""
        with self.evaluating():
            return self.slope(self.parameters())

    def parameters(self) -> Tensor:
        """Return this rank's part of the parameters, `(length,)`."""
        return self._joined([p.to_local() for p in self._parameters])

    def hessian(self, *, method: str = "differences") -> SymmetricOperator:
        """Return the Hessian by central differences of gradients, with vectors sharded as the parameters are.

        The error of the differences is measured from two steps (`finite_differences`), along a random vector and along
        those whose products matter; bounds and intervals contain it.

        Args:
            method: `differences`; there is no other.

        Returns:
            The operator; `measure_spectrum` and `EigenTracker` take it on every rank. Eigenvectors are sharded.

        Raises:
            ProbeError: another method is requested.
        """
        if method != "differences":
            raise ProbeError(
                f"method={method!r} differentiates the gradient, which FSDP2 reduces between the ranks in hooks "
                "outside the graph: it has no derivative; use method='differences', or a model that is not sharded"
            )
        return _ShardedHessian(self, 1.0)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set eval mode and sum over the shards inside this context; the model is put back at its end.

        Yields:
            Nothing.
        """
        if self._inside:
            yield
            return
        theta = [p.to_local().detach().clone() for p in self._parameters]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), of_parts(self._ranks.sum_), _kept(self.model):
            self.model.eval()
            self._inside = True
            try:
                self._check()
                yield
            finally:
                self._inside = False
                self._place(theta)

    def slope(self, theta: Tensor) -> Tensor:
        """Return this rank's part of the gradient at other parameters; call it inside `evaluating`."""
        self._place(self._split(theta))
        found, _ = self._ranks.together(self._gradient, _require_finite)
        return found

    def put_back(self, theta: Tensor) -> None:
        """Place this rank's part of the parameters in the model."""
        self._place(self._split(theta))

    def least(self, number: int) -> int:
        """Return the least of the numbers that the ranks have."""
        return min(self._ranks.gather(number))

    def require_equal_count(self, columns: int) -> None:
        """Raise if the ranks multiply different numbers of vectors."""
        self._ranks.require_equal(
            self._ranks.gather(columns),
            "the numbers of vectors multiplied",
            "call the same measures with the same arguments and seeds on every rank, in the same order",
        )

    def _gradient(self) -> Tensor:
        """Return this rank's part of the gradient at the parameters in the model."""
        for p in self._parameters:
            p.grad = None
        for batch, weight in self._passes:
            # the gradients are averaged over the ranks
            (self._loss(batch) * (weight * self._ranks.count)).backward()  # type: ignore[no-untyped-call]
        parts = [torch.zeros_like(p.to_local()) if p.grad is None else p.grad.to_local() for p in self._parameters]
        return self._joined(parts)

    def _value(self) -> float:
        """Return the mean loss at the parameters in the model."""

        def losses() -> float:
            with torch.no_grad():
                return math.fsum(weight * float(self._loss(batch)) for batch, weight in self._passes)

        values = self._ranks.together(losses, lambda value: value)[1]
        self._reshard()
        return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)

    def _loss(self, batch: Any) -> Tensor:
        loss = self.loss_fn(self.model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not math.isfinite(float(loss.detach())):
            got = float(loss.detach()) if isinstance(loss, Tensor) and loss.numel() == 1 else type(loss).__name__
            raise ProbeError(f"loss_fn must return one finite number, the mean over the batch, got {got}")
        return loss.reshape(())

    def _check(self) -> None:
        """Raise if the loss is not deterministic, or the gradient is not its own; once."""
        if self._checked:
            return
        first, again = self._value(), self._value()
        slack = _ULPS * torch.finfo(self.dtype).eps * max(abs(first), abs(again))
        if not abs(first - again) <= slack:
            raise ProbeError(
                f"two evaluations of one loss gave {first:.9g} and {again:.9g}: take the random numbers out"
            )
        theta = self.parameters()
        gradient = self.slope(theta)
        square = float(dot(gradient, gradient))
        if not square > 0:
            self._checked = True
            return
        step = _CHANGE * (abs(first) or 1.0) / (2 * square)
        step = min(step, _CHANGE * float(norm(theta) or 1.0) / math.sqrt(square))
        ends = []
        for side in (step, -step):
            self._place(self._split(torch.add(theta, gradient, alpha=side)))
            ends.append(self._value())
        self._place(self._split(theta))
        slope, shown = (ends[0] - ends[1]) / (2 * step), 2 * step * square > 10 * slack
        if shown and not 1 / _SCALE < slope / square < _SCALE:
            raise ProbeError(
                f"the gradient of the sharded model is {square / slope:.3g} times the slope of the mean loss: undo "
                "set_gradient_divide_factor, and what else scales or stops gradients"
            )
        self._checked = True

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Return tensors of the shapes of this rank's shards as a vector, `(length,)`."""
        found = torch.cat([part.detach().reshape(-1).to(self.dtype) for part in parts])
        return torch.nn.functional.pad(found, (0, self.length - len(found)))

    def _split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector, `(length,)`, as tensors of the shapes of this rank's shards."""
        local = [p.to_local() for p in self._parameters]
        cut = torch.split(vector[: self.own], [part.numel() for part in local])
        return [part.view(other.shape) for part, other in zip(cut, local, strict=True)]

    def _place(self, parts: list[Tensor]) -> None:
        """Copy tensors into the shards of the model."""
        with torch.no_grad():
            for p, part in zip(self._parameters, parts, strict=True):
                p.to_local().copy_(part)
        self._reshard()

    def _reshard(self) -> None:
        """Drop the whole parameters, which were gathered from the shards of an earlier time."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class _ShardedHessian(SymmetricOperator):
    """The Hessian of a sharded objective by central differences, see `ShardedObjective.hessian`."""

    def __init__(self, objective: ShardedObjective, stretch: float, compared: bool = False) -> None:
        super().__init__(
            objective.size,
            self._differences,
            dtype=objective.dtype,
            device=objective.device,
            cached=objective.evaluating,
            facts=lambda: self._found,
            reference=self._compared,
        )
        self.length, self.processes = objective.length, objective.ranks
        self.objective = objective
        self._stretch = stretch
        self._rounding = 0.0  # of a product with a unit vector
        self._found = ProductFacts("differences", torch.finfo(objective.dtype).eps, compared)

    @property
    def asymmetry_hint(self) -> str:
        """Advice that an algorithm gives if it finds the matrix asymmetric."""
        return "differences of gradients do not settle here (kinks within a step); measure at other parameters"

    def agreed(self, number: int) -> int:
        """Return the least of the numbers that the ranks have."""
        return self.objective.least(number)

    def normal(self, generator: torch.Generator) -> Tensor:
        """Draw this rank's part of a standard normal vector, in its dtype and on its device."""
        return self._padded(lambda own, n: random_vectors.normal(n, own, self.dtype), generator)

    def signs(self, generator: torch.Generator) -> Tensor:
        """Draw this rank's part of a vector of random signs, int8 on its device."""
        return self._padded(lambda own, n: random_vectors.signs(n, own), generator)

    def _padded(self, draw: Callable[[torch.Generator, int], Tensor], generator: torch.Generator) -> Tensor:
        """Draw from a generator of this rank's own, seeded by the common one; zeros where there is no parameter."""
        seeds = torch.randint(2**62, (self.objective.ranks,), generator=generator)
        found = draw(torch.Generator().manual_seed(int(seeds[self.objective.rank])), self.objective.own)
        return torch.nn.functional.pad(found, (0, self.length - len(found))).to(self.device)

    def _differences(self, V: Tensor) -> Tensor:
        objective = self.objective
        objective.require_equal_count(V.shape[1])
        with objective.evaluating():
            theta = objective.parameters()
            reach = torch.finfo(self.dtype).eps ** EXPONENT * (float(norm(theta)) or 1.0)
            if not self._found.unit_is_measured:
                self._measure(theta, reach)
            found = torch.zeros_like(V)
            for column in range(V.shape[1]):
                v = V[:, column]
                if (length := float(norm(v))) > 0:
                    scale = self._stretch * reach / length
                    above = objective.slope(torch.add(theta, v, alpha=scale))
                    found[:, column] = above.sub_(objective.slope(torch.sub(theta, v, alpha=scale))).div_(2 * scale)
            objective.put_back(theta)
            return found

    def _measure(self, theta: Tensor, reach: float) -> None:
        """Measure the error along a random vector, and choose the step at which it is smallest."""
        probe = self.normal(torch.Generator().manual_seed(0))
        length, begun = float(norm(probe)), time.perf_counter()
        here = self.objective.slope(theta)
        seconds = time.perf_counter() - begun
        self._stretch, found = tuned(
            lambda stretch: line_error(
                self.objective.slope, theta, here, probe * (stretch * reach / length), stretch * reach / length
            ),
            self._stretch,
        )
        self._rounding = found.rounding / length
        unit = max(torch.finfo(self.dtype).eps, found.relative)
        self._found = ProductFacts("differences", unit, True, seconds)

    def _compared(self) -> Reference:
        """Return the operator of twice the step."""
        doubled = _ShardedHessian(self.objective, COMPARED_STEP * self._stretch, compared=True)
        return Reference(doubled, ERROR_SHARE, self._rounding)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Put back modes, gradients and buffers of a model at the end of this context."""
    modes = {module: module.training for module in model.modules()}
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _require_finite(gradient: Tensor) -> None:
    """Raise if a gradient is not finite."""
    if not all_finite(gradient):
        raise ProbeError("the gradient is not finite near these parameters: nothing can be measured there")


def _require_sharded(model: nn.Module, named: list[tuple[str, nn.Parameter]]) -> None:
    """Raise if the trainable parameters of a model are not sharded by FSDP2 over one dimension of processes."""
    if not named:
        raise ProbeError("no parameter requires grad, need at least 1")
    if not isinstance(model, FSDPModule):
        raise ProbeError(
            "the model is not under fully_shard (FSDP2) itself: apply fully_shard(model) after its parts, or use "
            "Objective, with over_ranks for several processes"
        )
    for name, p in named:
        if not isinstance(p, DTensor):
            raise ProbeError(f"parameter {name} is whole on each process: shard all trainable parameters, or freeze it")
        if p.device_mesh.ndim != 1 or not isinstance(p.placements[0], Shard):
            raise ProbeError(
                f"parameter {name} is placed as {p.placements}: only shards over one dimension of processes are known "
                "(no HSDP, no tensor parallelism)"
            )
        if getattr(p, "_post_accumulate_grad_hooks", None):
            raise ProbeError(
                f"parameter {name} has a hook that runs after its gradient, such as an optimizer in the backward pass, "
                "which would train the model: measure before registering it"
            )
