"""Checkpoints: weights (safetensors), optimizer state and random state, written atomically with their checksums."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import RunError
from lossscope.landscape.recording.recorded_optimizer import Together
from lossscope.landscape.storage.checkpoint_files import (
    FACTS,
    STATE,
    WEIGHTS,
    checkpoints,
    checksum,
    damage,
    has_optimizer,
    name_prefixes,
    require_intact,
)
from lossscope.landscape.storage.compaction import CHECKPOINTS, UNFINISHED
from lossscope.landscape.storage.files import folder_entries
from lossscope.landscape.storage.manifest import read_manifest

__all__ = [
    "checkpoints",
    "forget_checkpoints_after",
    "has_optimizer",
    "load_checkpoint",
    "load_optimizer",
    "load_weights",
    "name_prefixes",
    "optimizer_state",
    "save_checkpoint",
    "save_weights",
    "start_matrices",
]

_DAMAGE: Final = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


def save_checkpoint(run: Path, step: int, model: nn.Module, optimizer: Optimizer | Together) -> Path:
    """Save weights, optimizer state and random state after `step` steps, and return the folder.

    The folder is written under a temporary name and renamed, so a checkpoint is complete or absent. An existing
    checkpoint is kept: the same run reaches the same step with the same numbers. One of weights only is replaced.

    Raises:
        RunError: It cannot be written, or the run's folder is gone; nothing of it stays behind.
    """
    folder = _folder(run, step)
    if os.path.isdir(folder) and has_optimizer(folder):
        return folder
    return _saved(run, step, {WEIGHTS: partial(_write_weights, model), STATE: partial(_write_state, optimizer)})


def save_weights(run: Path, step: int, model: nn.Module) -> Path:
    """Save the weights after `step` steps, without the optimizer and random state, and return the folder.

    It is written like a full checkpoint, and an existing one is kept.

    Raises:
        RunError: It cannot be written, or the run's folder is gone; nothing of it stays behind.
    """
    folder = _folder(run, step)
    return folder if os.path.isdir(folder) else _saved(run, step, {WEIGHTS: partial(_write_weights, model)})


def _folder(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return run / CHECKPOINTS / f"step-{step:09d}"


def _write_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model."""
    save_model(model, str(path))


def _write_state(optimizer: Optimizer | Together, path: Path) -> None:
    """Write the state of an optimizer and of the global random generator."""
    with path.open("wb") as file:  # given a path, torch hides why the file cannot be written
        torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, file)


def _saved(run: Path, step: int, files: Mapping[str, Callable[[Path], None]]) -> Path:
    """Write the files of a checkpoint with their checksums, as a whole or not at all, and return the folder.

    Raises:
        RunError: It cannot be written, or the run's folder is gone; nothing of it stays behind.
    """
    folder = _folder(run, step)
    aside = folder.with_name(f"{UNFINISHED}{step:09d}.{os.getpid()}")
    try:
        folder.parent.mkdir(exist_ok=True)  # not its parents: a run that was removed stays removed
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, write in files.items():
            write(aside / name)
        facts = {
            "run": read_manifest(run).get("id"),
            "step": step,
            "sha256": {name: checksum(aside / name) for name in files},
        }
        (aside / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        os.chmod(aside / WEIGHTS, os.stat(aside / FACTS).st_mode & 0o777)  # safetensors lets only the owner read
        if os.path.isdir(folder):  # of weights only
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, _DAMAGE):
            raise RunError(
                f"cannot write checkpoint {folder}: {_reason(error)}; free some space, or record elsewhere"
            ) from error
        raise
    return folder


