"""Weights of a checkpoint as tensors of torch, and the model that they are loaded into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.reprobe.weights_file import fit_weights, read_weights
from lossscope.landscape.unrecorded.sources import Checkpoint

__all__ = ["distinct", "load_checkpoint", "numbers", "read_weights"]


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module) -> str:
    """Load the weights of a checkpoint into a model; return a sentence about prefixes, or nothing.

    Raises:
        ConfigError: A file cannot be read, or the weights do not fit; the model is then unchanged.
    """
    found: dict[str, Tensor] = {}
    for file in checkpoint.files:
        for name, tensor in read_weights(file).items():
            if name in found:
                raise ConfigError(f"{checkpoint.path} has the tensor {name} in two shards: download it again")
            found[name] = tensor
    return fit_weights(found, model, checkpoint.path)


def distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return the tensors of different memory, each under its first name, and the other names by the first."""
    kept: dict[Any, str] = {}
    shared: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
        first = kept.setdefault(place, name)
        if first != name:
            shared.setdefault(first, []).append(name)
    return {name: tensors[name] for name in kept.values()}, shared


def numbers(tensor: Tensor) -> npt.NDArray[np.floating[Any]]:
    """Return a tensor as an array on the host."""
    host = tensor.detach().cpu()
    array: npt.NDArray[np.floating[Any]] = (
        host if host.dtype in (torch.float16, torch.float32, torch.float64) else host.float()
    ).numpy()
    return array
