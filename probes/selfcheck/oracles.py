"""Checks against independent libraries, PyHessian and curvlinops, where they are installed."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.selfcheck.check import Check, InconclusiveError, Place, Reading, check
from lossscope.probes.selfcheck.problems import NETWORKS, distance, gaussian, network, not_none
from lossscope.probes.statistics.estimate import mean_estimate

__all__ = ["ORACLES", "ORACLE_CHECKS"]

ORACLES: Final = {"pyhessian": "0.1", "curvlinops-for-pytorch": "3.0.1"}  # releases that these checks are written for
_SAMPLES: Final = 200
_ROUNDINGS: Final = 1000.0  # largest relative distance of products of two libraries, in units of eps


@check("PyHessian: lambda_max", "its largest eigenvalue equals ours")
def _pyhessian_top(place: Place) -> Reading:
    objective = network("tanh", place, (26,))
    ours = not_none(measure_spectrum(hessian(objective), top=1, rel=1e-4, quantities=("top",)).top)
    with _pyhessian(objective) as reference:
        theirs = float(reference.eigenvalues(maxIter=1000, tol=1e-7, top_n=1)[0][0])
    # its rule bounds the last change, not the error, which is a hundred times as large at the most here
    figure, bound = abs(theirs - float(ours.values[0])), float(ours.bounds[0]) + 1e-5 * theirs
    return figure, bound, f"absolute difference at {theirs:.4g}; the bound is ours and 1e-5 of it"


@check("PyHessian: trace", "its trace equals ours within both standard errors")
def _pyhessian_trace(place: Place) -> Reading:
    objective = network("tanh", place, (26,))
    ours = not_none(measure_spectrum(hessian(objective), quantities=("trace",), max_products=1000).trace)
    with _pyhessian(objective) as reference:
        theirs = mean_estimate(reference.trace(maxIter=_SAMPLES, tol=-math.inf))
    error = math.hypot(theirs.stderr, ours.stderr)
    return abs(theirs.value - ours.value) / error, 4.0, f"standard errors apart, {ours.value:.4g} ± {error:.2g}"


def _curvlinops(
    kind: str, name: str, ours: Callable[[Objective], SymmetricOperator], *, without: tuple[str, ...] = ()
) -> Check:
    """Return the check that products of one of our operators with three vectors equal those of curvlinops."""
    nets = [net for net in NETWORKS if net not in without]

    @check(f"curvlinops: {name}", f"its products equal ours, on {len(nets)} networks")
    def same(place: Place) -> Reading:
        errors: dict[str, float] = {}
        for net in nets:
            objective = network(net, place)
            V = gaussian(objective.size, 3, seed=11).to(place.dtype)
            found = ours(objective) @ V
            errors[net] = distance(found, _their_product(kind, objective, V.to(place.device)))
        worst = max(errors, key=lambda net: (math.isnan(errors[net]), errors[net]))
        return errors[worst], _ROUNDINGS * place.eps, f"relative distance, largest of {len(errors)} networks: {worst}"

    return same


ORACLE_CHECKS: Final = (
    _pyhessian_top,
    _pyhessian_trace,
    # curvlinops takes forward derivatives of several gradients at once: torch has no rule for group norm there, and a
    # wrong one for layer norm (5 % off on the network here); finite differences check these two
    _curvlinops("Hessian", "Hessian", hessian, without=("layer norm", "group norm")),
    _curvlinops("GGN", "Gauss-Newton", gauss_newton),
    _curvlinops("EF", "empirical Fisher", lambda objective: fisher(objective, kind="empirical")),
)


def _their_product(kind: str, objective: Objective, V: Tensor) -> Tensor:
    """Return the product of curvlinops with V, without fused attention, which has no second derivative."""
    with _oracle("curvlinops", "curvlinops-for-pytorch") as library, sdpa_kernel(SDPBackend.MATH):
        parameters = [p for p in objective.model.parameters() if p.requires_grad]
        pairs = [tuple(batch) for batch in objective.data.batches]
        operator = getattr(library, f"{kind}LinearOperator")(
            objective.model.eval(), nn.CrossEntropyLoss(), parameters, pairs
        )
        product: Tensor = operator @ V
        return product


@contextmanager
def _pyhessian(objective: Objective) -> Iterator[Any]:
    """Yield PyHessian's Hessian of the same network and batch, and clear the gradients it leaves."""
    if objective.device.type not in ("cpu", "cuda"):
        raise InconclusiveError(f"PyHessian runs on cpu and cuda only, not on {objective.device.type}")
    net = objective.model
    with _oracle("pyhessian", "pyhessian") as library, torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            (batch,) = objective.data.batches
            yield library.hessian(net, nn.CrossEntropyLoss(), data=batch, cuda=objective.device.type == "cuda")
        finally:
            net.zero_grad(set_to_none=True)  # the gradients keep their own graph alive


@contextmanager
def _oracle(module: str, distribution: str) -> Iterator[Any]:
    """Yield a library with its warnings silenced; its errors make the check inconclusive."""
    wanted = ORACLES[distribution]
    install = f"run `pip install {distribution}=={wanted}`"
    try:
        there = version(distribution)
    except PackageNotFoundError:
        raise InconclusiveError(f"{distribution} is not installed: {install}") from None
    if there != wanted:
        raise InconclusiveError(f"{distribution} {there} is installed, the check needs {wanted}: {install}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield importlib.import_module(module)
    except Exception as error:
        words = " ".join(str(error).split())
        raise InconclusiveError(f"{distribution} itself raised {type(error).__name__}: {words}") from error
