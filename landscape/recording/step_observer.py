"""Watching the steps of an optimizer, whichever it is, through its hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.landscape.curvature.host_transfer import Row, to_host
from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot, from_hooks, from_record
from lossscope.landscape.recording.spectrum_rows import finished_spectra, spectrum_rows
from lossscope.landscape.recording.step_rows import injection_angles, step_numbers, tensor_rows
from lossscope.optimizer import StepRecord, TwoPassOptimizer
from lossscope.probes.sharpness.step_quality import LayerRemainders

__all__ = ["StepObserver", "StepSample"]


class StepSample:
    """The numbers of one step, on the device until they are fetched all at once.

    Args:
        names: All trainable parameters.
        cadence: Says what is due.
        overhead: Counts the time of each instrument.
    """

    def __init__(self, names: dict[Tensor, str], cadence: Cadence, overhead: Overhead) -> None:
        self._everything, self._cadence, self._overhead = names.keys(), cadence, overhead
        self._numbers: Row = {}
        self._tensors: list[Row] = []
        self._spectra: list[Row] = []

    def take(
        self,
        step: int,
        seen: Sequence[ParameterSnapshot],
        losses: tuple[Tensor | None, Tensor | None],
        record: StepRecord | None,
    ) -> None:
        """Look at the parameters of a step while it shows them.

        Args:
            step: Its number, from 1.
            seen: Its parameters; nothing is due where there is none.
            losses: Of its first and of its second pass.
            record: What only our own optimizers show.
        """
        if not seen:
            return
        if self._cadence.tensors(step):
            with self._overhead.counted("instruments"):
                self._tensors = tensor_rows(seen)
                self._numbers = step_numbers(seen, losses, self._everything)
            if record is not None and record.uninjected is not None:
                with self._overhead.counted("counterfactual"):
                    whole, angles = injection_angles(seen, record.uninjected())
                    self._numbers["injection_angle"] = whole
                    self._add("injection_angle", angles)
        if self._cadence.spectra(step):
            with self._overhead.counted("spectra"):
                self._spectra = spectrum_rows(seen, record)

    def add_layers(self, found: LayerRemainders) -> None:
        """Take in the remainders of the step's layers."""
        self._numbers["remainder_rounding"] = found.rounding
        self._add("remainder", found.by_name)

    def rows(self, row: Row) -> list[tuple[str, Row]]:
        """Every row of the step with the name of its table, the one of `steps` last; what was gathered is let go.

        Args:
            row: What else the row of `steps` holds; it goes before the same number measured here.
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
        """Fill a column of the rows of tensors."""
        for row in self._tensors:
            if row["tensor"] in by_name:
                row[column] = by_name[row["tensor"]]


class StepObserver:
    """Looks at each step while it is taken, and changes no number of it.

    An optimizer of ours shows its step itself. Of any other the parameters are copied before the step, and the
    gradients it was given: before the step, as some overwrite them, or after the first call of its closure.

    Args:
        optimizer: Any.
        names: All trainable parameters.
        cadence: Says what is due at a step.
        overhead: Counts the time of each instrument.
        steps: How many were taken before.
    """

    def __init__(
        self, optimizer: Optimizer, names: dict[Tensor, str], cadence: Cadence, overhead: Overhead, steps: int
    ) -> None:
        self.steps = steps
        self.before: dict[Tensor, Tensor] = {}  # what each parameter was before the step; empty where nothing is due
        self._optimizer, self._names, self._cadence, self._overhead = optimizer, names, cadence, overhead
        self._sample = StepSample(names, cadence, overhead)
        self._depth = 0  # step hooks fire once more for each class whose step() calls super().step()
        self._taken = False
        self._sample_is_due = False
        self._handle: RemovableHandle | None = None
        self._calls: int | None = None  # of the closure of a step; None where it has none
        self._settings: Row = {}  # of the first group, as the step used them
        self._gradients: dict[Tensor, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def taken(self) -> bool:
        """Whether a step has been taken since this was last asked."""
        self._depth = 0  # a step that raised never told that it ended
        found, self._taken = self._taken, False
        return found

    def displacement(self) -> dict[Tensor, Tensor]:
        """How far the step moved each parameter that was copied before it."""
        return {p: p.detach() - old for p, old in self.before.items()}

    def add_layers(self, found: LayerRemainders) -> None:
        """Take in the remainders of the step's layers."""
        self._sample.add_layers(found)

    def rows(self, loss: Tensor | float | None, measured: Row) -> list[tuple[str, Row]]:
        """Every row of the step with the name of its table; what was gathered is let go.

        Args:
            loss: Of the step.
            measured: What else is known of it.
        """
        # What the optimizer decided by goes before the same number measured beside it.
        decided = {key: value for key, value in self._decision().items() if value is not None}
        return self._sample.rows({"loss": loss, **self._settings, **decided, **measured})

    def forget(self) -> None:
        """Let the copies from before the step go."""
        self.before = {}

    def close(self) -> None:
        """Detach from the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._release()
        self.forget()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
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
        """The closure of a foreign optimizer, with the gradients of its first call kept and its calls counted."""

        def watched() -> Any:
            loss = closure()
            if self._calls == 0 and self._sample_is_due:
                self._gradients = self._present_gradients()
            self._calls = (self._calls or 0) + 1
            return loss

        return watched

    def _prepare(self, optimizer: Optimizer, step: int) -> None:
        self._sample_is_due = self._cadence.tensors(step) or self._cadence.spectra(step)
        self.forget()
        self._release()
        if self._sample_is_due or self._cadence.evaluation(step):
            self.before = {p: p.detach().clone() for p in self._names}
        if self._sample_is_due and isinstance(optimizer, TwoPassOptimizer):
            self._handle = optimizer.observe(self._on_record, counterfactual=self._cadence.counterfactual(step))
        elif self._sample_is_due and self._calls is None:
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
            seen = from_record(record, self._names, self.before)
        self._sample.take(self.steps + 1, seen, (record.loss, record.adversarial_loss), record)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        if self._sample_is_due and self._handle is None:
            seen = from_hooks(self._names, self.before, self._gradients)
            self._sample.take(self.steps + 1, seen, (None, None), None)
        self._release()
        self.steps += 1
        self._taken = True

    def _decision(self) -> Row:
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
    """The weight decay of a group, where its optimizer has one."""
    decay = group.get("weight_decay")
    return {} if decay is None else {"weight_decay": float(decay)}
