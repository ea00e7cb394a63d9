"""Converged reference values of a problem, against which errors are measured.

Eigenvalues come from a fully reorthogonalized Lanczos run in float64 and are compared with scipy's `eigsh` through
another library's products. The trace is exact where the network is linear layers and ReLU; elsewhere, and for the
density, many random probes on the complement of that Krylov space, with their own error. Nothing here is our engine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import curvature_rivals as rivals
import numpy as np
import torch
from networks import Problem
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SolverOptions:
    """Accuracy of a reference."""

    trace_error: float = 1e-3  # relative standard error of the trace, where it is sampled
    steps: int = 200  # of the Lanczos run, at most
    most_probes: int = 3000
    density_probes: int = 12
    density_steps: int = 24


@dataclass(frozen=True)
class Reference:
    """Reference values with their errors."""

    top: Array  # (5,) descending
    bottom: float
    residual: float  # the largest residual of these, relative to lambda_max
    agreement: float  # largest difference to eigsh, relative to lambda_max
    trace: float
    trace_error: float  # relative standard error, 0 where exact
    density: tuple[Array, Array]  # nodes, and shares that sum to 1
    density_error: float  # half the distance between the two halves of the probes, relative to lambda_max

    def top_error(self, values: Array) -> float:
        """Return the largest error of the first eigenvalues, relative to lambda_max."""
        found = np.sort(np.asarray(values))[::-1]
        return float(np.abs(found - self.top[: len(found)]).max() / self.top[0])

    def bottom_error(self, value: float) -> float:
        """Return the error of lambda_min, relative to lambda_max."""
        return abs(value - self.bottom) / float(self.top[0])

    def density_distance(self, density: tuple[Array, Array]) -> float:
        """Return the Wasserstein-1 distance between the spectral distributions, relative to lambda_max."""
        return _distance(density, self.density) / float(self.top[0])

    def trace_samples(self, rel: float, size: int) -> int:
        """Return the number of random sign vectors with which Hutchinson's trace has a standard error of `rel`.

        The variance of one sample is twice the squared Frobenius norm, minus that of the diagonal, which is small.
        """
        nodes, shares = self.density
        return math.ceil(2 * size * float(shares @ nodes**2) / (rel * self.trace) ** 2)


def remembered(problem: Problem, effort: SolverOptions) -> Reference:
    """Return the reference of a problem, cached in the temporary folder under a hash of all that it depends on."""
    digest = hashlib.sha256(repr((effort, problem.relu_only)).encode())
    for tensor in (*problem.parameters, *problem.batch):
        digest.update(tensor.detach().cpu().numpy().tobytes())
    file = Path(gettempdir()) / "lossscope-references" / f"{digest.hexdigest()[:32]}.json"
    if not file.exists():
        found = reference(problem, effort)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(asdict(found), default=np.ndarray.tolist))
    kept = json.loads(file.read_text())
    nodes, shares = kept.pop("density")
    return Reference(top=np.array(kept.pop("top")), density=(np.array(nodes), np.array(shares)), **kept)


def reference(problem: Problem, effort: SolverOptions) -> Reference:
    """Compute the reference of a problem."""
    generator = torch.Generator().manual_seed(20_26)
    exact = kept_product(problem.to(torch.float64))
    start = torch.randn(problem.size, generator=generator, dtype=torch.float64).to(problem.device)
    Q, alphas, betas = lanczos(exact, start, effort.steps, ends=(5, 1), until=1e-6)
    values, vectors = _eigh(alphas, betas[:-1])
    residuals = np.abs(betas[-1] * vectors[-1])
    top, bottom = values[::-1][:5].copy(), float(values[0])
    settled = (residuals <= 1e-4 * top[0]) & (np.abs(values) >= 1e-2 * top[0])
    pairs = (Q.mT @ torch.as_tensor(vectors[:, settled]).to(Q)).mT
    trace, trace_error = _trace(problem, Q, float(np.sum(alphas)), effort, generator)
    density, density_error = _density(problem, pairs, values[settled], effort, generator)
    return Reference(
        top,
        bottom,
        float(max(residuals[-5:].max(), residuals[0]) / top[0]),
        _agreement(problem, top, bottom),
        trace,
        trace_error,
        density,
        density_error / float(top[0]),
    )


def largest_eigenvalue(problem: Problem) -> float:
    """Compute the largest eigenvalue only, by Lanczos in float64 until it converges."""
    product = kept_product(problem.to(torch.float64))
    generator = torch.Generator().manual_seed(20_26)
    start = torch.randn(problem.size, generator=generator, dtype=torch.float64).to(problem.device)
    _, alphas, betas = lanczos(product, start, 120, ends=(1, 0), until=1e-4)
    return float(_eigh(alphas, betas[:-1])[0][-1])


def top_reference(problem: Problem) -> Reference:
    """Compute a reference for the largest eigenvalue only."""
    top, gap = np.array([largest_eigenvalue(problem)]), float("nan")
    return Reference(top, gap, gap, _agreement(problem, top, gap), gap, gap, (top, np.ones(1)), gap)


def kept_product(problem: Problem) -> Product:
    """Return products with the Hessian, in the precision of the problem, with float64 input and output."""
    parameters = problem.parameters
    gradients = torch.autograd.grad(problem.loss(), parameters, create_graph=True)
    sizes, shapes = [p.numel() for p in parameters], [p.shape for p in parameters]

    def product(v: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(v.to(parameters[0].dtype).split(sizes), shapes, strict=True)]
        found = torch.autograd.grad(gradients, parameters, parts, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in found]).double()

    return product


def lanczos(
    product: Product,
    start: Tensor,
    steps: int,
    *,
    against: Tensor | None = None,
    ends: tuple[int, int] = (0, 0),
    until: float = 0.0,
) -> tuple[Tensor, Array, Array]:
    """Return basis rows, diagonal and off-diagonal of the Krylov space of `start`; the last entry couples out.

    With `against`, the operator is restricted to the complement of these rows, which are eigenvectors. The run ends
    early if as many Ritz values as given by `ends` have residuals below `until` times the largest.
    """
    rows = start.new_empty(min(steps, len(start)), len(start))
    alphas: list[float] = []
    betas: list[float] = []
    v = start
    for k in range(len(rows)):
        rows[k] = v / v.norm()
        image = product(rows[k])
        alphas.append(float(rows[k] @ image))
        v = _orthogonal(image, rows[: k + 1], rows[: k + 1], *([] if against is None else [against]))
        betas.append(float(v.norm()))
        if until and k >= 16 and k % 8 == 0 and _converged(alphas, betas, ends, until):
            break
    return rows[: len(alphas)], np.array(alphas), np.array(betas)


def _converged(alphas: list[float], betas: list[float], ends: tuple[int, int], until: float) -> bool:
    """Return True if both ends have converged."""
    values, vectors = _eigh(np.array(alphas), np.array(betas[:-1]))
    residuals = np.abs(betas[-1] * vectors[-1])
    outer = np.concatenate([residuals[len(values) - ends[0] :], residuals[: ends[1]]])
    return bool(outer.max() <= until * np.abs(values).max())


def _orthogonal(v: Tensor, *bases: Tensor) -> Tensor:
    """Return the part of v orthogonal to all rows, by one sweep over each basis."""
    for basis in bases:
        v = v - basis.mT @ (basis @ v)
    return v


def _eigh(alphas: Array, betas: Array) -> tuple[Array, Array]:
    from scipy.linalg import eigh_tridiagonal

    values, vectors = eigh_tridiagonal(alphas, betas)
    return values, vectors


def _agreement(problem: Problem, top: Array, bottom: float) -> float:
    """Return the largest difference from scipy's eigsh, with curvlinops' products if it is installed."""
    double = problem.to(torch.float64).elementary()
    if rivals.installed("curvlinops"):
        operator = rivals.curvlinops_operator(double).to_scipy()
    else:
        product, where = kept_product(double), double.device

        def matvec(v: Array) -> Array:
            return product(torch.as_tensor(v).ravel().to(where)).cpu().numpy()

        operator = LinearOperator((double.size, double.size), matvec=matvec, dtype=np.float64)
    above = eigsh(operator, k=len(top), which="LA", tol=1e-4, ncv=40, return_eigenvectors=False)
    differences = np.abs(np.sort(above)[::-1] - top)
    if not np.isnan(bottom):
        below = eigsh(operator, k=1, which="SA", tol=1e-2, ncv=40, return_eigenvectors=False)
        differences = np.append(differences, np.abs(below - bottom))
    return float(differences.max() / top[0])


def _trace(
    problem: Problem, Q: Tensor, inside: float, effort: SolverOptions, generator: torch.Generator
) -> tuple[float, float]:
    """Return the trace and its relative standard error: exact, or exact on the space plus probes on its complement."""
    if problem.relu_only:
        return gauss_newton_trace(problem.to(torch.float64)), 0.0
    product, forms = kept_product(problem), list[float]()
    while True:
        forms += [float(z @ product(z)) for z in _complement_probes(problem, Q, 32, generator)]
        trace, stderr = inside + float(np.mean(forms)), float(np.std(forms, ddof=1) / len(forms) ** 0.5)
        if (len(forms) >= 64 and stderr <= effort.trace_error * abs(trace)) or len(forms) >= effort.most_probes:
            return trace, stderr / abs(trace)


def gauss_newton_trace(problem: Problem) -> float:
    r"""Return the exact trace of the Gauss-Newton matrix, equal to that of the Hessian for linear layers and ReLU.

    :math:`\mathrm{diag}(p) - p p^\top = \sum_c p_c (e_c - p)(e_c - p)^\top`, and the gradient of a linear layer by
    one sample is an outer product of its input and the gradient of its output, so squared norms multiply.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def seen(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0].detach())
        outputs.append(output)

    handles = [module.register_forward_hook(seen) for module in problem.model if isinstance(module, nn.Linear)]
    logits = problem.model(problem.batch[0])
    for handle in handles:
        handle.remove()
    p, total = logits.detach().softmax(-1), 0.0
    for c in range(p.shape[1]):
        direction = torch.eye(p.shape[1]).to(p)[c] - p
        slopes = torch.autograd.grad(logits, outputs, direction, retain_graph=True)
        for a, d in zip(inputs, slopes, strict=True):
            total += float((p[:, c] * d.square().sum(1) * (a.square().sum(1) + 1)).sum())
    return total / len(p)


