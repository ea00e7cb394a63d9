"""Leaving a model and the random state as they were, whatever an evaluation does to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Mode", "isolated", "random_modules"]

Mode = Literal["eval", "frozen", "train"]


@contextmanager
def isolated(model: nn.Module, *, training: bool, devices: Iterable[torch.device]) -> Iterator[None]:
    """A context in which the model can be differentiated twice, and after which nothing of it is left.

    Attention uses its mathematical kernel (the fused ones have no second derivative), autocast and
    inference mode are off. At exit the mode of every module, the random state of the CPU and of the
    devices, and these switches are as before. (Parameters and buffers are never touched inside: losses are
    evaluated on substitutes, see `Objective`.)

    Args:
        model: The model.
        training: The mode of its modules inside.
        devices: The devices in use.

    Yields:
        Nothing.
    """
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    kinds = {"cpu", *(device.type for device in devices)}
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=cuda), _autocast_off(kinds), sdpa_kernel(SDPBackend.MATH):
            torch.backends.mha.set_fastpath_enabled(False)
            model.train(training)
            with torch.inference_mode(False), torch.enable_grad():
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _autocast_off(kinds: Iterable[str]) -> Iterator[None]:
    """A context without autocast on any of these kinds of device."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for kind in sorted(kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def random_modules(model: nn.Module) -> list[str]:
    """The modules that draw random numbers in their present mode, as `name (Class)`, by their class names."""
    signs = ("drop", "rrelu", "noise", "stochastic")
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and any(sign in type(module).__name__.lower() for sign in signs)
    ]
