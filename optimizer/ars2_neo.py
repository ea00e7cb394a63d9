"""ARS2-Neo: whitens like Adam, orthogonalises like Muon, ascends like SAM, and can be watched doing so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from lossscope.optimizer import newton_schulz as ns
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.kernel import Moment, apply_step, tensor_record, whitened
from lossscope.optimizer.perturbation import PERTURBATIONS, Ascent
from lossscope.optimizer.plan import Pass, Plan
from lossscope.optimizer.record import StepRecord, TensorRecord
from lossscope.optimizer.settings import DEFAULTS, checked_group, period_of
from lossscope.optimizer.shear import injected, misalignment, placebo, residual
from lossscope.optimizer.track import track_of
from lossscope.optimizer.trigger import Decision, TriggerState, adaptive, periodic
from lossscope.optimizer.two_pass import RandomState, ascended, own_copy, untouched_buffers

__all__ = ["ARS2Neo", "Pass"]

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class ARS2Neo(Optimizer):
    r"""The optimizer; by default its numbers are those of the published ARS2-Neo.

    Per matrix, with moments `m`, `v` and their bias-corrected forms:
    `A = m_hat / (sqrt(v_hat) + eps)`, `E = |A|_F`, `O` = Newton-Schulz of `A`,
    `W <- (1 - lr wd) W - lr E O`. Vectors take Adam's step `lr A`. On a sync step the gradient is the one
    at `w + e`. As `|O|_F` is about `0.87 sqrt(min(m, n))`, a step is that many times Adam's at the same lr.

    Steps are taken in one of two ways; both zero the gradients themselves before each pass:

        for p in optimizer.passes(model):
            p.backward(loss_fn(model))      # or plain loss.backward()
        optimizer.step()

        optimizer.step(closure)             # closure: zero, forward, backward, return the loss

    A pass after the first leaves no trace: weights are copied back even if it raises, buffers (batch-norm
    statistics) count once, and both passes draw the same random numbers.

    Args:
        params: Parameters, `(name, parameter)` pairs or groups. Shape decides the track (`ndim >= 2`:
            matrix) unless a group says `track="matrix"` or `"vector"`; see `routing`.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled; applied before the step as `1 - lr * weight_decay`.
        mode: `base`: one pass. `sync`: two passes every step. `lazy`: two every `k` steps, the stored shear
            injected between. `aga`: two when the gradient turns against the stored shear, or after `k` steps.
        rho: Radius of the ascent; at or below zero there is none, at the cost of `base`.
        k: The lazy period (default 5) or aga's longest interval (default 10); an error in other modes.
        alpha: Share of the gradient's norm that the shear is injected with.
        aga_beta: Decay of the running mean of phi^2.
        aga_lambda: The trigger's threshold in standard deviations of phi.
        aga_gamma: Exponent of `(1 + max(0, phi))` by which alpha grows.
        energy: Size of a matrix step: `reference` E O, `unit` E O / |O|_F, `rms` 0.2 sqrt(max(m, n)) O.
        newton_schulz: Preset of polynomial coefficients, see `newton_schulz.PRESETS`.
        ns_steps: How many polynomials.
        ns_dtype: Dtype of the products for float32 parameters: `"auto"` is float32 on the CPU and bfloat16
            on CUDA. A `torch.dtype` holds for all.
        perturbation: `ars2` (per tensor, times |w|), `paper` (global), `sam`, `asam`.
        shear: What is injected: `looksam`, `placebo` (random, orthogonal, same norm), `signflip`, `off`.
        orthogonalise: False follows `A` in place of `O`, with steps of exactly the same norm.
        flatten: Cuts raw 3-D parameters `(h, d, n)` as one matrix `(h d, n)` in place of `h` matrices. A
            group with `convolution=True` is cut as `(out, -1)`, as everything with more dimensions is.
        trigger: `reference`, or `lagged`: a bias-corrected variance of the phi before the present one.

    `last` holds the decision and the losses of the last step; every number in it was computed anyway.

    Raises:
        OptimizerError: A setting out of bounds, no matrix among the parameters, sparse gradients, or a step
            that needs a second gradient and has none.

    Source:
        The public ARS2-Neo, as formulas; LookSAM (Liu et al., 2022) for the shear; Muon (Jordan, 2024).
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        mode: Literal["base", "sync", "lazy", "aga"] = "base",
        rho: float = 0.1,
        k: int | None = None,
        alpha: float = 0.1,
        aga_beta: float = 0.99,
        aga_lambda: float = 2.0,
        aga_gamma: float = 2.0,
        energy: Literal["reference", "unit", "rms"] = "reference",
        newton_schulz: str = "keller",
        ns_steps: int = 5,
        ns_dtype: torch.dtype | Literal["auto"] = "auto",
        perturbation: Literal["ars2", "paper", "sam", "asam"] = "ars2",
        shear: Literal["looksam", "placebo", "signflip", "off"] = "looksam",
        orthogonalise: bool = True,
        flatten: bool = False,
        trigger: Literal["reference", "lagged"] = "reference",
    ) -> None:
        settings = {name: value for name, value in locals().items() if name in DEFAULTS}
        self._observers: OrderedDict[int, Callable[[StepRecord], None]] = OrderedDict()
        self._plan: Plan | None = None
        self._inside_pass = False
        self.last: Plan | None = None
        super().__init__(cast(Any, params), {**DEFAULTS, **settings, "k": period_of(mode, k)})
        if not any(track_of(g, p) == "matrix" for g in self.param_groups for p in g["params"]):
            count = sum(len(g["params"]) for g in self.param_groups)
            raise OptimizerError(
                f"ARS2Neo found no matrix (ndim >= 2) among {count} parameters; use torch.optim.AdamW for them"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer; observers are not copied, and loading a state keeps them."""
        super().__setstate__(state)
        self._observers = self.__dict__.get("_observers", OrderedDict())
        self._plan, self._inside_pass, self.last = None, False, None
        for group in self.param_groups:
            for name, value in DEFAULTS.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; settings of the whole optimizer cannot differ from those of the first group."""
        super().add_param_group(param_group)
        try:
            checked_group(self.param_groups[-1], self.param_groups[0])
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

    def passes(self, model: nn.Module | None = None) -> Iterator[Pass]:
        """One pass, or two on a sync step: run forward and backward in each, then call `step()`.

        Gradients are zeroed before each pass, so micro-batches may be accumulated within one. Leaving the
        loop early, or an exception in it, puts the parameters back; the step is then not taken.

        Args:
            model: The module whose buffers the second pass must not change. Without it they are found
                through forward hooks, which a compiled module does not call.
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
            yield from self._second_pass(plan, replay, model)
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
        return bool(first["mode"] == "aga") or (first["mode"] == "lazy" and first["shear"] != "off")

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
                    f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which ARS2Neo cannot orthogonalise; "
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

    def _second_pass(self, plan: Plan, replay: RandomState, model: nn.Module | None) -> Iterator[Pass]:
        plan.base = {p: own_copy(p.grad) for p in self._parameters() if p.grad is not None}
        ascents = self._ascents(plan.base)
        with torch.no_grad():
            moves = PERTURBATIONS[self.param_groups[0]["perturbation"]](list(ascents.values()))
        plan.moves = dict(zip(ascents, moves, strict=True))
        second, afterwards = Pass(1), RandomState(self._parameters())
        self.zero_grad()
        self._inside_pass = True
        try:
            with ascended(list(plan.moves), moves), untouched_buffers(model):
                replay.restore()
                yield second
        finally:
            afterwards.restore()
            self._inside_pass = False
        plan.losses = (plan.losses[0], second.loss)

    def _ascents(self, base: dict[Tensor, Tensor]) -> dict[Tensor, Ascent]:
        ascents = {}
        for group in self.param_groups:
            for p in group["params"]:
                if group["rho"] > 0 and p in base:
                    state = self._state(p)
                    v, steps = state["exp_avg_sq"], int(state["step"])
                    ascents[p] = Ascent(p, base[p], v, steps, group["betas"][1], group["eps"], group["rho"])
        return ascents

    # -- the step ---------------------------------------------------------------------------------------

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return cast("dict[str, Any]", state)

    def _moment(self, index: int, name: str, parameter: Tensor, plan: Plan) -> Moment:
        gradient = cast(Tensor, parameter.grad)
        state = self._state(parameter)
        stale = state.get("shear")
        if plan.decision.sync:
            return Moment(index, name, parameter, gradient, plan.base.get(parameter), stale, state, False)
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

    def _step_group(self, group: dict[str, Any], first: int, plan: Plan, observed: list[TensorRecord] | None) -> None:
        indices = range(first, first + len(group["params"]))
        names = group.get("param_names") or [f"parameter {i}" for i in indices]
        rows = zip(indices, names, group["params"], strict=True)
        moments = [self._moment(i, n, p, plan) for i, n, p in rows if p.grad is not None]
        if not moments:
            return
        if plan.decision.sync:
            self._store_shears(moments, plan)
        A = whitened(moments, group["betas"], group["eps"])
        if group["weight_decay"] != 0:
            torch._foreach_mul_([m.parameter for m in moments], 1 - group["lr"] * group["weight_decay"])
        taken = [apply_step(group, m.parameter, a) for m, a in zip(moments, A, strict=True)]
        if observed is not None:
            steps = zip(moments, A, taken, strict=True)
            observed += [tensor_record(moment, a, step, group, plan) for moment, a, step in steps]

    def _store_shears(self, moments: Sequence[Moment], plan: Plan) -> None:
        if not self._stores_shear:
            return
        for moment in moments:
            if moment.base is None or moment.parameter not in plan.moves:
                continue
            moment.state["shear"] = residual(moment.gradient, moment.base)
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
            newton_schulz=ns.coefficients(first["newton_schulz"], first["ns_steps"]),
            tensors=tensors,
        )
        for callback in list(self._observers.values()):
            callback(record)
