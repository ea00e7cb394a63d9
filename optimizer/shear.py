"""The shear: the part of the adversarial gradient that the base gradient does not have.

Between two adversarial passes the stored shear is added to plain gradients (LookSAM, Liu et al., 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["SHEARS", "injected", "misalignment", "placebo", "residual"]

SHEARS: Final = ("looksam", "placebo", "signflip", "off")

_FLOOR: Final = 1e-12


def residual(adversarial: Tensor, gradient: Tensor) -> Tensor:
    """`g_adv - <g_adv, g> / <g, g> g`: orthogonal to the gradient, not normalised."""
    overlap = torch.vdot(adversarial.flatten(), gradient.flatten())
    square = torch.vdot(gradient.flatten(), gradient.flatten())
    return torch.addcmul(adversarial, gradient, overlap / (square + _FLOOR), value=-1)


def placebo(shear: Tensor, gradient: Tensor, seed: int) -> Tensor:
    """A random vector orthogonal to the gradient with the norm of the shear: the control of an ablation.

    It is drawn from its own generator, so that training with it uses no other random numbers and a
    resumed run draws the same one.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shear.shape, generator=generator, dtype=torch.float64).to(shear)
    noise = residual(noise, gradient)
    return torch.mul(noise, torch.linalg.vector_norm(shear) / (torch.linalg.vector_norm(noise) + _FLOOR))


def injected(gradient: Tensor, shear: Tensor, alpha: float) -> Tensor:
    """`g + alpha |g| / |s| s`: what is added has the size of the gradient, whatever the shear's size."""
    size = torch.linalg.vector_norm(gradient) / (torch.linalg.vector_norm(shear) + _FLOOR)
    return torch.addcmul(gradient, shear, alpha * size)


def misalignment(gradients: Sequence[Tensor], shears: Sequence[Tensor]) -> float | None:
    """phi: the signed cosine between the gradient and the stored shear, over all tensors that have one.

    Three sums a tensor, one host synchronisation in all. None where no shear is stored yet.
    """
    if not shears:
        return None
    dots = torch.stack([torch.vdot(g.flatten(), s.flatten()) for g, s in zip(gradients, shears, strict=True)])
    squares = torch.stack(torch._foreach_norm([*gradients, *shears])).square_()
    half = len(dots)
    sums = torch.stack([dots.sum(), squares[:half].sum(), squares[half:].sum()])
    dot, gradient_square, shear_square = (float(x) for x in sums.tolist())
    return dot / (float((gradient_square * shear_square) ** 0.5) + _FLOOR)
