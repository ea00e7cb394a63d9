"""An optimizer whose step may take a second gradient at ascended weights, and that can be watched doing so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.optimizer.ascent.grad_scaler import GradScalerGuard
from lossscope.optimizer.ascent.perturbation import PERTURBATIONS, Ascent
from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.shear import direction_of, injected, misalignment, store_shears
from lossscope.optimizer.ascent.trigger import Decision, TriggerState, decided
from lossscope.optimizer.ascent.two_pass import Pass, RandomState, StepPlan, ascended, own_copy, untouched_buffers
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.records.observers import CounterfactualUpdate, Observers
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.refusals import (
    refuse_a_missing_pass,
    refuse_counters,
    refuse_no_gradient,
    refuse_one_name_for_two,
    refuse_sparse_gradients,
)
from lossscope.optimizer.update.adam import OF_ASCENT, ParameterStep, Update, tensor_record

__all__ = ["RULE", "Params", "TwoPassOptimizer", "refuse_foreign_state"]

RULE: Final = "rule"  # under which a state says what saved it


def refuse_foreign_state(optimizer: TwoPassOptimizer, saved: Mapping[str, Any]) -> None:
    """Raise an error for the state of another rule or of other parameters, before anything of it is loaded.

    A state from before rules were saved with it, or of an optimizer of torch, is known by the tensors that it keeps.

    Args:
        optimizer: Into which it is to be loaded.
        saved: What `state_dict()` gave.

    Raises:
        OptimizerError: It is another's.
    """
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise OptimizerError("that is not the state of an optimizer: load what its state_dict() gave")
    said = saved.get(RULE, optimizer.rule)
    if said != optimizer.rule:
        raise OptimizerError(
            f"the state was saved by an optimizer that steps by {said!r} and this one steps by {optimizer.rule!r}; "
            f"load it into one of {said!r}"
        )
    for name, found, expected, shape in _tensors(optimizer, saved):
        optional = optimizer.optional_state
        if not expected.keys() - optional <= found.keys() <= expected.keys() | optional | OF_ASCENT:
            raise OptimizerError(
                f"the state is not one of {optimizer.rule!r}: of {name} it has {_listed(found)}, and here that is "
                f"{_listed(expected)}; load it into an optimizer of the kind that saved it"
            )
        for key, value in found.items():
            own = expected[key].shape if key in expected else shape
            if isinstance(value, Tensor) and value.shape != own:
                raise OptimizerError(
                    f"the state is of other parameters: of {name} its {key} has the shape {tuple(value.shape)} and not "
                    f"{tuple(own)}; load it into an optimizer of the model that it was saved with"
                )


def _tensors(
    optimizer: TwoPassOptimizer, saved: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any], torch.Size]]:
    """Each parameter with what is saved of it, what would be, without its memory, and its shape."""
    # torch compares the numbers of groups and of parameters, and says so
    for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        settings = {**ours, **{key: value for key, value in theirs.items() if key != "params"}}
        names = ours.get("param_names") or [f"parameter {i}" for i in theirs["params"]]
        for name, index, parameter in zip(names, theirs["params"], ours["params"], strict=False):
            if state := saved["state"].get(index):
                yield name, state, optimizer.fresh_state(settings, parameter.detach().to("meta")), parameter.shape


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class TwoPassOptimizer(Optimizer, ABC):
    r"""What all our optimizers share: passes, the decision to ascend, the shear, records. A child takes the step.

    Steps are taken in one of two ways; both zero the gradients themselves before each pass:

        for p in optimizer.passes(model):
            p.backward(loss_fn(model))      # or plain loss.backward()
        optimizer.step()

        optimizer.step(closure)             # closure: zero, forward, backward, return the loss

    Gradients are not checked, as that would wait for the device: one that is not finite makes weights that are not, in
    the same step, as in torch. A `GradScaler` leaves such steps out; see `passes`.

    A pass after the first leaves no trace: weights are copied back even if it raises, buffers (batch-norm
    statistics) count once, and both passes draw the same random numbers from torch's generators (not from Python's or
    numpy's).

    `last` holds the decision and the losses of the last step; every number in it was computed anyway.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._observers = Observers()
        self._plan: StepPlan | None = None
        self._inside_pass = False
        self._scaling = GradScalerGuard()
        self.last: StepPlan | None = None
        super().__init__(cast(Any, params), defaults)

    rule: str  # the name of its arithmetic, saved with its state

    @property
    def optional_state(self) -> frozenset[str]:
        """What a parameter's state may have or lack, as settings were before."""
        return frozenset()

    @abstractmethod
    def fresh_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter before its first step."""

    @abstractmethod
    def take(self, group: dict[str, Any], moments: Sequence[ParameterStep]) -> list[Update]:
        """Move the parameters of a group; called without gradients, once a step, with those that have one."""

    @abstractmethod
    def check_group(self, group: dict[str, Any], first: dict[str, Any]) -> None:
        """Raise an `OptimizerError` for settings that are unknown, out of bounds or contradict the first group."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer; observers are not copied, and loading a state keeps them."""
        super().__setstate__(state)
        self._observers = self.__dict__.get("_observers", Observers())
        self._plan, self._inside_pass, self.last = None, False, None
        self._scaling = GradScalerGuard()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; settings of the whole optimizer cannot differ from those of the first group."""
        refuse_counters(param_group)
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1], self.param_groups[0])
            refuse_one_name_for_two(self.param_groups)
        except OptimizerError:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """What torch saves, and the rule that steps by it."""
        return {**super().state_dict(), RULE: self.rule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, with its settings.

        As in torch, settings come with a state and replace those this optimizer was made with. So the state of another
        arm of the same rule is one that fits: loaded into `ars2-base`, that of `ars2-sync` makes it ascend.

        Raises:
            OptimizerError: It is the state of another rule, or of other parameters; nothing of it is loaded then.
        """
        refuse_foreign_state(self, state_dict)
        super().load_state_dict(state_dict)

    def observe(self, callback: Callable[[StepRecord], None], *, counterfactual: bool = False) -> RemovableHandle:
        """A handle with `.remove()`; until then `callback` gets the record of every step, after it.

        Without an observer a step computes and keeps nothing more. An observer that is attached after the
        passes of a step still gets its record.

        Args:
            callback: Gets the record, which is valid until it returns.
            counterfactual: Whether the record of a step that injects a shear can tell what the step would have been
                without: `record.uninjected()`. For that, parameters and state are copied before such a step.

        Returns:
            The handle.
        """
        return self._observers.add(callback, counterfactual=counterfactual)

    @property
    def takes_second_gradient(self) -> bool:
        """Whether there are steps that take a second gradient: not in mode `base`, nor without a radius."""
        first = self.param_groups[0]
        return bool(first["mode"] != "base") and any(group["rho"] > 0 for group in self.param_groups)

    @torch.no_grad()
    def ascent(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """The perturbation that a second pass would use now, were these the gradients of the first; nothing changes.

        Args:
            gradients: Of parameters of this optimizer, in one unit with the loss.

        Returns:
            One perturbation for each parameter that has a gradient here and a radius; none where nothing ascends.
        """
        ascents = self._ascents(gradients) if self.takes_second_gradient else {}
        if not ascents:
            return {}
        moves = PERTURBATIONS[self.param_groups[0]["perturbation"]](list(ascents.values()))
        return dict(zip(ascents, moves, strict=True))

    @property
    def trigger_state(self) -> TriggerState:
        """Steps and second gradients so far, and the running variance of phi."""
        return TriggerState.read(self.param_groups[0])

    def passes(self, model: nn.Module | None = None, scaler: torch.amp.GradScaler | None = None) -> Iterator[Pass]:
        """One pass, or two on a sync step: run forward and backward in each, then call `step()`.

        Gradients are zeroed before each pass, so micro-batches may be accumulated within one. Leaving the loop early,
        or an exception in it, puts the parameters back and forgets the passes: a `step()` after that takes the
        gradients it finds where it needs one pass, and is refused where it needs two.

        Args:
            model: The module whose buffers the second pass must not change. Without it they are found
                through forward hooks, which a compiled module does not call.
            scaler: The scaler of the losses, where there is one: run `scaler.scale(loss).backward()` in each pass,
                then `scaler.step(optimizer)`. It unscales the gradients of the last pass; those of the first one
                are divided by its scale here, so that records and what is made of both gradients are in one unit.
                One that steps the optimizer without having been told is refused where a second pass was taken, and a
                plain `step()` where it was told of one: nothing would unscale the gradients.
        """
        if self._inside_pass:
            raise OptimizerError("passes() was started inside another passes() loop; leave or close that one first")
        self._plan = None
        self._scaling.begin(scaler)
        self.zero_grad()
        replay = RandomState(self._parameters()) if self.takes_second_gradient else None
        first = Pass(0)
        self._inside_pass = True
        try:
            yield first
        finally:
            self._inside_pass = False
        decision = self._decide()
        plan = StepPlan(decision, (first.loss, None))
        if replay is not None and decision.sync:
            yield from self._second_pass(plan, replay, model, 1.0 if scaler is None else scaler.get_scale())
        self._plan = plan

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the step; returns the loss of the first pass, where the closure or the passes told it.

        Raises:
            OptimizerError: The step needs a second gradient and there was neither a closure nor `passes()`; or a
                `GradScaler` takes it that `passes()` was not told of, or with a closure; or none takes it though
                `passes()` was told of one.
        """
        if self._inside_pass:
            raise OptimizerError("step() was called inside the passes() loop; call it once, after the loop")
        scaled = self._scaling.check(closure=closure is not None)
        loss = self._run(closure) if closure is not None else None
        plan = self._plan or self._plan_without_passes()
        self._plan = None
        self._scaling.settle(scaled=scaled, sync=plan.decision.sync)
        plan.follow(self.param_groups[0])
        observed: list[TensorRecord] | None = [] if self._observers else None
        uninjected = (
            CounterfactualUpdate(self.take) if self._observers.want_counterfactuals and self._injects(plan) else None
        )
        first = 0
        for group in self.param_groups:
            self._step_group(group, first, plan, observed, uninjected)
            first += len(group["params"])
        plan.decision.after.write(self.param_groups[0])
        self.last = StepPlan(plan.decision, plan.losses)  # scalars only: the tensors of the step are let go
        if observed is not None:
            self._observers.tell(self.param_groups[0], plan, observed, uninjected)
        return plan.losses[0] if loss is None else loss

    # -- the passes -------------------------------------------------------------------------------------

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # A GradScaler asks for it right before it unscales the gradients and calls step(): how we learn of one.
        self._scaling.ask()
        return False

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _run(self, closure: Callable[[], Any]) -> Any:
        loss = None
        for p in self.passes():
            with torch.enable_grad():
                value = closure()
            if isinstance(value, Tensor):
                p.loss = value.detach()
            loss = value if p.index == 0 else loss
            refuse_no_gradient(self._parameters())
        return loss

    def _decide(self) -> Decision:
        first = self.param_groups[0]
        before = TriggerState.read(first)
        refuse_sparse_gradients(self._parameters())
        if first["mode"] != "aga" or not self.takes_second_gradient:
            return decided(first, before, None, takes_second_gradient=self.takes_second_gradient)
        having = [p for p in self._parameters() if p.grad is not None and "shear" in self.state.get(p, ())]
        phi = misalignment([cast(Tensor, p.grad) for p in having], [self.state[p]["shear"] for p in having])
        return decided(first, before, phi, takes_second_gradient=True)

    def _plan_without_passes(self) -> StepPlan:
        decision = self._decide()
        if decision.sync:
            refuse_a_missing_pass(decision.after.clock, self.param_groups[0]["mode"])
        return StepPlan(decision)

    def _second_pass(
        self, plan: StepPlan, replay: RandomState, model: nn.Module | None, scale: float
    ) -> Iterator[Pass]:
        first = {p: p.grad for p in self._parameters() if p.grad is not None}
        plan.base = {p: own_copy(g) if scale == 1 else g / scale for p, g in first.items()}
        plan.moves = self.ascent(plan.base)  # empty without a gradient: there is nowhere to ascend to
        second, afterwards = Pass(1), RandomState(self._parameters())
        self.zero_grad()
        self._inside_pass = True
        try:
            up = ascended(list(plan.moves), list(plan.moves.values())) if plan.moves else nullcontext()
            with up, untouched_buffers(model):
                replay.restore()
                yield second
        finally:
            afterwards.restore()
            self._inside_pass = False
        plan.measure(self.param_groups[0], scale)
        plan.losses = (plan.losses[0], second.loss)

    def _ascents(self, base: Mapping[Tensor, Tensor]) -> dict[Tensor, Ascent]:
        ascents: dict[Tensor, Ascent] = {}
        clock = self.trigger_state.clock
        for group in self.param_groups:
            for p in group["params"]:
                if group["rho"] > 0 and p in base:
                    state = self.state.get(p, {})
                    state = state if "step" in state else self.fresh_state(group, p)
                    beta2, eps = group.get("betas", (0.0, 0.0))[1], group.get("eps", 0.0)
                    v, steps = state.get("exp_avg_sq"), int(state["step"])
                    draw = SeededNoise("ascent", group["seed"], clock, len(ascents))
                    ascents[p] = Ascent(p, base[p], v, steps, beta2, eps, group["rho"], draw)
        return ascents

    # -- the step ---------------------------------------------------------------------------------------

    def _state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if "step" not in state:
            state.update(self.fresh_state(group, parameter))
        return cast("dict[str, Any]", state)

    def _moment(self, group: dict[str, Any], index: int, name: str, parameter: Tensor, plan: StepPlan) -> ParameterStep:
        gradient = cast(Tensor, parameter.grad)
        state = self._state(group, parameter)
        stale = state.get("shear")
        if plan.decision.sync:
            followed = plan.followed.get(parameter, gradient)
            return ParameterStep(
                index, name, parameter, followed, plan.base.get(parameter), stale, state, False, gradient
            )
        direction = self._injected_direction(state)
        if direction is None:
            return ParameterStep(index, name, parameter, gradient, gradient, stale, state, False)
        fed = injected(gradient, direction, plan.decision.alpha)
        return ParameterStep(index, name, parameter, fed, gradient, stale, state, True)

    def _injects(self, plan: StepPlan) -> bool:
        """Whether the step injects a stored shear somewhere."""
        having = [self.state.get(p, {}) for p in self._parameters() if p.grad is not None]
        return not plan.decision.sync and any(self._injected_direction(state) is not None for state in having)

    def _injected_direction(self, state: dict[str, Any]) -> Tensor | None:
        return direction_of(self.param_groups[0], state) if self.takes_second_gradient else None

    def _step_group(
        self,
        group: dict[str, Any],
        first: int,
        plan: StepPlan,
        observed: list[TensorRecord] | None,
        uninjected: CounterfactualUpdate | None,
    ) -> None:
        indices = range(first, first + len(group["params"]))
        names = group.get("param_names") or [f"parameter {i}" for i in indices]
        rows = zip(indices, names, group["params"], strict=True)
        moments = [self._moment(group, i, n, p, plan) for i, n, p in rows if p.grad is not None]
        if not moments:
            return
        if plan.decision.sync:
            store_shears(self.param_groups[0], moments, plan)
        if uninjected is not None:
            uninjected.hold(group, moments)
        taken = self.take(group, moments)
        if observed is not None:
            steps = zip(moments, taken, strict=True)
            observed += [tensor_record(moment, one, group, plan) for moment, one in steps]
