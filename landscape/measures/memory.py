"""Memory of a curvature evaluation, in copies of the parameters; docs, price and tests state it by this module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lossscope.landscape.measures.measure_group import MeasureGroup, Names, Vectors

__all__ = ["EVALUATION_COPIES", "METRIC_COPIES", "evaluation_copies", "krylov_vectors", "measure_copies"]

EVALUATION_COPIES: Final = 4  # the last step, and eigenvectors kept from one evaluation to the next
METRIC_COPIES: Final = 8  # a diagonal and its root in float64, and scaled vectors
_ONE_PRODUCT: Final = 20  # gradients and a product in float64, and the step
_SPARING: Final = 12  # a recurrence of three vectors, a product and a probe, where nothing is measured in float64


def krylov_vectors(
    pairs: Callable[[Names], int], *, whole: Callable[[Names], bool] = lambda names: False, beside: int = 0
) -> Vectors:
    """Return the declaration `MeasureGroup.vectors` of measures in a Krylov space.

    Args:
        pairs: `pairs(names)` returns the number of eigenpairs at both ends together.
        whole: `whole(names)` returns True if they need the whole space: traces, norms and densities.
        beside: Further vectors.
    """

    def vectors(names: Names, max_products: int) -> int:
        from lossscope.probes.eigenvalues.spectrum_request import spectrum_copies

        count, all_of_it = pairs(names), whole(names)
        if not count and not all_of_it:
            return _ONE_PRODUCT
        return spectrum_copies(max_products, pairs=count, only_pairs=not all_of_it) + beside

    return vectors


def measure_copies(group: MeasureGroup, names: Names, max_products: int) -> int:
    """Return the vectors of the length of the parameters that measures of one group hold at most, taken together.

    Args:
        group: The group.
        names: Some of its measures.
        max_products: Budget of products.

    Returns:
        The number of copies of the parameters; see `spectrum_copies` for what is not counted.
    """
    return _ONE_PRODUCT if group.vectors is None else group.vectors(names, max_products)


def evaluation_copies(measured: Iterable[tuple[MeasureGroup, Names]], max_products: int, fit: int | None = None) -> int:
    """Return the copies of the parameters that an evaluation holds at most, group after group.

    Args:
        measured: Each group with those of its measures that are taken.
        max_products: Budget of products of each.
        fit: Copies that the memory of an evaluation holds; None for no limit.

    Returns:
        The number of copies.
    """
    most = max((measure_copies(group, names, max_products) for group, names in measured), default=0)
    if fit is not None:
        from lossscope.probes.eigenvalues.memory_plan import REFERENCE

        most = min(most, max(fit + METRIC_COPIES, _ONE_PRODUCT if fit >= REFERENCE else _SPARING))
    return most + EVALUATION_COPIES
