"""Recorder of a training loop. It schedules the instruments, stores their rows and measures its own overhead."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.measures.host_transfer import Row, to_host
from lossscope.landscape.recording.cadence import Cadence, preset_of
from lossscope.landscape.recording.checkpoints import forget_checkpoints_after, save_checkpoint
from lossscope.landscape.recording.curvature_evaluations import CurvatureEvaluations
from lossscope.landscape.recording.minibatch_pairs import MinibatchPairs
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.run_metadata import run_metadata
from lossscope.landscape.recording.spectrum_rows import finished_spectra
from lossscope.landscape.recording.step_observer import StepObserver
from lossscope.landscape.storage.run_store import RunStore
from lossscope.probes.errors import ProbeError

if TYPE_CHECKING:
    from lossscope.probes.objective.objective import Objective

__all__ = ["Recorder"]

_SINCE_SCHEMA_4: Final = ("optimizer_facts", "loss_unit")  # added to the manifest of an older run that is resumed


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

    The recorded unit of the loss is the attribute `unit` of the objective's loss function ("nats" for `CrossEntropy`),
    unknown if it has none. `note(loss_unit="nats")` records it for any other loss.

    Args:
        path: The run's folder. It must not exist yet, except with `force` or `resume_at`.
        model: The network that is trained.
        optimizer: Its optimizer.
        objective: The loss on fixed data, for curvature. Without it no curvature is recorded, and reports say so.
        preset: `economy`, `standard` or `full`.
        minibatches: The training loss on minibatches of the training's batch size; the two of each pair (first and
            second, third and fourth, ...) drawn independently. Without it no direction autocorrelation and no gradient
            noise is recorded.
        steps: Planned number of optimizer steps. If given, curvature evaluations and checkpoints are log-spaced over
            them and all take place; otherwise the distance between evaluations grows geometrically under the preset's
            cap on their time, and there are no checkpoints.
        evaluations: Number of log-spaced curvature evaluations. Default: the preset's.
        arm: Name of the arm, the group of runs that differ in their seeds only. Default: `optimizer_name(optimizer)`.
        config: Settings of the run, kept in the manifest.
        seeds: The init, split and order seeds, kept in the manifest.
        force: Replace an existing run.
        resume_at: Continue an existing run after this many steps.

    Raises:
        RunError: The folder exists, cannot be written, or is being recorded.
        ConfigError: The preset is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective | None = None,
        preset: str = "standard",
        *,
        minibatches: Objective | None = None,
        steps: int | None = None,
        evaluations: int | None = None,
        arm: str | None = None,
        config: dict[str, Any] | None = None,
        seeds: dict[str, int] | None = None,
        force: bool = False,
        resume_at: int | None = None,
    ) -> None:
        self.preset = preset_of(preset)
        self.path = Path(path)
        self._model, self._optimizer = model, optimizer
        self._closed = False
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._planned = steps
        self._require_parameters(objective, minibatches)
        measured = objective is not None
        start = resume_at or 0
        self._cadence = Cadence(self.preset, steps, evaluations if measured else 0, start, layers=measured)
        self._curvature = CurvatureEvaluations(objective, self.preset, optimizer) if objective is not None else None
        self._pairs = self._minibatch_pairs(minibatches)
        if objective is not None:
            objective.value()  # raises now, not at the first evaluation, if the objective cannot be evaluated
        metadata = run_metadata(model, optimizer, objective.data_hash if objective is not None else None)
        manifest = {
            "arm": arm or metadata["optimizer"],
            **metadata,
            "loss_unit": _loss_unit(objective or minibatches),
            "config": config or {},
            "seeds": seeds or {},
            "preset": self.preset.name,
        }
        if resume_at is None:
            self._store = RunStore.create(self.path, manifest, force=force)
        else:
            self._store = RunStore.resume(self.path, resume_at)
            absent = {key: manifest[key] for key in _SINCE_SCHEMA_4 if key not in self._store.manifest}
            if absent:
                self._store.update_manifest(**absent)
            forget_checkpoints_after(self.path, resume_at)
        self._overhead = Overhead(self._store.manifest.get("overhead"))
        earlier = self._store.manifest.get("curvature_gaps") or []
        self._missing: list[Row] = [one for one in earlier if one["step"] <= start]  # later ones are measured again
        self._observer = StepObserver(optimizer, self._names, self._cadence, self._overhead, start)
        if resume_at is None:
            self._evaluate_and_save()

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
                `optimizer.step()`, the loss of the first pass.
            train_accuracy: Accuracy on the training set in [0, 1], if it was measured after this step.
            test_loss: Mean loss on a test set.
            test_accuracy: Accuracy on a test set in [0, 1].
        """
        if not self._observer.taken():
            return
        self._sample_layers()
        measured = {"train_accuracy": train_accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy}
        self._write_step(loss.detach().reshape(()) if isinstance(loss, Tensor) else loss, measured)
        self._evaluate_and_save()

    @property
    def steps(self) -> int:
        """Number of optimizer steps taken so far."""
        return self._observer.steps

    @property
    def overhead(self) -> dict[str, float]:
        """Seconds and shares of the wall time since construction that recording took, in total and by kind."""
        return self._overhead.summary()

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self._store.update_manifest(**facts)

    def close(
        self, status: Literal["finished", "failed"] = "finished", how: str = "the loop ended", *, quiet: bool = False
    ) -> None:
        """End the run: detach from the optimizer, write the tables, and print the recording overhead on stderr."""
        if self._closed:
            return
        self._closed = True
        self._observer.close()
        self._pairs = None
        if status == "finished" and self._planned is not None:
            with self._overhead.counted("checkpoints"):
                self._save()
        overhead = self._overhead.sentence(self.steps)  # before the tables are compacted, the same as in the manifest
        self._store.update_manifest(steps=self.steps, overhead=self.overhead)
        self._store.close(status, how)
        if not quiet:
            sys.stderr.write(f"{self.path}: {overhead}{self._missing_in_words()}\n")

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

    def _write_step(self, loss: Tensor | float | None, measured: dict[str, float | None]) -> None:
        """Store the rows of the step just taken."""
        for table, row in self._observer.rows(loss, measured):
            with self._overhead.counted("instruments"):
                if table == "steps":
                    row["seconds"] = self._overhead.wall
                    if row.get("adversarial_loss") is not None and row["loss"] is not None:
                        row["surrogate_gap"] = row["adversarial_loss"] - row["loss"]
                self._store.append(table, {"step": self.steps, **row})

    def _sample_layers(self) -> None:
        """Measure the Taylor remainders of the layers if they are due."""
        if self._curvature is not None and self._observer.before and self._cadence.layers(self.steps):
            with self._overhead.counted("layers"):
                found = self._curvature.layers(self.steps, self._observer.before, self._observer.displacement())
                if found is not None:
                    self._observer.add_layers(found)
                self._note_missing(self._curvature.missing)

    def _sample_pairs(self) -> None:
        """Sample a pair of minibatches if one is due, and store its rows."""
        due = self._cadence.window(self.steps)
        if self._pairs is None or due is None:
            return
        with self._overhead.counted("minibatches"):
            try:
                pairs, spectra = self._pairs.rows(self.steps, *due)
            except ProbeError as error:  # a missing value, which must not stop the training
                self._note_missing([{"step": self.steps, "instrument": "minibatches", "why": str(error)}])
                return
            found = to_host([*pairs, *spectra])
            for row in found[: len(pairs)]:
                self._store.append("pairs", row)
            for row in finished_spectra(found[len(pairs) :]):
                if row["norm"] > 0:  # a parameter that the loss does not depend on has no gradient: no row
                    self._store.append("spectra", {"step": self.steps, **row})

    def _evaluate_and_save(self) -> None:
        """Take the samples that need no step, and the checkpoint, if they are due; flush once a second."""
        self._sample_pairs()
        if self._curvature is not None and self._cadence.evaluation(self.steps):
            with self._overhead.counted("curvature"):
                found = self._curvature.rows(
                    self.steps,
                    self._observer.before,
                    self._observer.displacement(),
                    long=self._cadence.long(self.steps),
                )
                for table, row in found.by_table():
                    self._store.append(table, row)
                self._note_missing(self._curvature.missing)
            o = self._overhead
            self._cadence.schedule_next(self.steps, o.seconds["curvature"], o.wall, o.training / max(self.steps, 1))
        self._observer.forget()
        if self._cadence.checkpoint(self.steps):
            with self._overhead.counted("checkpoints"):
                self._save()
        with self._overhead.counted("instruments"):
            self._store.flush_if_due()

    def _note_missing(self, missing: list[Row]) -> None:
        """Add missing measurements with their reasons to the manifest, and clear the list."""
        if missing:
            self._missing += missing
            missing.clear()
            self._store.update_manifest(curvature_gaps=self._missing)

    def _missing_in_words(self) -> str:
        """Return a clause for the closing line that names the instruments with missing measurements."""
        if not self._missing:
            return ""
        steps: dict[str, set[int]] = {}
        for one in self._missing:
            steps.setdefault(one.get("instrument", "curvature"), set()).add(one["step"])
        where = ", ".join(f"{instrument} at {len(at)} step{'s' * (len(at) > 1)}" for instrument, at in steps.items())
        return f"; not measured: {where}; first reason: {self._missing[0]['why']}"

    def _minibatch_pairs(self, minibatches: Objective | None) -> MinibatchPairs | None:
        """Return the sampler of pairs; None without minibatches, or with a preset that samples none."""
        lags = self.preset.lags
        return MinibatchPairs(minibatches, self._optimizer, lags[-1]) if minibatches is not None and lags else None

    def _require_parameters(self, *objectives: Objective | None) -> None:
        """Raise LandscapeError for a model without trainable parameters, or an objective with other parameters."""
        if not self._names:
            raise LandscapeError(
                f"{type(self._model).__name__} has no parameter with requires_grad=True, so there is nothing to record"
            )
        for objective in objectives:
            parameters = dict(objective.model.named_parameters()) if objective is not None else {}
            for name in objective.names if objective is not None else ():
                if parameters.get(name) not in self._names:
                    raise LandscapeError(
                        f"the objective's parameter {name!r} is not one of the {len(self._names)} trainable parameters "
                        "of the recorded model: create the objective of this model, after freezing what is not trained"
                    )

    def _save(self) -> None:
        """Save a checkpoint."""
        self._store.flush()  # so that a run resumed from this checkpoint has every row before it
        save_checkpoint(self.path, self.steps, self._model, self._optimizer)
        self._store.update_manifest(steps=self.steps, overhead=self.overhead)


def _loss_unit(objective: Objective | None) -> str | None:
    """Return the unit that the loss function declares in its attribute `unit`; None if it declares none."""
    if objective is None:
        return None
    unit = getattr(getattr(objective.loss_fn, "func", objective.loss_fn), "unit", None)  # func: a functools.partial
    return unit if isinstance(unit, str) and unit else None
