"""An objective whose batches lie on several processes, as under DistributedDataParallel.

    torchrun --nproc-per-node 2 measure.py

where each rank of `measure.py` loads its own batches and calls the same measures:

    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    objective = over_ranks(Objective(model, CrossEntropy(), my_batches))
    print(measure_spectrum(hessian(objective), top=1, quantities=["top"]).top.values)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.data import FixedData
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import ProductFacts, Reference
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.ranks import Ranks, fingerprint

__all__ = ["DistributedObjective", "over_ranks"]

_SAME_CALLS = "call the same measures with the same arguments and seeds on every rank, in the same order"


def over_ranks(objective: Objective, *, group: dist.ProcessGroup | None = None) -> DistributedObjective:
    """Return the mean loss over the batches of all ranks, each of which holds its own.

    Losses, gradients and products are those of one process with all the batches, up to rounding, and equal on all
    ranks bit for bit. Each rank evaluates its batches and the results are summed, weighted by the numbers of samples.
    Every rank must make the objective and call the same measures with the same arguments; `hessian`, `gauss_newton`
    and `fisher` take it. A measure of single batches raises: each rank knows only some.

    Where buffers differ between ranks (running statistics of batch norm), those of rank 0 count, as in
    DistributedDataParallel; they are in the model during an evaluation only. A sampler that repeats samples so that all
    ranks have equally many (`DistributedSampler` without `drop_last`) makes these count twice.

    Args:
        objective: The loss on the batches of this rank. Its model may be wrapped in DistributedDataParallel.
        group: The process group. Default: all processes.

    Returns:
        The objective.

    Raises:
        ProbeError: there is no process group, the ranks have different parameters (names, shapes, dtypes or values),
            losses or modes, the mode is `train`, or a rank has failed, ended or not answered within the timeout of the
            process group.

    Example:
        `torchrun --nproc-per-node 2 measure.py`; see the head of this file.
    """
    ranks = Ranks(group)
    _, found = ranks.together(lambda: _check(objective), lambda _: _description(objective))
    for rank, other in enumerate(found):
        for what, mine in found[0].items():
            if other[what] != mine:
                raise ProbeError(
                    f"{what} differ between rank 0 and rank {rank} of {ranks.count}: {_difference(mine, other[what])}; "
                    "make the same objective of the same model on every rank"
                )
    return DistributedObjective(objective, ranks)


class DistributedObjective(Objective):
    """Mean loss over the batches of all ranks, see `over_ranks`.

    Args:
        local: The loss on the batches of this rank.
        ranks: The processes.

    Attributes:
        local: The loss on the batches of this rank.
    """

    is_distributed = True

    def __init__(self, local: Objective, ranks: Ranks) -> None:
        vars(self).update({name: value for name, value in vars(local).items() if name != "data"})
        self.local = local
        self._ranks = ranks
        self._counts = ranks.gather(_weight(local))
        self.share = self._counts[ranks.rank] / math.fsum(self._counts)  # of this rank in the mean
        self._agreed = False

    @property
    def data_hash(self) -> str:
        """SHA-256 over the hashes of the data of all ranks, in hexadecimal; a collective call."""
        return hashlib.sha256("".join(self._ranks.gather(self.local.data_hash)).encode()).hexdigest()

    @property
    def additivity(self) -> str:
        """Relation of the loss to its batches; the ranks' relations in turn where they differ. A collective call."""
        return ", ".join(dict.fromkeys(self._ranks.gather(self.local.additivity)))

    @property
    def samples(self) -> float:
        """Number of terms over which the mean is taken, on all ranks together; a collective call."""
        total = math.fsum(self._ranks.gather(self.local.samples))
        return int(total) if total == int(total) else total

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Check that the ranks have one model, and give all of them the buffers of rank 0, inside this context.

        Yields:
            Nothing.
        """
        if self._agreed:
            yield
            return
        states = self._ranks.together(lambda: _state(self.model), lambda state: state)[1]
        self._ranks.require_equal(
            [parameters for parameters, _ in states],
            "the values of the parameters",
            "measure where the ranks are in step, after the gradients were averaged",
        )
        with ExitStack() as stack:
            if any(buffers != states[0][1] for _, buffers in states):
                stack.enter_context(self._first_buffers())
            self._agreed = True
            stack.callback(setattr, self, "_agreed", False)
            stack.enter_context(self.local.evaluating())
            yield

    def value(self) -> float:
        """Return the mean loss over all ranks."""
        with self.evaluating():
            return self._mean(self.local.value)

    def value_at(self, vector: Tensor) -> float:
        """Return the mean loss over all ranks at other parameters, as `Objective.value_at` does."""
        with self.evaluating():
            return self._mean(lambda: self.local.value_at(vector))

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss over all ranks as a flat vector `(n,)`."""
        with self.evaluating():
            found, _ = self._ranks.together(self.local.gradient)
            return self._ranks.sum_(found * self.share)

    def require_repeatable(self) -> None:
        """Raise on all ranks if the loss is not a deterministic function of the parameters on one of them."""
        with self.evaluating():
            self._ranks.together(self.local.require_repeatable)

    def restricted(self, names: Collection[str]) -> DistributedObjective:
        """Return the loss as a function of some of the parameters, as `Objective.restricted` does."""
        return DistributedObjective(self.local.restricted(names), self._ranks)

    def in_dtype(self, dtype: torch.dtype) -> DistributedObjective:
        """Return the loss evaluated in another dtype, as `Objective.in_dtype` does."""
        other, _ = self._ranks.together(lambda: self.local.in_dtype(dtype))
        return DistributedObjective(other, self._ranks)

    def operator(self, make: Callable[[Objective], Any]) -> ObjectiveOperator:
        """Return the mean over the ranks of a matrix of the loss on their batches."""
        return _Averaged(self, self._ranks.together(lambda: make(self.local))[0])

    @property
    def data(self) -> FixedData:  # type: ignore[override]
        """Raise: the batches are those of one rank."""
        self._refuse()

    def passes(self) -> NoReturn:
        """Raise: the batches are those of one rank."""
        self._refuse()

    def batch(self, index: int) -> NoReturn:
        """Raise: the batches are those of one rank."""
        self._refuse()

    def split(self, count: int, *, seed: int) -> NoReturn:
        """Raise: the batches are those of one rank."""
        self._refuse()

    def with_model(self, model: nn.Module) -> NoReturn:
        """Raise: make the objective of the other model on every rank."""
        raise ProbeError("the model of an objective over ranks cannot be replaced: make one of the other model on each")

    def _refuse(self) -> NoReturn:
        raise ProbeError(
            f"this measure needs single batches, of which each of {self._ranks.count} ranks has only its own: measure "
            "objective.local, the loss on the batches of this rank, or one objective with all batches"
        )

    def _mean(self, compute: Callable[[], float]) -> float:
        """Return the mean of a number over the ranks, in the same order of terms on all."""
        values = self._ranks.together(compute, lambda value: value)[1]
        terms = [count * value for count, value in zip(self._counts, values, strict=True)]
        return (math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)) / math.fsum(self._counts)

    @contextmanager
    def _first_buffers(self) -> Iterator[None]:
        """Place the buffers of rank 0 in the model inside this context; its own are restored bit for bit."""
        buffers = dict(self.model.named_buffers())
        own = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        try:
            for name in sorted(buffers):
                buffers[name].data.copy_(self._ranks.from_first_(buffers[name].detach().clone()))
            yield
        finally:
            for name, buffer in own.items():
                buffers[name].data.copy_(buffer)


