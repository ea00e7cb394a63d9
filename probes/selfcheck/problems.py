"""Problems with known answers: regressions with their Hessians in closed form, and networks to take products of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.selfcheck.check import Place

__all__ = [
    "NETWORKS",
    "Parameters",
    "Regression",
    "asked",
    "dense",
    "distance",
    "gaussian",
    "linear_regression",
    "logistic_regression",
    "network",
    "quadratic",
    "rotated",
    "softmax_regression",
]

T = TypeVar("T")
_COUNTS: Final = (17, 8, 1)  # uneven batches: a mean of their means would be another number
_FEATURES: Final = 4
_CLASSES: Final = 3


@dataclass(frozen=True)
class Regression:
    """A convex problem and what its matrices are, in float64 on the CPU."""

    objective: Objective
    hessian: Tensor  # (n, n)
    empirical_fisher: Tensor | None = None  # (n, n)


def asked(found: T | None) -> T:
    """What was asked for, which must be there.

    Args:
        found: A quantity of a measurement.

    Returns:
        The same.

    Raises:
        ProbeError: it is None.
    """
    if found is None:
        raise ProbeError("a quantity that was asked for is None")
    return found


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64 on the CPU, the same on every machine.

    Args:
        shape: Of the tensor.
        seed: Of the numbers.

    Returns:
        The tensor.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(operator: SymmetricOperator) -> Tensor:
    """The whole matrix of an operator, from its products with the unit vectors.

    Args:
        operator: `(n, n)`.

    Returns:
        The matrix `(n, n)`, float64 on the CPU.
    """
    return (operator @ torch.eye(operator.size)).cpu().double()


def distance(found: Tensor, known: Tensor) -> float:
    """How far two arrays are apart, relative to the norm of the known one.

    Args:
        found: The array that was measured.
        known: What it should be, of the same shape and not zero.

    Returns:
        The distance, taken in float64.
    """
    known = known.cpu().double()
    return float((found.detach().cpu().double() - known).norm() / known.norm())


def linear_regression(place: Place) -> Regression:
    r"""Least squares with an intercept: :math:`H = \frac{2}{N} X^\top X`, the last column of X ones.

    Args:
        place: The dtype and the device.

    Returns:
        The problem and its Hessian.
    """
    X, net = _inputs(place), _linear(place, 1)
    y = gaussian(len(X), 1, seed=7).to(place.dtype)
    rows = _with_ones(X)
    return Regression(_objective(net, MeanSquaredError(), X, y, place), 2 * rows.mT @ rows / len(rows))


def logistic_regression(place: Place) -> Regression:
    r"""Two classes and one logit: :math:`H = \frac1N X^\top \mathrm{diag}(s (1 - s)) X`, s the predictions.

    Args:
        place: The dtype and the device.

    Returns:
        The problem and its Hessian.
    """
    X, net = _inputs(place), _linear(place, 1)
    y = (gaussian(len(X), 1, seed=8) > 0).to(place.dtype)
    rows = _with_ones(X)
    s = (rows @ _flat(net)).sigmoid()
    known = rows.mT @ ((s * (1 - s))[:, None] * rows) / len(rows)
    return Regression(_objective(net, _logistic_loss, X, y, place), known)


def softmax_regression(place: Place) -> Regression:
    r"""Softmax regression, where Hessian, Gauss-Newton and Fisher matrix agree.

    They are the mean of :math:`J^\top (\mathrm{diag}\,p - p p^\top) J`, and the empirical Fisher matrix is that of
    :math:`J^\top (p - e_y)(p - e_y)^\top J`, with J the derivative of the logits by weights and intercepts.

    Args:
        place: The dtype and the device.

    Returns:
        The problem, its Hessian and its empirical Fisher matrix.
    """
    X, net = _inputs(place), _linear(place, _CLASSES)
    y = torch.arange(len(X)) % _CLASSES
    eye = torch.eye(_CLASSES, dtype=torch.float64)
    weights = torch.einsum("cd,ij->icdj", eye, X.double()).reshape(len(X), _CLASSES, -1)
    J = torch.cat([weights, eye.expand(len(X), -1, -1)], 2)
    p = (J @ _flat(net)).softmax(-1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gradients = torch.einsum("icn,ic->in", J, p - eye[y])
    return Regression(
        _objective(net, CrossEntropy(), X, y, place),
        torch.einsum("icn,icd,idm->nm", J, S, J) / len(X),
        gradients.mT @ gradients / len(X),
    )


class Parameters(nn.Module):
    """Nothing but a vector of parameters."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)


