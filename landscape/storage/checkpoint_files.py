"""Checkpoints of a run on disk: their folders, their checksums, and the names in them. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.compaction import CHECKPOINTS
from lossscope.landscape.storage.files import folder_entries, open_regular, read_regular
from lossscope.landscape.storage.manifest import read_manifest

__all__ = [
    "FACTS",
    "STATE",
    "WEIGHTS",
    "checkpoints",
    "checksum",
    "damage",
    "has_optimizer",
    "name_prefixes",
    "requested_folders",
    "require_intact",
]

WEIGHTS: Final = "weights.safetensors"
STATE: Final = "optimizer.pt"
FACTS: Final = "checkpoint.json"  # identity of the run, step, and SHA-256 of the other files
_LONGEST_FACTS: Final = 2**16  # bytes
_NAME: Final = re.compile("step-([0-9]{1,15})")


def checkpoints(run: str | Path, *, resumable: bool = False) -> dict[int, Path]:
    """Return the checkpoint folders of a run by step, in ascending order.

    Args:
        run: The run's folder.
        resumable: Leave out those of weights only, from which no run can resume.

    Raises:
        RunError: The folder of checkpoints cannot be listed.
    """
    found = {}
    for path in folder_entries(Path(run) / CHECKPOINTS):
        match = _NAME.fullmatch(path.name)
        if match and os.path.lexists(path / WEIGHTS) and (not resumable or has_optimizer(path)):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def requested_folders(run: str | Path, steps: Iterable[int] | None = None) -> dict[int, Path]:
    """Return the checkpoints at some steps of a run, ascending.

    Args:
        run: The run's folder.
        steps: The steps. Default: the last one.

    Raises:
        RunError: The run has none, or none at one of the steps.
    """
    found = checkpoints(run)
    if not found:
        raise RunError(
            f"run {run} has no checkpoint to measure: `lossscope train` saves them, and so does a Recorder with a "
            "number of planned steps"
        )
    wanted = sorted({max(found)} if steps is None else set(steps))
    for step in wanted:
        if step not in found:
            there = ", ".join(map(str, found))
            raise RunError(f"run {run} has no checkpoint at step {step}: there is one at {there}")
    return {step: found[step] for step in wanted}


def has_optimizer(folder: Path) -> bool:
    """Return True if a checkpoint holds the optimizer and random state, False if it holds weights only."""
    return os.path.lexists(folder / STATE)


def require_intact(folder: Path, name: str) -> None:
    """Raise RunError if a file of a checkpoint is not the one that was written."""
    problem = damage(folder, name)
    if problem is not None:
        raise RunError(f"checkpoint {folder} cannot be read: {problem}; use another one")


def damage(folder: Path, name: str) -> str | None:
    """Return the reason not to load a file of a checkpoint; None if it has its checksum and is of the run it lies in.

    Checkpoints of runs without identity, recorded by earlier versions, have no checksums.

    Raises:
        RunError: It is no regular file, or cannot be read.
    """
    try:
        run = read_manifest(folder.parents[1]).get("id")
        found = checksum(folder / name)
        if run is None:
            return None
        facts = json.loads(read_regular(folder / FACTS, _LONGEST_FACTS))
        owner, expected = facts["run"], facts["sha256"][name]
    except FileNotFoundError as error:
        return f"it lacks {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"its {FACTS} is corrupted"
    if owner != run:
        return "it belongs to another run"
    if found != expected:
        return f"{name} was altered: its checksum is {found[:12]}, {str(expected)[:12]} was written"
    return None


def name_prefixes(saved: Collection[str], wanted: Collection[str]) -> tuple[str, str]:
    """Return the prefix of the saved names and that of the wanted ones, without which the saved ones are wanted.

    At most one is not empty; both are if the names already fit or no prefix makes them fit.
    """
    if not saved or set(saved) <= set(wanted):
        return "", ""
    first = min(saved)
    for name in wanted:
        if first.endswith(f".{name}"):
            prefix = first.removesuffix(name)
            if all(one.startswith(prefix) and one.removeprefix(prefix) in wanted for one in saved):
                return prefix, ""
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            if all(prefix + one in wanted for one in saved) and all(one.startswith(prefix) for one in wanted):
                return "", prefix
    return "", ""


def checksum(path: Path) -> str:
    """Return the SHA-256 of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
