"""Trace and Frobenius norm of a symmetric operator from its products with random signs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate, exact_estimate, mean_estimate, root_estimate
from lossscope.probes.operator import SymmetricOperator

__all__ = ["trace_and_frobenius"]

_FIRST_LOOK: Final = 32  # samples; then 64, 128, ...
_BLOCK_NUMBERS: Final = 2**25  # entries of a block of probes


def trace_and_frobenius(
    operator: SymmetricOperator,
    *,
    rel: float,
    max_samples: int,
    generator: torch.Generator,
    decide: tuple[str, ...] = ("trace", "frobenius"),
) -> tuple[Estimate, Estimate]:
    r"""The trace and the Frobenius norm of A from the same products A z with random signs z.

    With independent :math:`z_i = \pm 1`, :math:`\mathbb{E}[z z^\top] = I`, so :math:`z^\top A z` and
    :math:`|A z|^2` have the means :math:`\mathrm{tr} A` and :math:`\lVert A\rVert_F^2`, for any symmetric A. One
    sample of the trace has variance :math:`2 \sum_{i \ne j} A_{ij}^2`: zero for a diagonal matrix.

    **Stopping.** Looking after every sample stops on lucky ones, and the interval then covers too seldom.
    Here one looks at 32, 64, 128, ... samples only, and stops where :math:`s (1 + 2/\sqrt m)`, the standard
    error with a margin for its own error, is at most `rel` times :math:`\max(|\mathrm{tr} A|, \lVert A\rVert_F)`.
    A matrix with `n` up to 32 is multiplied out instead, and exact.

    Args:
        operator: `(n, n)`.
        rel: The relative standard error to reach.
        max_samples: Stop after so many products in any case, at least 2.
        generator: On the CPU, the only source of randomness. The j-th probe depends on nothing else.
        decide: Which of `trace` and `frobenius` must meet `rel`.

    Returns:
        Trace and Frobenius norm. `converged` says whether each met `rel`.

    Raises:
        ProbeError: `max_samples` is below 2.

    Source:
        M. Hutchinson (1990), Commun. Stat. Simul. Comput. 19(2), 433-450.
        Checked by `test_the_interval_covers_the_truth_with_the_stopping_rule_on`.

    Example:
        >>> from lossscope.probes.operator import from_matrix
        >>> A = torch.diag(torch.arange(100.0))
        >>> seeded = torch.Generator().manual_seed(0)
        >>> trace, _ = trace_and_frobenius(from_matrix(A), rel=0.01, max_samples=64, generator=seeded)
        >>> trace.value, trace.stderr, trace.samples
        (4950.0, 0.0, 32)
    """
    if max_samples < 2:
        raise ProbeError(f"{max_samples} random probes give no standard error, need at least 2: raise the budget")
    begun = time.perf_counter()
    with operator.held():
        if operator.size <= min(max_samples, _FIRST_LOOK):
            found = _multiplied_out(operator)
        else:
            found = _sampled(operator, rel, max_samples, generator, decide)
    seconds = time.perf_counter() - begun
    return replace(found[0], seconds=seconds), replace(found[1], seconds=seconds)


def _multiplied_out(operator: SymmetricOperator) -> tuple[Estimate, Estimate]:
    """Both numbers from the whole matrix."""
    A = (operator @ torch.eye(operator.size)).double()
    trace, frobenius = float(A.trace()), float(torch.linalg.matrix_norm(A))
    return exact_estimate(trace, products=operator.size), exact_estimate(frobenius, products=operator.size)


def _sampled(
    operator: SymmetricOperator, rel: float, max_samples: int, generator: torch.Generator, decide: tuple[str, ...]
) -> tuple[Estimate, Estimate]:
    """Both numbers from as many random probes as the rule asks for."""
    forms: list[float] = []
    squares: list[float] = []
    for look in _looks(max_samples):
        for Z in _signs(operator.size, look - len(forms), generator):
            Z = Z.to(operator.device)
            Y = (operator @ Z).double()
            forms += (Z * Y).sum(0).tolist()
            squares += Y.square().sum(0).tolist()
        trace, frobenius = mean_estimate(forms), root_estimate(mean_estimate(squares))
        trace = _judged(trace, rel * max(abs(trace.value), frobenius.value))
        frobenius = _judged(frobenius, rel * frobenius.value)
        met = {"trace": trace.converged, "frobenius": frobenius.converged}
        if all(met[name] for name in decide):
            break
    return trace, frobenius


def _judged(estimate: Estimate, target: float) -> Estimate:
    """The estimate with its cost, and whether its standard error meets the target with a margin."""
    margin = 1 + 2 / math.sqrt(estimate.samples)
    return replace(estimate, products=estimate.samples, converged=estimate.stderr * margin <= target)


def _looks(max_samples: int) -> Iterator[int]:
    """How many samples are in at each look."""
    look = _FIRST_LOOK
    while look < max_samples:
        yield look
        look *= 2
    yield max_samples


def _signs(size: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random signs `(n, k)` in blocks, drawn one probe after the other."""
    width = max(1, min(count, _BLOCK_NUMBERS // size))
    for begin in range(0, count, width):
        drawn = [
            torch.randint(2, (size,), generator=generator, dtype=torch.int8) for _ in range(min(width, count - begin))
        ]
        yield torch.stack(drawn, 1).double() * 2 - 1
