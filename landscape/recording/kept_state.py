"""State of a training that an instrument must leave as it was, however the instrument ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["kept_state"]


@contextmanager
def kept_state(*models: nn.Module) -> Iterator[None]:
    """Restore random states, modes, buffers and `.grad` of some models at the end of the block, also if it raises.

    An `Objective` restores what it sets itself; this covers what else a loss function of the user does before it fails.
    Buffers are copied, gradients are restored by reference.

    Args:
        models: The modules that an instrument may call.

    Yields:
        Nothing.
    """
    modules = list({id(module): module for model in models for module in model.modules()}.values())
    modes = [(module, module.training) for module in modules]
    buffers = [(module, name, held, _copy(held)) for module in modules for name, held in module._buffers.items()]
    gradients = [(p, p.grad) for p in {id(p): p for model in models for p in model.parameters()}.values()]
    drawn = _random_states()
    try:
        yield
    finally:
        _restore_random_states(*drawn)
        for module, training in modes:
            module.training = training
        for module, name, held, copy in buffers:
            module._buffers[name] = held
            if held is not None and copy is not None and held._version != copy[1]:
                with torch.no_grad():
                    held.copy_(copy[0])
        for p, gradient in gradients:
            if p.grad is not gradient:
                p.grad = gradient


_Random = tuple[Tensor, list[Tensor], object, object]


def _random_states() -> _Random:
    """Return the states of the global generators."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if used else []
    return torch.get_rng_state(), cuda, np.random.get_state(legacy=False), random.getstate()


def _restore_random_states(cpu: Tensor, cuda: list[Tensor], of_numpy: object, of_python: object) -> None:
    """Restore the states of the global generators."""
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(of_numpy)  # type: ignore[arg-type]
    random.setstate(of_python)  # type: ignore[arg-type]


def _copy(buffer: Tensor | None) -> tuple[Tensor, int] | None:
    """Return a copy of a buffer and the version of its content."""
    return None if buffer is None else (buffer.detach().clone(), buffer._version)
