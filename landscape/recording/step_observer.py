"""Observation of optimizer steps: hooks on any optimizer, and the rows of each sampled step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.landscape.measures.host_transfer import Row, to_host
from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot, from_hooks, from_record
from lossscope.landscape.recording.spectrum_rows import finished_spectra, spectrum_rows
from lossscope.landscape.recording.step_rows import injection_angles, step_numbers, tensor_rows
from lossscope.optimizer import StepRecord, TwoPassOptimizer
from lossscope.probes.sharpness.step_quality import LayerRemainders

__all__ = ["StepObserver"]


class StepSample:
    """The numbers of one sampled step, kept on the device until `rows` copies all of them to the host.

    Args:
        parameters: All trainable parameters.
        cadence: The recording schedule.
        overhead: Accumulates the time of each instrument.
    """

    def __init__(self, parameters: Collection[Tensor], cadence: Cadence, overhead: Overhead) -> None:
        self._parameters, self._cadence, self._overhead = parameters, cadence, overhead
        self._numbers: Row = {}
        self._tensors: list[Row] = []
        self._spectra: list[Row] = []

    def take(
        self,
        step: int,
        snapshots: Sequence[ParameterSnapshot],
        losses: tuple[Tensor | None, Tensor | None],
        record: StepRecord | None,
    ) -> None:
        """Measure whatever is due at a step.

        Args:
            step: Number of the step, from 1.
            snapshots: The parameters of the step; if there are none, nothing is measured.
            losses: Losses of the first and of the second pass, if known.
            record: The record of the step, which only lossscope's optimizers provide.
        """
        if not snapshots:
            return
        if self._cadence.tensors(step):
            with self._overhead.counted("instruments"):
                self._tensors = tensor_rows(snapshots)
                self._numbers = step_numbers(snapshots, losses, self._parameters)
            if record is not None and record.uninjected is not None:
                with self._overhead.counted("counterfactual"):
                    whole, angles = injection_angles(snapshots, record.uninjected())
                    self._numbers["injection_angle"] = whole
                    self._add("injection_angle", angles)
        if self._cadence.spectra(step):
            with self._overhead.counted("spectra"):
                self._spectra = spectrum_rows(snapshots, record)

    def add_layers(self, found: LayerRemainders) -> None:
        """Add the Taylor remainders of the layers to the rows of the step."""
        self._numbers["remainder_rounding"] = found.rounding
        self._add("remainder", found.by_name)

    def rows(self, row: Row) -> list[tuple[str, Row]]:
        """Return the rows of the step, each with the name of its table, `steps` last, and reset the sample.

        Args:
            row: Further columns of the row of `steps`; they take precedence over numbers measured here.
        """
        tensors, spectra, numbers = self._tensors, self._spectra, self._numbers
        self._numbers, self._tensors, self._spectra = {}, [], []
        with self._overhead.counted("instruments"):
            (step_row, *others) = to_host([{**numbers, **row}, *tensors, *spectra])
        with self._overhead.counted("spectra"):
            finished = finished_spectra(others[len(tensors) :])
        found = {"tensors": others[: len(tensors)], "spectra": finished, "steps": [step_row]}
        return [(table, one) for table, rows in found.items() for one in rows]

    def _add(self, column: str, by_name: dict[str, Tensor] | dict[str, float]) -> None:
        """Set a column of the rows of `tensors`."""
        for row in self._tensors:
            if row["tensor"] in by_name:
                row[column] = by_name[row["tensor"]]


class StepObserver:
    """Observer of an optimizer's steps, through its step hooks. It changes no number of the training.

    lossscope's optimizers provide a record of each step. For any other optimizer, parameters and gradients are copied:
    parameters before the step; gradients also before it, as some optimizers overwrite them, or after the first call of
    the closure.

    Args:
        optimizer: Any optimizer.
        names: Names of all trainable parameters.
        cadence: The recording schedule.
        overhead: Accumulates the time of each instrument.
        steps: Number of steps taken so far.

    Attributes:
        steps: Number of steps taken so far.
        before: Copies of the parameters from before the step; empty if nothing is due at it.
    """

    def __init__(
        self, optimizer: Optimizer, names: dict[Tensor, str], cadence: Cadence, overhead: Overhead, steps: int
    ) -> None:
        self.steps = steps
        self.before: dict[Tensor, Tensor] = {}
        self._optimizer, self._names, self._cadence, self._overhead = optimizer, names, cadence, overhead
        self._sample = StepSample(names.keys(), cadence, overhead)
        self._depth = 0  # of nested step hooks: they fire once for each class whose step() calls super().step()
        self._taken = False
        self._sample_is_due = False
        self._handle: RemovableHandle | None = None
        self._calls: int | None = None  # of the step's closure; None if it has none
        self._settings: Row = {}  # hyperparameters of the first group, as the step uses them
        self._gradients: dict[Tensor, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def taken(self) -> bool:
        """Return True if a step was taken since the last call."""
        self._depth = 0  # a step that raised left its post hook unfired
        found, self._taken = self._taken, False
        return found

    def displacement(self) -> dict[Tensor, Tensor]:
        """Return the displacement by the step of each parameter in `before`."""
        return {p: p.detach() - old for p, old in self.before.items()}

    def add_layers(self, found: LayerRemainders) -> None:
        """Add the Taylor remainders of the layers to the rows of the step."""
        self._sample.add_layers(found)

    def rows(self, loss: Tensor | float | None, measured: Row) -> list[tuple[str, Row]]:
        """Return the rows of the step, each with the name of its table, `steps` last.

        Args:
            loss: The training loss of the step.
            measured: Further columns of the row of `steps`.
        """
        # numbers that the optimizer based its decision on take precedence over the same numbers measured here
        decided = {key: value for key, value in self._decision().items() if value is not None}
        return self._sample.rows({"loss": loss, **self._settings, **decided, **measured})

    def forget(self) -> None:
        """Release the copies from before the step."""
        self.before = {}

    def close(self) -> None:
        """Detach from the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._release()
        self.forget()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Prepare for a step, and wrap the closure of an optimizer that provides no record (pre-step hook)."""
        self._depth += 1
        if self._depth > 1:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        foreign = not isinstance(optimizer, TwoPassOptimizer)
        with self._overhead.counted("instruments"):
            first = optimizer.param_groups[0]
            self._settings = {"lr": float(first["lr"]), **_decay(first)}
            self._calls = 0 if closure is not None and foreign else None
            self._prepare(optimizer, self.steps + 1)
        if self._calls is None:
            return None
        watched = self._watched(closure)
        return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Wrap a closure to count its calls and to copy the gradients of the first call."""

        def watched() -> Any:
            loss = closure()
            if self._calls == 0 and self._sample_is_due:
                self._gradients = self._copy_gradients()
            self._calls = (self._calls or 0) + 1
            return loss

        return watched

    def _prepare(self, optimizer: Optimizer, step: int) -> None:
        """Copy, or request, what is due at the step."""
        self._sample_is_due = self._cadence.tensors(step) or self._cadence.spectra(step)
        self.forget()
        self._release()
        if self._sample_is_due or self._cadence.evaluation(step):
            self.before = {p: p.detach().clone() for p in self._names}
        if self._sample_is_due and isinstance(optimizer, TwoPassOptimizer):
            self._handle = optimizer.observe(self._on_record, counterfactual=self._cadence.counterfactual(step))
        elif self._sample_is_due and self._calls is None:
            # some optimizers overwrite the gradient in place, so it is copied before the step
            self._gradients = self._copy_gradients()

    def _copy_gradients(self) -> dict[Tensor, Tensor]:
        """Return copies of the current gradients."""
        return {p: p.grad.detach().clone() for p in self._names if p.grad is not None}

    def _release(self) -> None:
        """Stop observing the record of the step and release the copied gradients."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._gradients = None, {}

    def _on_record(self, record: StepRecord) -> None:
        """Measure a step from its record, while its tensors exist."""
        with self._overhead.counted("instruments"):
            snapshots = from_record(record, self._names, self.before)
        self._sample.take(self.steps + 1, snapshots, (record.loss, record.adversarial_loss), record)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step and measure it, unless `_on_record` has (post-step hook)."""
        self._depth -= 1
        if self._depth:
            return
        if self._sample_is_due and self._handle is None:
            snapshots = from_hooks(self._names, self.before, self._gradients)
            self._sample.take(self.steps + 1, snapshots, (None, None), None)
        self._release()
        self.steps += 1
        self._taken = True

    def _decision(self) -> Row:
        """Return the passes of the step, and the trigger's numbers if the optimizer has one."""
        last = self._optimizer.last if isinstance(self._optimizer, TwoPassOptimizer) else None
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


def _decay(group: dict[str, Any]) -> Row:
    """Return the weight decay of a parameter group, if the group has one."""
    decay = group.get("weight_decay")
    return {} if decay is None else {"weight_decay": float(decay)}
