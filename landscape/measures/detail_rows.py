"""Rows of detail: by minibatch, by module, along the top eigenvectors, and of the sampling error of the data."""

from __future__ import annotations

import math

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.alignment import GradientAlignment, gradient_alignment
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["alignment_rows", "batch_rows", "module_rows", "sampling_rows"]


def batch_rows(target: MeasurementTarget, names: frozenset[str]) -> Rows:
    """Compute batch sharpness by both averages, on minibatches of the size that training uses if they are known."""
    minibatches = target.minibatches or target.objective
    found = batch_sharpness(minibatches)
    both = {
        "batch_sharpness": found.mean_of_ratios,
        "batch_sharpness_ratio_of_means": found.ratio_of_means,
    }
    provenance = {"data_hash": minibatches.data_hash, "additivity": minibatches.additivity}
    provenance["method"] = "reverse"  # one graph per batch
    return Rows([{**estimate_row(name, one), **provenance} for name, one in both.items() if name in names])


def alignment_rows(objective: Objective, top: EigenPairs, names: frozenset[str]) -> Rows:
    """Compute the alignment of the gradient with the top eigenvectors."""
    found = gradient_alignment(objective, top)
    share = {f"top{k}_share" if k > 1 else "top_share": k for k in (1, 5) if k <= len(found.chi)}
    estimates = {name: _share(found, k) for name, k in share.items()}
    estimates |= {"gradient_cosine": found.cosine, "gradient_rayleigh": found.share}
    method = hessian(objective).method
    return Rows([{**estimate_row(name, one), "method": method} for name, one in estimates.items() if name in names])


def _share(found: GradientAlignment, k: int) -> Estimate:
    """Return the share of the first k eigenvectors; it has no error bound, since eigenvectors have none."""
    converged = bool(found.converged[k - 1])
    return Estimate(float(found.chi[k - 1]), math.nan, math.nan, math.nan, 0, "residual", converged=converged)


def module_rows(operator: SymmetricOperator, options: SolverOptions) -> Rows:
    """Measure the diagonal block of each module, and the share of the squared norm between the blocks."""
    found = per_module(operator, by="module", rel=options.rel, max_products=options.max_products, seed=options.seed)
    blocks = {
        row.name: {
            "trace": row.trace,
            "lambda_max": row.lambda_max,
            "frobenius": row.frobenius,
            "trace_share": row.trace_share,
            "frobenius_share": row.frobenius_share,
        }
        for row in found.rows
    }
    rows = [estimate_row(name, one, block) for block, estimates in blocks.items() for name, one in estimates.items()]
    rows.append(estimate_row("cross_block_share", found.cross_share))
    cost = {"products": found.products, "seconds": found.seconds, "method": operator.method}
    return Rows([{**row, **cost} for row in rows])


def sampling_rows(target: MeasurementTarget, options: SolverOptions, names: frozenset[str]) -> Rows:
    """Estimate lambda_max in the sample, cross-fitted, and in the population."""
    found = sampled_eigenvalue(target.objective, rel=options.rel, max_products=options.max_products, seed=options.seed)
    three = {
        "lambda_max_in_sample": found.in_sample,
        "lambda_max_cross_fitted": found.cross_fitted,
        "lambda_max_population": found.population,
    }
    method = hessian(target.objective).method
    cost = {"products": math.ceil(found.products), "seconds": found.seconds, "method": method}
    return Rows([{**estimate_row(name, one), **cost} for name, one in three.items() if name in names])
