"""Who watches an optimizer step, and what is handed to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lossscope.optimizer.ascent.two_pass import StepPlan
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.update import newton_schulz as ns
from lossscope.optimizer.update.adam import OF_ASCENT, ParameterStep, Update

__all__ = ["CounterfactualUpdate", "Observers"]

Group = dict[str, Any]


class CounterfactualUpdate:
    """The updates of one step had every parameter's plain gradient fed its moments, computed when called.

    The step's own arithmetic is run on copies, so that neither it nor the training is touched.

    Args:
        take: How the optimizer moves the parameters of a group.
    """

    def __init__(self, take: Callable[[Group, Sequence[ParameterStep]], list[Update]]) -> None:
        self._take = take
        self._held: list[tuple[Group, list[ParameterStep]]] | None = []
        self._found: dict[str, Tensor] | None = None

    def hold(self, group: Group, moments: Sequence[ParameterStep]) -> None:
        """Copy what a step of a group starts from; called before it is taken."""
        if self._held is not None:
            self._held.append((dict(group), [_copied(moment) for moment in moments]))

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """`lr * scale * direction` of each parameter by its name, without the decay.

        Raises:
            OptimizerError: The callback that got the record has returned.
        """
        if self._held is None:
            raise OptimizerError("uninjected() was called after its callback returned; call it within the callback")
        if self._found is None:
            self._found = {}
            for group, moments in self._held:
                for moment, taken in zip(moments, self._take(group, moments), strict=True):
                    self._found[moment.name] = taken.direction * (taken.scale * group["lr"])
        return dict(self._found)

    def close(self) -> None:
        """Let go of the copies."""
        self._held = self._found = None


def _copied(moment: ParameterStep) -> ParameterStep:
    """The moment with a parameter and a state of its own, fed the plain gradient."""
    own = {key: value for key, value in moment.state.items() if key not in OF_ASCENT}
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in own.items()}
    plain = cast(Tensor, moment.base)  # injection happens where there is no second gradient, so it is there
    return replace(moment, parameter=moment.parameter.detach().clone(), state=state, gradient=plain, injected=False)


class Observers:
    """The callbacks that get a record of every step, in the order they came."""

    def __init__(self) -> None:
        self._callbacks: OrderedDict[int, Callable[[StepRecord], None]] = OrderedDict()
        self._asking: OrderedDict[int, None] = OrderedDict()  # those that want counterfactuals

    def add(self, callback: Callable[[StepRecord], None], *, counterfactual: bool) -> RemovableHandle:
        """A handle that removes the callback."""
        handle = RemovableHandle(self._callbacks, extra_dict=self._asking)
        self._callbacks[handle.id] = callback
        if counterfactual:
            self._asking[handle.id] = None
        return handle

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    @property
    def want_counterfactuals(self) -> bool:
        """Whether one of them does."""
        return bool(self._asking)

    def tell(
        self,
        settings: Mapping[str, Any],
        plan: StepPlan,
        tensors: Sequence[TensorRecord],
        uninjected: CounterfactualUpdate | None,
    ) -> None:
        """Hand the record of a step to each; what it could be asked for is let go when they return."""
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
            newton_schulz=_polynomials(settings),
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
    """Those of Newton-Schulz, none in a method without it."""
    return ns.coefficients(settings["newton_schulz"], settings["ns_steps"]) if "newton_schulz" in settings else ()
