"""Reference implementation of ARS2-Neo from its formulas: float64, one parameter at a time, no optimizations.

The fast optimizer is tested against this specification. Symbols: theta parameters, g base
gradient, e perturbation, ga adversarial gradient, s shear, m and v moments, A whitened momentum, E its
norm, O its Newton-Schulz image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Hyper", "ReferenceARS2Neo"]

Tensors = dict[str, Tensor]


def norm(x: Tensor) -> float:
    """Return the Frobenius norm."""
    return math.sqrt(float((x * x).sum()))


@dataclass(frozen=True)
class Hyper:
    """Settings, with the names of `ARS2Neo`."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    mode: str = "base"
    rho: float = 0.1
    k: int = 1
    alpha: float = 0.1
    aga_beta: float = 0.99
    aga_lambda: float = 2.0
    aga_gamma: float = 2.0
    energy: str = "reference"
    ns_steps: int = 5
    perturbation: str = "ars2"
    shear: str = "looksam"
    flatten: bool = False


@dataclass
class ReferenceARS2Neo:
    """Optimizer of a dict of float64 tensors; `step` takes the gradient as a function of them."""

    theta: Tensors
    hyper: Hyper
    t: int = 0
    last_sync: int = 0
    nu: float = 0.0
    phi: float | None = None
    synced: bool = False
    m: Tensors = field(default_factory=dict)
    v: Tensors = field(default_factory=dict)
    s: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Initialize the moments with zeros."""
        self.theta = {name: w.detach().double().clone() for name, w in self.theta.items()}
        self.m = {name: torch.zeros_like(w) for name, w in self.theta.items()}
        self.v = {name: torch.zeros_like(w) for name, w in self.theta.items()}

    def step(self, gradient: Callable[[Tensors], Tensors]) -> None:
        """Take one step: decide, ascend on a sync step, project or inject the shear, update."""
        self.t += 1
        h = self.hyper
        g = gradient(self.theta)
        self.synced = self._syncs(g)
        if self.synced:
            e = self._perturbation(g)
            ga = gradient({name: self.theta[name] + e[name] for name in self.theta})
            if h.mode == "aga" or (h.mode == "lazy" and h.shear != "off"):
                self.s = {name: self._shear(ga[name], g[name]) for name in g}
            self.last_sync = self.t
            g = ga
        elif self.s and h.shear != "off":
            g = {name: self._inject(g[name], self.s[name]) for name in g}
        for name in self.theta:
            self.theta[name] = self._updated(name, g[name])

    def _syncs(self, g: Tensors) -> bool:
        h = self.hyper
        if h.mode == "base" or h.rho <= 0:
            return False
        if h.mode == "sync":
            return True
        if h.mode == "lazy":
            return self.t % h.k == 1
        self.phi = 0.0
        if self.s:
            dot = sum(float((g[n] * self.s[n]).sum()) for n in g)
            gg = sum(float((g[n] ** 2).sum()) for n in g)
            ss = sum(float((self.s[n] ** 2).sum()) for n in g)
            self.phi = dot / ((gg * ss) ** 0.5 + 1e-12)
        if self.t == 1:
            self.nu = self.phi**2
        elif self.t - self.last_sync > 1:
            self.nu = h.aga_beta * self.nu + (1 - h.aga_beta) * self.phi**2
        threshold = -h.aga_lambda * self.nu**0.5
        return self.phi < threshold or self.t == 1 or self.t - self.last_sync >= h.k

    def _perturbation(self, g: Tensors) -> Tensors:
        h = self.hyper
        correction = 1 - h.betas[1] ** max(1, self.t - 1) + 1e-12
        root = {n: (self.v[n] / correction).sqrt() + h.eps for n in g}
        if h.perturbation == "ars2":
            direction = {n: self.theta[n].abs() * g[n] / root[n] for n in g}
            return {n: h.rho * d / (norm(d) + 1e-12) for n, d in direction.items()}
        if h.perturbation == "paper":
            direction = metric = {n: g[n] / root[n] for n in g}
        elif h.perturbation == "sam":
            direction = metric = dict(g)
        else:
            direction = {n: self.theta[n] ** 2 * g[n] for n in g}
            metric = {n: self.theta[n].abs() * g[n] for n in g}
        size = sum(float((x**2).sum()) for x in metric.values()) ** 0.5
        return {n: h.rho * d / (size + 1e-12) for n, d in direction.items()}

    def _shear(self, ga: Tensor, g: Tensor) -> Tensor:
        return ga - g * float((ga * g).sum() / ((g * g).sum() + 1e-12))

    def _inject(self, g: Tensor, s: Tensor) -> Tensor:
        h = self.hyper
        growth = (1 + max(0.0, self.phi or 0.0)) ** h.aga_gamma if h.mode == "aga" else 1.0
        sign = -1.0 if h.shear == "signflip" else 1.0
        return g + sign * h.alpha * growth * norm(g) / (norm(s) + 1e-12) * s

    def _updated(self, name: str, g: Tensor) -> Tensor:
        h, (b1, b2) = self.hyper, self.hyper.betas
        self.m[name] = b1 * self.m[name] + (1 - b1) * g
        self.v[name] = b2 * self.v[name] + (1 - b2) * g * g
        mh = self.m[name] / (1 - b1**self.t)
        vh = self.v[name] / (1 - b2**self.t)
        A = mh / (vh.sqrt() + h.eps)
        W = (1 - h.lr * h.weight_decay) * self.theta[name]
        if A.ndim < 2:
            return W - h.lr * A
        matrix = A.reshape(-1, A.shape[-1]) if A.ndim == 3 and h.flatten else A
        matrix = matrix.reshape(A.shape[0], -1) if A.ndim > 3 else matrix
        slices = matrix if matrix.ndim == 3 else matrix[None]
        O = torch.stack([self._newton_schulz(X) for X in slices]).reshape(A.shape)
        if h.energy == "reference":
            return W - h.lr * norm(A) * O
        if h.energy == "unit":
            return W - O * (h.lr * norm(A) / norm(O))
        return W - O * (h.lr * 0.2 * math.sqrt(max(matrix.shape[-2:])))

    def _newton_schulz(self, A: Tensor) -> Tensor:
        a, b, c = 3.4445, -4.7750, 2.0315
        X = A.T if A.shape[0] > A.shape[1] else A
        X = X / (norm(X) + 1e-7)
        for _ in range(self.hyper.ns_steps):
            S = X @ X.T
            X = a * X + (b * S + c * S @ S) @ X
        return X.T if A.shape[0] > A.shape[1] else X
