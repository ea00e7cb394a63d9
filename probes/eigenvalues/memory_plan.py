"""Plan of a spectrum measurement for a memory budget: the whole basis, a part of it, or three vectors."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from lossscope.probes.eigenvalues.row_store import check_spill_folder
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator

__all__ = ["REFERENCE", "MemoryPlan", "Mode", "available_memory", "byte_count", "memory_for", "memory_plan"]

Mode = Literal["whole basis", "spilled basis", "restarted basis", "three vectors"]
_LEAST: Final = 3  # vectors without which nothing is measured
_DIMENSIONS: Final = 12  # of a basis that is worth keeping, for one eigenpair
_MORE: Final = 4  # and for each other pair
REFERENCE: Final = 15  # copies that a product in float64 takes, by which rounding is measured
_SHARE: Final = 2  # a default budget is what is available over this
_UNITS: Final = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}


@dataclass(frozen=True)
class MemoryPlan:
    """Mode of a measurement, and the memory it was chosen for."""

    mode: Mode
    memory: int  # bytes
    dimensions: int  # of the basis, at most
    measures_rounding: bool  # False if a product in float64 does not fit
    spill: Path | None = None  # folder of the files of a spilled basis

    @property
    def kept(self) -> Mode:
        """Part that is kept of a basis which is not cut for want of memory: all of it, in memory or in files."""
        return "spilled basis" if self.mode == "spilled basis" else "whole basis"

    @property
    def restarts(self) -> int | None:
        """Dimensions at which a basis is cut; None for never."""
        return self.dimensions if self.mode == "restarted basis" else None


def memory_plan(
    operator: SymmetricOperator,
    memory: int | str | None,
    spill: str | Path | None,
    *,
    work: int,
    basis: int,
    pairs: int,
) -> MemoryPlan:
    """Choose the mode of a measurement.

    The whole basis is kept if it fits; else it is spilled into files, if a folder is given and what is held beside it
    fits; else the part that fits is kept, if at least twelve vectors do (and four more for each further pair), which is
    cut when it is full; else three vectors.

    Processes that measure together choose one mode: that of the least of their memories.

    Args:
        operator: `(n, n)`.
        memory: Bytes, text such as "6GB", or None for half of what is available.
        spill: Folder for the basis; None for none.
        work: Vectors that are held beside a basis.
        basis: Vectors of a whole basis, at most.
        pairs: Number of eigenpairs at both ends together.

    Returns:
        The plan.

    Raises:
        ProbeError: The memory is not a positive number of bytes, or holds fewer than three vectors; or there is no such
            folder.
    """
    one = operator.length * operator.dtype.itemsize
    budget = memory_for(operator, memory)
    fit = operator.agreed(budget // one)
    if fit < _LEAST and memory is not None:
        raise ProbeError(
            f"memory must hold at least {_LEAST} vectors of {operator.size} numbers, {_LEAST * one} bytes, got "
            f"{memory!r}: raise it, or measure at most {budget // (_LEAST * operator.dtype.itemsize)} parameters "
            "(restricted)"
        )
    folder = None if spill is None else check_spill_folder(spill)
    reference = fit >= REFERENCE
    if fit >= basis + work:
        return MemoryPlan("whole basis", budget, sys.maxsize, reference)
    if folder is not None and fit >= work and operator.device.type == "cpu":
        return MemoryPlan("spilled basis", budget, sys.maxsize, reference, folder)
    least = _DIMENSIONS + _MORE * max(pairs - 1, 0)
    if fit - work >= least:
        return MemoryPlan("restarted basis", budget, fit - work, reference)
    if operator.length < operator.size:
        raise ProbeError(
            f"memory must hold at least {least + work} vectors of {operator.length} numbers in each process for a "
            f"sharded model, {(least + work) * one} bytes, got {budget}: raise it, or use more processes"
        )
    return MemoryPlan("three vectors", budget, 0, reference)


def memory_for(operator: SymmetricOperator, memory: int | str | None) -> int:
    """Return the bytes that the vectors of a measurement may take in each process.

    Args:
        operator: `(n, n)`.
        memory: Bytes, text such as "6GB", or None for half of what is available to all processes.

    Raises:
        ProbeError: The memory is not a positive number of bytes.
    """
    share = _SHARE * operator.processes
    return operator.agreed(available_memory(operator.device) // share if memory is None else byte_count(memory))


def byte_count(memory: int | str) -> int:
    """Return a number of bytes given as a number or as text such as "6GB" or "500 MiB".

    Args:
        memory: The value.

    Raises:
        ProbeError: It is neither, or not positive.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", memory) if isinstance(memory, str) else None
    size = 0
    if isinstance(memory, int) and not isinstance(memory, bool):
        size = memory
    elif found is not None and found[2].upper() in _UNITS:
        size = int(float(found[1]) * _UNITS[found[2].upper()])
    if size < 1:
        raise ProbeError(f'memory must be a positive number of bytes or text such as "6GB", got {memory!r}')
    return size


def available_memory(device: torch.device) -> int:
    """Return the bytes that can still be taken on a device; `sys.maxsize` where nothing tells.

    On the CPU it is the least of what the system has available, of what the control group leaves, and of the limit on
    the address space; on CUDA what is free on the device and in torch's own cache.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return sys.maxsize
    return max(0, min(_system(), _control_group(), _address_space()))


def _system() -> int:
    """Return MemAvailable of the system."""
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def _control_group() -> int:
    """Return the least that the control groups of the process leave, version 1 or 2; file caches can be dropped."""
    left = sys.maxsize
    for line in _text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, limit, use, cache = _GROUP_FILES[controllers]
        folder = Path(root) / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            most, taken = _text(group / limit).strip(), _text(group / use).strip()
            if most.isdigit() and taken.isdigit():
                left = min(left, int(most) - int(taken) + _stat(group / "memory.stat", cache))
    return left


_GROUP_FILES: Final = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _stat(path: Path, name: str) -> int:
    """Return a number of a file of names and numbers; 0 if it is missing."""
    for line in _text(path).splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


def _address_space() -> int:
    """Return what the limit on the address space (`ulimit -v`) leaves."""
    found = re.search(r"^Max address space\s+(\d+)", _text("/proc/self/limits"), re.MULTILINE)
    used = re.search(r"^VmSize:\s+(\d+) kB", _text("/proc/self/status"), re.MULTILINE)
    return int(found[1]) - int(used[1]) * 1024 if found and used else sys.maxsize


def _text(path: str | Path) -> str:
    """Return the text of a small file of the system; empty if it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
