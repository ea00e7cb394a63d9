"""Recorder of a training loop. It schedules the instruments, stores their rows and measures its own overhead."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.recording.cadence import MOST_EVALUATIONS, Cadence, Spacing, preset_of
from lossscope.landscape.recording.checkpoint_saver import CheckpointSaver
from lossscope.landscape.recording.checkpoints import start_matrices
from lossscope.landscape.recording.cost_cap import CostCap, overhead_share
from lossscope.landscape.recording.curvature_evaluations import wanted_measures
from lossscope.landscape.recording.curvature_memory import CURVATURE_MEMORY, curvature_memory
from lossscope.landscape.recording.disk_cap import byte_count, expected_bytes
from lossscope.landscape.recording.faults import Faults, say
from lossscope.landscape.recording.loss_instruments import LossInstruments
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.recorded_optimizer import RecordedOptimizer, recorded_optimizers
from lossscope.landscape.recording.recorder_checks import StepCalls, check_losses, check_model, one_number
from lossscope.landscape.recording.run_claim import abandon, claimed, earlier_facts
from lossscope.landscape.recording.run_ends import forget, watch
from lossscope.landscape.recording.run_metadata import new_manifest
from lossscope.landscape.recording.run_writer import RunWriter, Status
from lossscope.landscape.recording.sample_periods import SamplePeriods
from lossscope.landscape.recording.spikes import SpikeReports
from lossscope.landscape.recording.step_observer import StepObserver
from lossscope.landscape.recording.step_ring import StepRing
from lossscope.landscape.recording.whole_numbers import whole_number
from lossscope.landscape.storage.manifest import manifest_text
from lossscope.landscape.storage.row_codec import load_libraries

if TYPE_CHECKING:
    from lossscope.probes.objective.objective import Objective

__all__ = ["Recorder"]


class Recorder:
    """Recorder of every step of a training loop into a run folder.

    Two lines turn a training loop into a recorded one:

        recorder = Recorder("runs/mine", model, optimizer, objective=objective)
        ...
            optimizer.step()
            recorder.step(loss)

    The recorder observes steps through the optimizer's hooks, so it works with any `torch.optim.Optimizer`;
    lossscope's own optimizers also provide momentum, whitening, shear and adversarial gradient. Recording does not
    change the training: the parameters are bit for bit those of an unrecorded run.

    What cannot be recorded is a missing value with step and reason, in the manifest and in reports; the first of its
    kind is a `RecordingWarning`, and the training goes on. That holds for an exception of the objective's loss
    function, for memory that runs out, a full disk and a removed folder as well.

    A run whose recorder is not closed is ended when the interpreter ends: as finished, as failed with the name of the
    exception that nothing caught, or as stopped by SIGTERM. In a distributed training the recorder may be made on every
    rank; rank 0 records.

    The recorded unit of the loss is the attribute `unit` of the objective's loss function ("nats" for `CrossEntropy`),
    unknown if it has none. `note(loss_unit="nats")` records it for any other loss.

    Args:
        path: The run's folder. It must not exist yet, except with `force` or `resume_at`.
        model: The network that is trained.
        optimizer: Its optimizer, a list of several that step it together, or a wrapper that holds one (Accelerate).
        objective: The loss on fixed data, for curvature. Without it no curvature is recorded, and reports say so.
        preset: `economy`, `standard` or `full`.
        minibatches: The training loss on minibatches of the training's batch size; the two of each pair (first and
            second, third and fourth, ...) drawn independently. Without it no direction autocorrelation and no gradient
            noise is recorded.
        train: The loss of the objective on all training data: each evaluation then has a row `train_loss`. If those of
            curvature are all training data, pass the objective again; nothing is then computed twice.
        test: The same loss on test data: each evaluation then has a row `test_loss`.
        steps: Planned number of optimizer steps. If given, curvature evaluations and checkpoints are spaced over them;
            otherwise the distance between evaluations grows geometrically, and there are no checkpoints.
        evaluations: Number of curvature evaluations over the planned steps. Default: the preset's. 0: none.
        evaluate_at: The steps of the curvature evaluations, in place of `evaluations`.
        spacing: Spacing of the curvature evaluations over the planned steps: "log", from a fiftieth of them on, or
            "linear". Both begin with step 0 and end with the last step.
        measures: Names of measures or groups of `lossscope list measures` that the evaluations take. Default: all that
            are recorded.
        checkpoints: Number of log-spaced checkpoints over the planned steps. Default: the preset's, or as many as
            `disk` has place for.
        weights_at_evaluations: Save the weights, without the optimizer, at curvature evaluations too. No run resumes
            from such a checkpoint; `lossscope probe` measures it.
        overhead: Largest share of the wall time that recording may take, in (0, 1]. An evaluation that is not predicted
            to fit is cut to half of what is left: the loss, `lambda_max` with fewer products and what else fits. The
            first one takes at least `lambda_max` with eight products, the last one at least the loss. A layer sample or
            a window of minibatch pairs starts only if it fits, a checkpoint but the last waits until it does, and norms
            and spectra are sampled less often where they alone exceed half of the cap. What is left out is missing with
            the reason. Default: the preset's share (0.02, 0.10, 0.50). 1: no cap, and no row depends on the time that
            anything took.
        disk: Bound on the size of all checkpoints, in bytes or as text such as "500MB". Place for the last one is kept.
        memory: Memory for the vectors of a curvature evaluation, in bytes or as text such as "6GB". Default: half of
            what is available. What does not fit is measured with a part of the Krylov basis or with three vectors, as
            the rows say; a run that is resumed keeps its number.
        spill: Folder for the basis of an evaluation where it does not fit into memory.
        arm: Name of the arm, the group of runs that differ in their seeds only. Default: `optimizer_name(optimizer)`.
        config: Settings of the run, kept in the manifest.
        seeds: The init, split and order seeds, kept in the manifest.
        force: Replace an existing run, also one that an earlier recorder of this process has not closed.
        resume_at: Continue an existing run after this many steps.
        strict: Raise the exception of an instrument instead of recording a missing value.

    Raises:
        RunError: The folder exists, cannot be written, or is being recorded.
        ConfigError: The preset or a measure is unknown, or a setting is out of bounds.
        LandscapeError: There is no optimizer, or nothing that can be recorded. Nothing is left behind.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        objective: Objective | None = None,
        preset: str = "standard",
        *,
        minibatches: Objective | None = None,
        train: Objective | None = None,
        test: Objective | None = None,
        steps: int | None = None,
        evaluations: int | None = None,
        evaluate_at: Collection[int] | None = None,
        spacing: Spacing = "log",
        measures: Collection[str] | None = None,
        checkpoints: int | None = None,
        weights_at_evaluations: bool = False,
        overhead: float | None = None,
        disk: int | str = "2GB",
        memory: int | str | None = None,
        spill: str | Path | None = None,
        arm: str | None = None,
        config: dict[str, Any] | None = None,
        seeds: dict[str, int] | None = None,
        force: bool = False,
        resume_at: int | None = None,
        strict: bool = False,
    ) -> None:
        self.preset = preset_of(preset)
        self.path = Path(path)
        self._folder = self.path.absolute()  # the program may change its directory
        steps = whole_number("steps", steps, least=1)
        evaluations = whole_number("evaluations", evaluations, least=0, most=MOST_EVALUATIONS)
        checkpoints = whole_number("checkpoints", checkpoints, least=0, most=MOST_EVALUATIONS)
        resume_at = whole_number("resume_at", resume_at, least=0)
        self._model, self._start = model, resume_at or 0
        optimizers = recorded_optimizers(optimizer)
        self._optimizers = [one.optimizer for one in optimizers]
        check_losses(objective, train, test)
        check_model(model, objective, minibatches, train, test)
        times, earlier = earlier_facts(self._folder, resume_at)
        evaluation_memory = curvature_memory(memory, spill, objective, self._folder, resume_at)
        self._faults = Faults(str(path), strict=strict, earlier=earlier)
        load_libraries()  # before the clock starts, as the time of imports is not that of recording
        self._overhead = Overhead(times)
        measured = objective is not None
        self._cap = CostCap(overhead_share(overhead, self.preset.cap), self._overhead)
        place = byte_count(disk, "disk")
        fit = place // max(expected_bytes(model), 1)
        self._cadence = Cadence(
            self.preset,
            steps,
            evaluations if measured else 0,
            self._start,
            layers=measured,
            evaluate_at=evaluate_at if measured else None,
            spacing=spacing,
            checkpoints=min(self.preset.checkpoints if checkpoints is None else checkpoints, fit),
            room=self._cap.has_room,  # no method of the recorder, which the optimizer would keep alive
        )
        self._ring = StepRing(self._cap, self._overhead, self._faults)
        self._spikes = SpikeReports(self._ring, self._faults)
        self._periods = SamplePeriods(self._cadence, self._cap, self._overhead, self._faults)
        self._instruments = LossInstruments(
            model,
            self._optimizers,
            objective,
            minibatches,
            preset=self.preset,
            cadence=self._cadence,
            cap=self._cap,
            overhead=self._overhead,
            faults=self._faults,
            wanted=wanted_measures(measures),
            name=str(path),
            train=train,
            test=test,
            memory=evaluation_memory,
            spill=spill,
        )
        self._saver = CheckpointSaver(
            self._folder,
            model,
            self._optimizers,
            disk=place,
            cadence=self._cadence,
            cap=self._cap,
            overhead=self._overhead,
            faults=self._faults,
            at_evaluations=weights_at_evaluations,
        )
        if objective is not None:
            objective.value()  # raises now, not at the first evaluation, if the objective cannot be evaluated
        self._calls = StepCalls(self._optimizers, self._start, self._faults)
        self._loss: Tensor | float | None = None  # of the last step
        self._closed = False
        self._observer: StepObserver | None = None
        self._writer: RunWriter | None = None
        manifest = new_manifest(
            model, self._optimizers, objective, minibatches, arm=arm, config=config, seeds=seeds, preset=preset
        )
        manifest["overhead_cap"] = self._cap.share
        # last: whatever failed before has left nothing
        self._writer = claimed(
            self._folder, manifest, self._faults, self._overhead, planned=steps, force=force, resume_at=resume_at
        )
        if self._writer is not None:
            if evaluation_memory is not None:
                self._writer.update(**{CURVATURE_MEMORY: evaluation_memory})
            self._begin(optimizers, self._writer, new=resume_at is None)

    # -- public interface ---------------------------------------------------------------------------

    def step(
        self,
        loss: Tensor | float | None = None,
        *,
        train_accuracy: float | None = None,
        test_loss: float | None = None,
        test_accuracy: float | None = None,
    ) -> None:
        """Write the rows of the optimizer step just taken. Does nothing if a `GradScaler` skipped the step.

        Args:
            loss: The training loss of the step, one number. For steps of two passes pass the return value of
                `optimizer.step()`, the loss of the first pass. Default: what the closure of the step returned.
            train_accuracy: Accuracy on the training set in [0, 1], if it was measured after this step.
            test_loss: Mean loss on a test set.
            test_accuracy: Accuracy on a test set in [0, 1].
        """
        observer, writer = self._observer, self._writer
        if observer is None or writer is None or self._closed:
            return
        if writer.ended:  # a new recorder has taken the folder
            self._detach()
            return
        if not self._calls.follows_step(observer):
            return
        writer.steps = observer.steps
        numbers = {"train_accuracy": train_accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy}
        self._instruments.sample_layers(self.steps, observer)
        self._write_step(observer, writer, {"loss": loss, **numbers})
        self._periods.after(self.steps)
        self._evaluate_and_save(observer, writer)

    def evaluate(self) -> None:
        """Take a curvature evaluation with every recorded measure now, whatever it costs.

        Raises:
            LandscapeError: The recorder has no objective, or is closed.
        """
        if self._closed:
            raise LandscapeError("evaluate() was called after close(): the run has ended")
        observer, writer = self._observer, self._writer
        if observer is None or writer is None:  # on another rank of a distributed training
            return
        if self._instruments.objective is None:
            raise LandscapeError("evaluate() needs an objective: pass objective= to the Recorder")
        self._instruments.evaluate(self.steps, observer, writer, self._loss)
        self._saver.save_evaluated(self.steps, writer)

    @property
    def steps(self) -> int:
        """Number of optimizer steps taken so far; 0 if another rank records them."""
        return 0 if self._observer is None else self._observer.steps

    @property
    def overhead(self) -> dict[str, float]:
        """Seconds and shares of the wall time since construction that recording took, in total and by kind."""
        return self._overhead.summary()

    @property
    def lost(self) -> str:
        """The reason why rows could not be written when the run ended; "" if all were."""
        return "" if self._writer is None else self._writer.lost

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest.

        Raises:
            ValueError: A fact has no JSON form.
        """
        manifest_text(facts)
        if self._writer is not None and not self._writer.ended:
            self._writer.update(**facts)

    def close(
        self, status: Literal["finished", "failed"] = "finished", how: str = "the loop ended", *, quiet: bool = False
    ) -> None:
        """End the run: detach from the optimizer, write the tables, and print the recording overhead on stderr.

        A run of which no step was recorded though steps were taken, or though `step` was called, is failed. If the disk
        was full, a second call tries again, and so does the end of the interpreter.
        """
        observer, writer = self._observer, self._writer
        if observer is None or writer is None:
            return
        if self._closed:
            if writer.unfinished:
                self._end(writer, status, how)
            return
        self._closed = True
        if writer.ended:  # a new recorder has taken the folder
            self._detach()
            return
        if status == "finished":
            ends = (self.steps, observer, writer, self._loss)
            evaluated = bool(self._calls.recorded) and self._instruments.evaluate_the_end(*ends)
            if writer.planned is not None:
                self._saver.save_last(self.steps, writer)
            if evaluated:
                self._saver.save_evaluated(self.steps, writer)
        self._saver.note_unsaved()
        self._spikes.note_absent(self.steps - self._start)
        self._calls.tell_unrecorded(observer)
        nothing = self._calls.nothing_recorded(observer)
        self._detach()
        if nothing and status == "finished":
            status, how = "failed", nothing
        # before the tables are compacted, so that it is the same as in the manifest
        overhead = self._overhead.sentence(self.steps) + self._cap.excess()
        self._end(writer, status, how)
        if not quiet:
            say(f"{self.path}: {overhead}{self._faults.in_words()}")

    def __enter__(self) -> Recorder:
        """Return the recorder. Leaving the block closes the run, as failed if an exception leaves the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run, as failed if there is an exception."""
        if error is None:
            self.close()
        else:
            message = str(error).splitlines()[0] if str(error) else ""
            self.close("failed", f"{type(error).__name__}: {message}".rstrip(": "))

    # -- after a step -------------------------------------------------------------------------------

    def _write_step(self, observer: StepObserver, writer: RunWriter, given: dict[str, Tensor | float | None]) -> None:
        """Store the rows of the step just taken."""
        row: dict[str, Any] = dict.fromkeys(given)
        for name, value in given.items():
            if value is not None:
                with self._faults.guarded("steps", self.steps, [name]):
                    row[name] = one_number(name, value)
        if given["loss"] is None:
            row["loss"] = observer.seen_loss()
        self._loss = row["loss"]
        for table, found in observer.rows(row):
            with self._overhead.counted("instruments"):
                if table == "steps":
                    found["seconds"] = self._overhead.wall
                    if found.get("adversarial_loss") is not None and found.get("loss") is not None:
                        found["surrogate_gap"] = found["adversarial_loss"] - found["loss"]
                writer.append(table, {"step": self.steps, **found})
            if table == "steps":
                self._write_spike(writer, found)

    def _write_spike(self, writer: RunWriter, row: dict[str, Any]) -> None:
        """Store the ring of norms if the loss of the step is a spike."""
        with self._overhead.counted("ring"), self._faults.guarded("spikes", self.steps):
            for found in self._spikes.rows(self.steps, row):
                writer.append("spikes", found)

    def _evaluate_and_save(self, observer: StepObserver, writer: RunWriter) -> None:
        """Take the samples that need no step, and the checkpoint, if they are due; flush once a second."""
        self._instruments.sample_pairs(self.steps, writer)
        evaluated = self._instruments.evaluate_if_due(self.steps, observer, writer, self._loss)
        observer.forget()
        self._saver.save_if_due(self.steps, writer, evaluated=evaluated)
        with self._overhead.counted("instruments"):
            writer.flush(due=True)

    # -- beginning and ending -----------------------------------------------------------------------

    def _begin(self, optimizers: Sequence[RecordedOptimizer], writer: RunWriter, *, new: bool) -> None:
        """Observe the optimizers from now on, and record the state before the first step of a new run."""
        writer.steps = self._start
        try:
            self._observer = StepObserver(
                optimizers, self._model, self._cadence, self._overhead, self._faults, self._ring, self._start
            )
            if new:
                self._evaluate_and_save(self._observer, writer)
            elif self._cadence.spectra(1):
                self._observer.know_start(start_matrices(self._folder))
            watch(writer)
        except BaseException as error:
            self._closed = True
            self._detach()
            abandon(writer, self._folder, error, new=new)
            raise
        weakref.finalize(self, writer.flush_abandoned)

    def _end(self, writer: RunWriter, status: Status, how: str) -> None:
        """End the run. If that could not be written, the end of the interpreter tries again."""
        writer.end(status, how)
        if not writer.unfinished:
            forget(writer)
        if writer.error is not None and self._faults.strict:
            raise writer.error

    def _detach(self) -> None:
        """Detach from the optimizers, and release what the instruments keep."""
        if self._observer is not None:
            self._observer.close()
        self._instruments.release()
