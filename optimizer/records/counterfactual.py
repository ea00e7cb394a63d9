"""What a step would have been without the shear it injected, from copies that were taken before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update.adam import Moment, Taken
from lossscope.optimizer.update.state import OF_ASCENT

__all__ = ["Uninjected"]

Group = dict[str, Any]


class Uninjected:
    """The updates of one step had every parameter's plain gradient fed its moments, computed when called.

    The step's own arithmetic is run on copies, so that neither it nor the training is touched.

    Args:
        take: How the optimizer moves the parameters of a group.
    """

    def __init__(self, take: Callable[[Group, Sequence[Moment]], list[Taken]]) -> None:
        self._take = take
        self._held: list[tuple[Group, list[Moment]]] | None = []
        self._found: dict[str, Tensor] | None = None

    def hold(self, group: Group, moments: Sequence[Moment]) -> None:
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


def _copied(moment: Moment) -> Moment:
    """The moment with a parameter and a state of its own, fed the plain gradient."""
    own = {key: value for key, value in moment.state.items() if key not in OF_ASCENT}
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in own.items()}
    plain = cast(Tensor, moment.base)  # injection happens where there is no second gradient, so it is there
    return replace(moment, parameter=moment.parameter.detach().clone(), state=state, gradient=plain, injected=False)