def _density(
    problem: Problem, pairs: Tensor, values: Array, effort: SolverOptions, generator: torch.Generator
) -> tuple[tuple[Array, Array], float]:
    """Return the density, converged eigenvalues plus quadrature of the rest, and half the distance of two halves."""
    product, runs = kept_product(problem), list[tuple[Array, Array]]()
    for start in _complement_probes(problem, pairs, effort.density_probes, generator):
        _, alphas, betas = lanczos(product, start, effort.density_steps, against=pairs)
        nodes, vectors = _eigh(alphas, betas[:-1])
        runs.append((nodes, vectors[0] ** 2))
    half = effort.density_probes // 2
    whole, first, second = (_joined(values, part, problem.size) for part in (runs, runs[:half], runs[half:]))
    return whole, _distance(first, second) / 2


def _joined(values: Array, runs: list[tuple[Array, Array]], size: int) -> tuple[Array, Array]:
    """Combine the converged eigenvalues and the mean of the runs into one distribution."""
    share = (size - len(values)) / size / len(runs)
    nodes = np.concatenate([values, *(nodes for nodes, _ in runs)])
    shares = np.concatenate([np.full(len(values), 1 / size), *(share * weights for _, weights in runs)])
    return nodes, shares


def _distance(first: tuple[Array, Array], second: tuple[Array, Array]) -> float:
    return float(wasserstein_distance(first[0], second[0], first[1], second[1]))


def _complement_probes(problem: Problem, basis: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return random signs projected on the complement of the basis rows."""
    signs = torch.randint(2, (count, problem.size), generator=generator, dtype=torch.int8).double() * 2 - 1
    return _orthogonal(signs.to(problem.device).mT, basis).mT.contiguous()
