"""Geometry of the adversarial gradient: angle, shear, surrogate gap and secant curvature.

A list of tensors is treated as one long vector (global quantities); pass a single tensor for its own quantities, or use
`angles` and `cosines` for those of each tensor. The two differ: the shear against the global gradient is not composed
of the shears of each tensor. Results are float64 tensors on the device of the input, 0-d except for those two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from lossscope.probes.step_tensors.norms import Vector, inner, inners, pairs

__all__ = ["angle", "angles", "cosine", "cosines", "secants", "shear", "surrogate_gap"]


def cosine(left: Vector, right: Vector) -> Tensor:
    r"""Compute the cosine :math:`\langle a, b\rangle / (\lVert a\rVert \lVert b\rVert)` of two vectors.

    Args:
        left: A tensor of any shape, or a list of tensors.
        right: Same shapes.

    Returns:
        A 0-d float64 tensor in [-1, 1]; nan if either vector is zero. Use `angle` instead of its arccos, which cannot
        resolve angles below 3e-4 in float32.

    Raises:
        ProbeError: The shapes differ.
    """
    return _cosine(inner(left, left), inner(right, right), inner(left, right))


def cosines(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Compute the `cosine` of each pair of tensors.

    Args:
        left: A non-empty list of n tensors.
        right: Same shapes.

    Returns:
        `(n,)`, float64 in [-1, 1]; nan where either tensor is zero.

    Raises:
        ProbeError: The shapes differ, or there is no tensor.
    """
    return _cosine(inners(left, left), inners(right, right), inners(left, right))


def angle(left: Vector, right: Vector) -> Tensor:
    r"""Compute the angle between two vectors, accurately also if they are nearly parallel.

    With :math:`s` the part of `right` orthogonal to `left` it is
    :math:`\mathrm{atan2}(\lVert a\rVert\lVert s\rVert, \langle a, b\rangle)`. The arccos of a cosine loses half of
    the digits near 0 and near pi, because the cosine is flat there; this form has an absolute error of a few roundings
    (1e-6 in float32).

    Args:
        left: A tensor of any shape, or a list of tensors.
        right: Same shapes.

    Returns:
        A 0-d float64 tensor in radians, in [0, pi]; nan if either vector is zero.

    Raises:
        ProbeError: The shapes differ.

    Example:
        >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        tensor(1.5708, dtype=torch.float64)
    """
    squared, along = inner(left, left), inner(left, right)
    across = _without(right, left, along, squared)
    return _angle(squared, inner(right, right), along, inner(across, across))


