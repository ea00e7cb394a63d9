"""Hooks on one optimizer: they copy what a step uses, and tell the observer that it was taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.parameter_snapshot import (
    StepSnapshot,
    copied_gradients,
    from_hooks,
    from_record,
)
from lossscope.landscape.recording.recorded_optimizer import RecordedOptimizer
from lossscope.optimizer import StepRecord, TwoPassOptimizer

__all__ = ["OptimizerWatch", "StepListener"]

_Gradients = dict[Tensor, Tensor]


class StepListener(Protocol):
    """Observer of steps, as a watch sees it."""

    faults: Faults

    def begin(self, watch: OptimizerWatch) -> bool:
        """Prepare for a step of the optimizer; return True if its tensors are due."""

    def counterfactual_due(self, watch: OptimizerWatch) -> bool:
        """Return True if the update without the injected shear is due at this step."""

    def sampled_next(self, watch: OptimizerWatch) -> bool:
        """Return True if tensors are due at the next step of the optimizer."""

    def names_of(self, watch: OptimizerWatch) -> Mapping[Tensor, str]:
        """Return the names of the recorded parameters of the optimizer."""

    def before(self) -> Mapping[Tensor, Tensor]:
        """Return copies of the parameters from before the step."""

    def measure(self, watch: OptimizerWatch, snapshot: StepSnapshot) -> None:
        """Measure the step."""

    def count(self, watch: OptimizerWatch) -> None:
        """Count the step."""


class OptimizerWatch:
    """Hooks on an optimizer, and on the one inside it. They change no number of the training and raise nothing.

    lossscope's optimizers provide a record of each step. For any other optimizer the gradients are copied before the
    step, as some optimizers overwrite them. If the step has a closure, they are copied after the first call of it at
    the parameters before the step; a closure called at other parameters first (a SAM) leaves those from before the
    step in place. `first_step()` of a SAM of another package is wrapped, to copy the gradients at which it ascends.

    Args:
        recorded: The optimizer.
        listener: Told of the steps.

    Attributes:
        steps: Steps of this optimizer since the observer last set it to 0.
        gradient_sets: Number of gradients that the step used.
    """

    def __init__(self, recorded: RecordedOptimizer, listener: StepListener) -> None:
        self.recorded, self.optimizer = recorded, recorded.optimizer
        self.steps = 0
        self._listener = listener
        self._depth = 0  # of nested step hooks: they fire once for each class whose step() calls super().step()
        self._due = self._skipped = False
        self._loss: Tensor | float | None = None  # that the step's closure returned first
        self._calls: int | None = None  # of the step's closure; None if it has none
        self._scale: Tensor | float | None = None
        self._gradients: _Gradients = {}
        self._ascended: _Gradients = {}  # gradients at which first_step() ascended
        self._second: _Gradients = {}
        self._halved = False  # first_step() was called since the last step
        self._moves_first = False  # its closure is called at ascended parameters
        self._two_steps = False
        self._record: RemovableHandle | None = None
        self._hooks: list[RemovableHandle] = []
        for optimizer in recorded.hooked:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        self._wrapped_first_step = self._wrap_first_step()

    @property
    def passes(self) -> int:
        """Forward and backward passes of the last step, as far as they were seen."""
        calls = 1 if self._calls is None else self._calls
        return max(calls, 1) + 1 if self._two_steps else calls

    @property
    def two_steps(self) -> bool:
        """True if the last step was one of two gradients, of another package's SAM."""
        return self._two_steps

    def seen_loss(self) -> Tensor | float | None:
        """Return what the closure of the last step returned first, if it is one number."""
        if isinstance(self.optimizer, TwoPassOptimizer):
            return None if self.optimizer.last is None else self.optimizer.last.losses[0]
        return self._loss

    def settle(self) -> None:
        """Forget a step that raised, which left its post hook unfired."""
        self._depth = 0

    def close(self) -> None:
        """Detach from the optimizer."""
        for hook in self._hooks:
            hook.remove()
        if self._wrapped_first_step is not None:
            vars(self.optimizer).pop("first_step", None)
            self._wrapped_first_step = None
        self._release()

    # -- hooks --------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Prepare for a step, and wrap the closure of an optimizer that provides no record (pre-step hook)."""
        self._depth += 1
        if self._depth > 1:
            return None
        self._due, self._skipped, self._calls = False, False, None
        changed: tuple[Any, Any] | None = None
        with self._listener.faults.guarded("gradients", self.steps):
            changed = self._prepare(optimizer, args, kwargs)
        return changed

    def _prepare(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Copy, or request, what is due at the step. Return the arguments of the step with its closure wrapped."""
        self._loss = None
        self._skipped = _found_infinite(optimizer)
        self._release()
        self._two_steps, self._halved = self._halved, False
        if self._skipped:
            self._ascended = {}
            return None
        due = self._listener.begin(self)
        if isinstance(self.optimizer, TwoPassOptimizer):
            if due:
                counterfactual = self._listener.counterfactual_due(self)
                self._record = self.optimizer.observe(self._on_record, counterfactual=counterfactual)
            self._due = due
            return None
        if due:
            self._scale = _scale_of(optimizer, kwargs)
            self._gradients = copied_gradients(self._listener.names_of(self), self._scale)
            if self._ascended:
                self._gradients, self._second = self._ascended, self._gradients
        self._ascended, self._due = {}, due
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if not callable(closure):
            return None
        self._calls = 0
        watched = self._watched(closure)
        return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Wrap a closure to count its calls and to copy the gradients of the first call."""

        def watched() -> Any:
            """Call the closure."""
            try:
                loss = closure()
            except BaseException:
                self._depth = 0  # the step raises, and its post hook does not fire
                raise
            if self._calls == 0:
                self._loss = _as_number(loss)
                with self._listener.faults.guarded("gradients", self.steps):
                    self._after_first_call()
            self._calls = (self._calls or 0) + 1
            return loss

        return watched

    def _after_first_call(self) -> None:
        """Take the gradients of a closure's first call, unless the step has moved the parameters before it."""
        if not self._due:
            return
        before = self._listener.before()
        names = self._listener.names_of(self)
        if all(torch.equal(p.detach(), before[p]) for p in names if p in before):
            self._gradients = copied_gradients(names)
        else:
            self._moves_first = True

    def _on_record(self, record: StepRecord) -> None:
        """Measure a step from its record, while its tensors exist."""
        with self._listener.faults.guarded("tensors", self.steps + 1):
            names, before = self._listener.names_of(self), self._listener.before()
            self._listener.measure(self, from_record(record, names, before))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step and measure it, unless `_on_record` has (post-step hook)."""
        self._depth -= 1
        if self._depth:
            return
        self._two_steps |= self._halved or (self._moves_first and self._calls is not None)
        self._halved = False
        if not self._skipped:
            if self._due and self._record is None:
                with self._listener.faults.guarded("tensors", self.steps + 1):
                    self._measure_from_hooks()
            self.steps += 1
            self._listener.count(self)
        self._release()

    def _measure_from_hooks(self) -> None:
        """Measure a step from the copies."""
        names, before = self._listener.names_of(self), self._listener.before()
        self._listener.measure(self, from_hooks(names, before, self._gradients, self._second))

    def _release(self) -> None:
        """Stop observing the record of the step and release the copied gradients."""
        if self._record is not None:
            self._record.remove()
        self._record, self._scale, self._gradients, self._second = None, None, {}, {}

    # -- SAM of other packages ----------------------------------------------------------------------

    def _wrap_first_step(self) -> Callable[..., Any] | None:
        """Wrap `first_step` of an optimizer that steps in two halves; None if it has none."""
        original = getattr(self.optimizer, "first_step", None)
        halves = callable(original) and callable(getattr(self.optimizer, "second_step", None))
        if original is None or not halves or isinstance(self.optimizer, TwoPassOptimizer):
            return None

        def first_step(*args: Any, **kwargs: Any) -> Any:
            """Copy the gradients if tensors are due, and ascend."""
            with self._listener.faults.guarded("gradients", self.steps):
                self._halved = True
                if self._depth == 0 and self._listener.sampled_next(self):
                    self._ascended = copied_gradients(self._listener.names_of(self))
            return original(*args, **kwargs)

        vars(self.optimizer)["first_step"] = first_step
        return first_step


def _as_number(loss: object) -> Tensor | float | None:
    """Return what a closure returned if it is one real number, else None."""
    if isinstance(loss, Tensor):
        return loss.detach().reshape(()) if loss.numel() == 1 and not loss.is_complex() else None
    return float(loss) if isinstance(loss, int | float) and not isinstance(loss, bool) else None


def _found_infinite(optimizer: Optimizer) -> bool:
    """Return True if a GradScaler tells a fused optimizer to skip this step, since a gradient is not finite."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.detach().sum() > 0)


def _scale_of(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> Tensor | float | None:
    """Return the factor by which the gradients are still scaled, as a fused optimizer unscales them in its step."""
    scale = getattr(optimizer, "grad_scale", None)
    if isinstance(scale, Tensor):
        return scale.detach().clone()
    scaler = kwargs.get("grad_scaler")
    return scaler.get_scale() if isinstance(scaler, torch.amp.GradScaler) else None
