"""Observation of optimizer steps: the steps of one or several optimizers, and the rows of each sampled step."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.optimizer_watch import OptimizerWatch
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.recording.parameter_snapshot import StepSnapshot
from lossscope.landscape.recording.recorded_optimizer import RecordedOptimizer, shared_settings
from lossscope.landscape.recording.step_ring import StepRing
from lossscope.landscape.recording.step_sample import StepSample
from lossscope.optimizer import TwoPassOptimizer
from lossscope.probes.sharpness.step_quality import LayerRemainders

__all__ = ["StepObserver"]

_UNCALLED: Final = 10  # optimizer steps without any call of `Recorder.step` after which the observer says so
_SHOWN: Final = 5  # names of parameters in a sentence


class StepObserver:
    """Observer of the steps of optimizers, through their step hooks. It changes no number of the training.

    The steps of several optimizers between two calls of `taken` are one step. The recorded parameters are those that
    are trainable and in a group of an optimizer, at each sampled step anew.

    Args:
        optimizers: The optimizers.
        model: The network whose parameters they step.
        cadence: The recording schedule.
        overhead: Accumulates the time of each instrument.
        faults: Collects what cannot be measured.
        ring: Norms of the last steps.
        steps: Number of steps taken so far.

    Attributes:
        steps: Number of steps taken so far.
        copies: Copies from before the step of all parameters that are trainable, or were so at an earlier step; empty
            if nothing is due at it.
        groups: Parameter groups with the settings of that step; None if there are no copies.
    """

    def __init__(
        self,
        optimizers: Sequence[RecordedOptimizer],
        model: nn.Module,
        cadence: Cadence,
        overhead: Overhead,
        faults: Faults,
        ring: StepRing,
        steps: int,
    ) -> None:
        self.faults = faults
        self.steps = steps
        self.copies: dict[Tensor, Tensor] = {}
        self.groups: list[dict[str, Any]] | None = None
        self._model, self._cadence, self._overhead = model, cadence, overhead
        self._optimizers = [one.optimizer for one in optimizers]
        self._sample = StepSample(cadence, overhead, faults)
        self._ring = ring
        self._start = steps  # of the present round: the steps at the last call of `taken`
        self._prepared = -1  # the step whose copies were made
        self._begun: set[int] = set()  # watches whose optimizers have begun it
        self._sampled = False
        self._called = False  # True once `taken` was called
        self._settings: Row = {}  # hyperparameters as the step uses them
        self._gradient_after: tuple[Tensor, weakref.ref[Tensor], int] | None = None
        self._known: dict[Tensor, str] = {}  # parameters of the model that are trainable, or were so before
        self._own: dict[int, dict[Tensor, str]] = {}  # by watch
        self._watches = [OptimizerWatch(one, self) for one in optimizers]
        self._refresh(steps)

    # -- for the recorder ---------------------------------------------------------------------------

    def taken(self) -> bool:
        """Return True if a step was taken since the last call."""
        found = self.steps > self._start
        for watch in self._watches:
            watch.settle()
            watch.steps = 0
        self._start, self._called = self.steps, True
        return found

    def ran_backward(self) -> bool:
        """Return True if a backward pass ran between the last step and this call, so that the call comes too late."""
        if self._gradient_after is None:
            return False
        parameter, gradient, version = self._gradient_after
        now = parameter.grad
        if now is None or (now is gradient() and now._version == version):
            return False
        return bool(now.detach().abs().sum() > 0)

    def displacement(self) -> dict[Tensor, Tensor]:
        """Return the displacement by the step of each parameter in `copies`."""
        return {p: p.detach() - old for p, old in self.copies.items()}

    def add_layers(self, found: LayerRemainders) -> None:
        """Add the Taylor remainders of the layers to the rows of the step."""
        self._sample.add_layers(found)

    def rows(self, row: Row) -> list[tuple[str, Row]]:
        """Return the rows of the step, each with the name of its table, `steps` last.

        Args:
            row: Columns of the row of `steps`, the loss among them.
        """
        # numbers that the optimizer based its decision on take precedence over the same numbers measured here
        decided = {key: value for key, value in self._decision().items() if value is not None}
        return self._sample.rows(self.steps, {**self._settings, **decided, **row})

    def know_start(self, matrices: Mapping[str, Tensor]) -> None:
        """Take the matrices from before the first step of a run that is resumed, by name."""
        self._sample.start = dict(matrices)

    def seen_loss(self) -> Tensor | float | None:
        """Return the loss that the step's closure returned, of two passes that of the first; None if there was none."""
        return next((loss for watch in self._watches if (loss := watch.seen_loss()) is not None), None)

    def forget(self) -> None:
        """Release the copies from before the step."""
        self.copies, self.groups = {}, None

    def close(self) -> None:
        """Detach from the optimizers."""
        for watch in self._watches:
            watch.close()
        self._gradient_after = None
        self.forget()
        self._sample.clear()
        self._ring.close()

    # -- for the watches ----------------------------------------------------------------------------

    def begin(self, watch: OptimizerWatch) -> bool:
        """Prepare for a step of an optimizer, the first of its round; return True if its tensors are due."""
        step = self._next(watch)
        self._ring.begin(id(watch), step, self.names_of(watch))
        if step == self._prepared and id(watch) not in self._begun:
            self._begun.add(id(watch))
            return self._sampled
        with self._overhead.counted("instruments"):
            self._prepared, self._begun, self._sampled = step, {id(watch)}, False
            self._sample.clear()
            self.forget()
            self._settings = self._settings_at(step)
            due = self._cadence.tensors(step) or self._cadence.spectra(step)
            if due or self._cadence.evaluation(step):
                self._refresh(step)
                self.copies = {p: p.detach().clone() for p in self._known}
                self.groups = [_as_used(group) for one in self._optimizers for group in one.param_groups]
            self._sampled = due
        return self._sampled

    def counterfactual_due(self, watch: OptimizerWatch) -> bool:
        """Return True if the update without the injected shear is due at this step of an optimizer."""
        return self._cadence.counterfactual(self._next(watch))

    def sampled_next(self, watch: OptimizerWatch) -> bool:
        """Return True if tensors are due at the next step of an optimizer."""
        step = self._next(watch)
        return self._cadence.tensors(step) or self._cadence.spectra(step)

    def names_of(self, watch: OptimizerWatch) -> Mapping[Tensor, str]:
        """Return the names of the recorded parameters of an optimizer."""
        return self._own.get(id(watch), {})

    def before(self) -> Mapping[Tensor, Tensor]:
        """Return copies of the parameters from before the step."""
        return self.copies

    def measure(self, watch: OptimizerWatch, snapshot: StepSnapshot) -> None:
        """Measure the step of an optimizer."""
        parameters = [p for own in self._own.values() for p in own]
        with self._overhead.counted("instruments"):
            settings = self._settings_of(watch)
        self._sample.take(self._next(watch), snapshot, parameters, settings)

    def count(self, watch: OptimizerWatch) -> None:
        """Count a step of an optimizer, which was taken now."""
        self._ring.end(id(watch))
        self.steps = max(self.steps, self._start + watch.steps)
        self._note_gradient(watch)
        if not self._called and self.steps - self._start == _UNCALLED:
            self.faults.tell(
                f"{_UNCALLED} optimizer steps were taken and recorder.step() was never called: call it "
                "after each of them, as nothing is recorded otherwise",
                topic="uncalled",
            )

    # -- private ------------------------------------------------------------------------------------

    def _next(self, watch: OptimizerWatch) -> int:
        """Return the number of an optimizer's next step."""
        return self._start + watch.steps + 1

    def _note_gradient(self, watch: OptimizerWatch) -> None:
        """Remember one gradient after the step, to see whether a backward pass runs before `Recorder.step`."""
        for p in watch.recorded.parameters:
            if p.grad is not None:
                self._gradient_after = (p, weakref.ref(p.grad), p.grad._version)
                return

    def _settings_at(self, step: int) -> Row:
        """Return the columns of learning rate and weight decay."""
        found, absent = shared_settings([group for one in self._optimizers for group in one.param_groups])
        if "lr" in absent:
            self.faults.note_once(
                "settings", step, "no parameter group of the optimizer has a setting 'lr' (at all steps)", ["lr"]
            )
        return found

    def _settings_of(self, watch: OptimizerWatch) -> dict[str, Row]:
        """Return learning rate and weight decay of each parameter of an optimizer, by name."""
        names = self.names_of(watch)
        found: dict[str, Row] = {}
        for group in watch.optimizer.param_groups:
            row, _ = shared_settings([group])
            found |= {names[p]: row for p in group["params"] if p in names}
        return found

    def _refresh(self, step: int) -> None:
        """Read anew which parameters are trainable and which optimizer steps them, and say what has changed."""
        all_names: dict[Tensor, str] = {p: name for name, p in self._model.named_parameters()}
        names = {p: name for p, name in all_names.items() if p.requires_grad}
        own = {id(w): {p: names[p] for p in w.recorded.parameters if p in names} for w in self._watches}
        recorded = {name for part in own.values() for name in part.values()}
        if not self._known:
            outside = [name for name in names.values() if name not in recorded]
            if outside:
                self.faults.note_once("tensors", step, _outside_of_groups(outside), outside[:_SHOWN])
        else:
            earlier = {name for part in self._own.values() for name in part.values()}
            _tell_changes(self.faults, step, sorted(recorded - earlier), sorted(earlier - recorded))
        self._known = {p: name for p, name in all_names.items() if p.requires_grad or p in self._known}
        self._own = own

    def _decision(self) -> Row:
        """Return the passes of the step, and the trigger's numbers if an optimizer has one."""
        own = [one.optimizer for one in self._watches if isinstance(one.optimizer, TwoPassOptimizer)]
        last = own[0].last if own else None
        if last is None:
            passes = max(one.passes for one in self._watches)
            return {"passes": passes, "synced": True if any(one.two_steps for one in self._watches) else None}
        decision = last.decision
        return {
            "passes": last.passes,
            "synced": decision.sync,
            "phi": decision.phi,
            "threshold": decision.threshold,
            "alpha": None if decision.sync else decision.alpha or None,
            "adversarial_loss": last.losses[1],
        }


def _as_used(group: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a parameter group with its present settings."""
    return {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for key, value in group.items()
    }


def _outside_of_groups(names: Sequence[str]) -> str:
    """Return the reason why parameters outside of all groups have no rows."""
    return (
        f"{_listed(names)} of the model {'is' if len(names) == 1 else 'are'} trainable and in no group of the recorded "
        "optimizer: pass a list of all optimizers if another one steps them"
    )


def _tell_changes(faults: Faults, step: int, joined: Sequence[str], left: Sequence[str]) -> None:
    """Say which parameters have joined or left the recording."""
    words = [f"{_listed(names)} {verb}" for names, verb in ((joined, "joined"), (left, "left")) if names]
    if words:
        faults.tell(
            f"{' and '.join(words)} the recorded parameters before step {step} (added, thawed or frozen); curvature "
            "remains that of the parameters of the objective",
            topic=("membership", *joined, "left", *left),  # a GAN freezes and thaws the same ones at every step
        )


def _listed(names: Sequence[str]) -> str:
    """Return a sentence's list of parameters, shortened."""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"parameter{'s' * (len(names) != 1)} {shown}"
