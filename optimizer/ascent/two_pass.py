"""Taking a second gradient without leaving traces: weights, buffers and random numbers come back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lossscope.optimizer.ascent.surrogate import SURROGATES, norm_of
from lossscope.optimizer.ascent.trigger import Decision

__all__ = ["Pass", "RandomState", "StepPlan", "ascended", "own_copy", "untouched_buffers"]


@dataclass
class Pass:
    """One forward and backward pass of a step: index 0 at the parameters, 1 at the ascended ones."""

    index: int
    loss: Tensor | None = None

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`, remembering the loss so that records and `step()` can hand it on."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
        loss.backward()  # type: ignore[no-untyped-call]


@dataclass
class StepPlan:
    """What the passes of a step leave for `step()`."""

    decision: Decision
    losses: tuple[Tensor | None, Tensor | None] = (None, None)
    base: dict[Tensor, Tensor] = field(default_factory=dict)  # the base gradients of a sync step
    moves: dict[Tensor, Tensor] = field(default_factory=dict)  # its perturbations
    raised_norm: Tensor | None = None  # of the second gradient as it was made, in one unit with the loss
    followed: dict[Tensor, Tensor] = field(default_factory=dict)  # what is followed in place of the second gradient

    @torch.no_grad()
    def measure(self, settings: Mapping[str, Any], scale: float) -> None:
        """Keep the size of the second gradient before anybody clips it, where the step is made of both.

        Args:
            settings: Of the optimizer.
            scale: Of the loss.
        """
        raised = self._raised()
        if raised and settings["surrogate"] != "adversarial":
            self.raised_norm = norm_of(list(raised.values())) / scale

    def follow(self, settings: Mapping[str, Any]) -> None:
        """Make what is followed of both gradients, where it is not the second one.

        Who clips the norm after the last pass shortens the second gradient alone; the first is shortened by the same
        factor here, so that the direction is that of both gradients as they were made.

        Args:
            settings: Of the optimizer.
        """
        both = self._raised()
        if self.raised_norm is None or not both:
            return
        raised = list(both.values())
        kept = torch.where(self.raised_norm > 0, norm_of(raised) / self.raised_norm, 1.0)
        made = SURROGATES[settings["surrogate"]](raised, [self.base[p] * kept for p in both], settings["alpha"])
        self.followed = dict(zip(both, made, strict=True))

    def _raised(self) -> dict[Tensor, Tensor]:
        """The second gradients, as they stand now, of tensors that ascended."""
        return {p: p.grad for p in self.moves if p.grad is not None}


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
