"""Everything that can be measured of a loss at one point: one call for the measures that share their cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property
from typing import Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossscope.landscape.curvature.catalogue import EIGENVALUES
from lossscope.landscape.curvature.estimate_rows import Rows, density_rows, estimate_row, with_provenance
from lossscope.landscape.curvature.host_transfer import Row
from lossscope.landscape.curvature.optimizer_metric import StepMetric, optimizer_name, step_metric
from lossscope.landscape.curvature.options import MeasurementTarget, SolverOptions
from lossscope.landscape.curvature.pyhessian_engine import pyhessian_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, preconditioned
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.alignment import GradientAlignment, gradient_alignment
from lossscope.probes.sharpness.invariant import adaptive_trace, log_fisher_rao, theta_hessian_theta
from lossscope.probes.sharpness.logits import logit_scale
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue
from lossscope.probes.sharpness.stability_thresholds import edge_ratio
from lossscope.probes.spectrum.eigen_tracker import EigenTracker
from lossscope.probes.spectrum.measure import measure_spectrum
from lossscope.probes.spectrum.results import EigenPairs, SpectrumEstimate
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["Panel", "alignment_rows", "batch_rows", "module_rows", "sampling_rows"]


def batch_rows(subject: MeasurementTarget, names: frozenset[str]) -> Rows:
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


def module_rows(operator: SymmetricOperator, effort: SolverOptions) -> Rows:
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


def sampling_rows(subject: MeasurementTarget, effort: SolverOptions, names: frozenset[str]) -> Rows:
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


_FROM_DENSITY: Final = frozenset({"density", "negative_mass", "effective_rank", "participation_ratio"})
_BY_PYHESSIAN: Final = frozenset({*EIGENVALUES, "trace"})
_EDGE: Final = "sharpness_edge_ratio"


class Panel:
    """The measures of a loss at the parameters that its model has now; make another where they have moved.

    Args:
        subject: The loss and its optimizer.
        effort: How precise.
        near: Top vectors found at a point near by, by call; searches start there, and leave theirs.

    Attributes:
        absent: Measures that were asked for and that there is no number of at this point, each with the reason.
        hessian: The Hessian, an operator.
    """

    def __init__(
        self, subject: MeasurementTarget, effort: SolverOptions, near: dict[str, Tensor] | None = None
    ) -> None:
        self.absent: dict[str, str] = {}
        self._near = {} if near is None else near
        self._top: EigenPairs | None = None  # of the Hessian at this point, as far as measured
        self.hessian = hessian(subject.objective)
        self._subject, self._effort, self._objective = subject, effort, subject.objective
        self._calls: dict[str, Callable[[frozenset[str]], Rows]] = {
            "loss": self._loss,
            "spectrum": self._spectra,
            "metric": self._preconditioned,
            "adaptive_trace": self._adaptive_trace,
            "log_fisher_rao": self._fisher_rao,
            "logits": self._logits,
            "radial": self._radial,
            "alignment": self._alignment,
            "batch_sharpness": lambda names: batch_rows(subject, names),
            "per_module": lambda names: module_rows(self.hessian, effort),
            "sampling_error": lambda names: sampling_rows(subject, effort, names),
        }

    def measure(self, call: str, names: Collection[str]) -> Rows:
        """The rows of one call, those of the named measures, not with_provenance yet.

        Args:
            call: A value of `Measure.call`.
            names: Measures of this call.

        Raises:
            ProbeError: Nothing can be measured here; the error says why.
        """
        return self._calls[call](frozenset(names))

    def with_provenance(self, rows: Rows, step: int) -> Rows:
        """The rows with the step and everything that says how they were measured."""
        return with_provenance(rows, step, self._objective, self._effort.seed, self._gradient_seconds)

    def tracked(self, tracker: EigenTracker) -> Rows:
        """The largest eigenvalue as followed from the last evaluation, and where it stands against its threshold."""
        found = tracker.measure(self.hessian)
        self._top = found.top
        return self._top_rows(found, frozenset({"lambda_max", _EDGE}))

    @cached_property
    def metric(self) -> StepMetric | None:
        """The metric of the optimizer's last step; None where it is not known. ProbeError before the first step."""
        optimizer, model = self._subject.optimizer, self._objective.model
        if optimizer is None:
            return None
        return step_metric(optimizer, dict(model.named_parameters()), self._objective)

    @cached_property
    def _gradient_seconds(self) -> float:
        """The time of one gradient, as the Hessian has seen it, else by the clock; nan where there is none."""
        if self.hessian.gradient_seconds > 0:
            return self.hessian.gradient_seconds
        begun = time.perf_counter()
        try:
            self._objective.gradient()
        except ProbeError:
            return math.nan
        return time.perf_counter() - begun

    def _top_rows(self, found: SpectrumEstimate, names: frozenset[str]) -> Rows:
        """The rows of a measured upper end: eigenvalues, and the first of them over its threshold."""
        if found.top is None or not len(found.top.values):
            return Rows()
        top = {name: found.top.estimate(i) for i, name in enumerate(EIGENVALUES[: len(found.top.values)])}
        if _EDGE in names:
            top |= self._edge(top["lambda_max"])
        return _shared({name: one for name, one in top.items() if name in names}, found)

    def _loss(self, names: frozenset[str]) -> Rows:
        begun = time.perf_counter()
        value = self._objective.value()
        return Rows([estimate_row("loss", exact_estimate(value, seconds=time.perf_counter() - begun))])

    def _spectra(self, names: frozenset[str]) -> Rows:
        """Measure eigenvalues, trace, norm and density with the requested engine; PyHessian has no usable density."""
        if self._effort.engine == "lossscope":
            return self._spectrum(names)
        ours, theirs = names & _FROM_DENSITY, names & _BY_PYHESSIAN
        rows = self._second_opinion(theirs) if theirs else Rows()
        return rows + (self._spectrum(ours) if ours else Rows())

    def _second_opinion(self, names: frozenset[str]) -> Rows:
        """Measure eigenvalues and trace with PyHessian."""
        quantities = {"top": names & {*EIGENVALUES}, "trace": names & {"trace"}}
        found = pyhessian_spectrum(
            self._objective,
            self.hessian,
            top=_top_count(names),
            rel=self._effort.rel,
            max_products=self._effort.max_products,
            quantities=tuple(quantity for quantity, wanted in quantities.items() if wanted),
            seed=self._effort.seed,
        )
        self._remember("spectrum", found)
        rows = self._top_rows(found, names & {*EIGENVALUES})
        return rows if found.trace is None else rows + _shared({"trace": found.trace}, found)

    def _spectrum(self, names: frozenset[str]) -> Rows:
        eigenvalues = names & {*EIGENVALUES, _EDGE}
        asked = {
            "top": eigenvalues,
            "bottom": names & {"lambda_min"},
            "trace": names & {"trace"},
            "frobenius": names & {"frobenius"},
            "density": names & _FROM_DENSITY,
        }
        found = measure_spectrum(
            self.hessian,
            top=_top_count(names),
            rel=self._effort.rel,
            trace_rel=self._effort.trace_rel,
            max_products=self._effort.max_products,
            quantities=tuple(quantity for quantity, wanted in asked.items() if wanted),
            seed=self._effort.seed,
            warm_start=self._near.get("spectrum"),
        )
        self._remember("spectrum", found)
        if eigenvalues:
            self._top = found.top
        others = {
            "lambda_min": None if found.bottom is None else found.bottom.estimate(),
            "trace": found.trace,
            "frobenius": found.frobenius,
            "negative_mass": found.negative_mass,
            "effective_rank": found.effective_rank,
            "participation_ratio": found.participation_ratio,
        }
        rows = self._top_rows(found, eigenvalues)
        rows += _shared({name: one for name, one in others.items() if one is not None and name in names}, found)
        if found.density is not None and "density" in names:
            rows += Rows(densities=[{**row, **_cost(found)} for row in density_rows(found.density)])
        return rows

    def _edge(self, top: Estimate) -> dict[str, Estimate]:
        """The largest eigenvalue over the optimizer's threshold, where it is one of the plain Hessian."""
        try:
            metric = self.metric
        except ProbeError as error:
            self.absent[_EDGE] = str(error)
            return {}
        if metric is None:
            self.absent[_EDGE] = self._no_metric
            return {}
        if metric.diagonal is not None or metric.threshold is None:
            self.absent[_EDGE] = f"the {self._optimizer} has no threshold of lambda_max: see preconditioned_edge_ratio"
            return {}
        return {_EDGE: edge_ratio(top, metric.threshold)}

    def _preconditioned(self, names: frozenset[str]) -> Rows:
        metric = self.metric
        if metric is None or metric.diagonal is None:
            plain = f"the {self._optimizer}'s metric is the plain one: ask for sharpness_edge_ratio"
            self.absent |= dict.fromkeys(sorted(names), self._no_metric if metric is None else plain)
            return Rows()
        found = measure_spectrum(
            preconditioned(self.hessian, metric.diagonal),
            top=1,
            rel=self._effort.rel,
            max_products=self._effort.max_products,
            quantities=("top",),
            seed=self._effort.seed,
            warm_start=self._near.get("metric"),
        )
        self._remember("metric", found)
        if found.top is None:
            return Rows()
        top = {"preconditioned_sharpness": found.top.estimate()}
        if metric.threshold is None:
            self.absent["preconditioned_edge_ratio"] = f"no threshold is known for the {self._optimizer}: read R_dir"
        else:
            top["preconditioned_edge_ratio"] = edge_ratio(found.top.estimate(), metric.threshold)
        return _shared({name: one for name, one in top.items() if name in names}, found)

    def _adaptive_trace(self, names: frozenset[str]) -> Rows:
        found = adaptive_trace(
            self.hessian,
            parameters=self._objective.parameters(),
            max_products=self._effort.max_products,
            rel=self._effort.trace_rel,
            seed=self._effort.seed,
        )
        return Rows([{**estimate_row("adaptive_trace", found), "method": self.hessian.method}])

    def _fisher_rao(self, names: frozenset[str]) -> Rows:
        _load_forward_mode()
        return Rows([estimate_row("log_fisher_rao", log_fisher_rao(self._objective))])

    def _logits(self, names: frozenset[str]) -> Rows:
        found = logit_scale(self._objective)
        both = {"logit_norm": found.norm, "mean_margin": found.margin}
        return Rows([estimate_row(name, one) for name, one in both.items() if name in names])

    def _radial(self, names: frozenset[str]) -> Rows:
        found = theta_hessian_theta(self._objective)
        return Rows([{**estimate_row("theta_hessian_theta", found), "method": hessian(self._objective).method}])

    def _alignment(self, names: frozenset[str]) -> Rows:
        begun, before = time.perf_counter(), self.hessian.products
        count = 5 if "top5_share" in names else 1
        if self._top is None or len(self._top.values) < min(count, self._objective.size):
            self._spectrum(frozenset(EIGENVALUES[:count]))
        if self._top is None or not len(self._top.values):
            return Rows()
        rows = alignment_rows(self._objective, self._top, names)
        cost = {"products": self.hessian.products - before + 1, "seconds": time.perf_counter() - begun}
        return Rows([{**row, **cost} for row in rows.probes])

    def _remember(self, call: str, found: SpectrumEstimate) -> None:
        """Keep the top vector for the next point."""
        if found.top is not None and len(found.top.values):
            self._near[call] = found.top.vectors[:, 0].detach().clone()

    @property
    def _optimizer(self) -> str:
        """What the optimizer is called."""
        optimizer = self._subject.optimizer
        return "optimizer" if optimizer is None else optimizer_name(optimizer)

    @property
    def _no_metric(self) -> str:
        """Why the optimizer's metric is not known, and what to read in its place."""
        unmade = f"the metric of the {self._optimizer} is not known"
        why = self._subject.no_optimizer if self._subject.optimizer is None else unmade
        return f"{why}; ask for lambda_max, and read R_dir, which training records for every optimizer"


@cache
def _load_forward_mode() -> None:
    """Have torch load its rules of forward derivatives, about a second once in a process: the price of no measure."""
    with forward_ad.dual_level():
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]


def _top_count(names: Collection[str]) -> int:
    """Return the number of top eigenpairs that the named eigenvalues need, at least 1."""
    return max((1 + i for i, name in enumerate(EIGENVALUES) if name in names), default=1)


def _shared(estimates: Mapping[str, Estimate], found: SpectrumEstimate) -> Rows:
    """Rows of estimates that one call gave: each names all of its cost."""
    return Rows([{**estimate_row(name, one), **_cost(found)} for name, one in estimates.items()])


def _cost(found: SpectrumEstimate) -> Row:
    """The columns of the cost."""
    return {
        "products": found.products,
        "seconds": found.seconds,
        "method": found.method,
        "engine": found.engine,
        "gradients": found.gradients,
    }
