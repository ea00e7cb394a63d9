"""Recording a training loop: what to look at, when, and what looking costs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.curvature.host_transfer import Row, to_host
from lossscope.landscape.errors import LandscapeError
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


class Recorder:
    """Records every step of a training loop into a run folder.

    Two lines make an ordinary loop a recorded one:

        recorder = Recorder("runs/mine", model, optimizer, objective=objective)
        ...
            optimizer.step()
            recorder.step(loss)

    It reads the step through the optimizer's hooks, so any `torch.optim.Optimizer` will do; one of ours also
    shows its momentum, whitening, shear and adversarial gradient. Recording changes no number of the
    training: parameters are bit for bit those of an unrecorded run.

    Args:
        path: The run's folder; it must not exist yet, or see `force` and `resume_at`.
        model: The network that is trained.
        optimizer: Its optimizer.
        objective: Fixed data for curvature. Without it curvature is absent and reports say so.
        preset: `economy`, `standard` or `full`.
        minibatches: The training loss on some minibatches of the training's size, those of each pair (first and second,
            third and fourth, ...) drawn independently of one another. Without it there is no memory of directions, and
            no gradient noise.
        steps: How many optimizer steps are planned. With it, curvature evaluations and checkpoints are log-spaced
            over them and all take place; without it they grow apart geometrically under the preset's cap.
        evaluations: Log-spaced curvature evaluations in place of the preset's number.
        arm: The name that groups runs over seeds; that of the optimizer by default, see `optimizer_name`.
        config: What the run was asked to do; kept in the manifest.
        seeds: Numbers of the init, split and order seeds; kept in the manifest.
        force: Replace a run that is there.
        resume_at: Go on with the run that is there, after this many steps.

    Raises:
        RunError: The folder exists, cannot be written, or is being recorded.
        ConfigError: There is no such preset.
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
            objective.value()  # one that cannot be measured is told now, not at the first evaluation
        born = run_metadata(self._names, optimizer, objective.data_hash if objective is not None else None)
        asked = {"config": config or {}, "seeds": seeds or {}, "preset": self.preset.name}
        manifest = {"arm": arm or born["optimizer"], **born, "loss_unit": _loss_unit(objective or minibatches), **asked}
        if resume_at is None:
            self._store = RunStore.create(self.path, manifest, force=force)
        else:
            self._store = RunStore.resume(self.path, resume_at)
            forget_checkpoints_after(self.path, resume_at)
        self._overhead = Overhead(self._store.manifest.get("overhead"))
        earlier = self._store.manifest.get("curvature_gaps") or []
        self._gaps: list[Row] = [gap for gap in earlier if gap["step"] <= start]  # later evaluations are made anew
        self._watch = StepObserver(optimizer, self._names, self._cadence, self._overhead, start)
        if resume_at is None:
            self._evaluate_and_save()

    # -- what a user calls --------------------------------------------------------------------------

    def step(
        self,
        loss: Tensor | float | None = None,
        *,
        train_accuracy: float | None = None,
        test_loss: float | None = None,
        test_accuracy: float | None = None,
    ) -> None:
        """Write the row of the optimizer step just taken; nothing, if none was (a skipped step of a scaler).

        Args:
            loss: The training loss of the step, one number. For steps of two passes pass what
                `optimizer.step()` returned: the loss of the first.
            train_accuracy: Fraction right on the training set, where it was measured after this step.
            test_loss: Mean loss on a test set.
            test_accuracy: Fraction right on a test set.
        """
        if not self._watch.taken():
            return
        self._sample_layers()
        measured = {"train_accuracy": train_accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy}
        self._write_step(loss.detach().reshape(()) if isinstance(loss, Tensor) else loss, measured)
        self._evaluate_and_save()

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._watch.steps

    @property
    def overhead(self) -> dict[str, float]:
        """Seconds and shares of the wall time since construction that recording took, in all and by kind."""
        return self._overhead.summary()

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self._store.update_manifest(**facts)

    def close(
        self, status: Literal["finished", "failed"] = "finished", how: str = "the loop ended", *, quiet: bool = False
    ) -> None:
        """End the run: detach from the optimizer, write the tables, and say on stderr what recording cost."""
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        self._pairs = None
        if status == "finished" and self._planned is not None:
            with self._overhead.counted("checkpoints"):
                self._save()
        told = self._overhead.sentence(self.steps)  # before the tables are written whole, as the manifest has it
        self._store.update_manifest(steps=self.steps, overhead=self.overhead)
        self._store.close(status, how)
        if not quiet:
            sys.stderr.write(f"{self.path}: {told}{self._missing()}\n")

    def __enter__(self) -> Recorder:
        """The recorder itself; leaving the block closes it, as failed if an exception leaves it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run."""
        if error is None:
            self.close()
        else:
            said = str(error).splitlines()[0] if str(error) else ""
            self.close("failed", f"{type(error).__name__}: {said}".rstrip(": "))

    # -- after a step -------------------------------------------------------------------------------

    def _write_step(self, loss: Tensor | float | None, measured: dict[str, float | None]) -> None:
        for table, row in self._watch.rows(loss, measured):
            with self._overhead.counted("instruments"):
                if table == "steps":
                    row["seconds"] = self._overhead.wall
                    if row.get("adversarial_loss") is not None and row["loss"] is not None:
                        row["surrogate_gap"] = row["adversarial_loss"] - row["loss"]
                self._store.append(table, {"step": self.steps, **row})

    def _sample_layers(self) -> None:
        if self._curvature is not None and self._watch.before and self._cadence.layers(self.steps):
            with self._overhead.counted("layers"):
                found = self._curvature.layers(self.steps, self._watch.before, self._watch.displacement())
                if found is not None:
                    self._watch.add_layers(found)
                self._note_gaps(self._curvature.gaps)

    def _sample_pairs(self) -> None:
        due = self._cadence.window(self.steps)
        if self._pairs is None or due is None:
            return
        with self._overhead.counted("minibatches"):
            try:
                pairs, spectra = self._pairs.rows(self.steps, *due)
            except ProbeError as error:  # a gap, which stops no training
                self._note_gaps([{"step": self.steps, "instrument": "minibatches", "why": str(error)}])
                return
            found = to_host([*pairs, *spectra])
            for row in found[: len(pairs)]:
                self._store.append("pairs", row)
            for row in finished_spectra(found[len(pairs) :]):
                if row["norm"] > 0:  # a parameter that the loss does not see has no gradient: a gap
                    self._store.append("spectra", {"step": self.steps, **row})

    def _evaluate_and_save(self) -> None:
        self._sample_pairs()
        if self._curvature is not None and self._cadence.evaluation(self.steps):
            with self._overhead.counted("curvature"):
                found = self._curvature.rows(
                    self.steps, self._watch.before, self._watch.displacement(), long=self._cadence.long(self.steps)
                )
                for table, row in found.by_table():
                    self._store.append(table, row)
                self._note_gaps(self._curvature.gaps)
            o = self._overhead
            self._cadence.evaluated(self.steps, o.seconds["curvature"], o.wall, o.training / max(self.steps, 1))
        self._watch.forget()
        if self._cadence.checkpoint(self.steps):
            with self._overhead.counted("checkpoints"):
                self._save()
        with self._overhead.counted("instruments"):
            self._store.flush_if_due()

    def _note_gaps(self, gaps: list[Row]) -> None:
        if gaps:
            self._gaps += gaps
            gaps.clear()
            self._store.update_manifest(curvature_gaps=self._gaps)

    def _missing(self) -> str:
        """What could not be measured, for the closing line."""
        if not self._gaps:
            return ""
        steps: dict[str, set[int]] = {}
        for gap in self._gaps:
            steps.setdefault(gap.get("instrument", "curvature"), set()).add(gap["step"])
        where = ", ".join(f"{instrument} at {len(at)} step{'s' * (len(at) > 1)}" for instrument, at in steps.items())
        return f"; not measured: {where}, the first time because {self._gaps[0]['why']}"

    def _minibatch_pairs(self, minibatches: Objective | None) -> MinibatchPairs | None:
        lags = self.preset.lags
        return MinibatchPairs(minibatches, self._optimizer, lags[-1]) if minibatches is not None and lags else None

    def _require_parameters(self, *objectives: Objective | None) -> None:
        """Refuse a model without any, and an objective of another model or of parameters that are not trained here."""
        if not self._names:
            raise LandscapeError(
                f"{type(self._model).__name__} has no parameter that requires a gradient; nothing to record"
            )
        for objective in objectives:
            parameters = dict(objective.model.named_parameters()) if objective is not None else {}
            for name in objective.names if objective is not None else ():
                if parameters.get(name) not in self._names:
                    raise LandscapeError(
                        f"the objective's parameter {name!r} is none of the {len(self._names)} trainable parameters of "
                        "the recorded model: make the objective of this model, after freezing what is not trained"
                    )

    def _save(self) -> None:
        self._store.flush()  # a run resumed from this checkpoint then has every row before it
        save_checkpoint(self.path, self.steps, self._model, self._optimizer)
        self._store.update_manifest(steps=self.steps, overhead=self.overhead)


def _loss_unit(objective: Objective | None) -> str | None:
    """Return the unit that the loss function declares in its attribute `unit`; None if it declares none."""
    if objective is None:
        return None
    unit = getattr(getattr(objective.loss_fn, "func", objective.loss_fn), "unit", None)  # func: a functools.partial
    return unit if isinstance(unit, str) and unit else None
