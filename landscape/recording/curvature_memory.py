"""Memory of a run's curvature evaluations: decided once, and kept when the run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from lossscope.landscape.storage.manifest import read_manifest
from lossscope.probes.eigenvalues.memory_plan import available_memory, byte_count
from lossscope.probes.eigenvalues.row_store import check_spill_folder

if TYPE_CHECKING:
    from lossscope.probes.objective.objective import Objective

__all__ = ["CURVATURE_MEMORY", "curvature_memory"]

CURVATURE_MEMORY: Final = "curvature_memory"  # entry of the manifest
_SHARE: Final = 2  # the default is what is available over this


def curvature_memory(
    memory: int | str | None, spill: str | Path | None, objective: Objective | None, path: Path, resume_at: int | None
) -> int | None:
    """Return the bytes for the vectors of an evaluation; None without an objective.

    Args:
        memory: The bytes as a number or as text; None for those that a run that is resumed began with, else half of
            what is available.
        spill: Folder of a basis that does not fit, which is checked.
        objective: The loss on fixed data.
        path: The run's folder.
        resume_at: Step at which the run is resumed; None for a new one.

    Raises:
        ProbeError: The memory is no positive number of bytes, or there is no such folder.
    """
    if spill is not None:
        check_spill_folder(spill)
    given = None if memory is None else byte_count(memory)
    if objective is None or given is not None:
        return given
    earlier = None if resume_at is None else read_manifest(path).get(CURVATURE_MEMORY)
    if isinstance(earlier, int) and not isinstance(earlier, bool) and earlier > 0:
        return earlier
    return max(1, available_memory(objective.device) // _SHARE)