class _Averaged(ObjectiveOperator):
    """Mean over the ranks of one operator on each, weighted by the numbers of samples.

    Args:
        objective: The loss on the batches of all ranks.
        local: The operator of this rank's batches.
    """

    def __init__(self, objective: DistributedObjective, local: ObjectiveOperator) -> None:
        self._local = local
        self._ranks = objective._ranks
        self._found = local._facts()
        super().__init__(
            objective,
            self._average,
            restrict=lambda names: objective.restricted(names).operator(lambda _: local.restrict(names)),
            cached=self._cached,
            facts=lambda: self._found,
            reference=self._compared,
            is_hessian=local.is_hessian,
        )
        self._over = objective
        self.processes = self._ranks.count

    def agreed(self, number: int) -> int:
        """Return the least of the numbers that the ranks have."""
        return min(self._ranks.gather(number))

    @property
    def asymmetry_hint(self) -> str:
        """Advice for the operator of this rank."""
        return self._local.asymmetry_hint

    def _average(self, V: Tensor) -> Tensor:
        with self._over.evaluating():
            rows, reports = self._ranks.together(
                lambda: (self._local @ V).mT.contiguous() * self._over.share,
                lambda _: ((tuple(V.shape), fingerprint(V)), self._local._facts()),
            )
            self._ranks.require_equal([vectors for vectors, _ in reports], "the vectors multiplied", _SAME_CALLS)
            self._found = _combined([facts for _, facts in reports])
            return self._ranks.sum_(rows).mT

    @contextmanager
    def _cached(self) -> Iterator[None]:
        with self._over.evaluating(), self._local.cached():
            yield
        self._found = _combined(self._ranks.gather(self._local._facts()))

    def _compared(self) -> Reference | None:
        """Return the mean of the operators with which the products of the ranks are compared; None if one has none."""
        other, found = self._ranks.together(self._local.reference, lambda one: None if one is None else one.rounding)
        if None in found or other is None or not isinstance(other.operator, ObjectiveOperator):
            return None
        other_objective = DistributedObjective(other.operator.objective, self._ranks)
        return replace(other, operator=_Averaged(other_objective, other.operator), rounding=max(found))


