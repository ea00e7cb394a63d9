"""How a gradient becomes a step: one rule for each method, all made of the same few parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.optimizer.update.adam import ParameterStep, Update, decay, orthogonal_factor, whitened
from lossscope.optimizer.update.matrix_view import matrix_view, step_factor

__all__ = ["RULES", "Rule"]

Group = dict[str, Any]
Step = Callable[[Group, Sequence[ParameterStep]], list[Update]]

_ADAM: Final = {"betas": (0.9, 0.999), "eps": 1e-8}
_ORTHOGONAL: Final = {"newton_schulz": "keller", "ns_steps": 5, "ns_dtype": "auto", "ns_norm": "frobenius"}
_EMA: Final = {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "eps": 1e-10}  # betas, eps: of vectors


@dataclass(frozen=True)
class Rule:
    """A method's arithmetic, with the settings that it reads and their usual values."""

    step: Step  # moves the matrices of a group
    lr: float
    weight_decay: float
    settings: Mapping[str, Any]  # beside lr and weight_decay
    state: tuple[str, ...]  # tensors like the parameter that a matrix keeps
    vector_lr: float | None = None  # of vectors, which take AdamW's step; None: the same
    vectors: bool = True  # whether vectors take AdamW's step; else they are stepped like matrices
    source: str = ""


