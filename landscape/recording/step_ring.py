"""Ring of the last steps: four norms of every parameter, kept on its device until a spike of the loss asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.recording.cost_cap import CostCap
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.parameter_snapshot import real

__all__ = ["NORMS", "RING", "StepRing", "ring_bytes"]

RING: Final = 32  # steps
NORMS: Final = ("gradient_norm", "update_norm", "weight_norm", "largest_update")
_ABSENT: Final = -1.0  # in the ring, in place of a norm: there was no gradient
_PART: Final = 0.25  # of the cap on the overhead
_WINDOW: Final = 2.0  # seconds of training over which the cost is judged, at least


def ring_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the bytes that the rings of some parameters take: a copy of each, and the norms of its last steps."""
    held = [p for p in parameters if p.numel()]
    norms = sum(torch.promote_types(real(p).dtype, torch.float32).itemsize for p in held)
    return sum(p.numel() * p.element_size() for p in held) + RING * len(NORMS) * norms


class StepRing:
    """The last 32 steps of every parameter: norms of gradient, update and weights, and the largest entry of the update.

    Each step costs a copy of the weights and a few fused reductions; nothing is copied to the host before `rows` is
    called. Where the ring alone takes more than a quarter of the cap on the overhead, it takes every second, fourth,
    ... step. If it fails, for memory say, it is given up and a missing value.

    Args:
        cap: Cap on the overhead.
        overhead: Clock of the recording.
        faults: Collects what is missing.
    """

    def __init__(self, cap: CostCap, overhead: Overhead, faults: Faults) -> None:
        self._cap, self._overhead, self._faults = cap, overhead, faults
        self._optimizers: dict[int, _OptimizerRing] = {}
        self._every = 1
        self._off = False
        self._begun = self._wall(), overhead.seconds["ring"]

    def begin(self, optimizer: int, step: int, names: Mapping[Tensor, str]) -> None:
        """Copy the parameters of an optimizer before a step of it.

        Args:
            optimizer: Identity of the optimizer.
            step: Number of the step, from 1.
            names: Its parameters with their names. If they have changed, the ring of the optimizer starts anew.
        """
        if self._off or step % self._every:
            return
        with self._counted(step):
            ring = self._optimizers.get(optimizer)
            if ring is None or not ring.holds(names):
                ring = self._optimizers[optimizer] = _OptimizerRing(names)
            ring.begin(step)

    def end(self, optimizer: int) -> None:
        """Take the norms of the step that `begin` was called for, if it was."""
        ring = self._optimizers.get(optimizer)
        if ring is None or ring.step is None:
            return
        step = ring.step
        with self._counted(step):
            ring.end()
        self._fit(step)

    def rows(self) -> list[Row]:
        """Return a row for each parameter: its name, the steps in the ring and the four norms at each.

        A norm is infinite where it was not finite, and nan where the parameter had no dense gradient.
        """
        return [row for ring in self._optimizers.values() for row in ring.rows()]

    def close(self) -> None:
        """Release the ring and the copies."""
        self._off = True
        self._optimizers.clear()

    @contextmanager
    def _counted(self, step: int) -> Iterator[None]:
        """Count the time of the block; if it fails, there is no ring from then on."""
        done = False
        with self._overhead.counted("ring"), self._faults.guarded("ring", step), torch.no_grad():
            yield
            done = True
        if not done:
            self.close()

    def _fit(self, step: int) -> None:
        """Take fewer steps if the ring took more than its part of the cap since this was last judged."""
        if not self._cap.limited or self._off:
            return
        now, seconds = self._wall(), self._overhead.seconds["ring"]
        elapsed, spent = now - self._begun[0], seconds - self._begun[1]
        if elapsed < _WINDOW:
            return
        self._begun = now, seconds
        allowed = _PART * self._cap.share * elapsed
        if spent > allowed:
            self._every *= 2 ** math.ceil(math.log2(spent / allowed))
            why = (
                f"overhead: from here on the ring of norms that a loss spike writes has every {self._every}th step, as "
                f"it takes more than {100 * _PART:g} % of what the cap of {100 * self._cap.share:g} % allows; "
                f"{self._cap.remedy('ring')}"
            )
            self._faults.note_quietly("ring", step, why, [])

    def _wall(self) -> float:
        """Return the seconds so far without those of curvature."""
        return self._overhead.wall - self._overhead.seconds["curvature"]


