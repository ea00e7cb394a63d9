"""Update rules whose steps use estimates of curvature from passes of their own, each declared beside its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import sums
from lossscope.optimizer.update.adam import ParameterStep, Update, decay, move, zeros_state
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.rule import Bound, Direction, Group, Need, Rule, zeros
from lossscope.optimizer.update.rules import RULES, sgd

__all__ = ["RULES", "check_displacement"]

_ABOVE: Final = Bound("above 0 and finite", lambda x: 0 < x < math.inf)
_PERIOD: Final = Bound("an integer of at least 1", lambda x: 1 <= x < math.inf and x == int(x))


def sophia(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`m <- b1 m + (1 - b1) g`, `W <- (1 - lr wd) W - lr clip(m / (gamma h + eps), -1, 1)`.

    Every `period` steps `h <- b2 h + (1 - b2) N s^2` first, with the gradient s of the mean loss of N labels drawn from
    the model.
    """
    decay(group, moments)
    taken = []
    for moment in moments:
        state, (b1, b2) = moment.state, group["betas"]
        m = state["exp_avg"].lerp_(moment.gradient, 1 - b1)
        if "gradient" in moment.estimate:
            _remember_square(state["curvature"], moment.estimate["gradient"], b2)
        state["step"] += 1
        dtype = sums.arithmetic(m)  # eps vanishes in half precision
        ratio = m.to(dtype) / (state["curvature"].to(dtype) * group["gamma"] + group["eps"])
        direction = ratio.clamp_(-1, 1).to(m).add_(m, alpha=0.0)  # an infinite momentum shows as NaN
        taken.append(move(group, moment, Update(direction, 1.0)))
    return taken


RULES["sophia-g"] = Rule(
    step=sophia,
    words="Sophia-G: the momentum over a running diagonal of the Fisher matrix, from drawn labels, clipped",
    source="Liu et al. (2023)",
    lr=1e-4,
    weight_decay=0.1,
    settings={"betas": (0.965, 0.99), "gamma": 0.04, "eps": 1e-15, "period": 10, "seed": 0},
    bounds={"gamma": _ABOVE, "eps": _ABOVE, "period": _PERIOD},
    fresh_state=zeros("exp_avg", "curvature"),
    direction=Direction.OTHER,
    momentum="exp_avg",
    needs=Need.SAMPLED_GRADIENT,
)


