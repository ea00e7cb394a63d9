"""Other libraries of the curvature benchmark, each called as by a user: a new object per call, set-up included.

Every function returns the result with its number of products; each column of a block counts as one.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from networks import Problem
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Found:
    """Result of a library and its number of products; nan and None for missing values."""

    products: int
    top: Sequence[float] = ()
    bottom: float = float("nan")
    trace: float = float("nan")
    density: tuple[Array, Array] | None = None  # nodes and shares
    unmet: tuple[str, ...] = ()  # requested quantities reported as not converged
    parts: tuple[int, ...] = ()  # products of the individual calls


def installed(name: str) -> bool:
    """Return True if a library can be imported."""
    return importlib.util.find_spec(name) is not None


# -- pyhessian ------------------------------------------------------------------------------------------------


class PyHessian:
    """pyhessian 0.1 on one problem: power iteration, Hutchinson's trace, stochastic Lanczos quadrature."""

    def __init__(self, problem: Problem, seed: int) -> None:
        torch.manual_seed(seed)
        self.products = 0
        import pyhessian

        cuda = problem.device.type == "cuda"
        self.hessian = pyhessian.hessian(problem.model, nn.CrossEntropyLoss(), data=problem.batch, cuda=cuda)

    def counted(self, gradients: Any, parameters: Any, v: Any) -> Any:
        """Count a product and take it as pyhessian does."""
        self.products += 1
        return torch.autograd.grad(gradients, parameters, grad_outputs=v, only_inputs=True, retain_graph=True)


@contextmanager
def pyhessian(problem: Problem, seed: int) -> Iterator[PyHessian]:
    """Yield a new object and free its graph at the end, which the gradients of the model keep alive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the leak of backward(create_graph=True), which the last lines prevent
        library = PyHessian(problem, seed)
        try:
            with patch.object(sys.modules["pyhessian.hessian"], "hessian_vector_product", library.counted):
                yield library
        finally:
            problem.model.zero_grad()


def pyhessian_top(problem: Problem, seed: int, *, tol: float = 1e-3) -> Found:
    """Compute the largest eigenvalue with its rule: stop when two iterations differ by less than `tol`."""
    with pyhessian(problem, seed) as library:
        values, _ = library.hessian.eigenvalues(tol=tol)
        return Found(library.products, values)


def pyhessian_panel(problem: Problem, seed: int, *, samples: int | None = None) -> Found:
    """Make its three calls with their defaults, or with a number of `samples` of the trace.

    `density` needs the removed `torch.eig`, which is provided.
    """
    with pyhessian(problem, seed) as library:
        values, _ = library.hessian.eigenvalues(top_n=5)
        first = library.products
        stop = {} if samples is None else {"maxIter": samples, "tol": 0.0}
        trace = float(np.mean(library.hessian.trace(**stop)))
        second = library.products - first
        with patch.object(torch, "eig", _eig, create=True):
            nodes, weights = library.hessian.density(iter=100, n_v=1)
        parts = (first, second, library.products - first - second)
        density = (np.array(nodes[0]), np.array(weights[0]))
        return Found(library.products, values, trace=trace, density=density, parts=parts)


def _eig(A: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """Replace the removed `torch.eig` for symmetric matrices: return eigenvalues as complex pairs, and eigenvectors."""
    values, vectors = torch.linalg.eigh(A)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


# -- curvlinops -----------------------------------------------------------------------------------------------


def curvlinops_operator(problem: Problem) -> Any:
    """Return its Hessian with a count of products, without its check of determinism, which costs two products."""
    from curvlinops import HessianLinearOperator

    class Counted(HessianLinearOperator):  # type: ignore[misc]
        products = 0

        def _matmat(self, M: list[Tensor]) -> list[Tensor]:
            self.products += M[0].shape[-1]
            return super()._matmat(M)  # type: ignore[no-any-return]

    settings = {"check_deterministic": False, "num_data": len(problem.batch[0])}
    return Counted(problem.model, nn.CrossEntropyLoss(), problem.parameters, [problem.batch], **settings)


def eigsh_ends(operator: Any, seed: int, which: str, count: int, tol: float, ncv: int | None = None) -> Array:
    """Compute eigenvalues at one end by scipy's eigsh, outermost first."""
    from scipy.sparse.linalg import eigsh

    start = np.random.default_rng(seed).standard_normal(operator.shape[0])
    matrix = operator.to_scipy()
    values = eigsh(matrix, k=count, which=which, tol=tol, ncv=ncv, v0=start, return_eigenvectors=False)
    return np.sort(values)[::-1] if which == "LA" else np.sort(values)


