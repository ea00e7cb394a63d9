"""The update rules, each declared beside its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import sums
from lossscope.optimizer.update.adam import ParameterStep, Update, decay, move, orthogonal_factor, whitened, zeros_state
from lossscope.optimizer.update.matrix_view import matrix_view, step_factor
from lossscope.optimizer.update.polar_rules import POLAR_RULES
from lossscope.optimizer.update.rule import NOT_NEGATIVE, Direction, Group, Rule, zeros

__all__ = ["ADAMW", "RULES", "SGD"]

RULES: Final[dict[str, Rule]] = {}

_ADAM: Final = {"betas": (0.9, 0.999), "eps": 1e-8}
_ORTHOGONAL: Final = {"newton_schulz": "keller", "ns_steps": 5, "ns_dtype": "auto", "ns_norm": "frobenius"}
_EMA: Final = {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "eps": 1e-10}  # betas, eps: of vectors
_MUON: Final = {**_EMA, **_ORTHOGONAL, "adjust": "keller"}


def adamw(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr A`, with `A = m_hat / (sqrt(v_hat) + eps)`."""
    A = whitened(moments, group["betas"], group["eps"])
    decay(group, moments)
    return [move(group, moment, Update(a, 1.0, whitened=a)) for moment, a in zip(moments, A, strict=True)]


ADAMW: Final = Rule(
    step=adamw,
    words="AdamW: decoupled decay, bias-corrected moments",
    source="Loshchilov and Hutter (2019)",
    lr=1e-3,
    weight_decay=0.01,
    settings=_ADAM,
    fresh_state=zeros("exp_avg", "exp_avg_sq"),
    direction=Direction.ADAM,
    adam_moments=True,
)
RULES["adamw"] = ADAMW


