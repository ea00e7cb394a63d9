"""Checks of what a training loop gives a recorder: arguments, and calls that follow the optimizer's steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.recorded_optimizer import joint_name
from lossscope.landscape.recording.step_observer import StepObserver

if TYPE_CHECKING:
    from lossscope.probes.objective.objective import Objective

__all__ = ["StepCalls", "check_losses", "check_model", "one_number"]

_ORDER_CHECKS: Final = 3  # first rows at which the order of optimizer.step() and recorder.step() is checked


def check_model(model: nn.Module, *objectives: Objective | None) -> None:
    """Check that a model can be recorded.

    Raises:
        LandscapeError: The model has no trainable parameters, they are sharded, or an objective is of others or over
            several processes.
    """
    if not isinstance(model, nn.Module):
        raise LandscapeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    trainable = {p for p in model.parameters() if p.requires_grad}
    if not trainable:
        raise LandscapeError(
            f"{type(model).__name__} has no parameter with requires_grad=True, so there is nothing to record"
        )
    sharded = next((name for name, p in model.named_parameters() if _is_sharded(p)), None)
    if sharded is not None:
        raise LandscapeError(
            f"parameter {sharded!r} is a shard of a DTensor (FSDP2, tensor parallelism), and only whole parameters can "
            "be recorded: record a replica on one device or under DistributedDataParallel"
        )
    for objective in objectives:
        if objective is not None and objective.is_distributed:
            raise LandscapeError(
                "one process records a run, and the objective's batches lie on several: pass objective.local, the loss "
                "on those of this rank, or call measure_spectrum(hessian(objective)) on every rank"
            )
        parameters = dict(objective.model.named_parameters()) if objective is not None else {}
        for name in objective.names if objective is not None else ():
            if parameters.get(name) not in trainable:
                raise LandscapeError(
                    f"the objective's parameter {name!r} is not one of the {len(trainable)} trainable parameters "
                    "of the recorded model: create the objective of this model, after freezing what is not trained"
                )


def check_losses(objective: Objective | None, train: Objective | None, test: Objective | None) -> None:
    """Check that losses on other data have evaluations at which they are taken, and are of the same parameters.

    Raises:
        LandscapeError: There is no objective, or one is of other parameters.
    """
    for name, other in (("train", train), ("test", test)):
        if other is None:
            continue
        if objective is None:
            raise LandscapeError(
                f"{name}= is evaluated with the curvature, so it needs objective=: pass the loss on the fixed data"
            )
        if other.names != objective.names:
            raise LandscapeError(
                f"{name}= must be a loss of the parameters of objective=, got one of {len(other.names)} tensors and "
                f"not of {len(objective.names)}: make both of the same model, after freezing what is not trained"
            )


def _is_sharded(parameter: Tensor) -> bool:
    """Return True for a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported: no DTensor exists without it
    return module is not None and isinstance(parameter, module.DTensor)


def one_number(name: str, value: object) -> Tensor | float | None:
    """Return a value as a 0-d tensor or a float.

    Raises:
        LandscapeError: It is not one real number.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return value.detach().reshape(())
        raise LandscapeError(f"{name} must be one real number, got a tensor of shape {tuple(value.shape)}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise LandscapeError(f"{name} must be one real number, got {type(value).__name__}") from None
    return number


class StepCalls:
    """Calls of `Recorder.step`, and the words about calls that do not follow the steps of the optimizers.

    Args:
        optimizers: The optimizers.
        start: The step at which recording starts.
        faults: Told of the calls that do not follow a step.

    Attributes:
        recorded: Number of calls that followed a step, each of which is a row.
    """

    def __init__(self, optimizers: Sequence[Optimizer], start: int, faults: Faults) -> None:
        self.recorded = 0
        self._calls = 0
        self._optimizers, self._start, self._faults = optimizers, start, faults

    def follows_step(self, observer: StepObserver) -> bool:
        """Count a call, and return True if a step was taken since the last one; say so if the order is wrong."""
        self._calls += 1
        if not observer.taken():
            self._tell_no_step(observer)
            return False
        if self.recorded < _ORDER_CHECKS and observer.ran_backward():
            self._faults.tell(
                "recorder.step(loss) was called after the backward pass of the next step, so this is the loss of the "
                "next step: call it right after optimizer.step()",
                topic="order",
            )
        self.recorded += 1
        return True

    def tell_unrecorded(self, observer: StepObserver) -> None:
        """Say that the last step of the optimizer has no row, if that is so."""
        if self._calls and observer.taken():
            self._faults.tell(
                "the last optimizer step has no row, as recorder.step(loss) was not called after it", topic="last"
            )

    def nothing_recorded(self, observer: StepObserver) -> str:
        """Return the reason why no step was recorded though there was one, and say it; "" otherwise."""
        if self.recorded:
            return ""
        if self._calls:
            why = f"recorder.step() was called {self._calls} times and no optimizer step was seen"
        elif observer.steps > self._start:
            why = f"recorder.step() was never called in {observer.steps - self._start} optimizer steps"
        else:
            return ""
        self._faults.tell(f"nothing was recorded: {why}", topic="nothing")
        return why

    def _tell_no_step(self, observer: StepObserver) -> None:
        """Say that `step` was called before any step of the optimizer was seen."""
        if observer.steps == self._start:
            self._faults.tell(
                f"recorder.step() was called and no step of {joint_name(self._optimizers)} was seen yet: call it after "
                "optimizer.step() of the optimizer that the recorder was given (while gradients accumulate before the "
                "first step this is as it should be)",
                topic="no step",
            )
