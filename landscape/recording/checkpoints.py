"""Checkpoints: weights as safetensors, optimizer and random state beside them, complete or not there at all."""

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
    """The checkpoints of a run by step, ascending."""
    found = {}
    for path in sorted((run / "checkpoints").glob("step-*")):
        number = path.name.removeprefix("step-")
        if number.isdecimal() and (path / _WEIGHTS).is_file() and (path / _STATE).is_file():
            found[int(number)] = path
    return dict(sorted(found.items()))


def save_checkpoint(run: Path, step: int, model: nn.Module, optimizer: Optimizer) -> Path:
    """The folder that now holds weights, optimizer state and random state after `step` steps.

    It is written under another name and renamed, so a checkpoint is whole or absent. One that is there
    already stays: the same run reaches the same step with the same numbers.
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
    """Put model, optimizer and the random generator back to where the checkpoint was taken.

    Raises:
        RunError: A file of the checkpoint cannot be read, or belongs to another network.
    """
    try:
        load_model(model, str(folder / _WEIGHTS))
        state = torch.load(folder / _STATE, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    except _DAMAGE as error:
        raise RunError(
            f"checkpoint {folder} cannot be loaded: it was cut short, altered or belongs to another network; "
            "move it away and resume from the one before it"
        ) from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint into a model; the optimizer and the random generator play no part.

    Raises:
        RunError: The file cannot be read, or its tensors are not those of the model.
    """
    try:
        load_model(model, str(folder / _WEIGHTS))
    except RuntimeError as error:  # torch names every tensor that does not fit
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise RunError(f"the weights of checkpoint {folder} do not fit the model: {reasons[0]}") from error
    except _DAMAGE as error:
        raise RunError(f"checkpoint {folder} cannot be read: it was cut short or altered; measure another") from error


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Put the state of a checkpoint into an optimizer.

    Raises:
        RunError: The file cannot be read, or belongs to another optimizer.
    """
    state = optimizer_state(folder)
    try:
        optimizer.load_state_dict(state)
    except _DAMAGE as error:
        raise RunError(
            f"the optimizer's state in checkpoint {folder} cannot be loaded: it belongs to another optimizer; measure "
            "another checkpoint"
        ) from error


def optimizer_state(folder: Path) -> dict[str, Any]:
    """The optimizer's `state_dict()` in a checkpoint.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(folder / _STATE, weights_only=True)["optimizer"]
    except _DAMAGE as error:
        raise RunError(
            f"the optimizer's state in checkpoint {folder} cannot be read: it was cut short or altered; measure "
            "another checkpoint"
        ) from error
    return state


def forget_checkpoints_after(run: Path, step: int) -> None:
    """Remove checkpoints beyond a step, which a resumed run will reach anew, and what killed saves left behind."""
    for saved, path in checkpoints(run).items():
        if saved > step:
            shutil.rmtree(path)
    for left in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(left)
