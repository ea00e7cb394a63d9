"""Who watches an optimizer step, and what is handed to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.hooks import RemovableHandle

from lossscope.optimizer.ascent.plan import Plan
from lossscope.optimizer.records.counterfactual import Uninjected
from lossscope.optimizer.records.step_record import StepRecord, TensorRecord
from lossscope.optimizer.update import newton_schulz as ns

__all__ = ["Observers"]


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
        plan: Plan,
        tensors: Sequence[TensorRecord],
        uninjected: Uninjected | None,
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
