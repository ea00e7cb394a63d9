"""Isolation of an evaluation: model state, random state and torch switches are restored afterwards."""

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
    """Allow the model to be differentiated twice inside this context, and restore all state at its end.

    Attention uses its math kernel (the fused ones have no second derivative); autocast and inference mode are off. At
    exit these switches, the random states of torch (CPU and the devices), numpy and Python, and every plain attribute
    of every module are restored: its mode, and attributes set by a forward pass, such as the weight that the hook of
    `torch.nn.utils.weight_norm` computes, with its graph. (Parameters and buffers are never touched inside: losses are
    evaluated on substitutes, see `Objective`.) Changes a module makes inside its own lists or dictionaries are kept.

    Args:
        model: The model.
        training: The training mode of its modules inside.
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
            _restore(module, before)


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    """Restore the attributes of a module, bypassing `setattr`, which would register tensors among them."""
    present = vars(module)
    for name in present.keys() - before.keys():
        del present[name]
    present.update(before)


@contextmanager
def _autocast_off(kinds: Iterable[str]) -> Iterator[None]:
    """Disable autocast on these device types."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for kind in sorted(kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def random_state(devices: Iterable[torch.device]) -> bytes:
    """Return the states of the global generators: torch's (CPU and CUDA devices), numpy's and Python's.

    Args:
        devices: The devices in use.

    Returns:
        Bytes that change when one of them is used. Generators owned by a model are not included.
    """
    torchs = [torch.get_rng_state()]
    torchs += [torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"]
    words = [state.numpy().tobytes() for state in torchs]
    return b"".join([*words, pickle.dumps((np.random.get_state(), random.getstate()))])


def random_modules(model: nn.Module) -> list[str]:
    """Return the modules that draw random numbers in their current mode, judged by their class names.

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