class _OptimizerRing:
    """The ring of one optimizer's parameters, in a part for each device and dtype."""

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        self._names = names
        self.step: int | None = None  # the one that has begun
        grouped: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for p in names:
            if p.numel():  # a tensor without entries has no largest one
                grouped.setdefault((p.device, p.dtype), []).append(p)
        self._parts = [_Part(parameters, [names[p] for p in parameters]) for parameters in grouped.values()]

    def holds(self, names: Mapping[Tensor, str]) -> bool:
        """Return True if the ring is of these parameters."""
        return names is self._names or (len(names) == len(self._names) and all(p in self._names for p in names))

    def begin(self, step: int) -> None:
        """Copy the parameters before a step."""
        self.step = step
        for part in self._parts:
            part.begin()

    def end(self) -> None:
        """Take the norms of the step that has begun."""
        step, self.step = self.step, None
        assert step is not None
        for part in self._parts:
            part.end(step)

    def rows(self) -> list[Row]:
        """Return a row for each parameter."""
        return [row for part in self._parts for row in part.rows()]


class _Part:
    """The ring of parameters of one device and dtype.

    In the memory of the host the copies are kept from step to step, as new pages cost more than the copy. On an
    accelerator, whose allocator caches, they are released after each step.
    """

    def __init__(self, parameters: Sequence[Tensor], names: Sequence[str]) -> None:
        self._parameters, self._names = parameters, names
        first = real(parameters[0])
        self._dtype = torch.promote_types(first.dtype, torch.float32)
        self._ring = torch.full((RING, len(NORMS), len(names)), _ABSENT, dtype=self._dtype, device=first.device)
        self._absent = torch.full((), _ABSENT, dtype=self._dtype, device=first.device)
        self._kept = first.device.type == "cpu"
        self._before: list[Tensor] | tuple[Tensor, ...] = []
        self._steps: list[int] = []  # by slot
        self._next = 0  # slot

    def begin(self) -> None:
        """Copy the parameters."""
        now = [real(p) for p in self._parameters]
        if not self._before:
            self._before = torch._foreach_mul(now, 1)
        else:
            torch._foreach_copy_(self._before, now)

    def end(self, step: int) -> None:
        """Write the norms of a step into the ring, over those of the oldest one."""
        now = [real(p) for p in self._parameters]
        torch._foreach_sub_(self._before, now)
        norms = [*self._gradients(), *self._norm(self._before), *self._norm(now)]
        torch._foreach_abs_(self._before)  # the copies are not needed any more
        slot = self._ring[self._next]
        slot[:3].copy_(torch.stack(norms).view(3, -1))
        slot[3].copy_(torch.stack(torch._foreach_max(self._before)))
        if not self._kept:
            self._before = []
        self._steps[self._next : self._next + 1] = [step]
        self._next = (self._next + 1) % RING

    def rows(self) -> list[Row]:
        """Return a row for each parameter."""
        order = np.argsort(self._steps, kind="stable")
        if not len(order):
            return []
        values = self._ring.cpu().double().numpy()[order]  # (steps, norms, parameters)
        values = np.where(np.isnan(values), np.inf, np.where(values == _ABSENT, np.nan, values))
        at = np.array(self._steps, dtype=np.float64)[order]
        return [
            {"tensor": name, "at": at, **{norm: values[:, place, column] for place, norm in enumerate(NORMS)}}
            for column, name in enumerate(self._names)
        ]

    def _gradients(self) -> list[Tensor]:
        """Return the norms of the dense gradients that the step left."""
        gradients = [p.grad for p in self._parameters]
        dense = {i: real(g) for i, g in enumerate(gradients) if g is not None and g.layout == torch.strided}
        found = dict(zip(dense, self._norm(list(dense.values())), strict=True)) if dense else {}
        return [found.get(i, self._absent) for i in range(len(gradients))]

    def _norm(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return norms in at least float32: they are compared with their own past, and a per cent is nothing there."""
        return torch._foreach_norm(list(tensors), 2, self._dtype)
