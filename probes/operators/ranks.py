"""Processes that measure together: messages, sums and failures that end on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lossscope.probes.errors import ProbeError

__all__ = ["Ranks", "fingerprint"]

_T = TypeVar("_T")
_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an entry
_CHUNK: Final = 2**20  # entries of which the bits are copied at a time


@dataclass(frozen=True)
class _Report:
    """Outcome of a computation on one rank."""

    failure: str  # the error in words; empty if there was none
    facts: Any
    lost: bool = False  # True if it may be the failure of another rank that was seen here


class Ranks:
    """The processes of a group.

    Every method is collective: all ranks must call it, in the same order. A rank that fails says so to the others, and
    one that is gone or silent for longer than the timeout of the process group ends them with a `ProbeError`.

    Args:
        group: The process group; None for all processes.
        apart: True if the model itself makes collective calls: messages then take a group of their own.

    Raises:
        ProbeError: torch.distributed is not initialized, or this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, apart: bool = False) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ProbeError(
                "there is no process group: start the script with torchrun, and call "
                "torch.distributed.init_process_group() first"
            )
        self._group: Any = dist.group.WORLD if group is None else group
        self.rank = dist.get_rank(self._group)
        self.count = dist.get_world_size(self._group)
        if self.rank < 0:
            raise ProbeError(
                f"process {dist.get_rank()} is not in the group of {self.count}: call it on its ranks only"
            )
        self._words = self._group
        if (
            apart or dist.get_backend(self._group) != "gloo"
        ):  # a failed NCCL collective ends the process without a sentence
            self._words = self._spoken(
                lambda: dist.new_group(dist.get_process_group_ranks(self._group), backend="gloo")
            )

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all ranks, by rank; they are pickled."""
        found: list[Any] = [None] * self.count
        self._spoken(lambda: dist.all_gather_object(found, value, group=self._words))
        return found

    def together(self, compute: Callable[[], _T], facts: Callable[[_T], Any] = lambda _: None) -> tuple[_T, list[Any]]:
        """Compute something on each rank; where one fails, all raise.

        Args:
            compute: The computation, without a collective call.
            facts: Returns what the others shall know of the result.

        Returns:
            The result of this rank, and the facts of all.

        Raises:
            ProbeError: another rank failed. The error of this rank is raised as it is.
        """
        try:
            result = compute()
            known = facts(result)
        except Exception as error:  # whatever it is, the others must not wait
            words, lost = f"{type(error).__name__}: {' '.join(str(error).split())}", isinstance(error, RuntimeError)
            reports = self.gather(_Report(words, None, lost))
            if lost:  # as the collective calls of a sharded model raise where another rank has failed
                self._require_success([replace(one, failure="") if one.lost else one for one in reports])
            raise
        reports = self.gather(_Report("", known))
        self._require_success(reports)
        return result, [report.facts for report in reports]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all ranks, which is the same on all bit for bit, and return it."""
        self._spoken(lambda: dist.all_reduce(tensor, group=self._group))
        return tensor

    def from_first_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by that of rank 0, and return it."""
        first = dist.get_global_rank(self._group, 0)
        self._spoken(lambda: dist.broadcast(tensor, first, group=self._group))
        return tensor

    def require_equal(self, values: Sequence[Any], what: str, remedy: str) -> None:
        """Raise on all ranks if gathered values differ.

        Args:
            values: One for each rank.
            what: What they are, in the plural.
            remedy: Advice.
        """
        for rank, value in enumerate(values):
            if value != values[0]:
                raise ProbeError(f"{what} differ between rank 0 and rank {rank} of {self.count}: {remedy}")

    def _require_success(self, reports: Sequence[_Report]) -> None:
        """Raise if a rank has failed."""
        for rank, report in enumerate(reports):
            if report.failure:
                raise ProbeError(f"rank {rank} of {self.count} failed, so that this one cannot go on: {report.failure}")

    def _spoken(self, collective: Callable[[], _T]) -> _T:
        """Run a collective call; turn the error of a lost connection or a timeout into a sentence."""
        try:
            return collective()
        except (RuntimeError, OSError) as error:  # of torch.distributed or its backend
            line = " ".join(str(error).split())[:160]
            raise ProbeError(
                f"rank {self.rank} of {self.count} cannot reach the others: one has ended, or has not answered within "
                "the timeout of the process group; see its output, and pass a longer timeout= to init_process_group "
                f"if it was only slow ({line})"
            ) from error


def fingerprint(tensor: Tensor) -> int:
    """Return a number that depends on every bit of a tensor and on the order of its entries, equal on all ranks."""
    entries = tensor.detach().contiguous().reshape(-1)
    bits = (
        entries.view(_INTEGERS[entries.element_size()]) if entries.numel() else entries.new_empty(0, dtype=torch.int8)
    )
    places = torch.arange(1, min(_CHUNK, len(bits)) + 1, device=bits.device)
    total = 0
    for chunk in torch.split(bits, _CHUNK):
        total = hash((total, int((chunk.long() * places[: len(chunk)]).sum())))
    return total
