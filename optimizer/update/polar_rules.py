"""Relatives of Muon: the polar factor with the size of the dual norm, and between two measured metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.optimizer.update import sums
from lossscope.optimizer.update.adam import ParameterStep, Update, decay, move, orthogonal_factor, zeros_state
from lossscope.optimizer.update.matrix_view import matrix_view
from lossscope.optimizer.update.rule import Bound, Direction, Group, Rule, zeros

__all__ = ["POLAR_RULES"]

POLAR_RULES: Final[dict[str, Rule]] = {}

_ORTHOGONAL: Final = {"newton_schulz": "keller", "ns_steps": 5, "ns_dtype": "auto", "ns_norm": "frobenius"}
_VECTORS: Final = {"betas": (0.9, 0.95), "eps": 1e-10}
_SHARE: Final = Bound("at least 0 and below 1", lambda x: 0 <= x < 1)
_POSITIVE: Final = Bound("above 0 and finite", lambda x: 0 < x < math.inf)


def polargrad(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`M <- b M + (1 - b) g`, `O = NS(M)`, `W <- (1 - lr wd) W - lr <M, O> O`: steepest descent in the spectral norm.

    For an exact polar factor `<M, O>` is the nuclear norm of M, the dual of the spectral norm.
    """
    decay(group, moments)
    taken = []
    for moment in moments:
        M = _mean(moment, group["momentum"])
        O, shape = orthogonal_factor(group, M)
        D, scale = _as_long_as_the_dual_norm(O, M, shape)
        taken.append(move(group, moment, Update(D, scale, O, shape, source=M)))
    return taken


def _as_long_as_the_dual_norm(O: Tensor, M: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | float]:
    """Return a direction and a factor, so that each matrix of a view is O times its inner product with M."""
    dtype = sums.arithmetic(O)
    if len(shape) == 2:
        return O, sums.within(sums.dot(M, O), dtype)
    slices = [part.reshape(-1, *shape[-2:]) for part in (O, M)]
    scaled = [sums.times(o, sums.dot(m, o)) for o, m in zip(*slices, strict=True)]
    return torch.stack(scaled).reshape(O.shape) if scaled else O, 1.0


POLAR_RULES["polargrad"] = Rule(
    step=polargrad,
    words="PolarGrad: the orthogonal factor of the momentum, as long as its nuclear norm",
    source="Lau, Long and Su (2025), arXiv 2505.21799; the learning rate is this package's",
    lr=0.01,
    settings={"momentum": 0.95, **_VECTORS, **_ORTHOGONAL},
    fresh_state=zeros("momentum_buffer"),
    direction=Direction.ORTHOGONAL,
    momentum="momentum_buffer",
    orthogonalizes=True,
    adamw_vectors=True,
    vector_lr=3e-4,
)


def fismo(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr P^-1/2 NS(M) Q^-1/2`, M the mean of `P^-1/2 g Q^-1/2`, with metrics of rows and columns.

    `P <- m P~ / tr P~` with `P~ = c P + (1 - c) (g Q^-1 g' / n + d tr(P) / m I)`, and Q likewise from `g' P^-1 g / m`.
    Both are computed in float64 and kept in the dtype of the parameter, as all state is.
    """
    decay(group, moments)
    return [move(group, moment, _between_metrics(group, moment)) for moment in moments]


def _between_metrics(group: Group, moment: ParameterStep) -> Update:
    """Update the metrics and the mean of a parameter, and return its step."""
    view, state = _view(group, moment.gradient), moment.state
    if not view.numel() or not bool(view.isfinite().all()):  # no metric is made of it; NaN is passed on
        state["step"] += 1
        return Update(moment.gradient * math.nan, 1.0)
    G = view.double()
    rows, columns = state["row_metric"].double(), state["column_metric"].double()
    rows = _mixed(rows, G @ _power(columns, -1.0) @ G.mT / G.shape[-1], group)
    columns = _mixed(columns, G.mT @ _power(rows, -1.0) @ G / G.shape[-2], group)
    state["row_metric"].copy_(rows)
    state["column_metric"].copy_(columns)
    left, right = _power(rows, -0.5), _power(columns, -0.5)
    even = (left @ G @ right).to(view.dtype).reshape(moment.gradient.shape)
    M = state["momentum_buffer"].lerp_(even, 1 - group["momentum"])
    state["step"] += 1
    O, shape = orthogonal_factor(group, M)
    D = (left @ O.reshape(shape).double() @ right).to(O.dtype).reshape(O.shape)
    return Update(D, 1.0, O, shape, source=M)


def _mixed(metric: Tensor, measured: Tensor, group: Group) -> Tensor:
    """Return the mean of a metric and a measured one, damped by a share of its mean eigenvalue, of which it has 1."""
    beta = group["metric_beta"]
    mixed = beta * metric + (1 - beta) * measured
    mixed.diagonal(dim1=-2, dim2=-1).add_((1 - beta) * group["damping"] * _mean_eigenvalue(metric))
    mixed = (mixed + mixed.mT) / 2
    even: Tensor = mixed / _mean_eigenvalue(mixed).unsqueeze(-1)
    return even


def _mean_eigenvalue(metric: Tensor) -> Tensor:
    """Return the mean eigenvalue of each matrix, `(..., 1)`."""
    return metric.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)


def _power(metric: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(metric)
    floor = torch.finfo(values.dtype).eps * values[..., -1:]
    power: Tensor = (vectors * values.clamp_min(floor).pow(exponent).unsqueeze(-2)) @ vectors.mT
    return power


def _fismo_state(group: Group, parameter: Tensor) -> dict[str, Any]:
    """Return a mean and two metrics, which begin as identities."""
    view = _view(group, parameter)
    metrics = {}
    for name, size in (("row_metric", view.shape[-2]), ("column_metric", view.shape[-1])):
        identity = torch.eye(size, dtype=parameter.dtype, device=parameter.device)
        metrics[name] = identity.expand(*view.shape[:-2], size, size).clone()
    return {**zeros_state(parameter, ("momentum_buffer",)), **metrics}


POLAR_RULES["fismo"] = Rule(
    step=fismo,
    words="FISMO: the orthogonal factor between two metrics, measured as second moments of rows and columns",
    source="arXiv 2601.21750; it states no settings, those are this package's",
    lr=0.01,
    settings={"momentum": 0.95, "metric_beta": 0.95, "damping": 1e-3, **_VECTORS, **_ORTHOGONAL},
    bounds={"metric_beta": _SHARE, "damping": _POSITIVE},
    fresh_state=_fismo_state,
    direction=Direction.OTHER,
    momentum="momentum_buffer",
    orthogonalizes=True,
    adamw_vectors=True,
    vector_lr=3e-4,
)


def _mean(moment: ParameterStep, beta: float) -> Tensor:
    """Update the mean of a parameter's gradients and return it."""
    moment.state["step"] += 1
    mean: Tensor = moment.state["momentum_buffer"].lerp_(moment.gradient, 1 - beta)
    return mean


def _view(group: Group, tensor: Tensor) -> Tensor:
    """Return the tensor as the matrix that is orthogonalized."""
    return matrix_view(tensor, flatten=group["flatten"], convolution=group["convolution"])
