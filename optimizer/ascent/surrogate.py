"""What gradient a step follows once it has two: the adversarial one, or that one less the surrogate gap's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["SURROGATES", "adversarial", "gsam", "norm_of"]

_FLOOR: Final = 1e-12


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The norm over all tensors together, 0-d."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm


def adversarial(raised: Sequence[Tensor], base: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """The adversarial gradient itself, as SAM follows it.

    Args:
        raised: The gradients at `w + e`.
        base: The gradients at `w`, one for each.
        alpha: Not read.

    Returns:
        `raised`.
    """
    return list(raised)


def gsam(raised: Sequence[Tensor], base: Sequence[Tensor], alpha: float) -> list[Tensor]:
    r"""`g_s - alpha g_perp`, with `g_perp = g - <g, g_s> / |g_s|^2 g_s` over all tensors together.

    The step descends the perturbed loss along :math:`g_s`, and of the base gradient it ascends what is orthogonal to
    that: the perturbed loss does not change to first order, and the gap to the loss shrinks.

    Clipping the norm after the last pass leaves the direction as it is, as `Plan.follow` shortens g with :math:`g_s`.
    Clipping element by element (`clip_grad_value_`) turns :math:`g_s`, and only its norm reaches g: what is followed is
    then no longer the paper's.

    Args:
        raised: The gradients :math:`g_s` at `w + e`.
        base: The gradients g at `w`, one for each.
        alpha: The share of :math:`g_\perp`.

    Returns:
        One gradient for each.

    Source:
        J. Zhuang et al. (2022), Surrogate gap minimization improves sharpness-aware training, algorithm 1.
    """
    pairs = list(zip(raised, base, strict=True))
    overlap = torch.stack([torch.vdot(s.flatten(), g.flatten()) for s, g in pairs]).sum()
    share = overlap / (norm_of(raised).square() + _FLOOR)
    return [s - alpha * (g - share * s) for s, g in pairs]


SURROGATES: Final[dict[str, Callable[[Sequence[Tensor], Sequence[Tensor], float], list[Tensor]]]] = {
    "adversarial": adversarial,
    "gsam": gsam,
}
