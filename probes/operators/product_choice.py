"""Choosing how products are taken: by a rule for small jobs, by a short measurement for large ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Compared, Objective
from lossscope.probes.operators.method import BatchProduct, Method
from lossscope.probes.operators.timing import Bench, Trial, ahead, now

__all__ = ["Choice", "Job", "choose", "rule", "signature"]

_FEW: Final = 30  # products below which nothing is measured
_SHARE: Final = 0.1  # of the job that measuring may cost
_LEAST: Final = 5  # products that a comparison costs: preparing and running the plain method twice, and another one
_GAIN: Final = 0.8  # of the plain method's cost, above which a difference may be the clock's


@dataclass(frozen=True)
class Choice:
    """How products are taken, and why."""

    method: str
    width: int  # columns at a time
    why: str
    trials: tuple[Trial, ...] = ()  # what is known of the methods under the same circumstances
    seconds: float = 0.0  # spent on measuring, this time


@dataclass(frozen=True)
class Job:
    """What is to be done."""

    objective: Objective
    methods: Sequence[Method]  # the plain one first
    prepare: Callable[[Method, BatchEvaluation], BatchProduct]
    expected: int | None  # products, None where unknown
    memory: float  # bytes that may be kept
    compared: Compared  # what is known to be right for this objective, or wrong; grows

    @property
    def products(self) -> int:
        """The number of products, a guess where it is unknown."""
        return _FEW if self.expected is None else self.expected

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(self.objective.data.batches)

    def seconds(self, trial: Trial) -> float:
        """The cost of the job by a method, taking all batches to be alike."""
        setups = 1 if trial.bytes * self.batches <= self.memory else self.products
        return self.batches * (setups * trial.setup_seconds + self.products * trial.column_seconds)

    def usable(self, known: Iterable[Trial]) -> list[Trial]:
        """Those of the trials that did not come out wrong, here or where they were made."""
        return [t for t in known if not t.refused and self.compared.get((t.method, t.width > 1), True)]


_Known = dict[tuple[str, int], Trial]
_MEASURED: dict[Hashable, _Known] = {}  # what was measured in this process


def choose(job: Job, circumstances: Hashable) -> Choice:
    """The method and the block width for a job.

    From 30 expected products on methods may be measured, on the first batch, for at most a tenth of what the job
    would cost by the plain method: each one is first compared with the plain one, in a block of combinations of two
    vectors, and one that differs or raises is out. A comparison costs about five products (preparing and running the
    plain method twice, and another one once). So with two batches or more a tenth of the job pays for it from 30
    products on, with one batch from 50: below, a tenth is 3 to 5 products and buys nothing.

    The costs that were measured are remembered for the circumstances, and a later, larger job goes on from there; so
    are refusals, but for memory that ran out. That a method is right is known only of the objective it was compared
    on, see `job.compared`: whoever takes it for another one has to compare it first.

    Args:
        job: What is to be done; call it inside `evaluating`.
        circumstances: What the costs depend on, see `signature`.

    Returns:
        The cheapest of the methods that are known to be right, set-up included; another one than the plain method
        only where it takes 0.8 of its time or less.
    """
    known = dict(_MEASURED.get(circumstances, {}))
    begun = now(job.objective.device)
    if hopeful := _hopeful(job, known):
        _measure(job, hopeful, known)
        _MEASURED[circumstances] = {key: trial for key, trial in known.items() if not trial.passing}
    if not known:
        return rule(job.methods[0], f"{job.products} products are too few to compare methods within a tenth of them")
    return _cheapest(job, known, now(job.objective.device) - begun)


def rule(plain: Method, because: str = "nothing is measured for a few products") -> Choice:
    """The plain method, column by column: the best or near it for all but very small networks.

    Args:
        plain: The method.
        because: Why nothing was measured.

    Returns:
        The choice.
    """
    return Choice(plain.name, 1, f"by rule: {because}")


def signature(matrix: str, objective: Objective) -> Hashable:
    """What the costs of products depend on: module structure, shapes, batches, dtype, threads, device.

    Two objectives may agree in it and yet be different functions: of what is right it says nothing.

    Args:
        matrix: The name of the matrix.
        objective: The loss.

    Returns:
        A key, equal where the costs are.
    """
    model = objective.model
    return (
        matrix,
        objective.loss_kind,
        objective.mode,
        objective.names,
        tuple((name, type(module).__qualname__) for name, module in model.named_modules()),
        tuple((name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()),
        objective.data.shapes,
        torch.get_num_threads(),
        objective.dtype,
        str(objective.device),
    )


def _hopeful(job: Job, known: _Known) -> list[Method]:
    """The methods that a first run within a tenth of the job may tell something new of."""
    plain = known.get((job.methods[0].name, 1))
    if job.expected is None or job.expected < _FEW or _SHARE * job.expected * job.batches < _LEAST:
        return []
    untried = [(method, _next_width(method, known)) for method in job.methods[1:]]
    if plain is None:
        return [method for method, width in untried if width]
    left = _SHARE * job.seconds(plain) - plain.setup_seconds - 2 * plain.column_seconds
    return [method for method, width in untried if width and ahead(method, width, plain) <= left]


def _next_width(method: Method, known: _Known) -> int | None:
    """The first block width that a method is not known at; None where it is done with, or cannot be judged."""
    trials = {width: known.get((method.name, width)) for width in method.widths}
    if method.unit is not None or any(trial and trial.refused for trial in trials.values()):
        return None
    return next((width for width, trial in trials.items() if trial is None), None)


def _measure(job: Job, hopeful: Sequence[Method], known: _Known) -> None:
    """Try methods on the first batch as long as a tenth of the job is not spent."""
    device = job.objective.device
    bench = Bench(job.objective, next(job.objective.passes()), job.methods[0], job.prepare)
    known[bench.plain.method, 1] = bench.plain
    begun = now(device) - bench.plain.setup_seconds - 2 * bench.plain.column_seconds  # not what torch loads at first
    first = min(ahead(method, method.widths[0], bench.plain) for method in hopeful)

    def left() -> float:
        return _SHARE * min(map(job.seconds, job.usable(known.values()))) - (now(device) - begun)

    if bench.again_seconds + first <= left():
        bench.again()
        known[bench.plain.method, 1] = bench.plain
    for method in hopeful:
        widths = {width for name, width in known if name == method.name}
        for trial in bench.trials(method, widths, left):
            known[trial.method, trial.width] = trial
            if not trial.refused:
                job.compared[trial.method, trial.width > 1] = True


def _cheapest(job: Job, known: _Known, seconds: float) -> Choice:
    """The method that does the job in the least time."""
    usable = job.usable(known.values())
    plain, best = known[job.methods[0].name, 1], min(usable, key=job.seconds)
    share = job.seconds(best) / job.seconds(plain)
    why = f"measured: takes {share:.2f} of the time of {plain.method}"
    if best is plain:
        why = f"measured: the cheapest of {len(usable)}"
    elif share > _GAIN:
        best, why = plain, f"measured: the best of the others, {best.method}, takes {share:.2f} of its time"
    return Choice(best.method, best.width, why, tuple(known.values()), seconds)