def _reason(error: BaseException) -> str:
    """Return the reason for a failed save: that of the file system, if there is one, before that of torch."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        one = one.__cause__ or one.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore model, optimizer and the global random generator from a checkpoint.

    Raises:
        RunError: A file of the checkpoint cannot be read, was altered, is another run's, or does not fit the model or
            the optimizer.
    """
    problem = damage(folder, WEIGHTS) or damage(folder, STATE)
    if problem is not None:
        raise RunError(
            f"checkpoint {folder} cannot be loaded: {problem}; move it away and resume from the previous checkpoint"
        )
    try:
        load_model(model, str(folder / WEIGHTS))
        state = torch.load(folder / STATE, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    except _DAMAGE as error:
        raise RunError(
            f"checkpoint {folder} cannot be loaded: it is truncated, corrupted or of another network; "
            "move it away and resume from the previous checkpoint"
        ) from error


def load_weights(folder: Path, model: nn.Module) -> str | None:
    """Load the weights of a checkpoint into a model. Optimizer and random state are not restored.

    Returns:
        A sentence if the names of one side have a prefix that those of the other lack, such as the `_orig_mod.` of a
        compiled model or the `module.` of a parallel one; the prefix is then ignored. None if the names are the same.

    Raises:
        RunError: The file cannot be read, was altered, is another run's, or its tensors do not fit the model.
    """
    require_intact(folder, WEIGHTS)
    file = str(folder / WEIGHTS)
    try:
        with safe_open(file, framework="pt") as saved:
            ours, theirs = name_prefixes(saved.keys(), model.state_dict().keys())
        load_model(_below(model, ours) if ours else model.get_submodule(theirs.removesuffix(".")), file)
    except RuntimeError as error:  # the message of torch names every tensor that does not fit
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise RunError(f"the weights of checkpoint {folder} do not fit the model: {reasons[0]}") from error
    except _DAMAGE as error:
        raise RunError(f"checkpoint {folder} cannot be read: it is truncated or corrupted; use another one") from error
    if not (ours or theirs):
        return None
    which = "the checkpoint" if ours else "the model"
    return f"the names of {which} begin with {ours or theirs!r} and the others do not: the prefix was ignored"


def start_matrices(run: str | Path) -> dict[str, Tensor]:
    """Return the tensors of two or more dimensions of the checkpoint before the first step, on the host.

    Empty if the run has no such checkpoint, or if it is damaged.
    """
    try:
        folder = checkpoints(run).get(0)
        if folder is None:
            return {}
        require_intact(folder, WEIGHTS)
        with safe_open(str(folder / WEIGHTS), framework="pt") as saved:
            found = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (no mapping)
    except (RunError, *_DAMAGE):
        return {}
    return {name: tensor for name, tensor in found.items() if tensor.ndim > 1}


def _below(model: nn.Module, prefix: str) -> nn.Module:
    """Return a module in which the names of the model have a prefix."""
    for part in reversed(prefix.removesuffix(".").split(".")):
        outer = nn.Module()
        outer.add_module(part, model)
        model = outer
    return model


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Load the optimizer state of a checkpoint into an optimizer.

    Raises:
        RunError: The file cannot be read, or its state is that of another optimizer.
    """
    state = optimizer_state(folder)
    try:
        optimizer.load_state_dict(state)
    except _DAMAGE as error:
        raise RunError(
            f"the optimizer state in checkpoint {folder} cannot be loaded: it is that of another optimizer; "
            "use another checkpoint"
        ) from error


def optimizer_state(folder: Path) -> dict[str, Any]:
    """Return the optimizer's `state_dict()` from a checkpoint.

    Raises:
        RunError: The file cannot be read, was altered, or is another run's.
    """
    require_intact(folder, STATE)
    try:
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)["optimizer"]
    except _DAMAGE as error:
        raise RunError(
            f"the optimizer state in checkpoint {folder} cannot be read: it is truncated or corrupted; "
            "use another checkpoint"
        ) from error
    return state


def forget_checkpoints_after(run: Path, step: int) -> None:
    """Remove the checkpoints beyond a step, which a resumed run reaches again, and the remains of interrupted saves.

    Raises:
        RunError: One cannot be removed.
    """
    left = [path for path in folder_entries(run / CHECKPOINTS) if path.name.startswith(UNFINISHED)]
    for path in [*(path for saved, path in checkpoints(run).items() if saved > step), *left]:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise RunError(f"cannot remove checkpoint {path}: {error.strerror}; remove it by hand") from error
