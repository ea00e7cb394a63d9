"""What of the shear a parameter keeps after a second gradient, and what it is fed of it between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from lossscope.optimizer.ascent.plan import Plan
from lossscope.optimizer.ascent.seeded_noise import Draw
from lossscope.optimizer.ascent.shear import placebo, residual
from lossscope.optimizer.update.adam import Moment

__all__ = ["direction_of", "store_shears"]


def direction_of(settings: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    """What is injected into the gradient of a parameter with this state; None where nothing is.

    Args:
        settings: Of the optimizer.
        state: Of the parameter.
    """
    kind = settings["shear"]
    if kind == "off":
        return None
    stored = cast("Tensor | None", state.get("placebo" if kind == "placebo" else "shear"))
    return -stored if kind == "signflip" and stored is not None else stored


def store_shears(settings: Mapping[str, Any], moments: Sequence[Moment], plan: Plan) -> None:
    """Keep the shear of each parameter that has both gradients, where the mode has a use for it between two.

    Args:
        settings: Of the optimizer.
        moments: Of a step with a second gradient.
        plan: Of that step.
    """
    used = settings["mode"] == "aga" or (settings["mode"] in ("lazy", "timer") and settings["shear"] != "off")
    for moment in moments if used else ():
        if moment.base is None or moment.parameter not in plan.moves:
            continue
        shear = residual(cast(Tensor, moment.raised), moment.base)
        moment.shear = moment.state["shear"] = shear
        if settings["shear"] == "placebo":
            draw = Draw("placebo", settings["seed"], plan.decision.after.clock, moment.index)
            moment.state["placebo"] = placebo(shear, moment.base, draw)
