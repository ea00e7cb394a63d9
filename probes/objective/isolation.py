"""Leaving a model and the random state as they were, whatever an evaluation does to them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Mode", "isolated", "random_modules", "random_state"]

Mode = Literal["eval", "frozen", "train"]


@contextmanager
def isolated(model: nn.Module, *, training: bool, devices: Iterable[torch.device]) -> Iterator[None]:
    """A context in which the model can be differentiated twice, and after which nothing of it is left.

    Attention uses its mathematical kernel (the fused ones have no second derivative), autocast and
    inference mode are off. At exit the random states of torch (CPU and the devices), numpy and Python and these
    switches are as before, and so is every plain attribute of every module: its mode, and what a forward pass
    leaves there, such as the weight that the hook of `torch.nn.utils.weight_norm` makes, with its graph. (Parameters
    and buffers are never touched inside: losses are evaluated on substitutes, see `Objective`.) What a module
    changes within a list or dictionary of its own stays changed.

    Args:
        model: The model.
        training: The mode of its modules inside.
        devices: The devices in use.

    Yields:
        Nothing.
    """
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    kinds = {"cpu", *(device.type for device in devices)}
    attributes = [(module, vars(module).copy()) for module in model.modules()]
    drawn, of_python = np.random.get_state(legacy=False), random.getstate()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=cuda), _autocast_off(kinds), sdpa_kernel(SDPBackend.MATH):
            torch.backends.mha.set_fastpath_enabled(False)
            model.train(training)
            with torch.inference_mode(False), torch.enable_grad():
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        np.random.set_state(drawn)
        random.setstate(of_python)
        for module, before in attributes:
            _put_back(module, before)


def _put_back(module: nn.Module, before: dict[str, Any]) -> None:
    """Give a module the attributes that it had; past `setattr`, which would register the tensors among them."""
    present = vars(module)
    for name in present.keys() - before.keys():
        del present[name]
    present.update(before)


@contextmanager
def _autocast_off(kinds: Iterable[str]) -> Iterator[None]:
    """A context without autocast on any of these kinds of device."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for kind in sorted(kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def random_state(devices: Iterable[torch.device]) -> bytes:
    """The states of all generators that a model may draw from: torch's (CPU and CUDA devices), numpy's and Python's.

    Args:
        devices: The devices in use.

    Returns:
        Bytes that differ where one of them was drawn from in between. Generators of a model's own are not seen.
    """
    torchs = [torch.get_rng_state()]
    torchs += [torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"]
    words = [state.numpy().tobytes() for state in torchs]
    return b"".join([*words, pickle.dumps((np.random.get_state(), random.getstate()))])


def random_modules(model: nn.Module) -> list[str]:
    """The modules that draw random numbers in their present mode, told by their class names.

    Args:
        model: The model.

    Returns:
        Their names as `name (Class)`.
    """
    signs = ("drop", "rrelu", "noise", "stochastic")
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and any(sign in type(module).__name__.lower() for sign in signs)
    ]
