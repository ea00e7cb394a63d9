"""What is measured when it is asked for by name: batch sharpness, modules, the error over samples of data."""

from __future__ import annotations

import math

from lossscope.landscape.curvature.estimate_rows import Rows, estimate_row
from lossscope.landscape.curvature.options import Effort, Subject
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.alignment import GradientAlignment, gradient_alignment
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue
from lossscope.probes.spectrum.results import EigenPairs
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["alignment_rows", "batch_rows", "module_rows", "sampling_rows"]


def batch_rows(subject: Subject, names: frozenset[str]) -> Rows:
    """Batch sharpness by both averages, on minibatches of the training's size where they are known."""
    minibatches = subject.minibatches or subject.objective
    found = batch_sharpness(minibatches)
    both = {
        "batch_sharpness": found.mean_of_ratios,
        "batch_sharpness_ratio_of_means": found.ratio_of_means,
    }
    facts = {"data_hash": minibatches.data_hash, "method": "reverse"}  # a graph for each batch
    return Rows([{**estimate_row(name, one), **facts} for name, one in both.items() if name in names])


def alignment_rows(objective: Objective, top: EigenPairs, names: frozenset[str]) -> Rows:
    """Where the gradient points in the eigenvectors of largest curvature."""
    found = gradient_alignment(objective, top)
    share = {f"top{k}_share" if k > 1 else "top_share": k for k in (1, 5) if k <= len(found.chi)}
    four = {name: _share(found, k) for name, k in share.items()}
    four |= {"gradient_cosine": exact_estimate(found.cosine), "gradient_rayleigh": found.share}
    method = hessian(objective).method
    return Rows([{**estimate_row(name, one), "method": method} for name, one in four.items() if name in names])


def _share(found: GradientAlignment, k: int) -> Estimate:
    """The share of the first k eigenvectors; it has no bound, as eigenvectors have none."""
    met = bool(found.converged[k - 1])
    return Estimate(float(found.chi[k - 1]), math.nan, math.nan, math.nan, 0, "residual", converged=met)


def module_rows(operator: SymmetricOperator, effort: Effort) -> Rows:
    """The diagonal block of each module, and the share of what lies between them."""
    found = per_module(operator, by="module", rel=effort.rel, max_products=effort.max_products, seed=effort.seed)
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
    rows = [estimate_row(name, one, block) for block, many in blocks.items() for name, one in many.items()]
    rows.append(estimate_row("cross_block_share", found.cross_share))
    cost = {"products": found.products, "seconds": found.seconds, "method": operator.method}
    return Rows([{**row, **cost} for row in rows])


def sampling_rows(subject: Subject, effort: Effort, names: frozenset[str]) -> Rows:
    """The largest eigenvalue of the sample, cross-fitted, and of the population."""
    found = sampled_eigenvalue(subject.objective, rel=effort.rel, max_products=effort.max_products, seed=effort.seed)
    three = {
        "lambda_max_in_sample": found.in_sample,
        "lambda_max_cross_fitted": found.cross_fitted,
        "lambda_max_population": found.population,
    }
    method = hessian(subject.objective).method
    cost = {"products": math.ceil(found.products), "seconds": found.seconds, "method": method}
    return Rows([{**estimate_row(name, one), **cost} for name, one in three.items() if name in names])
