"""Arithmetic of a step once its gradient is known: Adam's moments, whitening, orthogonalization, update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import newton_schulz as ns
from lossscope.optimizer.update.matrix_view import direction_scale, matrix_view, track_of
from lossscope.optimizer.update.sums import Number, arithmetic, norm, plus, within

__all__ = [
    "ParameterStep",
    "Update",
    "apply_step",
    "decay",
    "move",
    "orthogonal_factor",
    "whitened",
    "zeros_state",
]


def zeros_state(parameter: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Return a step count and tensors of zeros like the parameter.

    They have the dtype of the parameter, as in `torch.optim.AdamW`. In bfloat16 the number nearest to 0.999 v is v, so
    that a second moment grows and hardly falls: keep weights in float32 there, or set betas up to (0.99, 0.99).

    Args:
        parameter: Gives shape, dtype and device.
        names: Keys of the tensors.

    Returns:
        The state. The step count is a tensor because torch casts all other numbers to the dtype of the parameter.
    """
    state: dict[str, Any] = {"step": torch.zeros((), dtype=torch.float32)}
    return state | {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in names}


@dataclass
class ParameterStep:
    """One parameter during a step."""

    index: int  # over all groups
    name: str
    parameter: Tensor
    gradient: Tensor  # the gradient that feeds the moments
    base: Tensor | None  # the base gradient
    stale_shear: Tensor | None
    state: dict[str, Any]
    injected: bool  # True if a shear was added to the gradient
    raised: Tensor | None = None  # the adversarial gradient of a sync step
    shear: Tensor | None = None  # the shear that this step has stored
    estimate: Mapping[str, Tensor] = field(default_factory=dict)  # from the passes that the rule needs, if it was due

    @property
    def steps(self) -> float:
        """Number of updates of this parameter's moments so far."""
        return float(self.state["step"])


@dataclass(frozen=True)
class Update:
    """The update of one parameter: `lr * scale * direction`."""

    direction: Tensor
    scale: Tensor | float
    orthogonal: Tensor | None = None
    matrix_shape: tuple[int, ...] | None = None
    source: Tensor | None = None  # the input of Newton-Schulz
    whitened: Tensor | None = None  # Adam's direction


