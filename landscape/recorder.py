"""Recording a training loop: what to look at, when, and what looking costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.landscape.cadence import Cadence
from lossscope.landscape.checkpoint import forget_checkpoints_after, save_checkpoint
from lossscope.landscape.curvature import CurvatureProbe
from lossscope.landscape.environment import code_version, environment
from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.instruments import Row, finished_spectra, seen_by_any, seen_by_record, settled
from lossscope.landscape.minibatches import MinibatchPairs
from lossscope.landscape.optimizer_name import optimizer_name
from lossscope.landscape.overhead import Overhead
from lossscope.landscape.preset import preset_of
from lossscope.landscape.step_look import StepLook
from lossscope.landscape.store import RunStore
from lossscope.optimizer import Ascending, StepRecord
from lossscope.probes.errors import ProbeError

if TYPE_CHECKING:
    from lossscope.probes.objective import Objective

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
        steps: How many optimizer steps are planned. With it, curvature visits and checkpoints are log-spaced
            over them and all take place; without it they grow apart geometrically under the preset's cap.
        visits: Log-spaced curvature visits in place of the preset's number.
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
        visits: int | None = None,
        arm: str | None = None,
        config: dict[str, Any] | None = None,
        seeds: dict[str, int] | None = None,
        force: bool = False,
        resume_at: int | None = None,
    ) -> None:
        self.preset = preset_of(preset)
        self.path = Path(path)
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._step = resume_at or 0
        self._depth = 0  # step hooks fire once more for each class whose step() calls super().step()
        self._taken = False
        self._closed = False
        self._look_is_due = False
        self._handle: RemovableHandle | None = None
        self._before: dict[Tensor, Tensor] = {}
        self._calls: int | None = None  # of the closure of a step; None where it has none
        self._settings: Row = {}  # of the first group, as the step used them
        self._gradients: dict[Tensor, Tensor] = {}
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._planned = steps
        self._require_own_parameters(objective, minibatches)
        measured = objective is not None
        self._cadence = Cadence(self.preset, steps, visits if measured else 0, self._step, layers=measured)
        self._curvature = CurvatureProbe(objective, self.preset, optimizer) if objective is not None else None
        self._pairs = self._minibatch_pairs(minibatches)
        if objective is not None:
            objective.value()  # one that cannot be measured is told now, not at the first visit
        manifest = self._manifest(arm, config, seeds)
        if resume_at is None:
            self._store = RunStore.create(self.path, manifest, force=force)
        else:
            self._store = RunStore.resume(self.path, resume_at)
            forget_checkpoints_after(self.path, resume_at)
        self._overhead = Overhead(self._store.manifest.get("overhead"))
        self._looked = StepLook(self._names, self._cadence, self._overhead)
        earlier = self._store.manifest.get("curvature_gaps") or []
        self._gaps: list[Row] = [gap for gap in earlier if gap["step"] <= self._step]  # later visits are made anew
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if resume_at is None:
            self._visit_and_save()

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
        self._depth = 0  # a step that raised never told that it ended
        if not self._taken:
            return
        self._taken = False
        self._look_at_layers()
        measured = {"train_accuracy": train_accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy}
        self._write_step(loss.detach().reshape(()) if isinstance(loss, Tensor) else loss, measured)
        self._visit_and_save()

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._step

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
        for handle in self._handles:
            handle.remove()
        self._release()
        self._before, self._pairs = {}, None
        if status == "finished" and self._planned is not None:
            with self._overhead.counted("checkpoints"):
                self._save()
        told = self._overhead.sentence(self._step)  # before the tables are written whole, as the manifest has it
        self._store.update_manifest(steps=self._step, overhead=self.overhead)
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

    # -- around an optimizer step -------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._depth += 1
        if self._depth > 1:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        foreign = not isinstance(optimizer, Ascending)
        with self._overhead.counted("instruments"):
            first = optimizer.param_groups[0]
            self._settings = {"lr": float(first["lr"]), **_decay(first)}
            self._calls = 0 if closure is not None and foreign else None
            self._prepare(optimizer, self._step + 1)
        if self._calls is None:
            return None
        watched = self._watched(closure)
        return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of a foreign optimizer, with the gradients of its first call kept and its calls counted."""

        def watched() -> Any:
            loss = closure()
            if self._calls == 0 and self._look_is_due:
                self._gradients = self._present_gradients()
            self._calls = (self._calls or 0) + 1
            return loss

        return watched

    def _prepare(self, optimizer: Optimizer, step: int) -> None:
        self._look_is_due = self._cadence.tensors(step) or self._cadence.spectra(step)
        self._before = {}
        self._release()
        if self._look_is_due or self._cadence.visit(step):
            self._before = {p: p.detach().clone() for p in self._names}
        if self._look_is_due and isinstance(optimizer, Ascending):
            self._handle = optimizer.observe(self._on_record, counterfactual=self._cadence.counterfactual(step))
        elif self._look_is_due and self._calls is None:
            # Some optimizers overwrite the gradient in place, so it is copied before the step.
            self._gradients = self._present_gradients()

    def _present_gradients(self) -> dict[Tensor, Tensor]:
        return {p: p.grad.detach().clone() for p in self._names if p.grad is not None}

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._gradients = None, {}

    def _on_record(self, record: StepRecord) -> None:
        with self._overhead.counted("instruments"):
            seen = seen_by_record(record, self._names, self._before)
        self._looked.take(self._step + 1, seen, (record.loss, record.adversarial_loss), record)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        if self._look_is_due and self._handle is None:
            seen = seen_by_any(self._names, self._before, self._gradients)
            self._looked.take(self._step + 1, seen, (None, None), None)
        self._release()
        self._step += 1
        self._taken = True

    # -- after it -----------------------------------------------------------------------------------

    def _write_step(self, loss: Tensor | float | None, measured: dict[str, float | None]) -> None:
        # What the optimizer decided by goes before the same number measured beside it.
        decided = {key: value for key, value in self._decision().items() if value is not None}
        for table, row in self._looked.rows({"loss": loss, **self._settings, **decided, **measured}):
            with self._overhead.counted("instruments"):
                if table == "steps":
                    row["seconds"] = self._overhead.wall
                    if row.get("adversarial_loss") is not None and row["loss"] is not None:
                        row["surrogate_gap"] = row["adversarial_loss"] - row["loss"]
                self._store.append(table, {"step": self._step, **row})

    def _look_at_layers(self) -> None:
        if self._curvature is not None and self._before and self._cadence.layers(self._step):
            with self._overhead.counted("layers"):
                found = self._curvature.layers(self._step, self._before, self._displacement())
                if found is not None:
                    self._looked.add_layers(found)
                self._note_gaps(self._curvature.gaps)

    def _look_at_pairs(self) -> None:
        due = self._cadence.window(self._step)
        if self._pairs is None or due is None:
            return
        with self._overhead.counted("minibatches"):
            try:
                pairs, spectra = self._pairs.rows(self._step, *due)
            except ProbeError as error:  # a gap, which stops no training
                self._note_gaps([{"step": self._step, "instrument": "minibatches", "why": str(error)}])
                return
            found = settled([*pairs, *spectra])
            for row in found[: len(pairs)]:
                self._store.append("pairs", row)
            for row in finished_spectra(found[len(pairs) :]):
                if row["norm"] > 0:  # a parameter that the loss does not see has no gradient: a gap
                    self._store.append("spectra", {"step": self._step, **row})

    def _decision(self) -> Row:
        last = self._optimizer.last if isinstance(self._optimizer, Ascending) else None
        if last is None:
            return {"passes": 1 if self._calls is None else self._calls}
        decision = last.decision
        return {
            "passes": 1 + decision.sync,
            "synced": decision.sync,
            "phi": decision.phi,
            "threshold": decision.threshold,
            "alpha": None if decision.sync else decision.alpha or None,
            "adversarial_loss": last.losses[1],
        }

    def _visit_and_save(self) -> None:
        self._look_at_pairs()
        if self._curvature is not None and self._cadence.visit(self._step):
            with self._overhead.counted("curvature"):
                found = self._curvature.rows(
                    self._step, self._before, self._displacement(), long=self._cadence.long(self._step)
                )
                for table, row in found.by_table():
                    self._store.append(table, row)
                self._note_gaps(self._curvature.gaps)
            o = self._overhead
            self._cadence.visited(self._step, o.seconds["curvature"], o.wall, o.training / max(self._step, 1))
        self._before = {}
        if self._cadence.checkpoint(self._step):
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

    def _displacement(self) -> dict[Tensor, Tensor]:
        return {p: p.detach() - old for p, old in self._before.items()}

    def _minibatch_pairs(self, minibatches: Objective | None) -> MinibatchPairs | None:
        lags = self.preset.lags
        return MinibatchPairs(minibatches, self._optimizer, lags[-1]) if minibatches is not None and lags else None

    def _require_own_parameters(self, *objectives: Objective | None) -> None:
        """Refuse an objective of another model, or of parameters that are not trained here."""
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
        save_checkpoint(self.path, self._step, self._model, self._optimizer)
        self._store.update_manifest(steps=self._step, overhead=self.overhead)

    def _manifest(self, arm: str | None, config: dict[str, Any] | None, seeds: dict[str, int] | None) -> dict[str, Any]:
        if not self._names:
            raise LandscapeError(
                f"{type(self._model).__name__} has no parameter that requires a gradient; nothing to record"
            )
        tensors = [
            {"name": name, "shape": list(p.shape), "track": "matrix" if p.ndim >= 2 else "vector"}
            for p, name in self._names.items()
        ]
        return {
            "arm": arm or optimizer_name(self._optimizer),
            "optimizer": optimizer_name(self._optimizer),
            "trigger": _trigger(self._optimizer),
            "config": config or {},
            "seeds": seeds or {},
            "model": {"parameters": sum(p.numel() for p in self._names), "tensors": tensors},
            "data_hash": self._objective.data_hash if self._objective is not None else None,
            "environment": environment(),
            "code_version": code_version(),
            "preset": self.preset.name,
            "dtype": str(next(iter(self._names)).dtype).removeprefix("torch."),
        }


def _decay(group: dict[str, Any]) -> Row:
    """The weight decay of a group, where its optimizer has one."""
    decay = group.get("weight_decay")
    return {} if decay is None else {"weight_decay": float(decay)}


def _trigger(optimizer: Optimizer) -> dict[str, Any] | None:
    """What decides when an optimizer takes a second gradient, where that is not a plain period."""
    first = optimizer.param_groups[0]
    if not (isinstance(optimizer, Ascending) and optimizer.ascends and first["mode"] in ("aga", "timer")):
        return None
    return {"mode": first["mode"], "lambda": float(first["aga_lambda"]), "k": int(first["k"])}
