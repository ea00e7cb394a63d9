"""Checkpoints: weights (safetensors), optimizer state and random state, written atomically."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import RunError
from lossscope.landscape.recording.recorded_optimizer import Together

__all__ = [
    "checkpoints",
    "forget_checkpoints_after",
    "load_checkpoint",
    "load_optimizer",
    "load_weights",
    "optimizer_state",
    "save_checkpoint",
]

_WEIGHTS = "weights.safetensors"
_STATE = "optimizer.pt"
_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)


def checkpoints(run: Path) -> dict[int, Path]:
    """Return the checkpoint folders of a run by step, in ascending order."""
    found = {}
    for path in sorted((run / "checkpoints").glob("step-*")):
        number = path.name.removeprefix("step-")
        if number.isdecimal() and (path / _WEIGHTS).is_file() and (path / _STATE).is_file():
            found[int(number)] = path
    return dict(sorted(found.items()))


def save_checkpoint(run: Path, step: int, model: nn.Module, optimizer: Optimizer | Together) -> Path:
    """Save weights, optimizer state and random state after `step` steps, and return the folder.

    The folder is written under a temporary name and renamed, so a checkpoint is complete or absent. An existing
    checkpoint is kept: the same run reaches the same step with the same numbers.
    """
    folder = run / "checkpoints" / f"step-{step:09d}"
    if folder.exists():
        return folder
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_model(model, str(aside / _WEIGHTS))
    torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, aside / _STATE)
    aside.rename(folder)
    return folder


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore model, optimizer and the global random generator from a checkpoint.

    Raises:
        RunError: A file of the checkpoint cannot be read, or does not fit the model or the optimizer.
    """
    try:
        load_model(model, str(folder / _WEIGHTS))
        state = torch.load(folder / _STATE, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    except _DAMAGE as error:
        raise RunError(
            f"checkpoint {folder} cannot be loaded: it is truncated, corrupted or of another network; "
            "move it away and resume from the previous checkpoint"
        ) from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a model. Optimizer and random state are not restored.

    Raises:
        RunError: The file cannot be read, or its tensors do not fit the model.
    """
    try:
        load_model(model, str(folder / _WEIGHTS))
    except RuntimeError as error:  # the message of torch names every tensor that does not fit
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise RunError(f"the weights of checkpoint {folder} do not fit the model: {reasons[0]}") from error
    except _DAMAGE as error:
        raise RunError(f"checkpoint {folder} cannot be read: it is truncated or corrupted; use another one") from error


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
        RunError: The file cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(folder / _STATE, weights_only=True)["optimizer"]
    except _DAMAGE as error:
        raise RunError(
            f"the optimizer state in checkpoint {folder} cannot be read: it is truncated or corrupted; "
            "use another checkpoint"
        ) from error
    return state


def forget_checkpoints_after(run: Path, step: int) -> None:
    """Remove the checkpoints beyond a step, which a resumed run reaches again, and the remains of interrupted saves."""
    for saved, path in checkpoints(run).items():
        if saved > step:
            shutil.rmtree(path)
    for left in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(left)
