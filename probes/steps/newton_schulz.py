"""What Newton-Schulz makes of singular values: a map of numbers, one polynomial for each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError

__all__ = ["BAND", "check_newton_schulz_image", "composed", "newton_schulz_image", "newton_schulz_quality"]

Array = npt.NDArray[np.float64]
Coefficients = Sequence[Sequence[float]]


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
    r"""The singular values of the output of Newton-Schulz, from those of its input.

    One iteration :math:`X \leftarrow aX + (bS + cS^2)X` with :math:`S = XX^\top` keeps the singular vectors and
    sends each singular value to :math:`p(x) = ax + bx^3 + cx^5`. So the output has the singular values
    :math:`|p_k \circ \dots \circ p_1(\sigma / (\lVert A\rVert_F + \varepsilon))|`, exactly in exact arithmetic;
    the real ones differ by about 1e-5 in float32 and 1e-2 in bfloat16.

    Args:
        values: `(..., r)` singular values of the input, all `r = min(m, n)` of them unless `norm` is given.
        coefficients: A triple `(a, b, c)` for each iteration, first one first; empty: only the scaling.
        eps: Added to the norm, as the iteration does.
        norm: The Frobenius norm of the input, one for each spectrum: a number, or the shape of `values`
            without the last axis. Default: the root of the sum of squared values.

    Returns:
        `(..., r)` float64 singular values, of the kind of `values`, always **sorted descending**: the map is
        not monotone, so they need not stand in the order of the input. They may exceed 1.

    Raises:
        ProbeError: a member of `coefficients` is not a triple.

    Source:
        Jordan et al. (2024), Muon: the coefficients 3.4445, -4.7750, 2.0315; section 2 of the project's notes
        on optimizers. The bands are checked by `test_the_keller_map_has_the_published_bands`.

    Example:
        >>> newton_schulz_image(torch.tensor([1.0]), [(3.4445, -4.7750, 2.0315)] * 5, eps=0.0).round(decimals=4)
        tensor([0.6964], dtype=torch.float64)
    """
    for triple in coefficients:
        if len(triple) != 3:
            raise ProbeError(f"coefficients {tuple(triple)} are not a triple: give (a, b, c) for each iteration")
    if isinstance(values, Tensor):
        wide = values.detach().double()
        size = torch.linalg.vector_norm(wide, dim=-1) if norm is None else torch.as_tensor(norm).to(wide)
        image = composed(wide / (size + eps).unsqueeze(-1), coefficients).abs()
        return image.sort(dim=-1, descending=True).values
    array = np.asarray(values, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1) if norm is None else np.asarray(norm, dtype=np.float64)
    return -np.sort(-np.abs(composed(array / (length + eps)[..., None], coefficients)), axis=-1)


@torch.no_grad()
def check_newton_schulz_image(
    output: Tensor,
    values: Tensor,
    coefficients: Coefficients,
    *,
    eps: float = 1e-7,
    norm: Tensor | float | None = None,
) -> Tensor:
    """The largest distance between the spectrum that the map predicts and the real one of an output.

    The real singular values come from a float64 SVD, so this check shares nothing with the map; it costs a
    few times the map and its Gram matrix and is meant for a step now and then.

    Args:
        output: `(m, n)` or `(b, m, n)`, what Newton-Schulz returned.
        values: `(r,)` or `(b, r)`, singular values of its input.
        coefficients: The triples it used.
        eps: The number it added to the norm.
        norm: The Frobenius norm of the input, see `newton_schulz_image`.

    Returns:
        A 0-d float64 tensor, in units of the output (1 is orthogonal); nan where either is not finite.

    Raises:
        ProbeError: `values` is not the spectrum of a tensor with the shape of `output`.
    """
    expected = (*output.shape[:-2], min(output.shape[-2:])) if output.ndim >= 2 else None
    if expected != tuple(values.shape):
        raise ProbeError(
            f"values of shape {tuple(values.shape)} do not belong to an output of shape {tuple(output.shape)}: "
            "pass the singular values of the matrix that went into Newton-Schulz"
        )
    finite = torch.isfinite(output).all()
    real = torch.linalg.svdvals(torch.where(finite, output.double(), 0.0))
    deviation = (real - newton_schulz_image(values, coefficients, eps=eps, norm=norm)).abs().amax()
    return torch.where(finite, deviation, torch.nan)


@overload
def composed(x: Tensor, coefficients: Coefficients) -> Tensor: ...
@overload
def composed(x: Array, coefficients: Coefficients) -> Array: ...
def composed(x: Tensor | Array, coefficients: Coefficients) -> Tensor | Array:
    """The composed polynomials, with their signs: a negative image is a singular value whose vector has turned.

    Args:
        x: Singular values over the norm.
        coefficients: The triples `(a, b, c)`, first one first.

    Returns:
        Their images, in the same order.
    """
    for a, b, c in coefficients:
        square = x * x
        x = x * (a + square * (b + c * square))
    return x


BAND: Final = (0.68, 1.21)  # what five steps of Keller's triple reach from 1.5e-3 of the norm upwards


@torch.no_grad()
def newton_schulz_quality(
    values: Tensor,
    coefficients: Sequence[Sequence[float]],
    *,
    band: tuple[float, float] = BAND,
    eps: float = 1e-7,
    norm: Tensor | float | None = None,
) -> dict[str, Tensor]:
    r"""What Newton-Schulz makes of a matrix, held against its exact polar factor.

    The iteration keeps the singular vectors of :math:`A = U \Sigma V^\top` and sends each singular value to
    :math:`p_i = p(\sigma_i / (\lVert A\rVert_F + \varepsilon))`, so its output is
    :math:`O = U\,\mathrm{diag}(p)\,V^\top` and need not be looked at:

    ================  ==============================================================================
    outside_band      share of the singular values of A whose image is not in `band`, 0 to 1
    output_condition  :math:`\max |p_i| / \min |p_i|`; inf where a singular value is lost
    output_norm       :math:`\lVert O\rVert_F / \sqrt r`, 1 for an orthogonal output
    polar_cosine      :math:`\langle O, U V^\top\rangle / (\lVert O\rVert_F \sqrt r) = \sum p_i / \sqrt{r \sum p_i^2}`
    ================  ==============================================================================

    Args:
        values: `(..., r)` singular values of the input, all `r = min(m, n)` of them; several matrices of one shape at
            once.
        coefficients: A triple `(a, b, c)` for each iteration, first one first.
        band: Lower and upper end; a negative image is outside.
        eps: Added to the norm, as the iteration does.
        norm: What the iteration divides by, less `eps`: a number, or the shape of `values` without the last axis.
            Default: the Frobenius norm.

    Returns:
        0-d float64 tensors, or `(...)` for several matrices, under the names above, on the device of `values`. For a
        matrix that is zero or not finite all are nan, gaps. Where A has lost rank the cosine is that to any of its
        completed polar factors. The iteration's own rounding is not in them: 1e-5 in float32, 1e-2 in bfloat16.

    Raises:
        ProbeError: a member of `coefficients` is not a triple, the band is empty, or there is no value.

    Source:
        docs/measures/newton_schulz_quality.md.

    Example:
        >>> found = newton_schulz_quality(torch.tensor([2.0, 1.0, 0.001]), [(3.4445, -4.7750, 2.0315)] * 5)
        >>> {name: round(float(value), 3) for name, value in found.items()}
        {'outside_band': 0.333, 'output_condition': 5.169, 'output_norm': 0.766, 'polar_cosine': 0.878}
    """
    for triple in coefficients:
        if len(triple) != 3:
            raise ProbeError(f"coefficients {tuple(triple)} are not a triple: give (a, b, c) for each iteration")
    if not band[0] < band[1]:
        raise ProbeError(f"band={band} is empty, need its lower end first")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ProbeError(f"values of shape {tuple(values.shape)} are no spectrum: pass (..., r) singular values")
    wide = values.detach().double()
    length = torch.linalg.vector_norm(wide, dim=-1)
    divisor = (length if norm is None else torch.as_tensor(norm).to(wide)) + eps
    sound = torch.isfinite(length) & (length > 0)
    p = composed(torch.where(sound[..., None], wide / divisor[..., None], torch.nan), coefficients)
    size, root = torch.linalg.vector_norm(p, dim=-1), p.shape[-1] ** 0.5
    outside = ((p < band[0]) | (p > band[1])).double().mean(-1)
    return {
        "outside_band": torch.where(sound, outside, torch.nan),
        "output_condition": p.abs().amax(-1) / p.abs().amin(-1),
        "output_norm": size / root,
        "polar_cosine": p.sum(-1) / (size * root),
    }
