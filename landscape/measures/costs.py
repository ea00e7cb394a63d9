"""Predicted cost of groups of measures, before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.memory import measure_copies
from lossscope.landscape.measures.options import SolverOptions

if TYPE_CHECKING:
    from lossscope.probes.budget import Price

__all__ = ["GroupCost", "costs_of"]

_COMPARISONS: Final = 3  # products that are taken once more in another precision, at most


@dataclass(frozen=True)
class GroupCost:
    """Cost of the measures of one group at most."""

    group: str
    measures: tuple[str, ...]
    least: int | None  # products without which nothing is measured; None for a group without a budget of products
    products: int | None  # products at most
    vectors: int  # of the length of the parameters, held at most at a time
    bytes: int  # of the vectors, and of what a product takes
    seconds: float | None  # of all products, and of the sums and comparisons that go with them
    gradients: float | None  # that time over the time of a gradient

    @property
    def budgeted(self) -> bool:
        """True if the group spends Hessian products, of which there is a largest number."""
        return self.products is not None


def costs_of(chosen: Mapping[str, Collection[str]], options: SolverOptions, price: Price, room: int) -> list[GroupCost]:
    """Return the cost of groups of measures at most.

    Args:
        chosen: Measures by group.
        options: Budget of products.
        price: Cost of one product.
        room: Bytes for the vectors of a measurement; where the basis does not fit, a part of it is held.
    """
    return [_cost(group, frozenset(names), options, price, room) for group, names in chosen.items()]


def _cost(group: str, names: frozenset[str], options: SolverOptions, price: Price, room: int) -> GroupCost:
    """Return the cost of some measures of one group."""
    from lossscope.probes.eigenvalues.memory_plan import REFERENCE

    entry = GROUPS[group]
    copies = measure_copies(entry, names, min(options.max_products, price.parameters))
    vectors = min(copies, max(room // price.vector_bytes, 3))
    size = vectors * price.vector_bytes + (price.product_bytes or 0)
    ordered = tuple(name for name in entry.names if name in names)
    if entry.least_products is None:
        return GroupCost(group, ordered, None, None, vectors, size, None, None)
    least, products = entry.least_products(names, price.parameters), options.max_products
    seconds = price.seconds(products, _COMPARISONS if room >= REFERENCE * price.vector_bytes else 0)
    return GroupCost(group, ordered, least, products, vectors, size, seconds, seconds / price.gradient_seconds)
