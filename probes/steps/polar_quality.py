"""How close to the polar factor of a matrix Newton-Schulz has come, from the singular values of its input alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.steps.newton_schulz import composed

__all__ = ["BAND", "newton_schulz_quality"]

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
