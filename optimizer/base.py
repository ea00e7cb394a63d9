"""Base of all optimizers: a step that may take a second gradient at ascended weights, and that can be observed."""

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
from lossscope.optimizer.ascent.perturbation import PERTURBATIONS, WHITENED, Ascent
from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.shear import SHEAR_STATE, direction_of, injected, misalignment, store_shears
from lossscope.optimizer.ascent.trigger import Decision, TriggerState, decided
from lossscope.optimizer.ascent.two_pass import (
    Pass,
    RandomState,
    StepPlan,
    ascended,
    own_copy,
    refuse_sparse,
    untouched_buffers,
)
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.estimates.estimated_step import EstimatedStep, refuse_several_processes
from lossscope.optimizer.estimates.passes import PASSES
from lossscope.optimizer.hyperparameters import check_floors, checked_group, refuse_counters, refuse_duplicate_names
from lossscope.optimizer.records.observers import CounterfactualUpdate, Observers, tensor_record
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.update.adam import ParameterStep, Update
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.rule import Need, Rule
from lossscope.optimizer.update.rules import ADAMW

__all__ = ["Params", "TwoPassOptimizer"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

_RULE: Final = "rule"  # key under which a state stores the rule that saved it
_NO_SCALER: Final = "does not work with a GradScaler, which knows one gradient of a step: train in bfloat16 or float32"


class TwoPassOptimizer(Optimizer, ABC):
    r"""Base class: passes, the decision to ascend, the shear and records. A subclass takes the step.

    A step is taken in one of two ways; both zero the gradients before each pass:

        for p in optimizer.passes(model):
            p.backward(loss_fn(model))      # or plain loss.backward()
        optimizer.step()

        optimizer.step(closure)             # closure: zero, forward, backward, return the loss

    Gradients are not checked for NaN or infinity, since that would synchronize with the device: a gradient that is not
    finite makes the weights non-finite in the same step, as in torch. A `GradScaler` skips such steps; see `passes`.
    With lr above 1 a finite step that would take weights out of the range of their dtype raises an `OptimizerError`
    before these weights move; the state and the weights before them have moved then.

    The second pass has no side effects: weights are copied back even if it raises, buffers (batch-norm
    statistics) are updated once, and both passes draw the same random numbers from torch's generators (not from
    Python's or numpy's).

    `last` holds the decision and the losses of the last step, without extra computation.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._observers = Observers()
        self._plan: StepPlan | None = None
        self._inside_pass = False
        self._scaling = GradScalerGuard()
        self.last: StepPlan | None = None
        super().__init__(cast(Any, params), defaults)

    rule: str  # name of the rule, saved with the state

    @property
    @abstractmethod
    def declared(self) -> Rule:
        """Declaration of the rule that steps matrices."""

    def rule_of(self, group: dict[str, Any], parameter: Tensor) -> Rule:
        """Return the declaration of the rule that steps a parameter of a group."""
        vector = self.declared.adamw_vectors and track_of(group, parameter) == "vector"
        return ADAMW if vector else self.declared

    def fresh_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """Return the state of a parameter before its first step."""
        return self.rule_of(group, parameter).fresh_state(group, parameter)

    @abstractmethod
    def take(self, group: dict[str, Any], moments: Sequence[ParameterStep]) -> list[Update]:
        """Move the parameters of a group; called without gradients, once a step, for parameters with a gradient."""

    def check_group(self, group: dict[str, Any], first: dict[str, Any]) -> None:
        """Raise an `OptimizerError` for settings that are unknown, missing, out of bounds or contradictory."""
        rule = self.declared
        for name in rule.required:
            if name not in group:
                raise OptimizerError(f"{name} is required by {self.rule} and has no default: pass {name}=...")
        checked_group(group, first, {**self.defaults, **dict.fromkeys(rule.required)}, rule.bounds)
        rule.check(group)
        for parameter in group["params"]:
            self._check_floors(group, parameter)
        if rule.needs is not None and group["mode"] != "base":
            raise OptimizerError(f"mode={group['mode']!r} has no meaning for {self.rule}, which has passes of its own")
        if group["perturbation"] in WHITENED and group["mode"] != "base" and not rule.adam_moments:
            raise OptimizerError(
                f"perturbation={group['perturbation']!r} needs a second-moment estimate and {self.rule} keeps none; "
                "use 'sam', 'asam' or 'random_ball'"
            )

    def _check_floors(self, group: dict[str, Any], parameter: Tensor) -> None:
        rule = self.rule_of(group, parameter)
        check_floors(group, parameter, ("eps",) * rule.adam_moments + rule.floors)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer without its observers; loading a state keeps the observers."""
        super().__setstate__(state)
        self._observers = self.__dict__.get("_observers", Observers())
        self._plan, self._inside_pass, self.last = None, False, None
        self._scaling = GradScalerGuard()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; settings shared by all groups must equal those of the first group."""
        refuse_counters(param_group)
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1], self.param_groups[0])
            refuse_duplicate_names(self.param_groups)
        except OptimizerError:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict with the name of the rule added."""
        return {**super().state_dict(), _RULE: self.rule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state, including its settings.

        As in torch, the settings in a state replace those of the optimizer. The state of another arm of the same rule
        therefore fits: an `ars2-base` that loads the state of an `ars2-sync` ascends.

        Raises:
            OptimizerError: The state is that of another rule or of other parameters; nothing is loaded then.
        """
        _refuse_foreign_state(self, state_dict)
        super().load_state_dict(state_dict)

    def observe(self, callback: Callable[[StepRecord], None], *, counterfactual: bool = False) -> RemovableHandle:
        """Call `callback` with the record of every step, after the step.

        Without an observer a step computes and keeps nothing more. An observer that is attached after the
        passes of a step still gets the record of that step.

        Args:
            callback: Called with the record, which is valid until the callback returns.
            counterfactual: If True, the record of a step that injects a shear offers `record.uninjected()`: the updates
                without the injection. Parameters and state are copied before such a step.

        Returns:
            A handle whose `.remove()` removes the callback.
        """
        return self._observers.add(callback, counterfactual=counterfactual)

    @property
    def takes_second_gradient(self) -> bool:
        """True if some steps take a second gradient: the mode is not `base` and some radius is above 0."""
        first = self.param_groups[0]
        return bool(first["mode"] != "base") and any(group["rho"] > 0 for group in self.param_groups)

    @torch.no_grad()
    def ascent(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return the perturbation of a second pass for these gradients of the first pass, without side effects.

        Args:
            gradients: Gradients of parameters of this optimizer, in the unit of the loss (unscaled).

        Returns:
            One perturbation for each parameter with a gradient and a radius; empty if the optimizer does not ascend.
        """
        ascents = self._ascents(gradients) if self.takes_second_gradient else {}
        if not ascents:
            return {}
        moves = PERTURBATIONS[self.param_groups[0]["perturbation"]](list(ascents.values()))
        return dict(zip(ascents, moves, strict=True))

    @property
    def trigger_state(self) -> TriggerState:
        """Numbers of steps and of second gradients so far, and the running variance of phi."""
        return TriggerState.read(self.param_groups[0])

    def passes(self, model: nn.Module | None = None, scaler: torch.amp.GradScaler | None = None) -> Iterator[Pass]:
        """Yield one pass, or two on a sync step: run forward and backward in each, then call `step()`.

        A rule that `needs` passes of its own yields these. They are not scaled, and run in one process.

        Gradients are zeroed before each pass, so micro-batches may be accumulated within one. Leaving the loop early,
        or an exception in it, restores the parameters and discards the passes: a later `step()` uses the gradients that
        are there if it needs one pass, and raises an error if it needs two.

        Args:
            model: The module whose buffers the second pass must not change. Without it the buffers are found
                through forward hooks, which a compiled module does not call.
            scaler: The scaler of the losses, if one is used: run `scaler.scale(loss).backward()` in each pass,
                then `scaler.step(optimizer)`. The scaler unscales the gradients of the last pass; those of the first
                are divided by its scale here, so that both gradients and all records have the same unit.
                A scaler that was not passed here raises an error on a step with two gradients, and so does a plain
                `step()` after a scaler was passed, since nothing would unscale the gradients.
        """
        if self._inside_pass:
            raise OptimizerError("passes() was called inside another passes() loop; leave or close that one first")
        self._plan = None
        self._scaling.begin(scaler)
        self.zero_grad()
        if self.declared.needs is not None:
            yield from self._passes_of_need(self.declared.needs, model, scaler)
            return
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
        """Take the step and return the loss of the first pass, if the closure or the passes recorded it.

        Args:
            closure: Zeroes the gradients, runs forward and backward and returns the loss. It is not called where
                `passes()` has been run, which stands for it: Lightning hands over a closure that does nothing.

        Raises:
            OptimizerError: The step needs a second gradient and there was neither a closure nor `passes()`; or a
                `GradScaler` takes it that `passes()` was not given, or with a closure; or `passes()` was given a
                scaler and the step is taken without it.
        """
        if self._inside_pass:
            raise OptimizerError("step() was called inside the passes() loop; call it once, after the loop")
        closure = closure if self._plan is None else None
        scaled = self._scaling.check(closure=closure is not None)
        if self.declared.needs is not None:
            self._refuse_step(self.declared.needs, closure=closure is not None, scaled=scaled)
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
        # scalars only: the tensors of the step are released
        self.last = StepPlan(plan.decision, plan.losses, extra=plan.extra)
        if observed is not None:
            self._observers.notify(
                self.param_groups[0], plan, observed, uninjected, orthogonalizes=self.declared.orthogonalizes
            )
        return plan.losses[0] if loss is None else loss

    # -- the passes -------------------------------------------------------------------------------------

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
            if self.declared.needs is not Need.TWO_LOSSES and all(q.grad is None for q in self._parameters()):
                raise OptimizerError(
                    "the closure computed no gradient; it must zero the gradients, run forward and backward, and "
                    "return the loss"
                )
        return loss

    def _passes_of_need(
        self, need: Need, model: nn.Module | None, scaler: torch.amp.GradScaler | None
    ) -> Iterator[Pass]:
        """Yield the passes that the rule needs, and keep what they measure for the step."""
        if scaler is not None and scaler.is_enabled():
            raise OptimizerError(f"{self.rule} {_NO_SCALER}")
        refuse_several_processes(self.rule)
        pairs = [(group, p, name) for group in self.param_groups for p, name in _named(group)]
        step = EstimatedStep(
            rule=self.rule,
            settings=self.param_groups[0],
            parameters=self._parameters(),
            stepped={p: name for group, p, name in pairs if self.rule_of(group, p) is self.declared},
            fresh=lambda p: not self.state.get(p),
            clock=self.trigger_state.clock,
            model=model,
            zero_grad=self.zero_grad,
        )
        self._inside_pass = True
        try:
            yield from PASSES[need](step)
        finally:
            self._inside_pass = False
        self._plan = StepPlan(self._decide(), (step.loss, None), estimates=step.estimates, extra=step.extra)

    def _refuse_step(self, need: Need, *, closure: bool, scaled: bool) -> None:
        """Raise an `OptimizerError` for a step that does not have what the rule needs."""
        if scaled:
            raise OptimizerError(f"{self.rule} {_NO_SCALER}")
        if (closure and need.draws_labels) or (not closure and self._plan is None):
            how = "step(closure), whose labels are those of the data" if closure else "step() without its passes"
            loss = "loss_fn(outputs, p.labels(outputs, labels))" if need.draws_labels else "loss"
            loop = f"for p in optimizer.passes(model): p.backward({loss})"
            raise OptimizerError(f"{self.rule} cannot take {how}: run `{loop}`, then step()")

    def _decide(self) -> Decision:
        first = self.param_groups[0]
        before = TriggerState.read(first)
        refuse_sparse(self._parameters())
        if first["mode"] != "aga" or not self.takes_second_gradient:
            return decided(first, before, None, takes_second_gradient=self.takes_second_gradient)
        shears = {p: self.state.get(p, {}).get("shear") for p in self._parameters() if p.grad is not None}
        stored = {p: shear for p, shear in shears.items() if shear is not None}
        phi = misalignment([cast(Tensor, p.grad) for p in stored], list(stored.values()))
        return decided(first, before, phi, takes_second_gradient=True)

    def _plan_without_passes(self) -> StepPlan:
        decision = self._decide()
        if decision.sync:
            raise OptimizerError(
                f"step {decision.after.clock} of mode={self.param_groups[0]['mode']!r} needs a second gradient: run "
                "`for p in optimizer.passes(model): p.backward(loss)` before step(), or call step(closure)"
            )
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
                    state = self.state.get(p) or self.fresh_state(group, p)
                    adam = self.rule_of(group, p).adam_moments
                    v = state["exp_avg_sq"] if adam else None
                    beta2, eps = (group["betas"][1], group["eps"]) if adam else (0.0, 0.0)
                    draw = SeededNoise("ascent", group["seed"], clock, len(ascents))
                    ascents[p] = Ascent(p, base[p], v, int(state["step"]), beta2, eps, group["rho"], draw)
        return ascents

    # -- the step ---------------------------------------------------------------------------------------

    def _state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            self._check_floors(group, parameter)  # a model may have been cast since
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
        estimate = plan.estimates.get(parameter, {})
        direction = self._injected_direction(state)
        if direction is None:
            return ParameterStep(index, name, parameter, gradient, gradient, stale, state, False, estimate=estimate)
        fed = injected(gradient, direction, plan.decision.alpha)
        return ParameterStep(index, name, parameter, fed, gradient, stale, state, True)

    def _injects(self, plan: StepPlan) -> bool:
        """Return True if the step injects a stored shear into some gradient."""
        states = [self.state.get(p, {}) for p in self._parameters() if p.grad is not None]
        return not plan.decision.sync and any(self._injected_direction(state) is not None for state in states)

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
        rows = enumerate(_named(group, first), first)
        moments = [self._moment(group, i, n, p, plan) for i, (p, n) in rows if p.grad is not None]
        if not moments:
            return
        if plan.decision.sync:
            store_shears(self.param_groups[0], moments, plan)
        if uninjected is not None:
            uninjected.copy(group, moments)
        taken = self.take(group, moments)
        if observed is not None:
            steps = zip(moments, taken, strict=True)
            observed += [
                tensor_record(moment, one, self.rule_of(group, moment.parameter), group, plan) for moment, one in steps
            ]


def _named(group: dict[str, Any], first: int = 0) -> list[tuple[Tensor, str]]:
    """Return the parameters of a group, each with its name, or else its number over all groups."""
    names = group.get("param_names") or [f"parameter {first + i}" for i in range(len(group["params"]))]
    return list(zip(group["params"], names, strict=True))


def _refuse_foreign_state(optimizer: TwoPassOptimizer, saved: Mapping[str, Any]) -> None:
    """Raise an error for the state of another rule or of other parameters, before any of it is loaded.

    A state without the name of its rule (saved by an early version or by an optimizer of torch) is recognized by its
    tensors.

    Args:
        optimizer: The optimizer that is to load the state.
        saved: Result of `state_dict()`.

    Raises:
        OptimizerError: The state is that of another rule or of other parameters.
    """
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise OptimizerError("not the state of an optimizer: load the result of state_dict()")
    rule = saved.get(_RULE, optimizer.rule)
    if rule != optimizer.rule:
        raise OptimizerError(
            f"the state was saved by the rule {rule!r} and this optimizer uses {optimizer.rule!r}; "
            f"load it into an optimizer with the rule {rule!r}"
        )
    optional = optimizer.declared.optional_state
    for name, found, expected, shape in _states(optimizer, saved):
        if not expected.keys() - optional <= found.keys() <= expected.keys() | optional | SHEAR_STATE:
            raise OptimizerError(
                f"the state is not one of the rule {optimizer.rule!r}: for {name} it holds {_listed(found)}, expected "
                f"{_listed(expected)}; load it into an optimizer of the kind that saved it"
            )
        for key, value in found.items():
            own = expected[key].shape if key in expected else shape
            if isinstance(value, Tensor) and value.shape != own:
                raise OptimizerError(
                    f"the state is one of other parameters: for {name} its {key} has the shape {tuple(value.shape)}, "
                    f"expected {tuple(own)}; load it into an optimizer of the model that it was saved with"
                )


def _states(
    optimizer: TwoPassOptimizer, saved: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any], torch.Size]]:
    """Yield the name, the saved state, the expected state (on the meta device) and the shape of each parameter."""
    # torch compares the numbers of groups and of parameters, and says so
    for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        settings = {**ours, **{key: value for key, value in theirs.items() if key != "params"}}
        names = ours.get("param_names") or [f"parameter {i}" for i in theirs["params"]]
        for name, index, parameter in zip(names, theirs["params"], ours["params"], strict=False):
            if state := saved["state"].get(index):
                yield name, state, optimizer.fresh_state(settings, parameter.detach().to("meta")), parameter.shape


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