def _combined(facts: list[ProductFacts]) -> ProductFacts:
    """Return the properties of a mean of products: the largest error and time, and all methods."""
    return ProductFacts(
        ", ".join(dict.fromkeys(one.method for one in facts)),
        max(one.unit for one in facts),
        any(one.unit_is_measured for one in facts),
        max(one.gradient_seconds for one in facts),
        next((one.fallback_reason for one in facts if one.fallback_reason), ""),
    )


def _check(objective: Objective) -> None:
    """Raise if an objective cannot be averaged over ranks."""
    if objective.is_distributed:
        raise ProbeError("the objective is one over ranks already: pass that of this rank's batches")
    if objective.mode == "train":
        raise ProbeError(
            "mode='train' updates buffers from batch to batch, which ranks do not do together: use mode='frozen' or "
            "'eval'"
        )
    together = [name for name, part in objective.model.named_modules() if isinstance(part, nn.SyncBatchNorm)]
    if together and objective.mode != "eval":
        raise ProbeError(
            f"{together[0]} (SyncBatchNorm) exchanges statistics between ranks in each forward pass and has no second "
            "derivative: use mode='eval'"
        )


def _description(objective: Objective) -> dict[str, Any]:
    """Return what must be equal on all ranks, by its name in the plural."""
    named = dict(zip(objective.names, objective.vector.tensors(), strict=True))
    return {
        "the names of the trainable parameters": dict.fromkeys(objective.names, "trainable"),
        "the shapes or dtypes of the parameters": {n: (tuple(p.shape), str(p.dtype)) for n, p in named.items()},
        "the values of the parameters": {
            n: f"checksum {fingerprint(p) % 2**32:08x}" for n, p in objective.model.named_parameters()
        },
        "the names or shapes of the buffers": {n: tuple(b.shape) for n, b in objective.model.named_buffers()},
        "the losses": {"the loss": objective.loss_kind},
        "the modes": {"the mode": objective.mode},
        "the weights of batches": {"additive=": objective.data.additive},
    }


def _difference(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the first entry in which two descriptions differ, in words."""
    name = next(n for n in [*mine, *other] if mine.get(n) != other.get(n))
    values = [str(one.get(name, "missing")) for one in (mine, other)]
    return f"{name}, {values[0]} and {values[1]}"


def _weight(objective: Objective) -> float:
    """Return the weight of an objective in a mean over ranks: its terms, or its batches where these count alike."""
    data = objective.data
    return math.fsum(data.counts) if data.additive or data.count is not None else float(len(data.batches))


def _state(model: nn.Module) -> tuple[int, int]:
    """Return fingerprints of the parameters and of the buffers of a model."""
    parts = list(model.parameters()), list(model.buffers())
    return hash(tuple(map(fingerprint, parts[0]))), hash(tuple(map(fingerprint, parts[1])))
