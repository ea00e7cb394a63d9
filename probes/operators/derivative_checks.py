"""Checks that a second derivative by autograd is right, by differences of gradients and by other methods."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from torch import Tensor

from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.finite_differences import Differences, relative_distance
from lossscope.probes.operators.second_derivative import (
    HessianProduct,
    SecondDerivativeError,
    StoppedGradientError,
    by_forward,
    by_reverse,
)
from lossscope.probes.operators.stopped_gradient import stops_gradients
from lossscope.probes.sums import dot, norm

__all__ = ["check_adjoint", "check_product", "require_agreement", "require_second_derivative"]

_WRONG: Final = 0.01  # relative error above which a product contradicts settled differences
_AGREE: Final = 1e-3  # relative distance below which two differences are settled, or two products the same
_MARGIN: Final = 10.0  # disagreements of two differences by which a product may be off
_FLOOR: Final = 1e-6  # share of the whole product below which a part is not resolved
_STRETCHES: Final = (0.1, 0.01)  # factors on the step of differences; the first is compared with the full step
_FINE: Final = 1e-12  # rounding unit below which two exact products are equal
_ROUNDINGS: Final = 16.0  # rounding units by which the two sides of an adjoint identity may differ


def require_second_derivative(objective: Objective) -> None:
    """Raise if autograd gets the second derivative of an objective silently wrong.

    Where the graph of the loss has functions that are not known to be right (see `graph_facts`), one product of the
    first batch is compared with differences of gradients, once per objective: at most nine gradients of that batch.

    Args:
        objective: The loss.

    Raises:
        SecondDerivativeError: the two differ.
        StoppedGradientError: the loss stops gradients and forward mode does not confirm the product.
    """
    if "reverse" in objective.verified:
        return
    with objective.evaluating():
        if objective.graph is None:
            next(objective.gradients())
        if objective.graph is None or objective.graph.unverified:
            check_product(objective, by_reverse, "reverse")
    objective.verified |= {"reverse"}


def require_agreement(objective: Objective, product: HessianProduct, method: str) -> None:
    """Raise if a method gets the Hessian of an objective silently wrong.

    One product of the first batch is compared with one by `reverse`, once per objective and method; where that one is
    missing, wrong or another, with differences of gradients.

    Args:
        objective: The loss.
        product: Multiplies a vector `(n,)` by the Hessian of one batch of the given objective.
        method: Name of the method.

    Raises:
        SecondDerivativeError: they differ.
    """
    if method in objective.verified:
        return
    with objective.evaluating():
        frozen, at = _first_batch(objective)
        differences = Differences(frozen, at)
        wide, probe = differences.objective, differences.probe
        with _without_verdict():
            found = product(wide, at, probe)
            expected = _verified_reverse(objective, differences, at)
            known = expected is not None and bool(expected.isfinite().all())
            error = relative_distance(expected, found) if expected is not None and known else math.nan
            if not error <= _AGREE and not _compare(objective, differences, at, found, method):
                _require_doubt(expected, error, wide, method)
    objective.verified |= {method}


def check_product(objective: Objective, product: HessianProduct, method: str) -> None:
    """Raise if a Hessian product of an objective differs from differences of gradients.

    They are compared parameter by parameter. Where differences do not settle as the step shrinks (a kink within it,
    rounding), or differ on the two sides of the parameters (a junction of two pieces), nothing is concluded.

    Args:
        objective: The loss.
        product: Multiplies a vector `(n,)` by the Hessian of one batch of the given objective.
        method: The name of the method, for the message.

    Raises:
        SecondDerivativeError: the two differ by more than 1 % and by more than ten times what differences of two
            step sizes do.
    """
    with objective.evaluating():
        frozen, at = _first_batch(objective)
        differences = Differences(frozen, at)
        with _without_verdict():
            found = product(differences.objective, at, differences.probe)
            _compare(objective, differences, at, found, method)


def check_adjoint(objective: Objective, image: Tensor, back: Tensor, direction: Tensor, method: str) -> None:
    r"""Raise if a product with the Jacobian of the outputs is not that of the backward pass.

    With :math:`u = Jv` the backward pass gives :math:`J^\top u`, and :math:`|u|^2 = \langle J^\top u, v\rangle`.

    Args:
        objective: The loss.
        image: u, of any shape.
        back: :math:`J^\top u`, `(n,)`.
        direction: v, `(n,)`.
        method: Name of the method that computed u, for the message.

    Raises:
        SecondDerivativeError: the two sides differ by more than 1 % and by more than rounding.
    """
    size, found = _inner(image, image), _inner(back, direction)
    if abs(size - found) > max(_WRONG, _ROUNDINGS * objective.vector.unit) * max(size, abs(found)):
        raise SecondDerivativeError(
            f"the derivative of the outputs by {method} differs from that of the backward pass by "
            f"{abs(size - found) / max(size, abs(found)):.0%}: a function of the model has a wrong derivative there"
        )


def _compare(objective: Objective, differences: Differences, at: BatchEvaluation, found: Tensor, method: str) -> bool:
    """Raise if a product differs from differences of gradients; return True if all of it was confirmed by them.

    Differences move what a loss with a stopped gradient holds still: another method must confirm the product there.
    """
    split = differences.objective.vector.split
    coarse = differences.along(differences.probe)
    product = split(found)
    open_parts = set(range(len(product)))
    for stretch in _STRETCHES:
        fine = differences.along(differences.probe, stretch)
        total = float(norm(fine))
        settled = {}
        for i, (a, b) in enumerate(zip(split(coarse), split(fine), strict=True)):
            noise, size = float(norm(a - b)), float(norm(b))
            if i in open_parts and math.isfinite(noise) and noise <= _AGREE * size + _FLOOR * total:
                off = float(norm(product[i] - b))
                right = off <= max(_WRONG * size, _MARGIN * noise) + _FLOOR * total
                settled[i] = 0.0 if right or not size else off
        if any(settled.values()):
            sides = [split(side) for side in differences.sides(differences.probe, stretch)]
            gaps = {i: float(norm(sides[0][i] - sides[1][i])) for i, off in settled.items() if off}
            if any(not 2 * gap >= settled[i] for i, gap in gaps.items()):  # also for a product that is not finite
                if stops_gradients(objective):
                    _require_confirmation(differences.objective, at, differences.probe, found, method)
                    return True
                _raise_wrong(objective, differences, relative_distance(fine, found), method)
            settled = {i: off for i, off in settled.items() if not off}
        open_parts -= settled.keys()
        if not open_parts:
            return True
        coarse = fine
    return False


def _require_confirmation(
    objective: Objective, at: BatchEvaluation, direction: Tensor, found: Tensor, method: str
) -> None:
    """Raise unless a product is the same in forward mode; one by another method than `reverse`, by two passes.

    Raises:
        StoppedGradientError: they differ, or the other method cannot take it.
    """
    try:
        other = (by_forward if method == "reverse" else by_reverse)(objective, at, direction)
        if relative_distance(other, found) <= _AGREE:
            return
    except Exception:  # torch raises many types where a derivative is missing
        pass
    names = objective.graph.unverified if objective.graph else ()
    function = " or ".join(names[:3]) or "a function of the loss"
    raise StoppedGradientError(
        "the gradient is not the derivative of the loss, which stops gradients (detach, no_grad) or has a function "
        f"with another backward pass, and no method confirms the derivative of {function}: take what is stopped from "
        "a copy of the model"
    )


def _require_doubt(expected: Tensor | None, error: float, wide: Objective, method: str) -> None:
    """Raise unless rounding may be why a product differs from that by two backward passes, and differences from both.

    Args:
        expected: The product by two backward passes; None where it is missing.
        error: Relative distance of the two.
        wide: The objective with which they were taken.
        method: Name of the method, for the message.

    Raises:
        SecondDerivativeError: one of the two products is wrong, or there is no second derivative.
    """
    if expected is None:
        return
    if math.isnan(error):
        raise SecondDerivativeError(f"the product by method='reverse' is not finite, and that by {method!r} is another")
    if error > _WRONG and wide.vector.unit < _FINE:
        raise SecondDerivativeError(
            f"a product with the Hessian by method={method!r} differs from one by method='reverse' by {error:.0%}: use "
            "hessian(objective)"
        )


def _raise_wrong(objective: Objective, differences: Differences, error: float, method: str) -> None:
    """Raise the error of a product that contradicts differences."""
    graph = objective.graph or differences.objective.graph
    names = graph.unverified if graph else ()
    cause = f"the backward pass of {' or '.join(names[:3])}" if names else "a function of the loss"
    setting = "mode='frozen' and " if objective.mode == "train" else ""
    raise SecondDerivativeError(
        f"a product with the Hessian by method={method!r} differs from finite differences by {error:.0%}: "
        f"{cause} has no derivative of its own, or a wrong one; use {setting}hessian(objective), which falls "
        "back to finite differences"
    )


@contextmanager
def _without_verdict() -> Iterator[None]:
    """Let a comparison end without a verdict where it cannot be made: out of memory, or without a float64 version.

    A method that cannot take products at all raises where it takes them.
    """
    try:
        yield
    except (SecondDerivativeError, StoppedGradientError):
        raise
    except Exception:  # torch raises many types
        return


def _first_batch(objective: Objective) -> tuple[Objective, BatchEvaluation]:
    """Return the objective in a mode that updates no buffers, and its first batch.

    The first batch sees the same buffers in train and frozen mode.
    """
    frozen = copy.copy(objective)
    frozen.mode = "frozen" if objective.mode == "train" else objective.mode
    return frozen, replace(next(frozen.passes()), before=None)


def _verified_reverse(objective: Objective, differences: Differences, at: BatchEvaluation) -> Tensor | None:
    """Return the product by two backward passes; None where it is missing or wrong."""
    wide = differences.objective
    try:
        found = by_reverse(wide, at, differences.probe)
        if "reverse" not in objective.verified and (wide.graph is None or wide.graph.unverified):
            _compare(objective, differences, at, found, "reverse")
    except Exception:  # torch raises many types where a derivative is missing
        return None
    if bool(found.isfinite().all()):
        objective.verified |= {"reverse"}
    return found


def _inner(u: Tensor, v: Tensor) -> float:
    """Return the inner product of two tensors of equal size, in float64."""
    return float(dot(u, v))
