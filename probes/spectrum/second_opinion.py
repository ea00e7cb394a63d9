"""Eigenvalues and trace of a Hessian by PyHessian, an independent library."""

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

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.second_derivative import require_second_derivative
from lossscope.probes.spectrum.results import EigenPairs, SpectrumEstimate
from lossscope.probes.statistics.estimate import Estimate, mean_estimate

__all__ = ["pyhessian_spectrum"]


def pyhessian_spectrum(
    operator: SymmetricOperator,
    *,
    top: int,
    rel: float,
    max_products: int,
    quantities: Collection[str],
    seed: int,
) -> SpectrumEstimate:
    r"""The largest eigenvalues in absolute value, and the trace, as PyHessian 0.1 finds them.

    It iterates on power and deflates: it finds the largest :math:`|\lambda|`, which is `lambda_max` only where no
    negative eigenvalue is larger. It stops on the change between two iterations, which certifies nothing, so
    each pair gets its residual from one product of ours. Its own rule for the trace stops on lucky samples, and at
    once where the trace is negative: it is switched off, all samples are drawn.

    It sees a module whose parameters are copies and whose output is the whole mean loss, so the model, its
    gradients, modes and hooks stay out of its reach; random state is restored and its warnings are silent.

    Args:
        operator: Made by `hessian(objective)`.
        top: How many eigenvalues.
        rel: A residual up to `rel` times the largest absolute value counts as converged.
        max_products: The budget, half for the eigenvalues and half for the trace where both are wanted.
        quantities: `top`, `trace` or both.
        seed: Of its random vectors.

    Returns:
        The estimates; `bottom`, `frobenius` and `density` are None. (Release 0.1 has a density too, but it calls a
        function that torch no longer has.)

    Raises:
        ProbeError: the operator is no Hessian, the device is neither cpu nor cuda, PyHessian cannot be imported, or
            autograd gets the second derivative wrong, on which it relies.

    Source:
        Z. Yao et al. (2020), PyHessian: neural networks through the lens of the Hessian, arXiv:1912.07145.
    """
    objective = _objective(operator)
    library = _library()
    require_second_derivative(objective)  # it would take the wrong one without a word
    begun = time.perf_counter()
    with operator.cached(), objective.evaluating(), warnings.catch_warnings():
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
    """The mean loss of an objective as a module of its own parameters; the model is out of its reach."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        copies = [nn.Parameter(p.clone()) for p in objective.vector.tensors()]
        self.copies = nn.ParameterList(copies)
        self.backward_passes = 0
        self._losses = partial(objective.losses, copies)
        copies[0].register_hook(self._counted)  # type: ignore[no-untyped-call]
        self.stand_ins = (copies[0].new_zeros(1), copies[0].new_zeros(1))  # PyHessian wants inputs and targets

    def forward(self, _inputs: Tensor) -> Any:
        """The mean loss over all batches."""
        return sum(weight * loss for weight, loss in self._losses())

    def cut(self) -> None:
        """Free the graph, which holds itself through the gradients."""
        for p in self.copies:
            p.grad = None

    def _counted(self, _gradient: Tensor) -> None:
        self.backward_passes += 1


def _first(output: Any, _targets: Tensor) -> Any:
    """The output itself: the loss is taken already."""
    return output


def _pairs(operator: SymmetricOperator, judge: Any, top: int, budget: int, rel: float) -> EigenPairs:
    """Its eigenpairs with our residuals, descending."""
    # a Rayleigh quotient is off by the square of the residual, so its change is asked to be below rel squared
    values, vectors = judge.eigenvalues(maxIter=max(2, (budget - top) // top), tol=rel**2, top_n=top)
    theta = torch.tensor(values, dtype=torch.float64)
    V = torch.stack([torch.cat([part.detach().reshape(-1) for part in vector]) for vector in vectors], 1).double()
    V = torch.nn.functional.normalize(V, dim=0)
    residuals = torch.linalg.vector_norm((operator @ V).double() - V * theta.to(V.device), dim=0).cpu()
    order = theta.argsort(descending=True)
    converged = residuals <= rel * float(theta.abs().max())
    # it knows of no gap, so a pair is no surer than its residual
    return EigenPairs(theta[order], V[:, order.to(V.device)], residuals[order], residuals[order], converged[order])


def _trace(judge: Any, samples: int, rel: float) -> Estimate:
    """Its samples of the trace with our interval."""
    begun = time.perf_counter()
    drawn = mean_estimate(judge.trace(maxIter=samples, tol=-math.inf))
    return replace(
        drawn,
        products=samples,
        seconds=time.perf_counter() - begun,
        converged=drawn.stderr <= rel * abs(drawn.value),
    )


def _objective(operator: SymmetricOperator) -> Objective:
    if operator.hessian_of is None:
        raise ProbeError("engine='pyhessian' knows Hessians only: pass hessian(objective), or use engine='lossscope'")
    if operator.device.type not in ("cpu", "cuda"):
        raise ProbeError(
            f"engine='pyhessian' runs on cpu and cuda only, not on {operator.device.type}: use engine='lossscope'"
        )
    return operator.hessian_of


def _library() -> Any:
    try:
        from pyhessian import hessian
    except Exception as error:  # a release that does not fit this torch must break nothing else
        raise ProbeError(
            f"pyhessian cannot be imported ({type(error).__name__}: {error}): run `pip install pyhessian==0.1`, "
            "or use engine='lossscope'"
        ) from error
    return hessian
