"""The shear: the component of the adversarial gradient orthogonal to the base gradient.

On steps between two sync steps the stored shear is added to the plain gradients (LookSAM, Liu et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from torch import Tensor

from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.two_pass import StepPlan
from lossscope.optimizer.update import sums
from lossscope.optimizer.update.adam import ParameterStep

__all__ = ["SHEARS", "SHEAR_STATE", "direction_of", "injected", "misalignment", "placebo", "residual", "store_shears"]

SHEARS: Final = ("looksam", "placebo", "signflip", "off")
SHEAR_STATE: Final = frozenset({"shear", "placebo"})  # state keys of the ascent, beside those of the rule

_FLOOR: Final = 1e-12


def residual(adversarial: Tensor, gradient: Tensor) -> Tensor:
    """Return `g_adv - <g_adv, g> / <g, g> g`, which is orthogonal to the gradient and not normalized.

    As in the published code 1e-12 is added to `<g, g>`. For gradients with a norm below about 1e-5 that is not small:
    the result then keeps a part of the gradient.
    """
    return sums.plus(adversarial, gradient, -sums.share([adversarial], [gradient], _FLOOR))


def placebo(shear: Tensor, gradient: Tensor, draw: SeededNoise) -> Tensor:
    """Return a random vector orthogonal to the gradient with the norm of the shear, as an ablation control."""
    noise = residual(draw.normal_like(shear), gradient)
    return sums.times(noise, sums.norm(shear) / (sums.norm(noise) + _FLOOR))


def injected(gradient: Tensor, shear: Tensor, alpha: float) -> Tensor:
    """Return `g + alpha |g| / |s| s`: the added term has norm `alpha |g|`, independent of the norm of the shear."""
    return sums.plus(gradient, shear, alpha * sums.norm(gradient) / (sums.norm(shear) + _FLOOR))


def misalignment(gradients: Sequence[Tensor], shears: Sequence[Tensor]) -> float | None:
    """Return phi, the signed cosine between the gradient and the stored shear over all tensors that have one.

    It takes three sums per tensor and one host synchronization. The result is None if no shear is stored yet. As in the
    published code 1e-12 is added to the product of both norms, so that phi is too small if they are below about 1e-5.
    """
    if not shears:
        return None
    return float(sums.cosine(gradients, shears, _FLOOR))


def direction_of(settings: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    """Return the vector that is injected into the gradient of a parameter with this state, or None.

    Args:
        settings: Settings of the optimizer.
        state: State of the parameter.
    """
    kind = settings["shear"]
    if kind == "off":
        return None
    stored = cast("Tensor | None", state.get("placebo" if kind == "placebo" else "shear"))
    return -stored if kind == "signflip" and stored is not None else stored


def store_shears(settings: Mapping[str, Any], moments: Sequence[ParameterStep], plan: StepPlan) -> None:
    """Store the shear of each parameter that has both gradients, in modes that use it on later steps.

    Args:
        settings: Settings of the optimizer.
        moments: Parameters of a step with a second gradient.
        plan: Plan of that step.
    """
    used = settings["mode"] == "aga" or (settings["mode"] in ("lazy", "timer") and settings["shear"] != "off")
    for moment in moments if used else ():
        if moment.base is None or moment.parameter not in plan.moves:
            continue
        shear = residual(cast(Tensor, moment.raised), moment.base)
        moment.shear = moment.state["shear"] = shear
        if settings["shear"] == "placebo":
            draw = SeededNoise("placebo", settings["seed"], plan.decision.after.clock, moment.index)
            moment.state["placebo"] = placebo(shear, moment.base, draw)