def whitened(moments: Sequence[ParameterStep], betas: tuple[float, float], eps: float) -> list[Tensor]:
    """Update `m` and `v` with each gradient and return `A = m_hat / (sqrt(v_hat) + eps)` of each parameter."""
    gradients = [moment.gradient for moment in moments]
    means = [moment.state["exp_avg"] for moment in moments]
    squares = [moment.state["exp_avg_sq"] for moment in moments]
    steps = [moment.state["step"] for moment in moments]
    torch._foreach_add_(steps, 1)
    # v may forget gradients that m remembers, which makes A unbounded
    unbounded = betas[1] == 0 or betas[0] ** 2 >= betas[1]
    if not unbounded and _fusible(gradients, means):
        # Adam's fused kernel steps w - lr A: from zero, with lr -1, it leaves A in one pass over memory.
        A = [torch.zeros_like(mean) for mean in means]
        torch._fused_adam_(
            A,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=-1.0,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return A
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    if betas[1] == 0:  # a square that left the range stays infinite, and 0 times that is NaN
        torch._foreach_zero_(squares)
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
    if any(mean.dtype == torch.float16 for mean in means):  # c1 eps may vanish in it
        means, squares = [mean.to(arithmetic(mean)) for mean in means], [v.to(arithmetic(v)) for v in squares]
    corrections = [(1 - betas[0] ** m.steps, 1 - betas[1] ** m.steps) for m in moments]
    # m_hat / (sqrt(v_hat) + eps) = m / (c1 / sqrt(c2) sqrt(v) + c1 eps)
    denominators = list(torch._foreach_sqrt(squares))
    torch._foreach_mul_(denominators, [first / second**0.5 for first, second in corrections])
    torch._foreach_add_(denominators, [first * eps for first, _ in corrections])
    A = list(torch._foreach_div(means, denominators))
    if unbounded:
        A = [_in_range(a, moment.parameter, moment.gradient) for a, moment in zip(A, moments, strict=True)]
    return [a.to(moment.parameter.dtype) for a, moment in zip(A, moments, strict=True)]


def _in_range(A: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
    """Bound A, so that it and its norm have a place in the dtypes of a step; NaN where the gradient is not finite."""
    largest = min(torch.finfo(parameter.dtype).max, 1e-9 * torch.finfo(A.dtype).max)
    return A.clamp_(-largest, largest).add_(gradient, alpha=0.0)


def _fusible(gradients: Sequence[Tensor], means: Sequence[Tensor]) -> bool:
    # The kernel walks raw memory, so gradient and state must lie alike; step counters live on the CPU.
    dtype = means[0].dtype
    return dtype in (torch.float32, torch.float64) and all(
        m.device.type == "cpu" and m.dtype == g.dtype == dtype and m.stride() == g.stride()
        for m, g in zip(means, gradients, strict=True)
    )


def decay(group: dict[str, Any], moments: Sequence[ParameterStep]) -> None:
    """Apply decoupled weight decay before the step: `W <- (1 - lr wd) W`."""
    if group["weight_decay"] != 0:
        for moment in moments:  # the foreach form rounds the factor to the dtype: 0.9975 is 0.9961 in bfloat16
            moment.parameter.mul_(1 - group["lr"] * group["weight_decay"])


def move(group: dict[str, Any], moment: ParameterStep, update: Update) -> Update:
    """Move the parameter by `-lr * scale * direction` and return the update."""
    _move_by(group, moment.parameter, update.direction, update.scale)
    return update


def orthogonal_factor(group: dict[str, Any], source: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the Newton-Schulz image of a tensor in its own shape, and the shape of the matrix view it was made on."""
    view = _view(group, source)
    return _factor(group, view).reshape(source.shape), tuple(view.shape)


def _factor(group: dict[str, Any], view: Tensor, size: Number | None = None) -> Tensor:
    """Return the Newton-Schulz image of a view, given the norm of a view that is one matrix, if it is known."""
    if not view.numel():  # nothing to orthogonalize, and nothing that moves
        return view
    triples = ns.coefficients(group["newton_schulz"], group["ns_steps"])
    dtype = _product_dtype(group["ns_dtype"], view)
    return ns.orthogonal_factor(view, triples, dtype, norm=group["ns_norm"], sizes=size)


def _view(group: dict[str, Any], source: Tensor) -> Tensor:
    return matrix_view(source, flatten=group["flatten"], convolution=group["convolution"])


def apply_step(group: dict[str, Any], parameter: Tensor, A: Tensor) -> Update:
    """Move a parameter along its whitened momentum, or along the Newton-Schulz image of that."""
    if track_of(group, parameter) == "vector":
        _move_by(group, parameter, A, 1.0)
        return Update(A, 1.0, whitened=A)
    view = _view(group, A)
    E = norm(A)  # also the norm that Newton-Schulz divides by, if the tensor is one matrix
    O = _factor(group, view, E if view.ndim == 2 else None).reshape(A.shape)
    shape = tuple(view.shape)
    scale = direction_scale(group["energy"], E, O, shape, orthogonalize=group["orthogonalize"])
    direction = O if group["orthogonalize"] else A
    _move_by(group, parameter, direction, scale)
    return Update(direction, scale, O, shape, source=A, whitened=A)


def _move_by(group: dict[str, Any], parameter: Tensor, direction: Tensor, scale: Number) -> None:
    """Move a parameter by `-lr scale direction`, whose scale may have no place in float16."""
    if group["lr"] > 1:  # a step shorter than its direction cannot leave the range alone
        _refuse_overflow(float(group["lr"]), parameter, direction, float(scale))
    if parameter.dtype == torch.float16:
        parameter.copy_(plus(parameter, direction, -group["lr"] * scale))
    elif isinstance(scale, Tensor):
        parameter.addcmul_(direction, scale.to(parameter.dtype), value=-group["lr"])
    else:
        parameter.add_(direction, alpha=within(-group["lr"] * scale, parameter.dtype))


def _refuse_overflow(lr: float, parameter: Tensor, direction: Tensor, scale: float) -> None:
    """Raise an `OptimizerError` if a finite step takes finite weights out of the range of their dtype."""
    weight, size = _largest(parameter), _largest(direction)
    if math.isfinite(weight) and math.isfinite(size) and weight + lr * scale * size > torch.finfo(parameter.dtype).max:
        raise OptimizerError(
            f"lr={lr:g} takes weights out of the range of {parameter.dtype}, along a direction with elements of up to "
            f"{scale * size:.2g}: lower lr, or clip the gradients"
        )


def _largest(tensor: Tensor) -> float:
    """Return the size of the largest element; 0 for a tensor without elements."""
    return max(abs(float(end)) for end in tensor.aminmax()) if tensor.numel() else 0.0


def _product_dtype(setting: torch.dtype | str, A: Tensor) -> torch.dtype:
    """Return the dtype of Newton-Schulz products; `auto` is bfloat16 for float32 on CUDA, else the dtype of `A`."""
    if isinstance(setting, torch.dtype):
        return setting
    return torch.bfloat16 if A.dtype == torch.float32 and A.device.type == "cuda" else A.dtype
