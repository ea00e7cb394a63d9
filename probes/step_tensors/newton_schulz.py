"""Newton-Schulz as a map of singular values: its output spectrum, and its distance from the polar factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError

__all__ = ["check_newton_schulz_image", "newton_schulz_image", "newton_schulz_quality"]

Array = npt.NDArray[np.float64]
Coefficients = Sequence[Sequence[float]]
_BAND: Final = (0.68, 1.21)  # image of [1.5e-3, 1] of the norm under five steps of Keller Jordan's coefficients


@overload
def newton_schulz_image(
    values: Tensor, coefficients: Coefficients, *, eps: float = ..., norm: Tensor | float | None = ...
) -> Tensor: ...
@overload
def newton_schulz_image(
    values: Array, coefficients: Coefficients, *, eps: float = ..., norm: Array | float | None = ...
) -> Array: ...
def newton_schulz_image(
    values: Tensor | Array,
    coefficients: Coefficients,
    *,
    eps: float = 1e-7,
    norm: Tensor | Array | float | None = None,
) -> Tensor | Array:
    r"""Compute the singular values of the output of Newton-Schulz from those of its input.

    One iteration :math:`X \leftarrow aX + (bS + cS^2)X` with :math:`S = XX^\top` preserves the singular vectors and
    maps each singular value to :math:`p(x) = ax + bx^3 + cx^5`. In exact arithmetic the output has the singular values
    :math:`|p_k \circ \dots \circ p_1(\sigma / (\lVert A\rVert_F + \varepsilon))|`; computed ones differ by about 1e-5
    in float32 and 1e-2 in bfloat16.

    Args:
        values: `(..., r)` singular values of the input, all `r = min(m, n)` of them unless `norm` is given.
        coefficients: A triple `(a, b, c)` per iteration, in order; empty: only the scaling.
        eps: Constant that the iteration adds to the norm.
        norm: Frobenius norm of the input, one per spectrum: a number, or an array with the shape of `values` without
            the last axis. Default: the root of the sum of squared values.

    Returns:
        `(..., r)` float64 singular values, tensor or array like `values`, always **sorted descending**: the map is not
        monotone, so their order may differ from that of the input. They may exceed 1.

    Raises:
        ProbeError: A member of `coefficients` is not a triple.

    Source:
        Jordan et al. (2024), Muon: the coefficients 3.4445, -4.7750, 2.0315; section 2 of the project's notes
        on optimizers. The bands are checked by `test_the_keller_map_has_the_published_bands`.

    Example:
        >>> newton_schulz_image(torch.tensor([1.0]), [(3.4445, -4.7750, 2.0315)] * 5, eps=0.0).round(decimals=4)
        tensor([0.6964], dtype=torch.float64)
    """
    for triple in coefficients:
        if len(triple) != 3:
            raise ProbeError(f"coefficients must be triples (a, b, c), one per iteration, got {tuple(triple)}")
    if isinstance(values, Tensor):
        wide = values.detach().double()
        size = torch.linalg.vector_norm(wide, dim=-1) if norm is None else torch.as_tensor(norm).to(wide)
        image = _composed(wide / (size + eps).unsqueeze(-1), coefficients).abs()
        return image.sort(dim=-1, descending=True).values
    array = np.asarray(values, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1) if norm is None else np.asarray(norm, dtype=np.float64)
    return -np.sort(-np.abs(_composed(array / (length + eps)[..., None], coefficients)), axis=-1)


@torch.no_grad()
def check_newton_schulz_image(
    output: Tensor,
    values: Tensor,
    coefficients: Coefficients,
    *,
    eps: float = 1e-7,
    norm: Tensor | float | None = None,
) -> Tensor:
    """Return the largest difference between the predicted and the actual singular values of an output.

    The actual singular values are computed by a float64 SVD, so this check is independent of the map; it costs a few
    times as much as the map and its Gram matrix and is meant for occasional steps.

    Args:
        output: `(m, n)` or `(b, m, n)`, output of Newton-Schulz.
        values: `(r,)` or `(b, r)`, singular values of its input.
        coefficients: Triples that the iteration used.
        eps: Constant that the iteration added to the norm.
        norm: Frobenius norm of the input, see `newton_schulz_image`.

    Returns:
        A 0-d float64 tensor, in units of the output (1 is orthogonal); nan if either is not finite.

    Raises:
        ProbeError: `values` is not the spectrum of a tensor with the shape of `output`.
    """
    expected = (*output.shape[:-2], min(output.shape[-2:])) if output.ndim >= 2 else None
    if expected != tuple(values.shape):
        raise ProbeError(
            f"values must have shape {expected} for an output of shape {tuple(output.shape)}, got "
            f"{tuple(values.shape)}: pass the singular values of the input of Newton-Schulz"
        )
    finite = torch.isfinite(output).all()
    real = torch.linalg.svdvals(torch.where(finite, output.double(), 0.0))
    deviation = (real - newton_schulz_image(values, coefficients, eps=eps, norm=norm)).abs().amax()
    return torch.where(finite, deviation, torch.nan)


@overload
def _composed(x: Tensor, coefficients: Coefficients) -> Tensor: ...
@overload
def _composed(x: Array, coefficients: Coefficients) -> Array: ...
def _composed(x: Tensor | Array, coefficients: Coefficients) -> Tensor | Array:
    """Return the signed images of singular values over the norm: a negative one has flipped its singular vector."""
    for a, b, c in coefficients:
        square = x * x
        x = x * (a + square * (b + c * square))
    return x


@torch.no_grad()
def newton_schulz_quality(
    values: Tensor,
    coefficients: Sequence[Sequence[float]],
    *,
    band: tuple[float, float] = _BAND,
    eps: float = 1e-7,
    norm: Tensor | float | None = None,
) -> dict[str, Tensor]:
    r"""Compare the output of Newton-Schulz with the exact polar factor of its input.

    The iteration preserves the singular vectors of :math:`A = U \Sigma V^\top` and maps each singular value to
    :math:`p_i = p(\sigma_i / (\lVert A\rVert_F + \varepsilon))`, so its output is
    :math:`O = U\,\mathrm{diag}(p)\,V^\top` and need not be computed:

    ================  ==============================================================================
    outside_band      share of the singular values of A whose image is not in `band`, 0 to 1
    output_condition  :math:`\max |p_i| / \min |p_i|`; inf if a singular value is mapped to 0
    output_norm       :math:`\lVert O\rVert_F / \sqrt r`, 1 for an orthogonal output
    polar_cosine      :math:`\langle O, U V^\top\rangle / (\lVert O\rVert_F \sqrt r) = \sum p_i / \sqrt{r \sum p_i^2}`
    ================  ==============================================================================

    Args:
        values: `(..., r)` singular values of the input, all `r = min(m, n)` of them; leading axes are a batch of
            matrices of one shape.
        coefficients: A triple `(a, b, c)` per iteration, in order.
        band: Lower and upper end; a negative image is outside. Default: the range of five iterations with the
            coefficients 3.4445, -4.7750, 2.0315.
        eps: Constant that the iteration adds to the norm.
        norm: Divisor of the iteration without `eps`: a number, or a tensor with the shape of `values` without the last
            axis. Default: the Frobenius norm.

    Returns:
        0-d float64 tensors, or `(...)` for a batch, under the names above, on the device of `values`. All are nan for a
        matrix that is zero or not finite. If A is rank-deficient, the cosine is that to any completion of its polar
        factor. The rounding of the iteration itself is not included: 1e-5 in float32, 1e-2 in bfloat16.

    Raises:
        ProbeError: A member of `coefficients` is not a triple, the band is empty, or there is no value.

    Source:
        docs/measures/newton_schulz_quality.md.

    Example:
        >>> found = newton_schulz_quality(torch.tensor([2.0, 1.0, 0.001]), [(3.4445, -4.7750, 2.0315)] * 5)
        >>> {name: round(float(value), 3) for name, value in found.items()}
        {'outside_band': 0.333, 'output_condition': 5.169, 'output_norm': 0.766, 'polar_cosine': 0.878}
    """
    for triple in coefficients:
        if len(triple) != 3:
            raise ProbeError(f"coefficients must be triples (a, b, c), one per iteration, got {tuple(triple)}")
    if not band[0] < band[1]:
        raise ProbeError(f"band must be (low, high) with low < high, got {band}")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ProbeError(f"values must have shape (..., r) with r at least 1, got {tuple(values.shape)}")
    wide = values.detach().double()
    length = torch.linalg.vector_norm(wide, dim=-1)
    divisor = (length if norm is None else torch.as_tensor(norm).to(wide)) + eps
    valid = torch.isfinite(length) & (length > 0)
    p = _composed(torch.where(valid[..., None], wide / divisor[..., None], torch.nan), coefficients)
    size, root = torch.linalg.vector_norm(p, dim=-1), p.shape[-1] ** 0.5
    outside = ((p < band[0]) | (p > band[1])).double().mean(-1)
    return {
        "outside_band": torch.where(valid, outside, torch.nan),
        "output_condition": p.abs().amax(-1) / p.abs().amin(-1),
        "output_norm": size / root,
        "polar_cosine": p.sum(-1) / (size * root),
    }
