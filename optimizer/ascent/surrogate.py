"""Gradient that a sync step follows: the adversarial one, or GSAM's combination of both gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from lossscope.optimizer.update import sums

__all__ = ["SURROGATES", "adversarial", "gsam"]

_FLOOR: Final = 1e-12


def adversarial(raised: Sequence[Tensor], base: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """Return the adversarial gradient itself, which SAM follows.

    Args:
        raised: The gradients at `w + e`.
        base: The gradients at `w`, one for each.
        alpha: Not used.

    Returns:
        `raised`.
    """
    return list(raised)


def gsam(raised: Sequence[Tensor], base: Sequence[Tensor], alpha: float) -> list[Tensor]:
    r"""Return `g_s - alpha g_perp`, with `g_perp = g - <g, g_s> / |g_s|^2 g_s` over all tensors together.

    The step descends the perturbed loss along :math:`g_s` and ascends along the component of the base gradient that is
    orthogonal to it: this leaves the perturbed loss unchanged to first order and shrinks its gap to the loss.

    Clipping the norm after the last pass keeps the direction, because `StepPlan.follow` shortens g along with
    :math:`g_s`. Clipping element by element (`clip_grad_value_`) turns :math:`g_s`, and g is shortened by the change of
    its norm only: the result is then not that of the paper.

    Args:
        raised: The gradients :math:`g_s` at `w + e`.
        base: The gradients g at `w`, one for each.
        alpha: Coefficient of :math:`g_\perp`.

    Returns:
        One gradient for each.

    Source:
        J. Zhuang et al. (2022), Surrogate gap minimization improves sharpness-aware training, algorithm 1.
    """
    share = sums.share(base, raised, _FLOOR)
    return [s - alpha * sums.plus(g, s, -share) for s, g in zip(raised, base, strict=True)]


SURROGATES: Final[dict[str, Callable[[Sequence[Tensor], Sequence[Tensor], float], list[Tensor]]]] = {
    "adversarial": adversarial,
    "gsam": gsam,
}
