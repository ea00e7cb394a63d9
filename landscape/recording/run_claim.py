"""Claim of a run's folder by a recorder: before other recorders of this process, beside other ranks, and undone."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from lossscope.landscape.errors import RunError
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.recording.checkpoints import forget_checkpoints_after
from lossscope.landscape.recording.faults import Faults, reason_of
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.run_ends import forget, open_at, stopped_at
from lossscope.landscape.recording.run_writer import RunWriter
from lossscope.landscape.storage.manifest import MANIFEST, read_manifest
from lossscope.landscape.storage.missing_values import missing_values
from lossscope.landscape.storage.run_folder import is_recorded
from lossscope.landscape.storage.run_store import RunStore

__all__ = ["abandon", "claimed", "earlier_facts"]

_SINCE_SCHEMA_4: Final = ("optimizer_facts", "loss_unit")  # added to the manifest of an older run that is resumed
_FIRST_RANK_WAIT: Final = 5.0  # seconds


def earlier_facts(path: Path, resume_at: int | None) -> tuple[dict[str, float], list[Row]]:
    """Return overhead and missing values of the earlier sessions of a run that is resumed; empty for a new run.

    Values beyond the step of resumption are left out, as they will be measured again.

    Raises:
        RunError: There is no run to resume.
    """
    if resume_at is None:
        return {}, []
    manifest = read_manifest(path)
    overhead = manifest.get("overhead")
    times = overhead if isinstance(overhead, Mapping) else {}
    return (
        {str(key): float(value) for key, value in times.items() if _is_time(value)},
        [dict(one) for one in missing_values(manifest) if _is_before(one.get("step"), resume_at)],
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_before(step: object, end: int) -> bool:
    return isinstance(step, int) and not isinstance(step, bool) and step <= end


def claimed(
    path: Path,
    manifest: Mapping[str, Any],
    faults: Faults,
    overhead: Overhead,
    *,
    planned: int | None,
    force: bool,
    resume_at: int | None,
) -> RunWriter | None:
    """Create or resume the run at a path, and return its writer.

    An earlier recorder of this process at the path stands down if the run is replaced or resumed, or its folder is
    gone. In a distributed training one rank records and the others get None: rank 0, unless it has not come after five
    seconds, as where only another rank has a recorder or each has a folder of its own.

    Raises:
        RunError: The folder is taken or cannot be written; nothing was changed.
    """
    _stand_down(path, faults, replace=force or resume_at is not None)
    _wait_for_first_rank(path)
    try:
        if resume_at is None:
            _refuse_taken(path, force=force)
            store = RunStore.create(path, manifest, force=force)
        else:
            store = RunStore.resume(path, resume_at)
            absent = {key: manifest[key] for key in _SINCE_SCHEMA_4 if key not in store.manifest}
            if absent:
                store.update_manifest(**absent)
            forget_checkpoints_after(path, resume_at)
    except RunError:
        if not _has_ranks() or not is_recorded(path):
            raise
        faults.tell("another rank of this distributed training records the run; this one does not", topic="rank")
        return None
    return RunWriter(store, faults, overhead, planned)


def abandon(writer: RunWriter, folder: Path, error: BaseException, *, new: bool) -> None:
    """Undo the claim of a recorder that could not begin: end the run as failed, and remove the folder of a new one."""
    writer.end("failed", reason_of(error))
    forget(writer)
    if new:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def _stand_down(path: Path, faults: Faults, *, replace: bool) -> None:
    """End the run that an earlier recorder of this process records at the path.

    Raises:
        RunError: It is recording, and the run shall be neither replaced nor resumed.
    """
    earlier = open_at(path)
    if earlier is None:
        return
    if earlier.ended:  # it was closed, and what it could not write may be written by now
        earlier.end("finished", "")
        forget(earlier)
        return
    if not replace and (path / MANIFEST).exists():
        raise RunError(
            f"{path} is being recorded by another Recorder of this process, at step {earlier.steps}: call its close() "
            "first, or pass force=True to replace the run"
        )
    earlier.end("finished", stopped_at(earlier, f"stopped at {earlier.steps}") + ", as a new Recorder took its folder")
    forget(earlier)
    faults.tell("an earlier Recorder of this process at the same path was closed", topic="earlier")


def _refuse_taken(path: Path, *, force: bool) -> None:
    """Raise RunError, in the words of Python, if the path holds a run that may not be replaced."""
    if not force and (path / MANIFEST).exists():
        raise RunError(
            f"{path} already holds a run: pass force=True to replace it, or resume_at=STEP to continue it from a "
            "checkpoint"
        )


def _wait_for_first_rank(path: Path) -> None:
    """Give rank 0 of a distributed training the time to claim the folder before this rank does."""
    until = time.monotonic() + _FIRST_RANK_WAIT
    while _has_ranks() and torch.distributed.get_rank() and not is_recorded(path) and time.monotonic() < until:
        time.sleep(0.05)


def _has_ranks() -> bool:
    """Return True in a distributed training of several processes."""
    distributed = torch.distributed
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