def quadratic(eigenvalues: Tensor, place: Place) -> Objective:
    r"""The loss :math:`\frac12 \sum_i \lambda_i \theta_i^2`, whose Hessian is diagonal.

    Args:
        eigenvalues: `(n,)`.
        place: The dtype and the device.

    Returns:
        The objective, standing at ones.
    """
    entries = eigenvalues.to(place.device, place.dtype)
    model = Parameters(torch.ones_like(entries))
    return Objective(model, lambda m, _: (entries * m.theta**2).sum() / 2, [torch.zeros(1)])


def rotated(eigenvalues: Tensor, place: Place, *, seed: int = 0) -> Tensor:
    """A symmetric matrix of these eigenvalues without a preferred basis.

    Args:
        eigenvalues: `(n,)`.
        place: The dtype and the device; rounding to the dtype moves the eigenvalues by eps.
        seed: Of the basis.

    Returns:
        The matrix `(n, n)`.
    """
    Q = torch.linalg.qr(gaussian(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    A: Tensor = (Q * eigenvalues.double()) @ Q.mT
    return ((A + A.mT) / 2).to(place.dtype).to(place.device)


class _Attention(nn.Module):
    """One head of causal attention over two tokens of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 6), nn.Linear(4, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        q, k, v = self.qkv(x.reshape(len(x), 1, 2, 2)).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits: Tensor = self.head(mixed.reshape(len(x), 4))
        return logits


def _images(*norm: nn.Module) -> nn.Module:
    """One convolution of 2 by 2 pixels."""
    convolution = (nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1))
    return nn.Sequential(*convolution, *norm, nn.Tanh(), nn.Flatten(), nn.Linear(36, _CLASSES))


def _rectified() -> nn.Module:
    return nn.Sequential(nn.Linear(_FEATURES, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, _CLASSES))


NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(_FEATURES, 6), nn.Tanh(), nn.Linear(6, _CLASSES)),
    "ReLU": _rectified,
    "convolution": _images,
    "attention": _Attention,
    "layer norm": lambda: nn.Sequential(nn.Linear(_FEATURES, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, _CLASSES)),
    "group norm": lambda: _images(nn.GroupNorm(2, 4)),
}


def network(name: str, place: Place, counts: tuple[int, ...] = _COUNTS) -> Objective:
    """The cross-entropy of one of `NETWORKS` on uneven batches.

    Args:
        name: Of the network.
        place: The dtype and the device.
        counts: Samples of each batch.

    Returns:
        The objective; weights and data are the same on every machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NETWORKS[name]().to(place.dtype)
    X = gaussian(sum(counts), _FEATURES, seed=1).to(place.dtype)
    return _objective(net, CrossEntropy(), X, torch.arange(len(X)) % _CLASSES, place, counts)


def _inputs(place: Place) -> Tensor:
    """Inputs `(N, 4)` in the dtype, on the CPU, where the closed form is taken from them."""
    return gaussian(sum(_COUNTS), _FEATURES, seed=3).to(place.dtype)


def _linear(place: Place, outputs: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(_FEATURES, outputs).to(place.dtype)


def _flat(net: nn.Module) -> Tensor:
    """The parameters in float64, in the order of the flat vector."""
    return torch.cat([p.detach().double().reshape(-1) for p in net.parameters()])


def _with_ones(X: Tensor) -> Tensor:
    return torch.cat([X.double(), torch.ones(len(X), 1, dtype=torch.float64)], 1)


def _logistic_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def _objective(
    net: nn.Module, loss: Any, X: Tensor, y: Tensor, place: Place, counts: tuple[int, ...] = _COUNTS
) -> Objective:
    """The objective at the place. The parameters move there with the net, which the closed form no longer needs."""
    parts = [part.to(place.device).split(list(counts)) for part in (X, y)]  # type: ignore[no-untyped-call]
    return Objective(net.to(place.device), loss, list(zip(*parts, strict=True)))
