"""Residual part of a Hessian: what the second derivatives of the model's outputs add to the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import ProductFacts, Reference
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator

__all__ = ["residual"]


def residual(objective: Objective) -> ObjectiveOperator:
    r"""Return :math:`R = H - G`, the Hessian without its generalized Gauss-Newton part.

    .. math:: R = \frac1N \sum_i \sum_c \frac{\partial \ell_i}{\partial z_{ic}} \nabla^2 z_{ic}

    It is zero for a linear model and where the residuals vanish, has a zero diagonal almost everywhere for a network of
    ReLU and linear layers, and is indefinite in general.

    Args:
        objective: The loss; its `loss_fn` must split into `outputs` and `of_outputs`, as for `gauss_newton`.

    Returns:
        The operator. Each of its products takes one of H and one of G; their rounding is that of H and G, however
        small R is, and is measured where it matters.

    Raises:
        ProbeError: the loss does not split, or its two parts do not give the loss.

    Source:
        Y. Dauphin, A. Agarwala, H. Mobahi (2024), Neglected Hessian component explains mysteries in sharpness
        regularization, arXiv:2401.10809.
    """
    return _difference(hessian(objective), gauss_newton(objective))


def _difference(whole: ObjectiveOperator, part: ObjectiveOperator) -> ObjectiveOperator:
    """Return the operator A - B of two operators of one objective."""

    def product(V: Tensor) -> Tensor:
        return (whole @ V).sub_(part @ V)

    @contextmanager
    def cached() -> Iterator[None]:
        with whole.cached(), part.cached():
            yield

    def reference() -> Reference | None:
        first, second = whole.reference(), part.reference()
        if first is None or second is None:
            return None
        assert isinstance(first.operator, ObjectiveOperator)
        assert isinstance(second.operator, ObjectiveOperator)
        return Reference(
            _difference(first.operator, second.operator),
            max(first.share, second.share),
            first.rounding + second.rounding,
        )

    def facts() -> ProductFacts:
        return ProductFacts(
            ", ".join(dict.fromkeys((whole.method, part.method))),
            max(whole.unit, part.unit),
            gradient_seconds=whole.gradient_seconds,
            fallback_reason=whole.fallback_reason or part.fallback_reason,
        )

    return ObjectiveOperator(
        whole.objective,
        product,
        restrict=lambda names: _difference(whole.restrict(names), part.restrict(names)),
        cached=cached,
        facts=facts,
        reference=reference,
    )
