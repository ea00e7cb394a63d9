"""Observers of optimizer steps, and the records they are given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lossscope.optimizer.ascent.shear import SHEAR_STATE
from lossscope.optimizer.ascent.two_pass import StepPlan
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.update import newton_schulz as ns
from lossscope.optimizer.update.adam import ParameterStep, Update
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.rule import Group, Rule

__all__ = ["CounterfactualUpdate", "Observers", "tensor_record"]


class CounterfactualUpdate:
    """The updates one step would have made from the plain gradients, without the injected shear; computed when called.

    The arithmetic of the step is run on copies, so neither the step nor the training changes.

    Args:
        take: The optimizer's function that moves the parameters of a group.
    """

    def __init__(self, take: Callable[[Group, Sequence[ParameterStep]], list[Update]]) -> None:
        self._take = take
        self._copies: list[tuple[Group, list[ParameterStep]]] | None = []
        self._failure: str | None = None
        self._found: dict[str, Tensor] | None = None

    def copy(self, group: Group, moments: Sequence[ParameterStep]) -> None:
        """Copy the parameters and the state of a group before its step.

        A copy that fails, as memory runs out, is an error of the call that needs it and not of the step.
        """
        if self._copies is None:
            return
        try:
            self._copies.append((dict(group), [_copied(moment) for moment in moments]))
        except Exception as error:
            self._failure, self._copies = f"{type(error).__name__}: {error}".splitlines()[0], None

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """Return `lr * scale * direction` by parameter name, without the decay.

        Raises:
            OptimizerError: The callback that got the record has returned, or the copies could not be made.
        """
        if self._failure is not None:
            raise OptimizerError(f"the state before the step could not be copied: {self._failure}")
        if self._copies is None:
            raise OptimizerError("uninjected() was called after its callback returned; call it inside the callback")
        if self._found is None:
            self._found = {}
            for group, moments in self._copies:
                for moment, taken in zip(moments, self._take(group, moments), strict=True):
                    self._found[moment.name] = taken.direction * (taken.scale * group["lr"])
        return dict(self._found)

    def close(self) -> None:
        """Release the copies."""
        self._copies = self._found = None


def _copied(moment: ParameterStep) -> ParameterStep:
    """Return the moment with copies of its parameter and state, and with the plain gradient."""
    own = {key: value for key, value in moment.state.items() if key not in SHEAR_STATE}
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in own.items()}
    plain = cast(Tensor, moment.base)  # present, as injection happens on steps without a second gradient
    return replace(moment, parameter=moment.parameter.detach().clone(), state=state, gradient=plain, injected=False)


class Observers:
    """Callbacks that get the record of every step, in the order in which they were added."""

    def __init__(self) -> None:
        self._callbacks: OrderedDict[int, Callable[[StepRecord], None]] = OrderedDict()
        self._counterfactual: OrderedDict[int, None] = OrderedDict()  # callbacks that need counterfactuals

    def add(self, callback: Callable[[StepRecord], None], *, counterfactual: bool) -> RemovableHandle:
        """Add a callback and return the handle that removes it."""
        handle = RemovableHandle(self._callbacks, extra_dict=self._counterfactual)
        self._callbacks[handle.id] = callback
        if counterfactual:
            self._counterfactual[handle.id] = None
        return handle

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    @property
    def want_counterfactuals(self) -> bool:
        """True if a callback needs counterfactual updates."""
        return bool(self._counterfactual)

    def notify(
        self,
        settings: Mapping[str, Any],
        plan: StepPlan,
        tensors: Sequence[TensorRecord],
        uninjected: CounterfactualUpdate | None,
        *,
        orthogonalizes: bool,
    ) -> None:
        """Call each callback with the record of a step, and release the counterfactual copies afterwards."""
        decision = plan.decision
        record = StepRecord(
            step=decision.after.clock,
            mode=settings["mode"],
            synced=decision.sync,
            loss=plan.losses[0],
            adversarial_loss=plan.losses[1],
            phi=decision.phi,
            threshold=decision.threshold,
            alpha=decision.alpha if any(t.injected is not None for t in tensors) else None,
            newton_schulz=_polynomials(settings) if orthogonalizes else (),
            ns_norm=settings.get("ns_norm"),
            uninjected=uninjected,
            tensors=tuple(tensors),
        )
        try:
            for callback in list(self._callbacks.values()):
                callback(record)
        finally:
            if uninjected is not None:
                uninjected.close()


def _polynomials(settings: Mapping[str, Any]) -> tuple[ns.Triple, ...]:
    """Return the polynomials of Newton-Schulz."""
    return ns.coefficients(settings["newton_schulz"], settings["ns_steps"])


def tensor_record(moment: ParameterStep, taken: Update, rule: Rule, group: Group, plan: StepPlan) -> TensorRecord:
    """Return the record of one parameter.

    Args:
        moment: The parameter and its gradients.
        taken: Its update.
        rule: The rule that made the update.
        group: Its parameter group.
        plan: Plan of the step.
    """
    p, state, adam = moment.parameter, moment.state, rule.adam_moments
    return TensorRecord(
        name=moment.name,
        track=track_of(group, p),
        parameter=p,
        gradient=moment.base,
        perturbation=plan.moves.get(p),
        adversarial=moment.raised,
        stale_shear=moment.stale_shear,
        shear=moment.shear,
        injected=moment.gradient if moment.injected else None,
        followed=moment.gradient,
        exp_avg=state["exp_avg"] if adam else None,
        exp_avg_sq=state["exp_avg_sq"] if adam else None,
        first_correction=1 - group["betas"][0] ** moment.steps if adam else None,
        second_correction=1 - group["betas"][1] ** moment.steps if adam else None,
        eps=group["eps"] if adam else None,
        momentum=None if rule.momentum is None else state.get(rule.momentum),
        whitened=taken.whitened,
        source=taken.source,
        orthogonal=taken.orthogonal,
        direction=taken.direction,
        scale=taken.scale,
        lr=group["lr"],
        matrix_shape=taken.matrix_shape,
    )
