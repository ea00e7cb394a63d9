"""Gradient that a sync step follows: the adversarial one, or GSAM's combination of both gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from lossscope.optimizer.update import sums

__all__ = ["SURROGATES", "adversarial", "gsam"]

_FLOOR: Final = 1e-12


def adversarial(
    raised: Sequence[Tensor], base: Sequence[Tensor], alpha: float, before: sums.Number | None = None
) -> list[Tensor]:
    """Return the adversarial gradient itself, which SAM follows.

    Args:
        raised: The gradients at `w + e`.
        base: The gradients at `w`, one for each.
        alpha: Not used.
        before: Not used.

    Returns:
        `raised`.
    """
    return list(raised)


def gsam(
    raised: Sequence[Tensor], base: Sequence[Tensor], alpha: float, before: sums.Number | None = None
) -> list[Tensor]:
    r"""Return `g_s - alpha g_perp`, with `g_perp = g - <g, g_s> / |g_s|^2 g_s` over all tensors together.

    The step descends the perturbed loss along :math:`g_s` and ascends along the component of the base gradient that is
    orthogonal to it: this leaves the perturbed loss unchanged to first order and shrinks its gap to the loss.

    Clipping the norm after the last pass shortens :math:`g_s` only. g is shortened by the same factor here, so that the
    direction is that of the unclipped gradients. Clipping element by element (`clip_grad_value_`) turns :math:`g_s`,
    and g is shortened by the change of its norm only: the result is then not that of the paper.

    Args:
        raised: The gradients :math:`g_s` at `w + e`.
        base: The gradients g at `w`, one for each.
        alpha: Coefficient of :math:`g_\perp`.
        before: Norm of :math:`g_s` before it was clipped; None if it was not.

    Returns:
        One gradient for each.

    Source:
        J. Zhuang et al. (2022), Surrogate gap minimization improves sharpness-aware training, algorithm 1.
    """
    share, size = sums.share_and_norm(base, raised, _FLOOR)
    kept = 1.0 if before is None else _kept(size, before)
    return [sums.combined(s, 1 + alpha * kept * share, g, -alpha * kept) for s, g in zip(raised, base, strict=True)]


def _kept(size: sums.Number, before: sums.Number) -> sums.Number:
    """Return the factor by which a norm was shortened, 1 if it was 0."""
    if isinstance(size, float) and isinstance(before, float):
        return size / before if before else 1.0
    return torch.where(torch.as_tensor(before == 0), 1.0, torch.as_tensor(size / before))


SURROGATES: Final[dict[str, Callable[..., list[Tensor]]]] = {
    "adversarial": adversarial,
    "gsam": gsam,
}
