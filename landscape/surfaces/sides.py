"""Sides of a difference: a run at a step, or a file of weights. Files other than safetensors need torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.checkpoint_files import WEIGHTS, checkpoints, requested_folders, require_intact
from lossscope.landscape.storage.files import folder_entries
from lossscope.landscape.storage.manifest import MANIFEST
from lossscope.landscape.storage.weight_arrays import SavedWeights, safetensors_weights

__all__ = ["Side", "began_together", "found_pairs", "given_pairs", "side_at", "weights_of"]

_SAFE = ".safetensors"
_MOST = 3  # pairs of an arm that are found without being named


@dataclass(frozen=True)
class Side:
    """A run at a step, or a file of weights.

    Attributes:
        name: Its name in reports.
        source: Folder of a checkpoint, or file of weights.
        run: The run; None for a file.
        step: Step of the checkpoint; None for a file.
    """

    name: str
    source: Path
    run: Run | None = None
    step: int | None = None


def side_at(place: str | Path) -> Side:
    """Return the side that a path names: a run, `RUN@STEP`, or a file of weights.

    Raises:
        ConfigError: There is nothing at this path.
        RunError: It is no run, or the run has no such checkpoint.
    """
    path = Path(place)
    if path.is_dir():
        return _of_run(Run.open(path), None)
    if path.is_file():
        return Side(path.name, path)
    folder, _, step = str(place).rpartition("@")
    if folder and step.isdecimal() and Path(folder).is_dir():
        return _of_run(Run.open(folder), int(step))
    raise ConfigError(f"there is neither a run nor a file of weights at {place}: give RUN, RUN@STEP or FILE")


def weights_of(side: Side) -> SavedWeights:
    """Return the weights of a side, after its checksum where it has one.

    Raises:
        ConfigError: The file is damaged, holds more than tensors, or no weights.
        RunError: The checkpoint was altered.
    """
    if side.run is not None:
        require_intact(side.source, WEIGHTS)
        return safetensors_weights(side.source / WEIGHTS, side.name)
    if side.source.suffix == _SAFE:
        return safetensors_weights(side.source, side.name)
    from lossscope.landscape.reprobe.weights_file import saved_arrays

    return saved_arrays(side.source, side.name)


def began_together(a: Side, b: Side) -> bool | None:
    """Return True if both runs began at the same initial weights, as far as workload and seed tell; None if unknown."""
    if a.run is None or b.run is None:
        return None
    started = [_start(run) for run in (a.run, b.run)]
    return None if None in started else started[0] == started[1]


def given_pairs(places: Sequence[str | Path]) -> list[tuple[str, Side, Side]]:
    """Return all pairs of seeds of one arm among runs, or of all files, with the name of the arm.

    Raises:
        ConfigError: There is no pair.
    """
    sides = [side_at(place) for place in places]
    runs = [side.run for side in sides if side.run is not None]
    if runs and len(runs) < len(sides):
        raise ConfigError("a null must be of runs alone or of files alone, got both")
    if not runs:
        groups = {"files": sides}
    else:
        groups = {arm: [one for one in sides if one.run in members] for arm, members in by_arm(runs).items()}
    found = [(arm, *pair) for arm, members in groups.items() for pair in combinations(members, 2) if _differ(*pair)]
    if not found:
        raise ConfigError(
            f"a null must be of two or more seeds of one optimizer, got {', '.join(side.name for side in sides)}: name "
            "runs of one arm with different seeds"
        )
    return found


def found_pairs(a: Side, b: Side) -> list[tuple[str, Side, Side]]:
    """Return pairs of seeds of the arms of A and B that lie beside them, at their steps; each run is in one pair.

    A pair of an arm at one step is taken once. That of A and B themselves is none. At most three pairs of an arm; of
    two checkpoints of one run, at the later step.
    """
    found: dict[tuple[str, ...], tuple[str, Side, Side]] = {}
    sides = [a, b]
    if a.run is not None and b.run is not None and os.path.samefile(a.run.path, b.run.path):
        sides = [max(sides, key=lambda side: side.step or 0)]
    for side in sides:
        if side.run is not None and side.step is not None:
            for arm, first, second in list(_pairs_beside(side, {a.source, b.source}))[:_MOST]:
                found.setdefault((str(first.source), str(second.source)), (arm, first, second))
    return list(found.values())


def _pairs_beside(side: Side, compared: set[Path]) -> Iterator[tuple[str, Side, Side]]:
    """Yield pairs of seeds of the arm of a run, at its step."""
    assert side.run is not None
    assert side.step is not None
    arm, members = _arm_of(side.run)
    there = [_of_run(run, side.step) for run in members if side.step in checkpoints(run.path)]
    kept: Side | None = None
    for one in there:
        if kept is None:
            kept = one
        elif {kept.source, one.source} != compared and _differ(kept, one):
            yield arm, kept, one
            kept = None


def _arm_of(run: Run) -> tuple[str, list[Run]]:
    """Return the arm of a run with all its runs in the same folder."""
    name = run.manifest.get("arm")
    beside = [one for one in _runs_beside(run) if one.manifest.get("arm") == name]
    for arm, members in by_arm(beside).items():
        if any(os.path.samefile(one.path, run.path) for one in members):
            return arm, members
    return str(name), [run]


def _runs_beside(run: Run) -> Iterator[Run]:
    """Yield the runs in the folder in which a run lies, itself included; those that cannot be opened are left out."""
    try:
        folders = sorted(folder_entries(run.path.resolve().parent))
    except RunError:
        folders = [run.path]
    for folder in folders:
        if (folder / MANIFEST).is_file():
            with suppress(RunError):  # damaged, or of a newer version
                yield Run.open(folder)


def _of_run(run: Run, step: int | None) -> Side:
    """Return a run at a step, by default that of its last checkpoint."""
    ((at, folder),) = requested_folders(run.path, None if step is None else [step]).items()
    return Side(f"{run.name} at step {at}", folder.resolve(), run, at)


def _start(run: Run) -> tuple[object, ...] | None:
    """Return what the initial weights of a run come from."""
    config, seeds = run.manifest.get("config"), run.manifest.get("seeds")
    if not isinstance(config, dict) or not isinstance(seeds, dict) or "init" not in seeds:
        return None
    return config.get("workload"), seeds["init"]


def _differ(a: Side, b: Side) -> bool:
    """Return True unless two runs are known to have the same initial seed, or two files are one."""
    if a.run is None or b.run is None:
        return not os.path.samefile(a.source, b.source)
    first, second = (one.manifest.get("seeds") for one in (a.run, b.run))
    return not (isinstance(first, dict) and isinstance(second, dict) and first.get("init") == second.get("init"))
