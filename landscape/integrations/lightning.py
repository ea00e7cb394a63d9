"""Recorder of a Lightning `Trainer`: a callback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from lightning.pytorch import Callback
from torch import Tensor, nn

from lossscope.landscape.recording.recorder import Recorder
from lossscope.probes.objective.objective import Objective

__all__ = ["RecorderCallback"]

ObjectiveOf: TypeAlias = Callable[[nn.Module], Objective]


class RecorderCallback(Callback):
    """Callback of a `Trainer` that records its training.

        Trainer(callbacks=[RecorderCallback("runs/mine", lambda module: Objective(module, CrossEntropy(), batches))])

    The loss of a step is what `training_step` returned, summed over micro-batches as they are differentiated. With
    manual optimization return the loss from `training_step`; an optimizer that takes two passes is stepped there as in
    any other loop (`for p in optimizer.passes(self): ...`), and its own loss is taken.

    Args:
        path: The run's folder.
        objective: The loss on fixed data, or a function that makes it from the module. Default: no curvature is
            recorded, as a `training_step` names no loss on fixed data.
        preset: `economy`, `standard` or `full`.
        recorder: More arguments of `Recorder`, such as `measures=` or `force=True`.

    Attributes:
        recorder: The recorder, from the begin of the training on.
    """

    def __init__(
        self,
        path: str | Path,
        objective: Objective | ObjectiveOf | None = None,
        preset: str = "standard",
        **recorder: Any,
    ) -> None:
        self._path, self._given, self._preset, self._settings = Path(path), objective, preset, recorder
        self._losses: list[Tensor] = []
        self._taken = 0
        self.recorder: Recorder | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the run, or continue it where the trainer resumes from a checkpoint."""
        self._taken, self._losses = trainer.global_step, []
        planned = trainer.estimated_stepping_batches
        settings: dict[str, Any] = {"steps": int(planned)} if 0 < planned < float("inf") else {}
        if self._taken and self._path.exists():
            settings["resume_at"] = self._taken
        given = self._given
        objective = given(pl_module) if callable(given) and not isinstance(given, Objective) else given
        settings |= self._settings
        self.recorder = Recorder(self._path, pl_module, trainer.optimizers, objective, self._preset, **settings)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the rows of the step, if the batch ended one."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if self.recorder is not None and trainer.global_step > self._taken:
            self._taken = trainer.global_step
            self.recorder.step(sum(self._losses[1:], self._losses[0]) if self._losses else None)
            self._losses = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the run."""
        if self.recorder is not None:
            self.recorder.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run as failed."""
        if self.recorder is not None:
            self.recorder.__exit__(type(exception), exception, None)
