"""Taking a second gradient without leaving traces: weights, buffers and random numbers come back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["RandomState", "ascended", "own_copy", "untouched_buffers"]


class RandomState:
    """The state of torch's own generators: the CPU's and those of the parameters' devices.

    Not of Python's `random` nor of numpy's: a pass that draws from those draws anew in the second one.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._cpu = torch.get_rng_state()
        cuda = {p.device for p in parameters if p.device.type == "cuda"}
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in cuda}

    def restore(self) -> None:
        """Go back to the state at construction."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def ascended(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> Iterator[None]:
    """Hold the parameters at `w + e`; afterwards, come what may, each is bit for bit what it was.

    Adding and subtracting `e` would change about 7 % of the elements in the last bit.
    """
    saved = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(parameters), list(moves))
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), saved)


@contextmanager
def untouched_buffers(model: nn.Module | None) -> Iterator[None]:
    """Undo what a pass does to buffers (batch-norm statistics, spectral-norm vectors), so they count once.

    Without a model, the buffers of each module are saved when it is first called.
    """
    saved: dict[tuple[nn.Module, str], tuple[Tensor, Tensor]] = {}

    def save(module: nn.Module, _: object = None) -> None:
        for name, buffer in module._buffers.items():
            if buffer is not None and (module, name) not in saved:
                saved[module, name] = buffer, buffer.detach().clone()

    hook = None
    if model is None:
        hook = register_module_forward_pre_hook(save)
    else:
        for module in model.modules():
            save(module)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        with torch.no_grad():
            for (module, name), (buffer, value) in saved.items():
                buffer.copy_(value)
                module._buffers[name] = buffer


def own_copy(gradient: Tensor) -> Tensor:
    """The gradient, safe from the second backward pass."""
    # A gradient that is a view (a distributed bucket) is overwritten by the second backward pass.
    return gradient.clone() if gradient._base is not None else gradient