def adamw(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr A`, with `A = m_hat / (sqrt(v_hat) + eps)`."""
    A = whitened(moments, group["betas"], group["eps"])
    decay(group, moments)
    return [_move(group, moment, a, 1.0, whitened=a) for moment, a in zip(moments, A, strict=True)]


def sgd(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`u <- b u + g + wd W`, `W <- W - lr u`; by Nesterov `W <- W - lr (g + wd W + b u)`: decay is in the gradient."""
    taken = []
    for moment in moments:
        p, b = moment.parameter, group["momentum"]
        g = moment.gradient.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else moment.gradient
        direction = g
        if b:
            if "momentum_buffer" not in moment.state:  # momentum was zero until now
                moment.state["momentum_buffer"] = torch.zeros_like(p)
            u = moment.state["momentum_buffer"].mul_(b).add_(g)
            direction = g.add(u, alpha=b) if group["nesterov"] else u
        moment.state["step"] += 1
        taken.append(_move(group, moment, direction, 1.0))
    return taken


def muon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`B <- b B + (1 - b) g`, `W <- (1 - lr wd) W - lr c NS(U)`, `U = (1 - b) g + b B` by Nesterov or else B.

    The factor c is `step_factor`'s, of a convolution that of its cut `(out, in k)` and not of its kernel's sides.
    """
    decay(group, moments)
    taken = []
    for moment in moments:
        U = _momentum(group, moment)
        O, shape = orthogonal_factor(group, U)
        taken.append(_move(group, moment, O, step_factor(group["adjust"], shape), orthogonal=O, source=U, shape=shape))
    return taken


def rmsuon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr E NS(m_hat) / |NS(m_hat)|`, `E = |A|`: a step of exactly Adam's norm."""
    return _energetic(group, moments, unit=True)


def muon_rms(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr E NS(m_hat)`: Muon's direction with ARS2-Neo's rule for the size, at this rule's state.

    The step has the norm `lr E |NS(m_hat)|`, and ARS2-Neo's is `lr E |NS(A)|`: the same where both factors have one
    norm, which those of matrices with small singular values have not quite.
    """
    return _energetic(group, moments, unit=False)


def _energetic(group: Group, moments: Sequence[ParameterStep], *, unit: bool) -> list[Update]:
    """A step along `NS(m_hat)` that gets its size from Adam's step."""
    A = whitened(moments, group["betas"], group["eps"])
    decay(group, moments)
    taken = []
    for moment, a in zip(moments, A, strict=True):
        mean = moment.state["exp_avg"] / (1 - group["betas"][0] ** moment.steps)
        O, shape = orthogonal_factor(group, mean)
        E, size = torch.linalg.vector_norm(a), torch.linalg.vector_norm(O)
        scale = E / size.clamp_min(torch.finfo(O.dtype).tiny) if unit else E
        taken.append(_move(group, moment, O, scale, orthogonal=O, source=mean, whitened=a, shape=shape))
    return taken


def adamuon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`O = NS(sign U)`, `V <- b V + (1 - b) O^2`, `D = O / (sqrt V + eps)` scaled to `|D| = 0.2 sqrt(m n)`."""
    decay(group, moments)
    taken = []
    for moment in moments:
        U = _momentum(group, moment)
        S = U.sign().add_(U, alpha=0.0)  # the sign of NaN is 0 in torch, and 0 times what is not finite is NaN
        O, shape = orthogonal_factor(group, S)
        V = moment.state["orthogonal_square"].lerp_(O.square(), 1 - group["momentum"])
        D = O / (V.sqrt() + group["rms_eps"])
        scale = 0.2 * math.sqrt(D.numel()) / (torch.linalg.vector_norm(D) + group["rms_eps"])
        taken.append(_move(group, moment, D, scale, orthogonal=O, source=S, shape=shape))
    return taken


def normuon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`O = NS(U)`, rows divided by the root of their running mean square, and back to the norm of O."""
    decay(group, moments)
    taken = []
    for moment in moments:
        U = _momentum(group, moment)
        O, shape = orthogonal_factor(group, U)
        view = O.reshape(shape)
        q = moment.state["row_square"]
        q.lerp_(view.square().mean(-1, keepdim=True).to(q), 1 - group["row_beta"])
        D = view / (q.sqrt() + 1e-10)
        D = D * (
            torch.linalg.matrix_norm(view, keepdim=True) / torch.linalg.matrix_norm(D, keepdim=True).clamp_min(1e-30)
        )
        D = D.reshape(O.shape)
        taken.append(_move(group, moment, D, step_factor(group["adjust"], shape), orthogonal=O, source=U, shape=shape))
    return taken


def muoneq(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`B <- b B + g`, `U = g + b B` with rows, columns or both brought to length one, then Muon's step."""
    decay(group, moments)
    taken = []
    for moment in moments:
        B = moment.state["momentum_buffer"].mul_(group["momentum"]).add_(moment.gradient)
        moment.state["step"] += 1
        U = moment.gradient.add(B, alpha=group["momentum"]) if group["nesterov"] else B
        even = _equilibrated(_view(group, U), group["equilibrate"]).reshape(U.shape)
        O, shape = orthogonal_factor(group, even)
        taken.append(
            _move(group, moment, O, step_factor(group["adjust"], shape), orthogonal=O, source=even, shape=shape)
        )
    return taken


def _equilibrated(U: Tensor, which: str) -> Tensor:
    """Rows, columns or both of U divided by their lengths, both taken from the same U."""
    squares = U.square()
    rows = (squares.sum(-1, keepdim=True) + 1e-8).rsqrt() if "R" in which else 1.0
    columns = (squares.sum(-2, keepdim=True) + 1e-8).rsqrt() if "C" in which else 1.0
    return U * rows * columns


def _momentum(group: Group, moment: ParameterStep) -> Tensor:
    """The running mean of the gradients, with the present one ahead by Nesterov."""
    B = moment.state["momentum_buffer"].lerp_(moment.gradient, 1 - group["momentum"])
    moment.state["step"] += 1
    return torch.lerp(moment.gradient, B, group["momentum"]) if group["nesterov"] else B


def _view(group: Group, tensor: Tensor) -> Tensor:
    return matrix_view(tensor, flatten=group["flatten"], convolution=group["convolution"])


def _move(
    group: Group,
    moment: ParameterStep,
    direction: Tensor,
    scale: Tensor | float,
    *,
    orthogonal: Tensor | None = None,
    source: Tensor | None = None,
    whitened: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
) -> Update:
    """Step by `lr * scale * direction`."""
    p = moment.parameter
    if isinstance(scale, Tensor):
        p.addcmul_(direction, scale, value=-group["lr"])
    else:
        p.add_(direction, alpha=-group["lr"] * scale)
    return Update(orthogonal, direction, scale, shape, source, whitened)


_MUON: Final = {**_EMA, **_ORTHOGONAL, "adjust": "keller"}
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")

RULES: Final[dict[str, Rule]] = {
    "adamw": Rule(adamw, 1e-3, 0.01, _ADAM, _MOMENTS, source="Loshchilov and Hutter (2019)"),
    "sgd": Rule(
        sgd,
        1e-3,
        0.0,
        {"momentum": 0.0, "nesterov": False},
        ("momentum_buffer",),
        vectors=False,
        source="Robbins and Monro (1951); Sutskever et al. (2013) for the momentum",
    ),
    "muon": Rule(muon, 0.02, 0.0, _MUON, ("momentum_buffer",), 3e-4, source="Jordan et al. (2024)"),
    "rmsuon": Rule(rmsuon, 1e-3, 0.01, _ADAM | _ORTHOGONAL, _MOMENTS, source="the ARS repository"),
    "muon@rms": Rule(muon_rms, 1e-3, 0.01, _ADAM | _ORTHOGONAL, _MOMENTS, source="a control of ours"),
    "adamuon": Rule(
        adamuon,
        0.02,
        0.01,
        {**_EMA, **_ORTHOGONAL, "rms_eps": 1e-8},
        ("momentum_buffer", "orthogonal_square"),
        3e-4,
        source="Si et al. (2025)",
    ),
    "normuon": Rule(
        normuon, 0.02, 0.0, {**_MUON, "row_beta": 0.95}, ("momentum_buffer",), 3e-4, source="Li et al. (2025)"
    ),
    "muoneq": Rule(
        muoneq,
        1e-3,
        0.1,
        {**_MUON, "adjust": "moonlight", "equilibrate": "R"},
        ("momentum_buffer",),
        source="arXiv 2603.28254",
    ),
}
