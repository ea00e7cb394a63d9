"""Checkpoints of a recording: saved where they are due and fit under the caps on time and disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.checkpoints import checkpoints, save_checkpoint, save_weights
from lossscope.landscape.recording.cost_cap import CostCap
from lossscope.landscape.recording.disk_cap import checkpoint_bytes, stored_bytes
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.recorded_optimizer import Together
from lossscope.landscape.recording.run_writer import RunWriter
from lossscope.landscape.storage.compaction import CHECKPOINTS

__all__ = ["CheckpointSaver"]

_WEIGHTS: Final = ("weights",)  # what is missing where a checkpoint of weights only is


class CheckpointSaver:
    """Save checkpoints that are due; what does not fit under the caps is a missing value.

    Full checkpoints hold the optimizer and the random state, so a run resumes from them. One that does not fit under
    the cap on the overhead waits until it does. Those of weights only belong to a curvature evaluation and do not wait.

    Args:
        folder: The run's folder.
        model: The network that is trained.
        optimizers: Its optimizers.
        disk: Bound on the size of all checkpoints, in bytes.
        cadence: Steps at which full checkpoints are due.
        cap: Cap on the overhead.
        overhead: Clock of the recording.
        faults: Collects what is missing.
        at_evaluations: Save the weights at curvature evaluations without a full checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        disk: int,
        cadence: Cadence,
        cap: CostCap,
        overhead: Overhead,
        faults: Faults,
        at_evaluations: bool,
    ) -> None:
        self._folder, self._model, self._optimizers = folder, model, optimizers
        self._disk, self._cadence, self._cap = disk, cadence, cap
        self._overhead, self._faults, self._at_evaluations = overhead, faults, at_evaluations
        self._unsaved: int | None = None  # step of a full checkpoint that waits for its place under the cap

    def save_if_due(self, step: int, writer: RunWriter, *, evaluated: bool) -> None:
        """Save a due full checkpoint as soon as it fits under the cap; it is missing if the next one is due before.

        Args:
            step: Steps taken so far.
            writer: Writer of the run.
            evaluated: The curvature was evaluated at this step.
        """
        if self._cadence.checkpoint(step):
            self.note_unsaved()
            self._unsaved = step
        if self._unsaved is not None and self._cap.affords("checkpoints"):
            self._unsaved = None
            self._save(step, writer)
        if evaluated:
            self.save_evaluated(step, writer)

    def save_evaluated(self, step: int, writer: RunWriter) -> None:
        """Save the weights at an evaluation, if they are wanted and fit."""
        if not self._at_evaluations:
            return
        if self._cap.affords("checkpoints"):
            self._save_weights(step, writer)
        else:
            self._faults.note("checkpoints", step, self._cap.reason("checkpoints"), _WEIGHTS, topic="overhead")

    def save_last(self, step: int, writer: RunWriter) -> None:
        """Save the full checkpoint of the end, whatever it costs."""
        if self._unsaved == step:
            self._unsaved = None
        self._save(step, writer, last=True)

    def note_unsaved(self) -> None:
        """Record a checkpoint that still waits for its place under the cap as missing."""
        if self._unsaved is not None:
            self._faults.note("checkpoints", self._unsaved, self._cap.reason("checkpoints"), topic="overhead")
            self._unsaved = None

    def _save(self, step: int, writer: RunWriter, *, last: bool = False) -> None:
        """Save a full checkpoint if the bound on the disk has place for it, and for the last one after it."""
        with self._overhead.counted("checkpoints"), self._faults.guarded("checkpoints", step):
            size = checkpoint_bytes(self._model, self._optimizers)
            if not self._fits(step, size, rest=0 if last or step == writer.planned else size):
                return
            writer.require_folder()
            writer.flush()  # so that a run resumed from this checkpoint has every row before it
            whole = self._optimizers[0] if len(self._optimizers) == 1 else Together(self._optimizers)
            save_checkpoint(self._folder, step, self._model, whole)
            writer.update(steps=step, overhead=self._overhead.summary())

    def _save_weights(self, step: int, writer: RunWriter) -> None:
        """Save the weights if the bound on the disk has place for them, and for the last full checkpoint."""
        with self._overhead.counted("checkpoints"), self._faults.guarded("checkpoints", step, _WEIGHTS):
            if step in checkpoints(self._folder):
                return
            rest = 0 if writer.planned is None else checkpoint_bytes(self._model, self._optimizers)
            if self._fits(step, checkpoint_bytes(self._model, ()), rest=rest, missing=_WEIGHTS):
                writer.require_folder()
                save_weights(self._folder, step, self._model)

    def _fits(self, step: int, size: int, *, rest: int, missing: Sequence[str] = ()) -> bool:
        """Return True if the bound on the disk has place for a checkpoint and the rest after it; else note it."""
        used = stored_bytes(self._folder / CHECKPOINTS)
        if used + size + rest <= self._disk:
            return True
        why = f"disk: a checkpoint takes {size} bytes, {used} are used and disk= allows {self._disk}"
        self._faults.note("checkpoints", step, why, missing)
        return False
