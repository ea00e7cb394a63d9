"""One curvature evaluation: all measurements of a loss at the parameters that its model has now."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from lossscope.landscape.measures.detail_rows import alignment_rows, batch_rows, module_rows, sampling_rows
from lossscope.landscape.measures.estimate_rows import (
    Rows,
    density_rows,
    estimate_row,
    shared_cost,
    spectrum_rows,
    with_provenance,
)
from lossscope.landscape.measures.forward_mode import load_forward_mode
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.mean_losses import NO_DATA, loss_row, row_on_other_data, same_loss
from lossscope.landscape.measures.measure import BY_PYHESSIAN, EIGENVALUES, FROM_DENSITY
from lossscope.landscape.measures.optimizer_metric import StepMetric, optimizer_name, step_metric, why_no_metric
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.pyhessian_engine import pyhessian_spectrum
from lossscope.landscape.measures.step_measures import RecordedStep, critical_rows, ghost_rows, one_rate, step_rows
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import EigenPairs, SpectrumEstimate
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.derived import preconditioned
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.invariant import log_fisher_rao, theta_hessian_theta
from lossscope.probes.sharpness.logits import logit_scale
from lossscope.probes.sharpness.stability_thresholds import edge_ratio
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["Panel"]


_EDGE: Final = "sharpness_edge_ratio"
_NO_VECTORS: Final = "eigenvectors are not kept with three vectors: give more memory, or a folder to spill the basis to"


class Panel:
    """Measures of a loss at the parameters that its model has now; make another panel after they change.

    Args:
        target: The loss, its optimizer and the step taken.
        options: Tolerances, budget, seed and engine.
        near: Top eigenvectors, and the critical learning rate, found at nearby parameters, by group of measures:
            searches start from them and replace them.

    Attributes:
        absent: Requested measures that do not apply here, with the reason.
        failed: Requested measures that could not be taken although others of their group were, with the reason.
        hessian: The Hessian operator.
        near: The top eigenvectors and the critical learning rate, by group.
    """

    def __init__(
        self, target: MeasurementTarget, options: SolverOptions, near: dict[str, Tensor] | None = None
    ) -> None:
        self.absent: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.target, self.options, self.objective = target, options, target.objective
        self.hessian = hessian(target.objective)
        self.near = {} if near is None else near
        self._top: EigenPairs | None = None  # eigenpairs of the Hessian measured so far
        self._edge_ratio: Estimate | None = None  # directional edge ratio of the step, if it was measured

    def with_provenance(self, rows: Rows, step: int) -> Rows:
        """Return the rows with the step and the provenance columns."""
        return with_provenance(rows, step, self.objective, self.options.seed, self._gradient_seconds)

    def tracked(self, tracker: EigenTracker) -> Rows:
        """Track lambda_max from the last evaluation, and compute its ratio to the stability threshold."""
        found = tracker.measure(self.hessian)
        self._top = found.top
        return self._top_rows(found, frozenset({"lambda_max", _EDGE}))

    @cached_property
    def metric(self) -> StepMetric | None:
        """Metric of the optimizer's last step; None if it is unknown.

        Raises:
            ProbeError: No step has been taken.
        """
        optimizer, model = self.target.optimizer, self.objective.model
        if optimizer is None:
            return None
        groups = None if self.target.step is None else self.target.step.groups
        return step_metric(optimizer, dict(model.named_parameters()), self.objective, groups)

    @cached_property
    def _loss(self) -> Row:
        """Row of the mean loss."""
        return loss_row("loss", self.objective)

    @cached_property
    def _gradient_seconds(self) -> float:
        """Seconds of one gradient, measured by the Hessian or else here; nan if the gradient cannot be computed."""
        if self.hessian.gradient_seconds > 0:
            return self.hessian.gradient_seconds
        begun = time.perf_counter()
        try:
            self.objective.gradient()
        except ProbeError:
            return math.nan
        return time.perf_counter() - begun

    def _top_rows(self, found: SpectrumEstimate, names: frozenset[str]) -> Rows:
        """Return rows of the top eigenvalues, and of the largest over the stability threshold."""
        if found.top is None or not len(found.top.values):
            return Rows()
        top = {name: found.top.estimate(i) for i, name in enumerate(EIGENVALUES[: len(found.top.values)])}
        if _EDGE in names:
            top |= self._edge(top["lambda_max"])
        return spectrum_rows({name: one for name, one in top.items() if name in names}, found)

    def loss(self) -> Rows:
        """Compute the mean loss."""
        return Rows([self._loss])

    def loss_on(self, measure: str) -> Rows:
        """Compute the mean loss on all training data (`train_loss`) or on test data (`test_loss`).

        Where all training data are those of curvature, it is the number that is known already.
        """
        other = self.target.train if measure == "train_loss" else self.target.test
        if other is None:
            self.absent[measure] = NO_DATA[measure]
            return Rows()
        if same_loss(other, self.objective):
            return Rows([{**self._loss, "measure": measure, "seconds": 0.0, "gradients": 0.0}])
        return Rows([row_on_other_data(measure, other)])

    def spectrum(self, names: frozenset[str]) -> Rows:
        """Measure eigenvalues, trace, norm and density with the requested engine; PyHessian has no usable density."""
        if self.options.engine == "lossscope":
            return self._own_spectrum(names)
        ours, theirs = names & {*FROM_DENSITY}, names & {*BY_PYHESSIAN}
        rows = self._second_opinion(theirs) if theirs else Rows()
        return rows + (self._own_spectrum(ours) if ours else Rows())

    def _second_opinion(self, names: frozenset[str]) -> Rows:
        """Measure eigenvalues and trace with PyHessian."""
        quantities = {"top": names & {*EIGENVALUES}, "trace": names & {"trace"}}
        found = pyhessian_spectrum(
            self.objective,
            self.hessian,
            top=_top_count(names),
            rel=self.options.rel,
            max_products=self.options.max_products,
            quantities=tuple(quantity for quantity, wanted in quantities.items() if wanted),
            seed=self.options.seed,
        )
        self.remember("spectrum", found)
        rows = self._top_rows(found, names & {*EIGENVALUES})
        return rows if found.trace is None else rows + spectrum_rows({"trace": found.trace}, found)

    def _own_spectrum(self, names: frozenset[str]) -> Rows:
        """Measure the named quantities of the spectrum with one Krylov space."""
        eigenvalues = names & {*EIGENVALUES, _EDGE}
        quantities = {
            "top": eigenvalues,
            "bottom": names & {"lambda_min"},
            "trace": names & {"trace"},
            "frobenius": names & {"frobenius"},
            "density": names & {*FROM_DENSITY},
        }
        found = measure_spectrum(
            self.hessian,
            top=_top_count(names),
            rel=self.options.rel,
            trace_rel=self.options.trace_rel,
            max_products=self.options.max_products,
            quantities=tuple(quantity for quantity, wanted in quantities.items() if wanted),
            seed=self.options.seed,
            warm_start=self.near.get("spectrum"),
            memory=self.options.memory,
            spill=self.options.spill,
        )
        self.remember("spectrum", found)
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
        rows += spectrum_rows({name: one for name, one in others.items() if one is not None and name in names}, found)
        if found.density is not None and "density" in names:
            rows += Rows(densities=[{**row, **shared_cost(found)} for row in density_rows(found.density)])
        return rows

    def _edge(self, top: Estimate) -> dict[str, Estimate]:
        """Return lambda_max over the optimizer's threshold, if the threshold is one of the plain Hessian."""
        try:
            metric = self.metric
        except ProbeError as error:
            self.absent[_EDGE] = str(error)
            return {}
        if metric is None:
            self.absent[_EDGE] = self._no_metric
            return {}
        if metric.diagonal is not None or metric.threshold is None:
            other = f"the {self._optimizer} has no threshold of lambda_max: use preconditioned_edge_ratio"
            self.absent[_EDGE] = metric.no_threshold or other
            return {}
        return {_EDGE: edge_ratio(top, metric.threshold)}

    def preconditioned(self, names: frozenset[str]) -> Rows:
        """Measure the sharpness in the optimizer's metric, and its ratio to the stability threshold."""
        metric = self.metric
        if metric is None or metric.diagonal is None:
            plain = f"the {self._optimizer}'s metric is the plain one: use sharpness_edge_ratio"
            self.absent |= dict.fromkeys(sorted(names), self._no_metric if metric is None else plain)
            return Rows()
        found = measure_spectrum(
            preconditioned(self.hessian, metric.diagonal),
            top=1,
            rel=self.options.rel,
            max_products=self.options.max_products,
            quantities=("top",),
            seed=self.options.seed,
            warm_start=self.near.get("metric"),
            memory=self.options.memory,
            spill=self.options.spill,
        )
        self.remember("metric", found)
        if found.top is None:
            return Rows()
        top = {"preconditioned_sharpness": found.top.estimate()}
        if metric.threshold is None:
            unknown = f"no threshold is known for the {self._optimizer}: read directional_edge_ratio"
            self.absent["preconditioned_edge_ratio"] = metric.no_threshold or unknown
        else:
            top["preconditioned_edge_ratio"] = edge_ratio(found.top.estimate(), metric.threshold)
        return spectrum_rows({name: one for name, one in top.items() if name in names}, found)

    def along_step(self, names: frozenset[str]) -> Rows:
        """Compute measures along the step that was taken.

        Raises:
            ProbeError: The step is not known.
        """
        step = self._step
        rows, self._edge_ratio = step_rows(self.objective, step, names, self._rate(step, names & {"lambda_dir"}))
        return rows

    def critical(self, names: frozenset[str]) -> Rows:
        """Bracket the critical learning rate of the step that was taken.

        Raises:
            ProbeError: The step is not known, or there is no bracket.
        """
        step = self._step
        if not any(bool((moved != 0).any()) for moved in step.displacement.values()):
            self.absent |= dict.fromkeys(
                names, "the step is zero, so that there is no line along which the loss changes"
            )
            return Rows()
        rate = self._rate(step, names & {"critical_learning_rate", "critical_sharpness"})
        if "critical_ratio" in names and self._edge_ratio is None:
            self.absent["critical_ratio"] = "directional_edge_ratio of this step was not measured"
        key = "critical" if rate is None else "critical rate"
        near = float(self.near[key]) if key in self.near else None
        rows, found = critical_rows(self.objective, step, names, rate, self._edge_ratio, near)
        self.near[key] = torch.tensor(found, dtype=torch.float64)
        return rows

    def ghost(self, names: frozenset[str]) -> Rows:
        """Compare the step that was taken with the softmax ghost radius.

        Raises:
            ProbeError: The step is not known or zero, or the loss has no logits.
        """
        load_forward_mode()
        return ghost_rows(self.objective, self._step, names)

    def step_by_name(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the parameters before the step that was taken, and their displacement, by name.

        Raises:
            ProbeError: The step is not known.
        """
        named, step = dict(self.objective.model.named_parameters()), self._step
        before = {name: step.before[p] for name, p in named.items() if p in step.before}
        return before, {name: step.displacement[p] for name, p in named.items() if p in step.displacement}

    @property
    def _step(self) -> RecordedStep:
        """The step that was taken."""
        if self.target.step is None:
            raise ProbeError("the step is not known: measures along it are recorded during training only")
        return self.target.step

    def _rate(self, step: RecordedStep, names: Collection[str]) -> float | None:
        """Return the learning rate of the step; None if there is no single one, which is why some measures lack."""
        optimizer = self.target.optimizer
        groups = step.groups or ([] if optimizer is None else optimizer.param_groups)
        rate = one_rate(self.objective, groups)
        if isinstance(rate, float):
            return rate
        self.absent |= dict.fromkeys(sorted(names), rate)
        return None

    def fisher_rao(self) -> Rows:
        """Compute the logarithm of the Fisher-Rao norm."""
        load_forward_mode()
        return Rows([estimate_row("log_fisher_rao", log_fisher_rao(self.objective))])

    def logits(self, names: frozenset[str]) -> Rows:
        """Compute the mean logit norm and the mean margin."""
        found = logit_scale(self.objective)
        both = {"logit_norm": found.norm, "mean_margin": found.margin}
        return Rows([estimate_row(name, one) for name, one in both.items() if name in names])

    def radial(self) -> Rows:
        """Compute the curvature along the parameter vector itself."""
        found = theta_hessian_theta(self.objective)
        return Rows([{**estimate_row("theta_hessian_theta", found), "method": hessian(self.objective).method}])

    def batch_sharpness(self, names: frozenset[str]) -> Rows:
        """Compute batch sharpness."""
        return batch_rows(self.target, names)

    def per_module(self) -> Rows:
        """Measure the diagonal block of each module."""
        return module_rows(self.hessian, self.options)

    def sampling_error(self, names: frozenset[str]) -> Rows:
        """Estimate the error of lambda_max over samples of data."""
        return sampling_rows(self.target, self.options, names)

    def alignment(self, names: frozenset[str]) -> Rows:
        """Compute the alignment of the gradient; measures the eigenvectors that it needs if they are not known yet."""
        begun, before = time.perf_counter(), self.hessian.products
        count = 5 if "top5_share" in names else 1
        if self._top is None or len(self._top.values) < min(count, self.objective.size):
            self._own_spectrum(frozenset(EIGENVALUES[:count]))
        if self._top is None or not len(self._top.values):
            return Rows()
        if self._top.vectors.shape[1] < min(count, len(self._top.values)):
            self.absent |= dict.fromkeys(sorted(names), _NO_VECTORS)
            return Rows()
        rows = alignment_rows(self.objective, self._top, names)
        cost = {"products": self.hessian.products - before + 1, "seconds": time.perf_counter() - begun}
        return Rows([{**row, **cost} for row in rows.probes])

    def remember(self, group: str, found: SpectrumEstimate) -> None:
        """Keep the top eigenvector as the start of the next search."""
        if found.top is not None and found.top.vectors.shape[1]:
            self.near[group] = found.top.vectors[:, 0].detach().clone()

    @property
    def _optimizer(self) -> str:
        """Name of the optimizer."""
        optimizer = self.target.optimizer
        return "optimizer" if optimizer is None else optimizer_name(optimizer)

    @property
    def _no_metric(self) -> str:
        """Reason why the optimizer's metric is unknown, and the measures to use instead."""
        optimizer = self.target.optimizer
        why = self.target.no_optimizer if optimizer is None else why_no_metric(optimizer)
        return f"{why}; use lambda_max, and directional_edge_ratio, which training records for every optimizer"


def _top_count(names: Collection[str]) -> int:
    """Return the number of top eigenpairs that the named eigenvalues need, at least 1."""
    return max((1 + i for i, name in enumerate(EIGENVALUES) if name in names), default=1)
