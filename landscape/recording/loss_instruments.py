"""Instruments of a recorder that need the loss: curvature evaluations, layer samples, pairs of minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.host_transfer import to_host
from lossscope.landscape.recording.cadence import Cadence, Preset
from lossscope.landscape.recording.cost_cap import CostCap
from lossscope.landscape.recording.curvature_evaluations import CurvatureEvaluations, Wanted
from lossscope.landscape.recording.evaluation_schedule import EvaluationSchedule, Extent
from lossscope.landscape.recording.faults import Faults, say
from lossscope.landscape.recording.kept_state import kept_state
from lossscope.landscape.recording.minibatch_pairs import MinibatchPairs
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.run_writer import RunWriter
from lossscope.landscape.recording.spectrum_rows import finished_spectra
from lossscope.landscape.recording.step_observer import StepObserver
from lossscope.landscape.recording.step_ring import ring_bytes
from lossscope.probes.objective.objective import Objective

__all__ = ["LossInstruments"]

_MOST_NAMED: Final = 5  # steps beyond the end of the run


class LossInstruments:
    """Take samples of the loss where they are due and fit under the cap, and store their rows.

    What fails or does not fit is a missing value; the state of the models is restored in any case.

    Args:
        model: The network that is trained.
        optimizers: Its optimizers. The metric of several together is unknown.
        objective: The loss on fixed data; None for no curvature.
        minibatches: The training loss on minibatches; None for no pairs.
        preset: Tolerances, budgets and lags.
        cadence: Steps at which the instruments are due.
        cap: Cap on the overhead.
        overhead: Clock of the recording.
        faults: Collects what is missing.
        wanted: The measures to take.
        name: Name of the run, for lines on stderr.
        train: The same loss on all training data, for evaluations; None if they are not known.
        test: The same loss on test data; None if they are not known.
        memory: Bytes for the vectors of an evaluation.
        spill: Folder of a basis that does not fit.

    Attributes:
        objective: The loss on fixed data, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        objective: Objective | None,
        minibatches: Objective | None,
        *,
        preset: Preset,
        cadence: Cadence,
        cap: CostCap,
        overhead: Overhead,
        faults: Faults,
        wanted: Wanted,
        name: str,
        train: Objective | None = None,
        test: Objective | None = None,
        memory: int | None = None,
        spill: str | Path | None = None,
    ) -> None:
        self.objective = objective
        self._lags = preset.lags
        self._cadence, self._cap, self._overhead, self._faults, self._name = cadence, cap, overhead, faults, name
        self._modules = [model, *(one.model for one in (objective, minibatches, train, test) if one is not None)]
        self._skipped_window: int | None = None  # window of minibatch pairs that does not fit under the cap
        self._curvature: CurvatureEvaluations | None = None
        self._schedule: EvaluationSchedule | None = None
        self._pairs: MinibatchPairs | None = None
        if objective is not None:
            only = optimizers[0] if len(optimizers) == 1 else None
            self._curvature = CurvatureEvaluations(
                objective,
                preset,
                only,
                faults=faults,
                wanted=wanted,
                train=train,
                test=test,
                memory=memory,
                spill=spill,
            )
            kept = _kept_bytes(optimizers, spectra=preset.spectra_every is not None)
            self._schedule = EvaluationSchedule(self._curvature, cadence, cap, overhead, faults, name, kept)
        if minibatches is not None and preset.lags:
            self._pairs = MinibatchPairs(minibatches, optimizers[0], preset.lags[-1])

    def release(self) -> None:
        """Release what the instruments keep."""
        self._pairs = self._curvature = self._schedule = None

    def sample_layers(self, step: int, observer: StepObserver) -> None:
        """Measure the Taylor remainders of the layers if they are due."""
        if self._curvature is None or not self._cadence.layers(step):
            return
        if not self._cadence.room(step) or not self._cap.affords("layers"):
            self._faults.note("layers", step, self._cap.reason("layers"), topic="overhead")
            return
        if not observer.copies:
            return
        with self._overhead.counted("layers"), self._instrument("layers", step):
            found = self._curvature.layers(step, observer.copies, observer.displacement())
            if found is not None:
                observer.add_layers(found)

    def sample_pairs(self, step: int, writer: RunWriter) -> None:
        """Sample a pair of minibatches if one is due, and store its rows."""
        due = self._cadence.window(step)
        if self._pairs is None or due is None:
            return
        window, lag = due
        if lag == 0 and not self._cap.affords("minibatches", len(self._lags) + 1):
            self._faults.note("minibatches", step, self._cap.reason("minibatches"), topic="overhead")
            self._skipped_window = window
        if window == self._skipped_window:
            return
        with self._overhead.counted("minibatches"), self._instrument("minibatches", step):
            pairs, spectra = self._pairs.rows(step, *due)
            found = to_host([*pairs, *spectra])
            for row in found[: len(pairs)]:
                writer.append("pairs", row)
            for row in finished_spectra(found[len(pairs) :]):
                if row["norm"] > 0:  # a parameter that the loss does not depend on has no gradient: no row
                    writer.append("spectra", {"step": step, **row})

    def evaluate(
        self,
        step: int,
        observer: StepObserver,
        writer: RunWriter,
        loss: Tensor | float | None,
        extent: Extent | None = None,
    ) -> None:
        """Evaluate the curvature and store its rows.

        Args:
            step: Steps taken so far.
            observer: Observer of the step.
            writer: Writer of the run.
            loss: Training loss of the step, to compare with that on the fixed data.
            extent: Extent of the evaluation. Default: every recorded measure, whatever it costs.
        """
        curvature, extent = self._curvature, extent or Extent()
        if curvature is None:
            return
        with self._overhead.counted("curvature"), self._instrument("curvature", step):
            found = curvature.rows(
                step,
                observer.copies,
                observer.displacement(),
                long=extent.long,
                groups=observer.groups,
                cap=extent.cap,
                at_least_lambda_max=extent.at_least_lambda_max,
            )
            for table, row in found.by_table():
                writer.append(table, row)
            self._faults.note_limits(found.probes)
            self._compare_losses(step, curvature, found, writer, loss)

    def evaluate_if_due(
        self, step: int, observer: StepObserver, writer: RunWriter, loss: Tensor | float | None
    ) -> bool:
        """Evaluate the curvature if it is due and fits under the cap; return True if it was evaluated."""
        if self._schedule is None or not self._cadence.evaluation(step):
            return False
        extent: Extent | None = None
        failed = True
        with self._overhead.counted("curvature"), self._instrument("curvature", step):
            extent = self._schedule.due(step, stepped=bool(observer.copies))
            failed = False
        if failed:  # the loss raised when its cost was predicted: try again when the next evaluation is due
            self._cadence.schedule_next(step)
        if extent is not None:
            self.evaluate(step, observer, writer, loss, extent)
            self._schedule.made(step)
        return extent is not None

    def evaluate_the_end(
        self, step: int, observer: StepObserver, writer: RunWriter, loss: Tensor | float | None
    ) -> bool:
        """Evaluate the curvature where the run ends, if no evaluation is there already; return True if it was."""
        if beyond := self._cadence.given_after(step):
            listed = ", ".join(map(str, beyond[:_MOST_NAMED])) + (", ..." if len(beyond) > _MOST_NAMED else "")
            self._faults.note(
                "curvature", step, f"evaluate_at names {listed}, and the run ended at step {step}", topic="beyond"
            )
        extent = None if self._schedule is None else self._schedule.at_the_end(step)
        if extent is not None:
            self.evaluate(step, observer, writer, loss, extent)
        return extent is not None

    def _compare_losses(
        self,
        step: int,
        curvature: CurvatureEvaluations,
        found: Rows,
        writer: RunWriter,
        loss: Tensor | float | None,
    ) -> None:
        """Say once, on stderr and in the manifest, if the loss on the fixed data is not the one that is trained."""
        if loss is None or "fixed_loss" in writer.manifest:
            return
        if note := curvature.note(found, float(loss)):
            writer.update(fixed_loss=f"step {step}: {note}")
            say(f"{self._name}: step {step}: {note}")

    @contextmanager
    def _instrument(self, name: str, step: int) -> Iterator[None]:
        """Note an exception of the block as a missing value of an instrument, and restore what it may have changed."""
        # a caller in inference mode (an evaluation function, say) would make tensors that have no derivative
        with torch.inference_mode(False), self._faults.guarded(name, step), kept_state(*self._modules):
            yield


def _kept_bytes(optimizers: Sequence[Optimizer], *, spectra: bool) -> int:
    """Return the bytes that the recorder keeps between steps at most: the ring, and for spectra the first matrices."""
    known = {id(p): p for one in optimizers for group in one.param_groups for p in group["params"]}
    parameters = [p for p in known.values() if p.requires_grad]
    matrices = sum(p.numel() * p.element_size() for p in parameters if p.ndim > 1) if spectra else 0
    return ring_bytes(parameters) + matrices
