"""Values of a member in float64, by differences of gradients and dense algebra, without the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.member import Member

__all__ = ["Truth"]

STEPS = (1e-4, 1e-6)  # lengths of a difference: fourth order leaves about 1e-11; the short one misses kinks
STENCIL = ((1.0, 8 / 12), (-1.0, -8 / 12), (2.0, -1 / 12), (-2.0, 1 / 12))
SAME = 1e-6  # relative difference at which torch's second derivative counts as that of the gradient's differences


class Truth:
    """Loss, gradient and Hessian of a member's float64 twin, as a function of its trainable parameters.

    The Hessian is torch's own, taken row by row, where it agrees with differences of gradients along three random
    directions, and made of such differences otherwise.
    """

    def __init__(self, member: Member) -> None:
        parts = member.double()
        self.parts, self.mode = parts, member.options.get("mode", "eval")
        parts.model.train(self.mode != "eval")
        self.parameters = [p for p in parts.model.parameters() if p.requires_grad]
        self.names = [name for name, p in parts.model.named_parameters() if p.requires_grad]
        self.theta = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        counts = [member.terms(batch) for batch in member.build().batches]
        self.weights = [count / sum(counts) for count in counts]
        self.size = len(self.theta)
        self.by_differences = False

    @contextmanager
    def at(self, theta: Tensor) -> Iterator[None]:
        """Set parameters, keep the buffers, and use the kernel of attention that has second derivatives."""
        modules = (self.parts.model, *self.parts.reaches)
        kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        try:
            self._place(theta)
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            self._place(self.theta)
            for buffer, before in kept:
                buffer.copy_(before)

    def _place(self, theta: Tensor) -> None:
        parts = torch.split(theta, [p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.data.copy_(part.view_as(p))

    def losses(self, theta: Tensor) -> list[float]:
        """Return the loss of each batch."""
        with self.at(theta):
            return [float(self.parts.loss_fn(self.parts.model, batch).detach()) for batch in self.parts.batches]

    def value(self, theta: Tensor | None = None) -> float:
        """Return the mean loss."""
        losses = self.losses(self.theta if theta is None else theta)
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))

    def _slope(self, of: Tensor, graph: bool = False, keep: bool = False) -> Tensor:
        found = torch.autograd.grad(
            of, self.parameters, create_graph=graph, retain_graph=graph or keep, allow_unused=True
        )
        filled = [
            torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
            for g, p in zip(found, self.parameters, strict=True)
        ]
        return torch.cat([g.reshape(-1) for g in filled])

    def gradients(self, theta: Tensor) -> list[Tensor]:
        """Return the gradient of each batch."""
        with self.at(theta):
            return [self._slope(self.parts.loss_fn(self.parts.model, batch)) for batch in self.parts.batches]

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return the gradient of the mean loss."""
        found = self.gradients(self.theta if theta is None else theta)
        return torch.stack([weight * g for weight, g in zip(self.weights, found, strict=True)]).sum(0)

    def differences(self, function: Callable[[Tensor], Any], direction: Tensor, step: float = STEPS[0]) -> Any:
        """Return the derivative of a list of tensors along a direction by central differences of fourth order."""
        length = float(direction.norm())
        if length == 0:
            return [torch.zeros_like(one) for one in function(self.theta)]
        unit = direction / length
        total: list[Tensor] | None = None
        for place, factor in STENCIL:
            found = [factor * one for one in function(self.theta + place * step * unit)]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        return [one * (length / step) for one in total or []]

    def products(self, direction: Tensor, step: float = STEPS[0]) -> list[Tensor]:
        """Return the product of each batch's Hessian with a direction."""
        found: list[Tensor] = self.differences(self.gradients, direction, step)
        return found

    def product(self, direction: Tensor, step: float = STEPS[0]) -> Tensor:
        """Return the product of the Hessian with a direction, by differences."""
        found = self.products(direction, step)
        return torch.stack([weight * h for weight, h in zip(self.weights, found, strict=True)]).sum(0)

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian `(n, n)`."""
        generator = torch.Generator().manual_seed(7)
        directions = torch.randn(3, self.size, generator=generator, dtype=torch.float64)
        try:
            H = self._rows()
        except (RuntimeError, NotImplementedError):
            H = torch.full((self.size, self.size), float("nan"), dtype=torch.float64)
        for step in STEPS:
            wanted = torch.stack([self.product(v, step) for v in directions])
            if float((directions @ H - wanted).norm()) <= SAME * float(wanted.norm()):
                return (H + H.mT) / 2
        self.by_differences = True
        H = torch.stack([self.product(e) for e in torch.eye(self.size, dtype=torch.float64)])
        return (H + H.mT) / 2

    def _rows(self) -> Tensor:
        """Return the Hessian by torch's own second derivative."""
        with self.at(self.theta):
            pairs = zip(self.weights, self.parts.batches, strict=True)
            loss = sum(weight * self.parts.loss_fn(self.parts.model, batch) for weight, batch in pairs)
            slope = self._slope(loss, graph=True)
            if not slope.requires_grad:
                return torch.zeros(self.size, self.size, dtype=torch.float64)
            try:
                return self._columns(slope, torch.eye(self.size, dtype=torch.float64))
            except RuntimeError:
                return torch.stack([self._slope(one, keep=True) for one in slope])

    def _columns(self, slope: Tensor, vectors: Tensor) -> Tensor:
        """Return the derivatives of the gradient along many vectors at once."""
        found = torch.autograd.grad(
            slope, self.parameters, vectors, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        filled = [
            torch.zeros(len(vectors), p.numel(), dtype=p.dtype) if g is None else g.reshape(len(vectors), -1)
            for g, p in zip(found, self.parameters, strict=True)
        ]
        return torch.cat(filled, 1)

    @cached_property
    def values(self) -> Tensor:
        """The eigenvalues, ascending."""
        return torch.linalg.eigvalsh(self.hessian)

    @cached_property
    def norm(self) -> float:
        """The largest absolute eigenvalue."""
        return float(self.values.abs().max())

    def outputs(self, theta: Tensor) -> list[Tensor]:
        """Return the outputs of each batch as rows, for a loss that has them."""
        with self.at(theta), torch.no_grad():
            found = [self.parts.loss_fn.outputs(self.parts.model, batch) for batch in self.parts.batches]
        return [z.reshape(-1, z.shape[-1]) for z in found]

    @cached_property
    def jacobians(self) -> list[Tensor]:
        """The Jacobian of each batch's outputs, `(rows, C, n)`."""
        found = []
        with self.at(self.theta):
            for batch in self.parts.batches:
                z = self.parts.loss_fn.outputs(self.parts.model, batch)
                z = z.reshape(-1, z.shape[-1])
                found.append(torch.stack([self._slope(one, keep=True) for one in z.reshape(-1)]).view(*z.shape, -1))
        return found
