"""Checkpoints on disk: single files, shards with an index, folders of Hugging Face, and folders of any of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.storage.files import folder_entries
from lossscope.landscape.storage.manifest import MANIFEST

__all__ = ["Checkpoint", "Found", "find_checkpoints"]

_FILES: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_INDEX: Final = ".index.json"
_RECORDED: Final = "checkpoints"  # folder of the checkpoints of a recorded run
_WEIGHTS: Final = (  # of a folder that is one checkpoint, the first one that is there
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "weights.safetensors",
)
_ADAPTERS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_OTHERS: Final = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args)([._-].*)?\.(pt|pth|bin)")
_STEP: Final = re.compile(
    r"(?<![a-z])(?:global_?step|step|iteration|iter|checkpoint|ckpt)[=_-]*([0-9]{1,15})(?![0-9a-z])", re.IGNORECASE
)
_SHARD: Final = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")
_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_LONGEST_INDEX: Final = 2**26  # bytes
_LISTED: Final = 3


@dataclass(frozen=True)
class Checkpoint:
    """Weights after some steps: one file, or several shards."""

    step: int
    path: Path  # the file, index or folder that a person would name
    files: tuple[Path, ...]  # the files that hold its tensors

    def checksum(self) -> str:
        """Return the SHA-256 of a file, or that of the checksums of several in their order.

        Raises:
            ConfigError: A file cannot be read.
        """
        sums = [_checksum(file) for file in self.files]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


@dataclass(frozen=True)
class Found:
    """Checkpoints, ascending in their steps, and sentences about what was left out."""

    checkpoints: tuple[Checkpoint, ...]
    notes: tuple[str, ...]


def find_checkpoints(paths: Iterable[str | Path], steps: Sequence[int] | None = None) -> Found:
    """Return the checkpoints that paths name.

    A path is a file of weights, an index of shards, a folder that holds one checkpoint (of Hugging Face, or of a
    recorded run), a folder of such files and folders, or a recorded run. The step of a checkpoint is the number after
    `step`, `iter`, `checkpoint` or `ckpt` in its name or in that of its folder, or a name that is a number.

    Args:
        paths: Files and folders.
        steps: Steps of the checkpoints, in the order of the paths, those of a folder by name with numbers as numbers.
            Default: from the names.

    Raises:
        ConfigError: A path is no checkpoint and holds none, a name has no step, the number of steps is not that of the
            checkpoints, or two checkpoints have the same step.
    """
    notes: list[str] = []
    places = [one for path in paths for one in _places(Path(path), notes, named=steps is not None)]
    if not places:
        raise ConfigError("no checkpoint is given: name files of weights or folders of them")
    if steps is not None and len(steps) != len(places):
        raise ConfigError(f"--steps names {len(steps)}, but {len(places)} checkpoints were found: {_listed(places)}")
    numbers = [_required_step(place, places, notes) for place in places] if steps is None else steps
    by_step: dict[int, Path] = {}
    for step, place in zip(numbers, places, strict=True):
        if step in by_step:
            raise ConfigError(f"{by_step[step]} and {place} are both of step {step}: name one of them, or give --steps")
        by_step[step] = place
    found = tuple(Checkpoint(step, by_step[step], _tensor_files(by_step[step])) for step in sorted(by_step))
    return Found(found, tuple(notes))


def _places(path: Path, notes: list[str], *, named: bool) -> list[Path]:
    """Return the checkpoints at a path: the path itself, or those inside the folder."""
    if path.is_file():
        if _SHARD.search(path.name):
            raise ConfigError(f"{path} is one shard of several: name its folder, or the {_INDEX[1:]} beside it")
        if not _is_weights(path):
            raise ConfigError(f"{path} is no file of weights: need one ending in {', '.join((*_FILES, _INDEX))}")
        return [path]
    if not path.is_dir():
        raise ConfigError(f"there is no file or folder {path}: check the path")
    folder = path / _RECORDED if (path / MANIFEST).is_file() else path
    inside = [one for one in sorted(folder_entries(folder), key=_natural) if _is_checkpoint(one)]
    stepped = [one for one in inside if named or _step_of(one) is not None]
    own = [one for one in stepped if one.name not in _WEIGHTS]
    if own:
        left = [one for one in inside if one not in own]
        notes += [f"left out {_listed(left)}: no step in the name"] if left else []
        return own
    if _is_checkpoint(folder):
        return [folder]
    if inside:
        return inside
    if any((folder / name).is_file() for name in _ADAPTERS):
        raise ConfigError(
            f"{path} holds the weights of an adapter alone: merge them (merge_and_unload of PEFT) and save the model"
        )
    raise ConfigError(
        f"{path} holds no checkpoint: looked for files ending in {', '.join(_FILES)} and for folders with "
        f"{_WEIGHTS[0]} or {_WEIGHTS[2]}"
    )


def _is_weights(file: Path) -> bool:
    """Return True for the name of a file of weights, or of an index of shards."""
    if file.name.endswith(_INDEX):
        return True
    return file.suffix in _FILES and not _OTHERS.fullmatch(file.name)


def _is_checkpoint(path: Path) -> bool:
    """Return True for a file of weights that stands alone, and for a folder with the weights of one model."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any((path / name).is_file() for name in _WEIGHTS)
    return _is_weights(path) and not _SHARD.search(path.name) and path.name not in _ADAPTERS


def _required_step(place: Path, places: Sequence[Path], notes: list[str]) -> int:
    """Return the step in the name of a checkpoint; 0 for a single one without, with a note."""
    step = _step_of(place)
    if step is not None:
        return step
    if len(places) == 1:
        notes.append(f"the name of {place} has no step, so its rows are of step 0: give another by --steps")
        return 0
    epoch = ", only an epoch" if "epoch" in place.name.lower() else ""
    raise ConfigError(f"the name of {place} has no step{epoch}: give the steps of all, such as --steps 0,500")


def _step_of(place: Path) -> int | None:
    """Return the step in the name of a checkpoint, or in that of the folder of a file that Hugging Face names."""
    whole = Path(os.path.abspath(place))  # the name of "." is that of the folder
    for name in (whole.name, whole.parent.name) if whole.name in _WEIGHTS else (whole.name,):
        stem = name.removesuffix(_INDEX)
        stem = stem.removesuffix(Path(stem).suffix) if Path(stem).suffix in _FILES else stem
        found = _STEP.findall(stem)
        if found:
            return int(found[-1])
        if _NUMBER.fullmatch(stem):
            return int(stem)
    return None


def _tensor_files(place: Path) -> tuple[Path, ...]:
    """Return the files that hold the tensors of a checkpoint.

    Raises:
        ConfigError: An index cannot be read, or one of its shards is missing.
    """
    if place.is_dir():
        place = next(place / name for name in _WEIGHTS if (place / name).is_file())
    if not place.name.endswith(_INDEX):
        return (place,)
    try:
        if place.stat().st_size > _LONGEST_INDEX:
            raise ValueError
        names = json.loads(place.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{place} is no index of shards: need JSON with weight_map") from error
    for name in shards:
        if Path(name).name != name or not (place.parent / name).is_file():
            raise ConfigError(f"{place} names the shard {name}, and there is no such file beside it: download it again")
    if not shards:
        raise ConfigError(f"{place} names no shard: download it again")
    return tuple(place.parent / name for name in shards)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that orders names with their numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _checksum(file: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _listed(paths: Sequence[Path]) -> str:
    """Return the names of a few paths."""
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return ", ".join(path.name for path in paths[:_LISTED]) + more
