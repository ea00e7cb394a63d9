"""The rivals of the curvature benchmark, each as a user would call it: a fresh object a call, its set-up counted.

Every function returns what was found with the products it took, columns of blocks counted one by one.
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
    """What a library found, and how many products it took; nan and None for what it does not give."""

    products: int
    top: Sequence[float] = ()
    bottom: float = float("nan")
    trace: float = float("nan")
    density: tuple[Array, Array] | None = None  # nodes and shares
    unmet: tuple[str, ...] = ()  # what was asked for and says itself that it did not get there
    parts: tuple[int, ...] = ()  # products of the calls that make it up


def installed(name: str) -> bool:
    """Whether a rival can be imported."""
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
        """Its own product, counted."""
        self.products += 1
        return torch.autograd.grad(gradients, parameters, grad_outputs=v, only_inputs=True, retain_graph=True)


@contextmanager
def pyhessian(problem: Problem, seed: int) -> Iterator[PyHessian]:
    """A fresh object; its graph is freed at the end, as it hangs on the gradients of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that backward(create_graph=True) leaks, which the last lines prevent
        judge = PyHessian(problem, seed)
        try:
            with patch.object(sys.modules["pyhessian.hessian"], "hessian_vector_product", judge.counted):
                yield judge
        finally:
            problem.model.zero_grad()


def pyhessian_top(problem: Problem, seed: int, *, tol: float = 1e-3) -> Found:
    """The largest eigenvalue by its rule: stop when two iterations differ by less than `tol`."""
    with pyhessian(problem, seed) as judge:
        values, _ = judge.hessian.eigenvalues(tol=tol)
        return Found(judge.products, values)


def pyhessian_panel(problem: Problem, seed: int, *, samples: int | None = None) -> Found:
    """Its three calls with their defaults, or with so many `samples` of the trace.

    `density` needs `torch.eig`, which is lent to it.
    """
    with pyhessian(problem, seed) as judge:
        values, _ = judge.hessian.eigenvalues(top_n=5)
        first = judge.products
        stop = {} if samples is None else {"maxIter": samples, "tol": 0.0}
        trace = float(np.mean(judge.hessian.trace(**stop)))
        second = judge.products - first
        with patch.object(torch, "eig", _eig, create=True):
            nodes, weights = judge.hessian.density(iter=100, n_v=1)
        parts = (first, second, judge.products - first - second)
        density = (np.array(nodes[0]), np.array(weights[0]))
        return Found(judge.products, values, trace=trace, density=density, parts=parts)


def _eig(A: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """The removed `torch.eig` for symmetric matrices: eigenvalues with zero imaginary parts, and eigenvectors."""
    values, vectors = torch.linalg.eigh(A)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


# -- curvlinops -----------------------------------------------------------------------------------------------


def curvlinops_operator(problem: Problem) -> Any:
    """Its Hessian with a count of products; without its check of determinism, which costs two products."""
    from curvlinops import HessianLinearOperator

    class Counted(HessianLinearOperator):  # type: ignore[misc]
        products = 0

        def _matmat(self, M: list[Tensor]) -> list[Tensor]:
            self.products += M[0].shape[-1]
            return super()._matmat(M)  # type: ignore[no-any-return]

    settings = {"check_deterministic": False, "num_data": len(problem.batch[1])}
    return Counted(problem.model, nn.CrossEntropyLoss(), problem.parameters, [problem.batch], **settings)


def eigsh_ends(operator: Any, seed: int, which: str, count: int, tol: float, ncv: int | None = None) -> Array:
    """Eigenvalues at one end by scipy's eigsh, outermost first."""
    from scipy.sparse.linalg import eigsh

    start = np.random.default_rng(seed).standard_normal(operator.shape[0])
    matrix = operator.to_scipy()
    values = eigsh(matrix, k=count, which=which, tol=tol, ncv=ncv, v0=start, return_eigenvectors=False)
    return np.sort(values)[::-1] if which == "LA" else np.sort(values)


def curvlinops_top(problem: Problem, seed: int, *, tol: float, ncv: int | None) -> Found:
    """The largest eigenvalue by eigsh, with a basis of `ncv` vectors (20 where it is None)."""
    operator = curvlinops_operator(problem)
    values = eigsh_ends(operator, seed, "LA", 1, tol, ncv)
    return Found(operator.products, values.tolist())


@dataclass(frozen=True)
class Combination:
    """The settings of curvlinops' parts of the panel."""

    top_tol: float
    bottom_tol: float
    trace_matvecs: int
    density_steps: int

    def words(self) -> str:
        """What is called, in short."""
        ends = f"eigsh 5 LA tol {self.top_tol:g}, 1 SA tol {self.bottom_tol:g}"
        return f"{ends}, xtrace {self.trace_matvecs}, SLQ {self.density_steps}"


def curvlinops_panel(problem: Problem, seed: int, *, settings: Combination) -> Found:
    """Both ends by eigsh, xtrace, and the Lanczos quadrature that its densities are drawn from."""
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
    """The trace by xtrace."""
    from curvlinops import xtrace

    torch.manual_seed(seed)
    return float(xtrace(operator, matvecs))


def curvlinops_density(operator: Any, seed: int, steps: int) -> tuple[Array, Array]:
    """Nodes and shares of its Lanczos quadrature from one vector."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    nodes, vectors = fast_lanczos(operator, steps)
    return nodes.double().cpu().numpy(), vectors[0].double().square().cpu().numpy()


# -- hessian-eigenthings --------------------------------------------------------------------------------------


def eigenthings_operator(problem: Problem) -> Any:
    """Its Hessian with a count of products."""
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
    """The largest eigenvalue by a fixed number of Lanczos steps."""
    from hessian_eigenthings import lanczos

    operator = eigenthings_operator(problem)
    found = lanczos(operator, k=1, max_iter=steps, which="LA", seed=seed)
    return Found(operator.products, [float(found.eigenvalues[0])])


# -- one product ----------------------------------------------------------------------------------------------


@contextmanager
def pyhessian_product(problem: Problem) -> Iterator[Callable[[], object]]:
    """A product as pyhessian takes it, with its graph kept."""
    with pyhessian(problem, 0) as judge:
        v = [torch.randn_like(p) for p in judge.hessian.params]
        yield lambda: judge.counted(judge.hessian.gradsH, judge.hessian.params, v)


@contextmanager
def curvlinops_product(problem: Problem) -> Iterator[Callable[[], object]]:
    """A product as curvlinops takes it."""
    operator = curvlinops_operator(problem)
    v = torch.randn(problem.size, device=problem.device)
    yield lambda: operator @ v


@contextmanager
def eigenthings_product(problem: Problem) -> Iterator[Callable[[], object]]:
    """A product as hessian-eigenthings takes it, its graph rebuilt."""
    operator = eigenthings_operator(problem)
    v = torch.randn(problem.size, device=problem.device)
    yield lambda: operator.matvec(v)
