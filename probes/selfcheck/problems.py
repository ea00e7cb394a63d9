"""Test problems of the self-check: regressions with closed-form Hessians, and small networks."""

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
    "dense",
    "distance",
    "gaussian",
    "linear_regression",
    "logistic_regression",
    "network",
    "not_none",
    "quadratic",
    "rotated",
    "softmax_regression",
]

T = TypeVar("T")
_COUNTS: Final = (17, 8, 1)  # uneven batches, so that the mean of batch means differs from the mean
_FEATURES: Final = 4
_CLASSES: Final = 3


@dataclass(frozen=True)
class Regression:
    """A convex problem with its matrices, in float64 on the CPU."""

    objective: Objective
    hessian: Tensor  # (n, n)
    empirical_fisher: Tensor | None = None  # (n, n)


def not_none(found: T | None) -> T:
    """Return a quantity after checking that it is not None.

    Args:
        found: A requested quantity of a measurement.

    Returns:
        The same object.

    Raises:
        ProbeError: it is None.
    """
    if found is None:
        raise ProbeError("a requested quantity is None")
    return found


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers in float64 on the CPU, the same on every machine.

    Args:
        shape: Shape of the tensor.
        seed: Seed of the generator.

    Returns:
        The tensor.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(operator: SymmetricOperator) -> Tensor:
    """Return the dense matrix of an operator, from its products with the unit vectors.

    Args:
        operator: `(n, n)`.

    Returns:
        The matrix `(n, n)`, float64 on the CPU.
    """
    return (operator @ torch.eye(operator.size)).cpu().double()


def distance(found: Tensor, known: Tensor) -> float:
    """Return the distance of two arrays relative to the norm of the known one.

    Args:
        found: The measured array.
        known: The known array, of the same shape and not zero.

    Returns:
        The distance, computed in float64.
    """
    known = known.cpu().double()
    return float((found.detach().cpu().double() - known).norm() / known.norm())


def linear_regression(place: Place) -> Regression:
    r"""Return least squares with an intercept: :math:`H = \frac{2}{N} X^\top X`, the last column of X ones.

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
    r"""Return logistic regression: :math:`H = \frac1N X^\top \mathrm{diag}(s (1 - s)) X` with predictions s.

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
    r"""Return softmax regression, where Hessian, Gauss-Newton and Fisher matrix are equal.

    They are the mean of :math:`J^\top (\mathrm{diag}\,p - p p^\top) J`, and the empirical Fisher matrix is the mean of
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
    """A module that is one vector of parameters."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)


def quadratic(eigenvalues: Tensor, place: Place) -> Objective:
    r"""Return the loss :math:`\frac12 \sum_i \lambda_i \theta_i^2`, whose Hessian is diagonal.

    Args:
        eigenvalues: `(n,)`.
        place: The dtype and the device.

    Returns:
        The objective, with all parameters 1.
    """
    entries = eigenvalues.to(place.device, place.dtype)
    model = Parameters(torch.ones_like(entries))
    return Objective(model, lambda m, _: (entries * m.theta**2).sum() / 2, [torch.zeros(1)])


def rotated(eigenvalues: Tensor, place: Place, *, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with given eigenvalues in a random basis.

    Args:
        eigenvalues: `(n,)`.
        place: The dtype and the device; rounding to the dtype changes the eigenvalues by eps.
        seed: Seed of the basis.

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
        """Return the logits."""
        q, k, v = self.qkv(x.reshape(len(x), 1, 2, 2)).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits: Tensor = self.head(mixed.reshape(len(x), 4))
        return logits


def _images(*norm: nn.Module) -> nn.Module:
    """Return a network with one convolution of 2 by 2 pixels."""
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
    """Return the cross-entropy of one of `NETWORKS` on uneven batches.

    Args:
        name: Name of the network.
        place: The dtype and the device.
        counts: Number of samples in each batch.

    Returns:
        The objective; weights and data are the same on every machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NETWORKS[name]().to(place.dtype)
    X = gaussian(sum(counts), _FEATURES, seed=1).to(place.dtype)
    return _objective(net, CrossEntropy(), X, torch.arange(len(X)) % _CLASSES, place, counts)


def _inputs(place: Place) -> Tensor:
    """Return inputs `(N, 4)` in the dtype, on the CPU, where the closed form is computed."""
    return gaussian(sum(_COUNTS), _FEATURES, seed=3).to(place.dtype)


def _linear(place: Place, outputs: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(_FEATURES, outputs).to(place.dtype)


def _flat(net: nn.Module) -> Tensor:
    """Return the parameters in float64, in the order of the flat vector."""
    return torch.cat([p.detach().double().reshape(-1) for p in net.parameters()])


def _with_ones(X: Tensor) -> Tensor:
    return torch.cat([X.double(), torch.ones(len(X), 1, dtype=torch.float64)], 1)


def _logistic_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def _objective(
    net: nn.Module, loss: Any, X: Tensor, y: Tensor, place: Place, counts: tuple[int, ...] = _COUNTS
) -> Objective:
    """Return the objective on the device; this moves the parameters there, after the closed form was computed."""
    parts = [part.to(place.device).split(list(counts)) for part in (X, y)]  # type: ignore[no-untyped-call]
    return Objective(net.to(place.device), loss, list(zip(*parts, strict=True)))
