"""Second pass at ascended weights, after which weights, buffers and random numbers are restored exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lossscope.optimizer.ascent.surrogate import SURROGATES
from lossscope.optimizer.ascent.trigger import Decision
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import sums

__all__ = ["Pass", "RandomState", "StepPlan", "ascended", "own_copy", "refuse_sparse", "untouched_buffers"]


@dataclass
class Pass:
    """One forward and backward pass of a step: index 0 at the parameters, 1 at the ascended ones.

    Optimizers that need other passes (`Rule.needs`) yield passes of other kinds, so that one loop serves all of them:

        for p in optimizer.passes(model):
            logits = model(inputs)
            p.backward(cross_entropy(logits, p.labels(logits, labels)))
        optimizer.step()
    """

    index: int
    loss: Tensor | None = None

    def backward(self, loss: Tensor) -> None:
        """Call `loss.backward()` and keep the loss for records and for the return value of `step()`."""
        self.keep(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def keep(self, loss: Tensor) -> None:
        """Keep the loss, or add that of another micro-batch."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def labels(self, logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
        """Return the labels to compute the loss with: those given, or in some passes ones drawn from the model.

        Args:
            logits: Output of the model, with the classes last, or second as `torch.nn.functional.cross_entropy` has it.
            labels: Class numbers, one for each row of logits.
            ignore_index: Label of rows that the loss leaves out; they keep it.
        """
        return labels


@dataclass
class StepPlan:
    """Per-step state shared between `passes()` and `step()`."""

    decision: Decision
    losses: tuple[Tensor | None, Tensor | None] = (None, None)
    base: dict[Tensor, Tensor] = field(default_factory=dict)  # the base gradients of a sync step
    moves: dict[Tensor, Tensor] = field(default_factory=dict)  # the perturbations of a sync step
    raised_norm: sums.Number | None = None  # norm of the second gradient before clipping, in the unit of the loss
    followed: dict[Tensor, Tensor] = field(default_factory=dict)  # gradients followed instead of the second ones
    estimates: dict[Tensor, Mapping[str, Tensor]] = field(default_factory=dict)  # of the passes that a rule needs
    extra: int = 0  # passes beside the first one that are no ascent

    @property
    def passes(self) -> int:
        """Number of forward passes of the step."""
        return 1 + self.decision.sync + self.extra

    @torch.no_grad()
    def measure(self, settings: Mapping[str, Any], scale: float) -> None:
        """Store the norm of the second gradient before it is clipped, if the step combines both gradients.

        Args:
            settings: Settings of the optimizer.
            scale: Scale of the loss.
        """
        raised = self._raised()
        if raised and settings["surrogate"] != "adversarial":
            self.raised_norm = sums.norm(*raised.values()) / scale

    def follow(self, settings: Mapping[str, Any]) -> None:
        """Compute the followed gradients from both gradients, if they are not the second ones.

        Args:
            settings: Settings of the optimizer.
        """
        both = self._raised()
        if self.raised_norm is None or not both:
            return
        raised, base = list(both.values()), [self.base[p] for p in both]
        made = SURROGATES[settings["surrogate"]](raised, base, settings["alpha"], self.raised_norm)
        self.followed = dict(zip(both, made, strict=True))

    def _raised(self) -> dict[Tensor, Tensor]:
        """Return the present second gradients of the tensors that ascended."""
        return {p: p.grad for p in self.moves if p.grad is not None}


class RandomState:
    """State of torch's own generators: that of the CPU and those of the parameters' devices.

    The generators of Python's `random` and of numpy are not saved: a pass that uses them draws new numbers the second
    time.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._cpu = torch.get_rng_state()
        cuda = {p.device for p in parameters if p.device.type == "cuda"}
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in cuda}

    def restore(self) -> None:
        """Restore the state at construction."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def ascended(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> Iterator[None]:
    """Set the parameters to `w + e` within the context; afterwards each is restored bit for bit, even on an exception.

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
    """Restore buffers (batch-norm statistics, spectral-norm vectors) after the context, so they are updated once.

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


def refuse_sparse(parameters: Sequence[Tensor]) -> None:
    """Raise an `OptimizerError` if a gradient is sparse."""
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise OptimizerError(
                f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which is not supported; "
                "build its module with sparse=False, or use torch.optim.SparseAdam for it"
            )


def own_copy(gradient: Tensor) -> Tensor:
    """Return the gradient, copied if the second backward pass could overwrite it."""
    # A gradient that is a view (a distributed bucket) is overwritten by the second backward pass.
    return gradient.clone() if gradient._base is not None else gradient
