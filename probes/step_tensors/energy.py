"""Energies of one adaptive step of one tensor: sums over m-hat, v-hat, the gradient and the update."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.norms import at_least_float32

__all__ = ["energies"]

_NAMES: Final = ("energy", "natural_energy", "gradient_energy", "update_energy", "second_moment_sum", "alignment")


@torch.no_grad()
def energies(
    m_hat: Tensor,
    v_hat: Tensor,
    eps: float,
    *,
    gradient: Tensor,
    update: Tensor,
    orthogonal: Tensor | None = None,
    whitened: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Compute the energies of one step of one tensor, each a sum over its entries.

    With :math:`A = \hat m / (\sqrt{\hat v} + \varepsilon)`:

    ==================  =========================================================================
    energy              :math:`E = \lVert A\rVert_F`
    energy_rms          :math:`E / \sqrt{numel}`: sqrt((1 - b1) / (1 + b1)) for white noise, 1 for a
                        constant gradient, so a measure of signal to noise
    natural_energy      :math:`\sum \hat m^2 \hat v / (\sqrt{\hat v} + \varepsilon)^2 = \sum A^2 \hat v`
    alignment           :math:`\langle O, A\rangle`: the nuclear norm of A if O is its polar factor
    gradient_energy     :math:`\sum g^2 / (\sqrt{\hat v} + \varepsilon)`
    update_energy       :math:`\sum \Delta W^2 \hat v`
    second_moment_sum   :math:`\sum \hat v`: not a Fisher trace, it depends on the batch size
    ==================  =========================================================================

    Products are computed in the dtype of the tensors, float32 at least, and summed pairwise: the relative error of the
    sums, whose terms are nonnegative, stays below 1e-6 in float32 at ten million entries. The error of the alignment is
    relative to :math:`\sum |O A|`.

    Args:
        m_hat: Bias-corrected first moment, any shape.
        v_hat: Bias-corrected second moment, same shape, nonnegative.
        eps: Constant that the optimizer adds to the root.
        gradient: Gradient of the step, same shape.
        update: Change of the parameter, same shape.
        orthogonal: Output of Newton-Schulz for A, same shape. Default: no alignment is returned.
        whitened: A, if the optimizer has computed it already; saves a division over the tensor.

    Returns:
        0-d float64 tensors under the names above; `alignment` only with `orthogonal`.

    Raises:
        ProbeError: A shape differs from that of `v_hat`, or `v_hat` is empty.

    Source:
        docs/measures/energy.md.

    Example:
        >>> one = torch.ones(2, 2)
        >>> energies(one, one, 0.0, gradient=one, update=one)["energy_rms"]
        tensor(1., dtype=torch.float64)
    """
    tensors = {"m_hat": m_hat, "gradient": gradient, "update": update, "orthogonal": orthogonal}
    _check_shapes(v_hat, tensors | {"whitened": whitened})
    v = at_least_float32(v_hat)
    root = v.sqrt().add_(eps)
    A = at_least_float32(m_hat) / root if whitened is None else at_least_float32(whitened)
    g, change = at_least_float32(gradient), at_least_float32(update)
    square = A * A
    sums = [
        square.sum(),
        square.mul_(v).sum(),
        (g * g).div_(root).sum(),
        (change * change).mul_(v).sum(),
        v.sum(),
    ]
    if orthogonal is not None:
        sums.append((at_least_float32(orthogonal) * A).sum())
    found = dict(zip(_NAMES, torch.stack(sums).double().unbind(), strict=False))
    energy = found["energy"].sqrt()
    return found | {"energy": energy, "energy_rms": energy / v.numel() ** 0.5}


def _check_shapes(v_hat: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Raise if a shape differs from that of `v_hat`, which broadcasting would hide, or if `v_hat` is empty."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != v_hat.shape:
            raise ProbeError(
                f"{name} must have the shape {tuple(v_hat.shape)} of v_hat, got {tuple(tensor.shape)}: "
                "reshape it to the shape of the parameter"
            )
    if v_hat.numel() == 0:
        raise ProbeError(f"v_hat must not be empty, got shape {tuple(v_hat.shape)}: leave this parameter out")