def curvlinops_top(problem: Problem, seed: int, *, tol: float, ncv: int | None) -> Found:
    """Compute the largest eigenvalue by eigsh, with a basis of `ncv` vectors (20 if None)."""
    operator = curvlinops_operator(problem)
    values = eigsh_ends(operator, seed, "LA", 1, tol, ncv)
    return Found(operator.products, values.tolist())


@dataclass(frozen=True)
class Combination:
    """Settings of curvlinops for the parts of the panel."""

    top_tol: float
    bottom_tol: float
    trace_matvecs: int
    density_steps: int

    def words(self) -> str:
        """Return the calls in short."""
        ends = f"eigsh 5 LA tol {self.top_tol:g}, 1 SA tol {self.bottom_tol:g}"
        return f"{ends}, xtrace {self.trace_matvecs}, SLQ {self.density_steps}"


def curvlinops_panel(problem: Problem, seed: int, *, settings: Combination) -> Found:
    """Compute both ends by eigsh, the trace by xtrace, and the Lanczos quadrature of its densities."""
    operator = curvlinops_operator(problem)
    top = eigsh_ends(operator, seed, "LA", 5, settings.top_tol)
    first = operator.products
    bottom = eigsh_ends(operator, seed, "SA", 1, settings.bottom_tol)
    second = operator.products - first
    trace = curvlinops_trace(operator, seed, settings.trace_matvecs)
    density = curvlinops_density(operator, seed, settings.density_steps)
    parts = (first, second, settings.trace_matvecs, settings.density_steps)
    return Found(operator.products, top.tolist(), float(bottom[0]), trace, density, parts=parts)


def curvlinops_trace(operator: Any, seed: int, matvecs: int) -> float:
    """Compute the trace by xtrace."""
    from curvlinops import xtrace

    torch.manual_seed(seed)
    return float(xtrace(operator, matvecs))


def curvlinops_density(operator: Any, seed: int, steps: int) -> tuple[Array, Array]:
    """Return nodes and shares of its Lanczos quadrature from one vector."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    nodes, vectors = fast_lanczos(operator, steps)
    return nodes.double().cpu().numpy(), vectors[0].double().square().cpu().numpy()


# -- hessian-eigenthings --------------------------------------------------------------------------------------


def eigenthings_operator(problem: Problem) -> Any:
    """Return its Hessian with a count of products."""
    from hessian_eigenthings.operators.hessian import HessianOperator

    class Counted(HessianOperator):  # type: ignore[misc]
        products = 0

        def matvec(self, v: Tensor) -> Tensor:
            self.products += 1
            return super().matvec(v)  # type: ignore[no-any-return]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return Counted(problem.model, [problem.batch], loss)


def eigenthings_top(problem: Problem, seed: int, *, steps: int) -> Found:
    """Compute the largest eigenvalue by a fixed number of Lanczos steps."""
    from hessian_eigenthings import lanczos

    operator = eigenthings_operator(problem)
    found = lanczos(operator, k=1, max_iter=steps, which="LA", seed=seed)
    return Found(operator.products, [float(found.eigenvalues[0])])


# -- one product ----------------------------------------------------------------------------------------------


@contextmanager
def pyhessian_product(problem: Problem) -> Iterator[Callable[[], object]]:
    """Yield a product as pyhessian takes it, with a cached graph."""
    with pyhessian(problem, 0) as library:
        v = [torch.randn_like(p) for p in library.hessian.params]
        yield lambda: library.counted(library.hessian.gradsH, library.hessian.params, v)


@contextmanager
def curvlinops_product(problem: Problem) -> Iterator[Callable[[], object]]:
    """Yield a product as curvlinops takes it."""
    operator = curvlinops_operator(problem)
    v = torch.randn(problem.size, device=problem.device)
    yield lambda: operator @ v


@contextmanager
def eigenthings_product(problem: Problem) -> Iterator[Callable[[], object]]:
    """Yield a product as hessian-eigenthings takes it, rebuilding its graph."""
    operator = eigenthings_operator(problem)
    v = torch.randn(problem.size, device=problem.device)
    yield lambda: operator.matvec(v)