def adahessian(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`v <- b2 v + (1 - b2) D^2`, `W <- (1 - lr wd) W - lr m_hat / (v_hat^(power / 2) + eps)`, with m as in Adam.

    D is the size of the estimated diagonal of the Hessian, averaged over the rows of a matrix, over the kernel of a
    convolution and over the last axis of other tensors.
    """
    decay(group, moments)
    taken = []
    for moment in moments:
        state, (b1, b2) = moment.state, group["betas"]
        m = state["exp_avg"].lerp_(moment.gradient, 1 - b1)
        _remember_square(state["exp_hessian_diag_sq"], _averaged(moment.estimate["diagonal"].abs()), b2)
        state["step"] += 1
        dtype = sums.arithmetic(m)
        first, second = 1 - b1**moment.steps, 1 - b2**moment.steps
        root = (state["exp_hessian_diag_sq"].to(dtype) / second) ** (group["power"] / 2)
        direction = (m.to(dtype) / first / (root + group["eps"])).to(m)
        taken.append(move(group, moment, Update(direction, 1.0)))
    return taken


def _averaged(sizes: Tensor) -> Tensor:
    """Return the sizes with their means over the axes that are averaged, in the same shape."""
    axes = tuple(range(2, sizes.ndim)) if sizes.ndim > 2 else (1,) if sizes.ndim == 2 else ()
    return sizes.mean(axes, keepdim=True).expand_as(sizes) if axes and sizes.numel() else sizes


RULES["adahessian"] = Rule(
    step=adahessian,
    words="AdaHessian: Adam whose second moment is of a diagonal of the Hessian, from products with random signs",
    source="Yao et al. (2021)",
    lr=0.15,
    settings={"betas": (0.9, 0.999), "eps": 1e-4, "power": 1.0, "seed": 0},
    bounds={"power": Bound("above 0, at most 1", lambda x: 0 < x <= 1)},
    floors=("eps",),
    fresh_state=zeros("exp_avg", "exp_hessian_diag_sq"),
    direction=Direction.OTHER,
    momentum="exp_avg",
    needs=Need.HESSIAN_PRODUCT,
)


def check_displacement(group: Group) -> None:
    """Raise an `OptimizerError` if losses at `w + mu u` and `w - mu u` would differ by less than rounding.

    A loss is rounded to about its last digit e, so that of the derivative is off by `e / mu`, and w itself by `e w`.
    """
    for parameter in group["params"]:
        least = math.sqrt(torch.finfo(parameter.dtype).eps)
        if float(group["mu"]) < least:
            raise OptimizerError(
                f"mu={group['mu']!r} must be at least {least:.1e} for {parameter.dtype}, where closer losses differ by "
                "rounding: set mu, or keep the weights in a wider dtype"
            )


RULES["zo-gd"] = Rule(
    step=sgd,
    words="zeroth-order descent: SGD, with optional momentum, along a normal direction by the difference of two losses",
    source="Nesterov and Spokoiny (2017); Malladi et al. (2023)",
    lr=1e-3,
    settings={"momentum": 0.0, "nesterov": False, "mu": 1e-3, "seed": 0},
    bounds={"mu": _ABOVE},
    check=check_displacement,
    fresh_state=RULES["sgd"].fresh_state,
    optional_state=RULES["sgd"].optional_state,
    direction=Direction.OTHER,
    momentum="momentum_buffer",
    decoupled_decay=False,
    needs=Need.TWO_LOSSES,
)


def kfac(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr (B + damping I)^-1 G (A + damping I)^-1`.

    A and B are running means of the second moments of a dense layer's inputs and of its output gradients with labels
    drawn from the model, measured every `period` steps: a Kronecker product that stands for its Fisher matrix.
    """
    decay(group, moments)
    taken = []
    for moment in moments:
        state = moment.state
        for key, measured in moment.estimate.items():
            share = 1 - group["factor_beta"] if moment.steps else 1.0
            state[key].lerp_(measured.to(state[key]), share)
        state["step"] += 1
        direction = _between_inverses(state["outputs"], moment.gradient, state["inputs"], group["damping"])
        taken.append(move(group, moment, Update(direction, 1.0)))
    return taken


def _between_inverses(B: Tensor, G: Tensor, A: Tensor, damping: float) -> Tensor:
    """Return `(B + damping I)^-1 G (A + damping I)^-1`; NaN if a factor is not finite."""
    (left, bad_left), (right, bad_right) = (_cholesky(factor, damping) for factor in (B, A))
    half = torch.cholesky_solve(G.to(left), left)
    found = torch.cholesky_solve(half.mT, right).mT
    return torch.where((bad_left + bad_right) == 0, found, math.nan).to(G.dtype)


def _cholesky(factor: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return the lower triangle of a damped factor, in float64 where there is one, and a number that is 0 if it is.

    The factor was rounded to its own dtype, which can make small eigenvalues negative: the damping is at least that.
    """
    wide = factor.to(torch.float32 if factor.device.type == "mps" else torch.float64)
    rounding = 2 * math.sqrt(len(factor)) * torch.finfo(factor.dtype).eps
    added = (wide.diagonal().amax() * rounding).clamp(min=damping) if len(factor) else damping
    triangle, info = torch.linalg.cholesky_ex(wide + added * torch.eye(len(wide), dtype=wide.dtype, device=wide.device))
    return triangle, info


def _kfac_state(group: Group, parameter: Tensor) -> dict[str, Any]:
    """Return the two factors of a dense layer."""
    m, n = parameter.shape
    return zeros_state(parameter, ()) | {"inputs": parameter.new_zeros(n, n), "outputs": parameter.new_zeros(m, m)}


def _check_dense(group: Group) -> None:
    """Reject matrices that cannot be the weight of a dense layer."""
    for parameter in group["params"]:
        if track_of(group, parameter) == "matrix" and parameter.ndim != 2:
            raise OptimizerError(
                f"kfac steps weights of dense layers, got a parameter of shape {tuple(parameter.shape)}: put it in a "
                "group with track='vector', where it takes AdamW's step"
            )


RULES["kfac"] = Rule(
    step=kfac,
    words="K-FAC: the gradient of each dense layer between the inverses of two Fisher factors; AdamW for the rest",
    source="Martens and Grosse (2015)",
    lr=0.1,
    settings={"damping": 0.03, "factor_beta": 0.95, "period": 1, "seed": 0, "betas": (0.9, 0.999), "eps": 1e-8},
    bounds={"damping": _ABOVE, "factor_beta": Bound("in [0, 1)", lambda x: 0 <= x < 1), "period": _PERIOD},
    check=_check_dense,
    fresh_state=_kfac_state,
    direction=Direction.OTHER,
    adamw_vectors=True,
    vector_lr=1e-3,
    needs=Need.LAYER_FACTORS,
)


def _remember_square(kept: Tensor, values: Tensor, beta: float) -> None:
    """Update a running mean of squares in the range of its dtype; values that are not finite show in it as NaN."""
    wide = values.to(sums.arithmetic(values))
    mixed = kept.to(wide) * beta + wide.square() * (1 - beta)
    kept.copy_(mixed.clamp_(max=torch.finfo(kept.dtype).max).add_(wide, alpha=0.0))