def sgd(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`u <- b u + g + wd W`, `W <- W - lr u`; Nesterov: `W <- W - lr (g + wd W + b u)`. Decay enters the gradient."""
    taken = []
    for moment in moments:
        p, b, state = moment.parameter, group["momentum"], moment.state
        g = moment.gradient.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else moment.gradient
        direction = g
        if b:
            if state.get("momentum_buffer") is None:  # momentum was zero until now
                state["momentum_buffer"] = torch.zeros_like(p)
            u = state["momentum_buffer"].mul_(b).add_(g)
            direction = g.add(u, alpha=b) if group["nesterov"] else u
        state["step"] += 1
        taken.append(move(group, moment, Update(direction, 1.0)))
    return taken


def _sgd_state(group: Group, parameter: Tensor) -> dict[str, Any]:
    """Return a momentum buffer only if momentum is in use, as torch does."""
    return zeros_state(parameter, ("momentum_buffer",) if group["momentum"] else ())


def _check_nesterov(group: Group) -> None:
    """Reject Nesterov momentum without a momentum."""
    if group["nesterov"] and not group["momentum"]:
        raise OptimizerError("nesterov=True needs a momentum, got momentum=0: set momentum, 0.9 is usual")


SGD: Final = Rule(
    step=sgd,
    words="SGD, with optional heavy-ball or Nesterov momentum",
    source="Robbins and Monro (1951); Sutskever et al. (2013) for the momentum",
    lr=1e-3,
    settings={"momentum": 0.0, "nesterov": False},
    check=_check_nesterov,
    fresh_state=_sgd_state,
    optional_state=frozenset({"momentum_buffer"}),
    direction=Direction.GRADIENT,
    momentum="momentum_buffer",
    decoupled_decay=False,
)
RULES["sgd"] = SGD


def muon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`B <- b B + (1 - b) g`, `W <- (1 - lr wd) W - lr c NS(U)`, `U = (1 - b) g + b B` with Nesterov, else B.

    The factor c is that of `step_factor`. For a convolution it is computed from the `(out, in k)` view, not from the
    sides of the kernel.
    """
    decay(group, moments)
    taken = []
    for moment in moments:
        U = _momentum(group, moment)
        O, shape = orthogonal_factor(group, U)
        taken.append(move(group, moment, Update(O, step_factor(group["adjust"], shape), O, shape, source=U)))
    return taken


RULES["muon"] = Rule(
    step=muon,
    words="Muon: the orthogonal factor of the momentum; AdamW for vectors",
    source="Jordan et al. (2024)",
    lr=0.02,
    settings=_MUON,
    fresh_state=zeros("momentum_buffer"),
    direction=Direction.ORTHOGONAL,
    momentum="momentum_buffer",
    orthogonalizes=True,
    adamw_vectors=True,
    vector_lr=3e-4,
)


def rmsuon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr E NS(m_hat) / |NS(m_hat)|`, `E = |A|`: the step has exactly Adam's norm."""
    return _energetic(group, moments, unit=True)


RULES["rmsuon"] = Rule(
    step=rmsuon,
    words="RMSuon: the orthogonal factor of Adam's first moment, with the norm of Adam's step",
    source="the ARS repository",
    lr=1e-3,
    weight_decay=0.01,
    settings={**_ADAM, **_ORTHOGONAL},
    fresh_state=zeros("exp_avg", "exp_avg_sq"),
    direction=Direction.ORTHOGONAL,
    adam_moments=True,
    orthogonalizes=True,
    adamw_vectors=True,
)


def muon_rms(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr E NS(m_hat)`: Muon's direction with ARS2-Neo's step size, at this rule's own state.

    The step has the norm `lr E |NS(m_hat)|`, and that of ARS2-Neo `lr E |NS(A)|`. They are equal if both factors have
    the same norm, which holds only approximately for matrices with small singular values.
    """
    return _energetic(group, moments, unit=False)


RULES["muon@rms"] = Rule(
    step=muon_rms,
    words="Muon's direction, lr E NS(m_hat): the same step length as ARS2-Neo if |NS(m_hat)| equals |NS(A)|",
    source="a control of this package",
    lr=1e-3,
    weight_decay=0.01,
    settings={**_ADAM, **_ORTHOGONAL},
    fresh_state=zeros("exp_avg", "exp_avg_sq"),
    direction=Direction.ORTHOGONAL,
    adam_moments=True,
    orthogonalizes=True,
    adamw_vectors=True,
)


def _energetic(group: Group, moments: Sequence[ParameterStep], *, unit: bool) -> list[Update]:
    """Step along `NS(m_hat)` with a size taken from Adam's step."""
    A = whitened(moments, group["betas"], group["eps"])
    decay(group, moments)
    taken = []
    for moment, a in zip(moments, A, strict=True):
        mean = moment.state["exp_avg"] / (1 - group["betas"][0] ** moment.steps)
        O, shape = orthogonal_factor(group, mean)
        E, dtype = sums.norm(a), sums.arithmetic(O)
        scale = sums.ratio(E, sums.norm(O), dtype) if unit else sums.within(E, dtype)
        taken.append(move(group, moment, Update(O, scale, O, shape, source=mean, whitened=a)))
    return taken


def adamuon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`O = NS(sign U)`, `V <- b V + (1 - b) O^2`, `D = O / (sqrt V + eps)` scaled to `|D| = 0.2 sqrt(m n)`."""
    decay(group, moments)
    taken = []
    for moment in moments:
        U = _momentum(group, moment)
        S = _sign(U)
        O, shape = orthogonal_factor(group, S)
        V = moment.state["orthogonal_square"].lerp_(O.square(), 1 - group["momentum"])
        D = O / (V.to(sums.arithmetic(V)).sqrt() + group["rms_eps"])  # rms_eps may vanish in half precision
        scale = sums.within(0.2 * math.sqrt(D.numel()) / (sums.norm(D) + group["rms_eps"]), D.dtype)
        taken.append(move(group, moment, Update(D, scale, O, shape, source=S)))
    return taken


RULES["adamuon"] = Rule(
    step=adamuon,
    words="AdaMuon: the orthogonal factor of the momentum's signs, divided by the root of its running square",
    source="Si et al. (2025)",
    lr=0.02,
    weight_decay=0.01,
    settings={**_EMA, **_ORTHOGONAL, "rms_eps": 1e-8},
    floors=("rms_eps",),
    fresh_state=zeros("momentum_buffer", "orthogonal_square"),
    direction=Direction.ORTHOGONAL,
    momentum="momentum_buffer",
    orthogonalizes=True,
    adamw_vectors=True,
    vector_lr=3e-4,
)


def normuon(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`O = NS(U)`, rows divided by the root of their running mean square, rescaled to the norm of O."""
    decay(group, moments)
    taken = []
    for moment in moments:
        U = _momentum(group, moment)
        O, shape = orthogonal_factor(group, U)
        D = _even_rows(O.reshape(shape), moment.state["row_square"], group["row_beta"]).reshape(O.shape)
        taken.append(move(group, moment, Update(D, step_factor(group["adjust"], shape), O, shape, source=U)))
    return taken


def _even_rows(O: Tensor, row_square: Tensor, beta: float) -> Tensor:
    """Update the running mean squares of rows, and return O with rows divided by their roots and its norm restored.

    Both norms are those of the rows' lengths, before and after they are divided.
    """
    if not O.numel():
        return O
    lengths, dtype = sums.row_norms(O), sums.arithmetic(O)  # 1e-10 vanishes in half precision
    row_square.lerp_((lengths.square() / O.shape[-1]).to(row_square.dtype), 1 - beta)
    r = row_square.to(dtype).sqrt() + 1e-10
    whole, even = sums.norms_of_norms(lengths), sums.norms_of_norms(lengths / r)
    scale = whole / even.clamp_min(torch.finfo(dtype).tiny) / r  # both are 0 if O is
    return (O.to(dtype) * scale.to(dtype)).to(O.dtype)


def _normuon_state(group: Group, parameter: Tensor) -> dict[str, Any]:
    """Return a momentum buffer and one running mean square per row."""
    state = zeros_state(parameter, ("momentum_buffer",))
    return {**state, "row_square": torch.zeros_like(_view(group, parameter)[..., :1])}


RULES["normuon"] = Rule(
    step=normuon,
    words="NorMuon: Muon with each row divided by its running root mean square",
    source="Li et al. (2025)",
    lr=0.02,
    settings={**_MUON, "row_beta": 0.95},
    fresh_state=_normuon_state,
    direction=Direction.ORTHOGONAL,
    momentum="momentum_buffer",
    orthogonalizes=True,
    adamw_vectors=True,
    vector_lr=3e-4,
)


def muoneq(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`B <- b B + g`, `U = g + b B` with rows, columns or both scaled to length one, then Muon's step."""
    decay(group, moments)
    taken = []
    for moment in moments:
        B = moment.state["momentum_buffer"].mul_(group["momentum"]).add_(moment.gradient)
        moment.state["step"] += 1
        U = moment.gradient.add(B, alpha=group["momentum"]) if group["nesterov"] else B
        even = _equilibrated(_view(group, U), group["equilibrate"]).reshape(U.shape)
        O, shape = orthogonal_factor(group, even)
        taken.append(move(group, moment, Update(O, step_factor(group["adjust"], shape), O, shape, source=even)))
    return taken


def _equilibrated(U: Tensor, which: str) -> Tensor:
    """Return U with rows, columns or both divided by their lengths, which are all taken from the given U."""
    squares = U.to(sums.arithmetic(U)).square()  # 1e-8 vanishes in half precision
    rows = (squares.sum(-1, keepdim=True) + 1e-8).rsqrt() if "R" in which else 1.0
    columns = (squares.sum(-2, keepdim=True) + 1e-8).rsqrt() if "C" in which else 1.0
    return (U * rows * columns).to(U)


RULES["muoneq"] = Rule(
    step=muoneq,
    words="MuonEq: Muon on a momentum with rows (R), columns (C) or both (RC) scaled to length one",
    source="arXiv 2603.28254",
    lr=1e-3,
    weight_decay=0.1,
    settings={**_MUON, "adjust": "moonlight", "equilibrate": "R"},
    fresh_state=zeros("momentum_buffer"),
    direction=Direction.ORTHOGONAL,
    momentum="momentum_buffer",
    orthogonalizes=True,
    adamw_vectors=True,
)


RULES.update(POLAR_RULES)


def lion(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr sign(b1 m + (1 - b1) g)`, then `m <- b2 m + (1 - b2) g`."""
    decay(group, moments)
    taken = []
    for moment in moments:
        m, (b1, b2) = moment.state["momentum_buffer"], group["betas"]
        direction = _sign(m.lerp(moment.gradient, 1 - b1))
        m.lerp_(moment.gradient, 1 - b2)
        moment.state["step"] += 1
        taken.append(move(group, moment, Update(direction, 1.0)))
    return taken


RULES["lion"] = Rule(
    step=lion,
    words="Lion: the signs of a momentum that is interpolated with the gradient",
    source="Chen et al. (2023)",
    lr=1e-4,
    settings={"betas": (0.9, 0.99)},
    fresh_state=zeros("momentum_buffer"),
    direction=Direction.SIGN,
    momentum="momentum_buffer",
)


def signsgd(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr sign(g)`."""
    decay(group, moments)
    for moment in moments:
        moment.state["step"] += 1
    return [move(group, moment, Update(_sign(moment.gradient), 1.0)) for moment in moments]


RULES["signsgd"] = Rule(
    step=signsgd,
    words="signSGD: the signs of the gradient",
    source="Bernstein et al. (2018)",
    lr=1e-3,
    direction=Direction.SIGN,
)


def clion(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`c = b1 m + (1 - b1) g`, `W <- (1 - lr wd) W - lr h(c)`, then `m <- b2 m + (1 - b2) g`.

    `h(c)` is `sign(c)` if every nonzero element of c is at least nu in size, else c itself. The elements are those of
    all tensors of the parameter group: with one group they are the whole c, as in the paper.
    """
    decay(group, moments)
    b1, b2 = group["betas"]
    mixed = []
    for moment in moments:
        m = moment.state["momentum_buffer"]
        mixed.append(m.lerp(moment.gradient, 1 - b1))
        m.lerp_(moment.gradient, 1 - b2)
        moment.state["step"] += 1
    sizes = [torch.where(c == 0, math.inf, c.abs()).amin() for c in mixed if c.numel()]
    if not sizes:
        return [move(group, moment, Update(c, 1.0)) for moment, c in zip(moments, mixed, strict=True)]
    large = torch.stack(sizes).amin() >= group["nu"]  # False if an element is NaN
    return [
        move(group, moment, Update(torch.where(large, _sign(c), c), 1.0))
        for moment, c in zip(moments, mixed, strict=True)
    ]


RULES["clion"] = Rule(
    step=clion,
    words="CLion: Lion's signs if every nonzero element of the momentum is at least nu in size, else the momentum",
    source="arXiv 2604.14587, which gives no value of nu",
    lr=1e-4,
    settings={"betas": (0.9, 0.99)},
    required=("nu",),
    bounds={"nu": NOT_NEGATIVE},
    fresh_state=zeros("momentum_buffer"),
    momentum="momentum_buffer",
)


def _momentum(group: Group, moment: ParameterStep) -> Tensor:
    """Update the running mean of the gradients and return it, or its Nesterov combination with this gradient."""
    B = moment.state["momentum_buffer"].lerp_(moment.gradient, 1 - group["momentum"])
    moment.state["step"].add_(1)
    return torch.lerp(moment.gradient, B, group["momentum"]) if group["nesterov"] else B


def _sign(U: Tensor) -> Tensor:
    """Return the signs of U, and NaN for elements that are not finite, which `torch.sign` would hide."""
    return U.sign().add_(U, alpha=0.0)


def _view(group: Group, tensor: Tensor) -> Tensor:
    """Return the tensor as the matrix that is orthogonalized."""
    return matrix_view(tensor, flatten=group["flatten"], convolution=group["convolution"])
