"""An optimizer whose step may take a second gradient at ascended weights, and that can be watched doing so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.optimizer import newton_schulz as ns
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.kernel import Moment, Taken, tensor_record
from lossscope.optimizer.perturbation import PERTURBATIONS, Ascent
from lossscope.optimizer.plan import Pass, Plan
from lossscope.optimizer.record import StepRecord, TensorRecord
from lossscope.optimizer.shear import injected, misalignment, placebo, residual
from lossscope.optimizer.surrogate import SURROGATES
from lossscope.optimizer.trigger import Decision, TriggerState, adaptive, periodic, timed
from lossscope.optimizer.two_pass import RandomState, ascended, own_copy, untouched_buffers

__all__ = ["Ascending", "Params"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Ascending(Optimizer, ABC):
    r"""What all our optimizers share: passes, the decision to ascend, the shear, records. A child takes the step.

    Steps are taken in one of two ways; both zero the gradients themselves before each pass:

        for p in optimizer.passes(model):
            p.backward(loss_fn(model))      # or plain loss.backward()
        optimizer.step()

        optimizer.step(closure)             # closure: zero, forward, backward, return the loss

    A pass after the first leaves no trace: weights are copied back even if it raises, buffers (batch-norm
    statistics) count once, and both passes draw the same random numbers.

    `last` holds the decision and the losses of the last step; every number in it was computed anyway.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._observers: OrderedDict[int, Callable[[StepRecord], None]] = OrderedDict()
        self._plan: Plan | None = None
        self._inside_pass = False
        self.last: Plan | None = None
        super().__init__(cast(Any, params), defaults)

    @abstractmethod
    def fresh_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter before its first step."""

    @abstractmethod
    def take(self, group: dict[str, Any], moments: Sequence[Moment]) -> list[Taken]:
        """Move the parameters of a group; called without gradients, once a step, with those that have one."""

    @abstractmethod
    def check_group(self, group: dict[str, Any], first: dict[str, Any]) -> None:
        """Raise an `OptimizerError` for settings that are unknown, out of bounds or contradict the first group."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer; observers are not copied, and loading a state keeps them."""
        super().__setstate__(state)
        self._observers = self.__dict__.get("_observers", OrderedDict())
        self._plan, self._inside_pass, self.last = None, False, None
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; settings of the whole optimizer cannot differ from those of the first group."""
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1], self.param_groups[0])
        except OptimizerError:
            self.param_groups.pop()
            raise

    def observe(self, callback: Callable[[StepRecord], None]) -> RemovableHandle:
        """A handle with `.remove()`; until then `callback` gets the record of every step, after it.

        Without an observer a step computes and keeps nothing more. An observer that is attached after the
        passes of a step still gets its record.
        """
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = callback
        return handle

    @property
    def trigger_state(self) -> TriggerState:
        """Steps and second gradients so far, and the running variance of phi."""
        return TriggerState.read(self.param_groups[0])

    def passes(self, model: nn.Module | None = None, scaler: torch.amp.GradScaler | None = None) -> Iterator[Pass]:
        """One pass, or two on a sync step: run forward and backward in each, then call `step()`.

        Gradients are zeroed before each pass, so micro-batches may be accumulated within one. Leaving the
        loop early, or an exception in it, puts the parameters back; the step is then not taken.

        Args:
            model: The module whose buffers the second pass must not change. Without it they are found
                through forward hooks, which a compiled module does not call.
            scaler: The scaler of the losses, where there is one: run `scaler.scale(loss).backward()` in each pass,
                then `scaler.step(optimizer)`. It unscales the gradients of the last pass; those of the first one
                are divided by its scale here, so that records and what is made of both gradients are in one unit.
        """
        if self._inside_pass:
            raise OptimizerError("passes() was started inside another passes() loop; leave or close that one first")
        self._plan = None
        self.zero_grad()
        replay = RandomState(self._parameters()) if self._ascends else None
        first = Pass(0)
        self._inside_pass = True
        try:
            yield first
        finally:
            self._inside_pass = False
        decision = self._decide()
        plan = Plan(decision, (first.loss, None))
        if replay is not None and decision.sync:
            yield from self._second_pass(plan, replay, model, 1.0 if scaler is None else scaler.get_scale())
        self._plan = plan

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the step; returns the loss of the first pass, where the closure or the passes told it.

        Raises:
            OptimizerError: The step needs a second gradient and there was neither a closure nor `passes()`.
        """
        if self._inside_pass:
            raise OptimizerError("step() was called inside the passes() loop; call it once, after the loop")
        loss = self._run(closure) if closure is not None else None
        plan = self._plan or self._plan_without_passes()
        self._plan = None
        self._follow(plan)
        observed: list[TensorRecord] | None = [] if self._observers else None
        first = 0
        for group in self.param_groups:
            self._step_group(group, first, plan, observed)
            first += len(group["params"])
        plan.decision.after.write(self.param_groups[0])
        self.last = Plan(plan.decision, plan.losses)  # scalars only: the tensors of the step are let go
        if observed is not None:
            self._report(plan, tuple(observed))
        return plan.losses[0] if loss is None else loss

    # -- the passes -------------------------------------------------------------------------------------

    @property
    def _ascends(self) -> bool:
        first = self.param_groups[0]
        return bool(first["mode"] != "base") and any(group["rho"] > 0 for group in self.param_groups)

    @property
    def _stores_shear(self) -> bool:
        first = self.param_groups[0]
        return bool(first["mode"] == "aga") or (first["mode"] in ("lazy", "timer") and first["shear"] != "off")

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
            if all(q.grad is None for q in self._parameters()):
                raise OptimizerError(
                    "the closure left no gradient; it must zero, run forward, call backward and return the loss"
                )
        return loss

    def _decide(self) -> Decision:
        first = self.param_groups[0]
        before = TriggerState.read(first)
        self._refuse_sparse_gradients()
        if not self._ascends:
            return Decision(sync=False, after=replace(before, clock=before.clock + 1))
        alpha = 0.0 if first["shear"] == "off" else first["alpha"]
        if first["mode"] == "timer":
            return timed(before, k=first["k"], alpha=alpha, lamda=first["aga_lambda"], seed=first["seed"])
        if first["mode"] != "aga":
            return periodic(before, k=1 if first["mode"] == "sync" else first["k"], alpha=alpha)
        having = [p for p in self._parameters() if p.grad is not None and "shear" in self.state.get(p, ())]
        phi = misalignment([cast(Tensor, p.grad) for p in having], [self.state[p]["shear"] for p in having])
        return adaptive(
            before,
            phi,
            k=first["k"],
            alpha=alpha,
            beta=first["aga_beta"],
            lamda=first["aga_lambda"],
            gamma=first["aga_gamma"],
            rule=first["trigger"],
        )

    def _refuse_sparse_gradients(self) -> None:
        for p in self._parameters():
            if p.grad is not None and p.grad.layout != torch.strided:
                raise OptimizerError(
                    f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which no optimizer here steps; "
                    "build its module with sparse=False, or step it with torch.optim.SparseAdam"
                )

    def _plan_without_passes(self) -> Plan:
        decision = self._decide()
        if decision.sync:
            raise OptimizerError(
                f"step {decision.after.clock} of mode={self.param_groups[0]['mode']!r} needs a second gradient: run "
                "`for p in optimizer.passes(model): p.backward(loss)` before step(), or call step(closure)"
            )
        return Plan(decision)

    def _second_pass(self, plan: Plan, replay: RandomState, model: nn.Module | None, scale: float) -> Iterator[Pass]:
        first = {p: p.grad for p in self._parameters() if p.grad is not None}
        plan.base = {p: own_copy(g) if scale == 1 else g / scale for p, g in first.items()}
        ascents = self._ascents(plan.base)
        with torch.no_grad():
            perturbation = PERTURBATIONS[self.param_groups[0]["perturbation"]]
            moves = perturbation(list(ascents.values())) if ascents else []  # no gradient: nowhere to ascend to
        plan.moves = dict(zip(ascents, moves, strict=True))
        second, afterwards = Pass(1), RandomState(self._parameters())
        self.zero_grad()
        self._inside_pass = True
        try:
            with ascended(list(plan.moves), moves) if moves else nullcontext(), untouched_buffers(model):
                replay.restore()
                yield second
        finally:
            afterwards.restore()
            self._inside_pass = False
        plan.losses = (plan.losses[0], second.loss)

    def _ascents(self, base: dict[Tensor, Tensor]) -> dict[Tensor, Ascent]:
        ascents: dict[Tensor, Ascent] = {}
        clock = self.trigger_state.clock
        for group in self.param_groups:
            for p in group["params"]:
                if group["rho"] > 0 and p in base:
                    state = self._state(group, p)
                    beta2, eps = group.get("betas", (0.0, 0.0))[1], group.get("eps", 0.0)
                    v, steps = state.get("exp_avg_sq"), int(state["step"])
                    seed = (group["seed"] * 1_000_003 + clock) * 10_007 + len(ascents)
                    ascents[p] = Ascent(p, base[p], v, steps, beta2, eps, group["rho"], seed)
        return ascents

    # -- the step ---------------------------------------------------------------------------------------

    def _state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if "step" not in state:
            state.update(self.fresh_state(group, parameter))
        return cast("dict[str, Any]", state)

    def _moment(self, group: dict[str, Any], index: int, name: str, parameter: Tensor, plan: Plan) -> Moment:
        gradient = cast(Tensor, parameter.grad)
        state = self._state(group, parameter)
        stale = state.get("shear")
        if plan.decision.sync:
            followed = plan.followed.get(parameter, gradient)
            return Moment(index, name, parameter, followed, plan.base.get(parameter), stale, state, False, gradient)
        direction = self._injected_direction(state)
        if direction is None:
            return Moment(index, name, parameter, gradient, gradient, stale, state, False)
        fed = injected(gradient, direction, plan.decision.alpha)
        return Moment(index, name, parameter, fed, gradient, stale, state, True)

    def _injected_direction(self, state: dict[str, Any]) -> Tensor | None:
        kind = self.param_groups[0]["shear"]
        if kind == "off" or not self._ascends:
            return None
        stored = cast("Tensor | None", state.get("placebo" if kind == "placebo" else "shear"))
        return -stored if kind == "signflip" and stored is not None else stored

    def _follow(self, plan: Plan) -> None:
        """Make the gradients that the step follows of the two it has, where they are not the adversarial ones."""
        first = self.param_groups[0]
        if not plan.decision.sync or first["surrogate"] == "adversarial":
            return
        both = [p for p in plan.moves if p.grad is not None]
        if not both:
            return
        made = SURROGATES[first["surrogate"]](
            [cast(Tensor, p.grad) for p in both], [plan.base[p] for p in both], first["alpha"]
        )
        plan.followed = dict(zip(both, made, strict=True))

    def _step_group(self, group: dict[str, Any], first: int, plan: Plan, observed: list[TensorRecord] | None) -> None:
        indices = range(first, first + len(group["params"]))
        names = group.get("param_names") or [f"parameter {i}" for i in indices]
        rows = zip(indices, names, group["params"], strict=True)
        moments = [self._moment(group, i, n, p, plan) for i, n, p in rows if p.grad is not None]
        if not moments:
            return
        if plan.decision.sync:
            self._store_shears(moments, plan)
        taken = self.take(group, moments)
        if observed is not None:
            steps = zip(moments, taken, strict=True)
            observed += [tensor_record(moment, one, group, plan) for moment, one in steps]

    def _store_shears(self, moments: Sequence[Moment], plan: Plan) -> None:
        if not self._stores_shear:
            return
        for moment in moments:
            if moment.base is None or moment.parameter not in plan.moves:
                continue
            moment.state["shear"] = residual(cast(Tensor, moment.raised), moment.base)
            if self.param_groups[0]["shear"] == "placebo":
                seed = plan.decision.after.clock * 1_000_003 + moment.index
                moment.state["placebo"] = placebo(moment.state["shear"], moment.base, seed)

    def _report(self, plan: Plan, tensors: tuple[TensorRecord, ...]) -> None:
        decision, first = plan.decision, self.param_groups[0]
        injected_here = any(t.injected is not None for t in tensors)
        record = StepRecord(
            step=decision.after.clock,
            mode=first["mode"],
            synced=decision.sync,
            loss=plan.losses[0],
            adversarial_loss=plan.losses[1],
            phi=decision.phi,
            threshold=decision.threshold,
            alpha=decision.alpha if injected_here else None,
            newton_schulz=ns.coefficients(first["newton_schulz"], first["ns_steps"])
            if first.get("ns_norm") == "frobenius"
            else (),
            tensors=tensors,
        )
        for callback in list(self._observers.values()):
            callback(record)
