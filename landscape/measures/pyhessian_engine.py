"""Second opinion: eigenvalues and trace of the Hessian by PyHessian, an independent library."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lossscope.probes.eigenvalues.results import EigenPairs, SpectrumEstimate
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derivative_checks import require_second_derivative
from lossscope.probes.operators.second_derivative import named
from lossscope.probes.statistics.estimate import Estimate, mean_estimate
from lossscope.probes.sums import row_norms

__all__ = ["pyhessian_spectrum"]


def pyhessian_spectrum(
    objective: Objective,
    operator: SymmetricOperator,
    *,
    top: int,
    rel: float,
    max_products: int,
    quantities: Collection[str],
    seed: int,
) -> SpectrumEstimate:
    r"""Compute the eigenvalues of largest magnitude and the trace with PyHessian 0.1.

    PyHessian uses power iteration with deflation: it finds the largest :math:`|\lambda|`, which is `lambda_max` only
    if no negative eigenvalue has a larger magnitude; a negative one has not converged as one of the largest. It stops
    when the value changes little between two iterations, which certifies nothing, so the residual of each pair is
    computed here with one product of `operator`. PyHessian's stopping rule for the trace stops at lucky samples, and at
    once if the trace is negative; it is switched off and all samples are drawn.

    PyHessian sees a module whose parameters are copies and whose output is the mean loss over all batches, so it
    cannot change the model, its gradients, modes or hooks. The random state is restored and warnings are suppressed.

    Args:
        objective: The loss.
        operator: The Hessian of that objective, from `hessian(objective)`.
        top: Number of eigenvalues.
        rel: A pair is converged if its residual is at most `rel` times the largest absolute eigenvalue.
        max_products: Budget of Hessian products, split evenly if both quantities are requested.
        quantities: `top`, `trace` or both.
        seed: Seed of PyHessian's random vectors.

    Returns:
        The estimates; `bottom`, `frobenius` and `density` are None. (Release 0.1 has a density too, but it calls a
        function that torch no longer has.)

    Raises:
        ProbeError: The device is neither cpu nor cuda, PyHessian cannot be imported, or autograd computes a wrong
            second derivative for a layer, on which PyHessian relies.

    Source:
        Z. Yao et al. (2020), PyHessian: neural networks through the lens of the Hessian, arXiv:1912.07145.
    """
    library = _library_for(operator.device)
    require_second_derivative(objective)  # PyHessian would use a wrong one silently
    begun = time.perf_counter()
    with operator.cached(), objective.evaluating(), warnings.catch_warnings(), named():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # the context puts the random state back
        loss = _LossModule(objective)
        judge = library(loss, _first, data=loss.stand_ins, cuda=objective.device.type == "cuda")
        share = max_products // len(quantities)
        pairs = _pairs(operator, judge, min(top, operator.size), share, rel) if "top" in quantities else None
        trace = _trace(judge, max(2, share), rel) if "trace" in quantities else None
        loss.cut()
    seconds, gradient = time.perf_counter() - begun, operator.gradient_seconds
    met = {"top": pairs is None or bool(pairs.converged.all()), "trace": trace is None or trace.converged}
    return SpectrumEstimate(
        top=pairs,
        bottom=None,
        trace=trace,
        frobenius=None,
        density=None,
        products=loss.backward_passes - 1 + (len(pairs.values) if pairs else 0),
        seconds=seconds,
        gradients=seconds / gradient if gradient > 0 else math.nan,
        engine="pyhessian",
        method="pyhessian",
        unmet=tuple(name for name in quantities if not met[name]),
    )


class _LossModule(nn.Module):
    """Mean loss of an objective as a module of copied parameters, so that the model itself is not exposed."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        copies = [nn.Parameter(p.clone()) for p in objective.vector.tensors()]
        self.copies = nn.ParameterList(copies)
        self.backward_passes = 0
        self._others = [p for network in objective.reached.modules for p in network.parameters()]
        self._losses = partial(objective.losses, copies)
        copies[0].register_hook(self._counted)  # type: ignore[no-untyped-call]
        self.stand_ins = (copies[0].new_zeros(1), copies[0].new_zeros(1))  # PyHessian wants inputs and targets

    def forward(self, _inputs: Tensor) -> Any:
        """Return the mean loss over all batches."""
        total = sum(weight * loss for weight, loss in self._losses())
        # PyHessian fails on parameters that the loss, or its gradient, does not contain
        return total + sum((p * 0).square().sum() for p in self.copies)

    def cut(self) -> None:
        """Free the graph, which the gradients keep alive in a reference cycle, those of other networks too."""
        for p in (*self.copies, *self._others):
            p.grad = None

    def _counted(self, _gradient: Tensor) -> None:
        self.backward_passes += 1


def _first(output: Any, _targets: Tensor) -> Any:
    """Return the output: it is the loss already."""
    return output


def _pairs(operator: SymmetricOperator, judge: Any, top: int, budget: int, rel: float) -> EigenPairs:
    """Return PyHessian's eigenpairs, descending, with residuals computed by `operator`."""
    # the error of a Rayleigh quotient is quadratic in the residual, hence the tolerance rel squared on its change
    values, vectors = judge.eigenvalues(maxIter=max(2, (budget - top) // top), tol=rel**2, top_n=top)
    theta = torch.tensor(values, dtype=torch.float64)
    V = torch.stack([torch.cat([part.detach().reshape(-1) for part in vector]) for vector in vectors], 1).double()
    V = V / row_norms(V.mT)
    residuals = row_norms(((operator @ V).double() - V * theta.to(V.device)).mT).cpu()
    order = theta.argsort(descending=True)
    largest = float(theta.abs().max())
    # the largest modulus is found first: a negative value says of the largest eigenvalues only that they are below it
    positive = theta > 0
    converged = (residuals <= rel * largest) & positive
    # no spectral gap is known, so the error bound is the residual
    bounds = torch.where(positive, residuals, residuals + theta.abs() + largest)
    return EigenPairs(
        theta[order], V[:, order.to(V.device)], residuals[order], bounds[order], converged[order], proof=False
    )


def _trace(judge: Any, samples: int, rel: float) -> Estimate:
    """Return the mean of PyHessian's trace samples with a standard error and a 95 % interval."""
    begun = time.perf_counter()
    drawn = mean_estimate(judge.trace(maxIter=samples, tol=-math.inf))
    return replace(
        drawn,
        products=samples,
        seconds=time.perf_counter() - begun,
        converged=drawn.stderr <= rel * abs(drawn.value),
    )


def _library_for(device: torch.device) -> Any:
    """Return PyHessian's class.

    Raises:
        ProbeError: It does not run on the device, or cannot be imported.
    """
    if device.type not in ("cpu", "cuda"):
        raise ProbeError(f"engine='pyhessian' runs on cpu and cuda only, got {device.type}: use engine='lossscope'")
    try:
        from pyhessian import hessian
    except Exception as error:  # a release that is incompatible with this torch must break nothing else
        raise ProbeError(
            f"pyhessian cannot be imported ({type(error).__name__}: {error}): run `pip install pyhessian==0.1`, "
            "or use engine='lossscope'"
        ) from error
    return hessian
