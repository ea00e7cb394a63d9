"""Record of an optimizer step: references to the tensors that the step used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lossscope.optimizer.update.newton_schulz import Triple

__all__ = ["StepRecord", "TensorRecord"]


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """One parameter of one step. Tensors are references: clone those you keep.

    `None` means that the step had no such tensor: no perturbation without a second pass, no Newton-Schulz
    output on the vector track, no second moment in a rule without one.
    """

    name: str
    track: str  # "matrix" or "vector"
    parameter: Tensor  # after the step
    gradient: Tensor | None  # g, at the parameters before the step
    perturbation: Tensor | None  # e
    adversarial: Tensor | None  # g_adv, at w + e
    stale_shear: Tensor | None  # s stored before the step
    shear: Tensor | None  # s of this step
    injected: Tensor | None  # g with the stored shear added, if that fed the moments
    followed: Tensor  # the gradient that fed the moments
    exp_avg: Tensor | None  # m
    exp_avg_sq: Tensor | None  # v
    first_correction: float | None  # 1 - beta1^t
    second_correction: float | None  # 1 - beta2^t
    eps: float | None
    momentum: Tensor | None  # of rules without Adam's moments
    whitened: Tensor | None  # A = m_hat / (sqrt(v_hat) + eps)
    source: Tensor | None  # the input of Newton-Schulz, in the shape of the parameter
    orthogonal: Tensor | None  # O, its output, in the shape of the parameter
    direction: Tensor  # direction of the step: O, A, ...
    scale: Tensor | float  # its factor, 0-d
    lr: float
    matrix_shape: tuple[int, ...] | None  # shape of the matrix view: (m, n) or (batch, m, n)

    @property
    def m_hat(self) -> Tensor | None:
        """The momentum, bias-corrected if it is Adam's; computed on access."""
        if self.exp_avg is None or self.first_correction is None:
            return self.momentum
        return self.exp_avg / self.first_correction

    @property
    def v_hat(self) -> Tensor | None:
        """The second moment, bias-corrected; computed on access."""
        if self.exp_avg_sq is None or self.second_correction is None:
            return None
        return self.exp_avg_sq / self.second_correction

    @property
    def update(self) -> Tensor:
        """`lr * scale * direction`, which the step subtracted in addition to the decay; computed on access."""
        return self.direction * (self.scale * self.lr)


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """One step, valid until the callback returns."""

    step: int  # counted from 1
    mode: str
    synced: bool  # True if a second gradient was taken
    loss: Tensor | None  # loss of the first pass, if the optimizer was given it
    adversarial_loss: Tensor | None  # loss of the second pass
    phi: float | None  # None if the mode does not measure it
    threshold: float | None
    alpha: float | None  # None if nothing was injected
    newton_schulz: tuple[Triple, ...]  # empty in a rule without it
    ns_norm: str | None  # norm that it divides by first, "frobenius" or "schatten4"
    uninjected: Callable[[], dict[str, Tensor]] | None  # `update` by name without the injection; see `observe`
    tensors: tuple[TensorRecord, ...]
