"""The geometry of a second, adversarial gradient: angle, shear, surrogate gap and secant curvature.

A list of tensors is read as one long vector (global quantities); pass one tensor for those of one tensor, or take
`angles` and `cosines` for those of each. The two differ: a shear against the global gradient is not made of the shears
of each tensor. Numbers are float64 tensors on the device of their input, 0-d but for those two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from lossscope.probes.steps.norms import Vector, inner, inners, pairs

__all__ = ["angle", "angles", "cosine", "cosines", "secants", "shear", "surrogate_gap"]


def cosine(left: Vector, right: Vector) -> Tensor:
    r"""The cosine :math:`\langle a, b\rangle / (\lVert a\rVert \lVert b\rVert)` of the angle between two vectors.

    Args:
        left: A tensor of any shape, or a list of tensors.
        right: The same shapes.

    Returns:
        A 0-d float64 tensor in [-1, 1]; nan, a gap, where either vector is zero. Do not take its arccos:
        in float32 that cannot see angles below 3e-4; `angle` can.

    Raises:
        ProbeError: the shapes differ.
    """
    return _cosine(inner(left, left), inner(right, right), inner(left, right))


def cosines(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The `cosine` of each tensor and its match, made together.

    Args:
        left: A non-empty list of n tensors.
        right: The same shapes.

    Returns:
        `(n,)`, float64 in [-1, 1]; nan, a gap, where either is zero.

    Raises:
        ProbeError: the shapes differ, or there is no tensor.
    """
    return _cosine(inners(left, left), inners(right, right), inners(left, right))


def angle(left: Vector, right: Vector) -> Tensor:
    r"""The angle between two vectors, right also where they are nearly parallel.

    With :math:`s` the part of `right` orthogonal to `left` it is
    :math:`\mathrm{atan2}(\lVert a\rVert\lVert s\rVert, \langle a, b\rangle)`. The arccos of a cosine loses half of
    the digits near 0 and near pi, because the cosine is flat there; this form keeps an absolute error of a
    few roundings (1e-6 in float32).

    Args:
        left: A tensor of any shape, or a list of tensors.
        right: The same shapes.

    Returns:
        A 0-d float64 tensor in radians, in [0, pi]; nan, a gap, where either vector is zero.

    Raises:
        ProbeError: the shapes differ.

    Example:
        >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        tensor(1.5708, dtype=torch.float64)
    """
    squared, along = inner(left, left), inner(left, right)
    across = _without(right, left, along, squared)
    return _turn(squared, inner(right, right), along, inner(across, across))


def angles(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The `angle` between each tensor and its match, made together.

    Args:
        left: A non-empty list of n tensors.
        right: The same shapes.

    Returns:
        `(n,)`, float64 radians in [0, pi]; nan, a gap, where either is zero.

    Raises:
        ProbeError: the shapes differ, or there is no tensor.
    """
    squared, along = inners(left, left), inners(left, right)
    across = _without(right, left, along, squared)
    return _turn(squared, inners(right, right), along, inners(across, across))


@overload
def shear(adversarial: Tensor, gradient: Tensor) -> Tensor: ...
@overload
def shear(adversarial: Sequence[Tensor], gradient: Sequence[Tensor]) -> list[Tensor]: ...
def shear(adversarial: Tensor | Sequence[Tensor], gradient: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    r"""The part of the adversarial gradient orthogonal to the base gradient.

    .. math:: s = g_{adv} - \frac{\langle g_{adv}, g\rangle}{\langle g, g\rangle} g

    On a quadratic loss with ascent `e` it is :math:`(I - g g^\top / g^\top g) H e`, so it vanishes along an
    eigenvector however sharp that is: with :math:`e = \rho\hat g` its norm is :math:`\rho` times the standard
    deviation of curvature under the spectral measure of `g`, not the curvature.

    Args:
        adversarial: Gradient at the ascended parameters: a tensor, or a list of tensors.
        gradient: Base gradient, same shapes.

    Returns:
        A tensor, or a list of them (one projection for the whole list), float32 at least. A
        zero base gradient removes nothing.

    Raises:
        ProbeError: the shapes differ.

    Source:
        Liu et al. (2022), CVPR, LookSAM; docs/measures/shear.md.
    """
    found = _without(adversarial, gradient, inner(adversarial, gradient), inner(gradient, gradient))
    return found[0] if isinstance(adversarial, Tensor) else found


def surrogate_gap(loss: Tensor, adversarial_loss: Tensor) -> Tensor:
    r"""The rise of the loss along the ascent, :math:`h = L(\theta + e) - L(\theta)`.

    Away from a minimum it is :math:`\langle g, e\rangle` to first order, a slope and not a curvature.

    Args:
        loss: 0-d, loss at the parameters.
        adversarial_loss: 0-d, loss at the ascended parameters, same batch.

    Returns:
        A 0-d float64 tensor in nats; its error is the rounding of the losses, 6e-8 of a float32 loss each.

    Source:
        Zhuang et al. (2022), ICLR, GSAM; docs/measures/shear.md.
    """
    return adversarial_loss.detach().double() - loss.detach().double()


def secants(
    gradient: Vector, adversarial: Vector, perturbation: Vector, gap: Tensor | None = None
) -> dict[str, Tensor]:
    r"""The curvature along an ascent, from what the second pass has computed anyway.

    .. math:: \frac{\langle g_{adv} - g, e\rangle}{\lVert e\rVert^2}, \qquad
              \frac{2 (h - \langle g, e\rangle)}{\lVert e\rVert^2}

    Both are :math:`e^\top H e / \lVert e\rVert^2` exactly where the loss is quadratic; elsewhere the first is the
    plain mean of the curvature over the segment and the second one is weighted towards its beginning.

    Args:
        gradient: Base gradient: a tensor, or a list of tensors.
        adversarial: Gradient at the ascended parameters on the same batch, same shapes.
        perturbation: The ascent `e`, same shapes.
        gap: 0-d surrogate gap of the whole model. It belongs to lists that hold every perturbed parameter.

    Returns:
        `secant_gradient` and, with `gap`, `secant_loss`: 0-d float64 tensors in nats; nan, a gap, where the
        ascent is zero. For one tensor of many the first contains its cross curvature with the others, which
        moved too. In float32 the second cannot resolve less than about 2e-7 L / |e|^2.

    Raises:
        ProbeError: the shapes differ.

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
    """The vector less its projection on the direction, given their inner product and the direction's square.

    These are of the whole, or `(n,)`, of each tensor by itself.
    """
    both = pairs(vector, direction)
    shares = torch.where(squared > 0, along / squared, 0.0).expand(len(both)).unbind()
    return [a - share * g for (a, g), share in zip(both, shares, strict=True)]


def _cosine(left: Tensor, right: Tensor, along: Tensor) -> Tensor:
    """From the squares of both vectors and their inner product."""
    return (along / (left.sqrt() * right.sqrt())).clamp(-1.0, 1.0)


def _turn(left: Tensor, right: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """From the squares of both vectors, their inner product, and the square of what of the second is across."""
    return torch.where((left > 0) & (right > 0), torch.atan2((left * across).sqrt(), along), torch.nan)