def angles(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Compute the `angle` of each pair of tensors.

    Args:
        left: A non-empty list of n tensors.
        right: Same shapes.

    Returns:
        `(n,)`, float64 radians in [0, pi]; nan where either tensor is zero.

    Raises:
        ProbeError: The shapes differ, or there is no tensor.
    """
    squared, along = inners(left, left), inners(left, right)
    across = _without(right, left, along, squared)
    return _angle(squared, inners(right, right), along, inners(across, across))


@overload
def shear(adversarial: Tensor, gradient: Tensor) -> Tensor: ...
@overload
def shear(adversarial: Sequence[Tensor], gradient: Sequence[Tensor]) -> list[Tensor]: ...
def shear(adversarial: Tensor | Sequence[Tensor], gradient: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    r"""Return the shear: the part of the adversarial gradient orthogonal to the base gradient.

    .. math:: s = g_{adv} - \frac{\langle g_{adv}, g\rangle}{\langle g, g\rangle} g

    On a quadratic loss with ascent `e` it is :math:`(I - g g^\top / g^\top g) H e`, so it vanishes along any
    eigenvector, whatever its eigenvalue: with :math:`e = \rho\hat g` its norm is :math:`\rho` times the standard
    deviation of curvature under the spectral measure of `g`, not the curvature.

    Args:
        adversarial: Gradient at the ascended parameters: a tensor, or a list of tensors.
        gradient: Base gradient, same shapes.

    Returns:
        A tensor, or a list of tensors (one projection for the whole list), float32 at least. If the base gradient is
        zero, nothing is removed.

    Raises:
        ProbeError: The shapes differ.

    Source:
        Liu et al. (2022), CVPR, LookSAM; docs/measures/shear.md.
    """
    found = _without(adversarial, gradient, inner(adversarial, gradient), inner(gradient, gradient))
    return found[0] if isinstance(adversarial, Tensor) else found


def surrogate_gap(loss: Tensor, adversarial_loss: Tensor) -> Tensor:
    r"""Compute the surrogate gap, the increase of the loss along the ascent, :math:`h = L(\theta + e) - L(\theta)`.

    Away from a minimum it is :math:`\langle g, e\rangle` to first order, a slope and not a curvature.

    Args:
        loss: 0-d, loss at the parameters.
        adversarial_loss: 0-d, loss at the ascended parameters, same batch.

    Returns:
        A 0-d float64 tensor in the unit of the loss; its error is the rounding of the losses, 6e-8 relative for each
        float32 loss.

    Source:
        Zhuang et al. (2022), ICLR, GSAM; docs/measures/shear.md.
    """
    return adversarial_loss.detach().double() - loss.detach().double()


def secants(
    gradient: Vector, adversarial: Vector, perturbation: Vector, gap: Tensor | None = None
) -> dict[str, Tensor]:
    r"""Compute the secant curvature along an ascent from the results of the second pass.

    .. math:: \frac{\langle g_{adv} - g, e\rangle}{\lVert e\rVert^2}, \qquad
              \frac{2 (h - \langle g, e\rangle)}{\lVert e\rVert^2}

    Both equal :math:`e^\top H e / \lVert e\rVert^2` for a quadratic loss; otherwise the first is the unweighted mean of
    the curvature over the segment and the second is weighted towards its beginning.

    Args:
        gradient: Base gradient: a tensor, or a list of tensors.
        adversarial: Gradient at the ascended parameters on the same batch, same shapes.
        perturbation: The ascent `e`, same shapes.
        gap: 0-d surrogate gap of the whole model; pass it only with lists of all perturbed parameters.

    Returns:
        `secant_gradient` and, with `gap`, `secant_loss`: 0-d float64 tensors in the unit of the loss; nan if the ascent
        is zero. For one tensor of several the first includes its cross curvature with the others, which moved too. In
        float32 the second cannot resolve less than about 2e-7 L / |e|^2.

    Raises:
        ProbeError: The shapes differ.

    Source:
        docs/measures/shear.md.
    """
    change = [b - a for a, b in pairs(gradient, adversarial)]
    ascent = [perturbation] if isinstance(perturbation, Tensor) else perturbation
    squared = inner(ascent, ascent)
    length = torch.where(squared > 0, squared, torch.nan)
    found = {"secant_gradient": inner(change, ascent) / length}
    if gap is not None:
        found["secant_loss"] = 2 * (gap.detach().double() - inner(gradient, perturbation)) / length
    return found


def _without(vector: Vector, direction: Vector, along: Tensor, squared: Tensor) -> list[Tensor]:
    """Return the vector minus its projection on the direction, given their inner product and the direction's square.

    Inner product and square are 0-d for one projection of the whole, or `(n,)` for one projection per tensor.
    """
    both = pairs(vector, direction)
    shares = torch.where(squared > 0, along / squared, 0.0).expand(len(both)).unbind()
    return [a - share * g for (a, g), share in zip(both, shares, strict=True)]


def _cosine(left: Tensor, right: Tensor, along: Tensor) -> Tensor:
    """Return the cosine, from the squared norms of both vectors and their inner product."""
    return (along / (left.sqrt() * right.sqrt())).clamp(-1.0, 1.0)


def _angle(left: Tensor, right: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """Return the angle, from both squared norms, the inner product and the orthogonal part's squared norm."""
    return torch.where((left > 0) & (right > 0), torch.atan2((left * across).sqrt(), along), torch.nan)
