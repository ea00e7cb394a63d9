"""Memory of a curvature evaluation, in copies of the parameters; docs, price and tests state it by this module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lossscope.landscape.measures.measure import EIGENVALUES
from lossscope.landscape.measures.measure_group import Names
from lossscope.probes.eigenvalues.measure import spectrum_copies

__all__ = ["EVALUATION_COPIES", "evaluation_copies", "measure_copies"]

EVALUATION_COPIES: Final = 4  # the last step, and eigenvectors kept from one evaluation to the next
_ONE_PRODUCT: Final = 20  # gradients and a product in float64, and the step
_METRIC: Final = 8  # the diagonal of the metric and its root in float64, and scaled vectors
_PAIRS: Final = {
    **{name: count for count, name in enumerate(EIGENVALUES, 1)},
    "sharpness_edge_ratio": 1,
    "preconditioned_sharpness": 1,
    "preconditioned_edge_ratio": 1,
    "top_share": 1,
    "gradient_rayleigh": 1,
    "gradient_cosine": 1,
    "top5_share": 5,
}
_WHOLE: Final = {
    *("trace", "frobenius", "density", "negative_mass", "effective_rank", "participation_ratio", "adaptive_trace")
}


def measure_copies(names: Names, max_products: int) -> int:
    """Return the vectors of the length of the parameters that measures of one group hold at most, taken together.

    Args:
        names: Measures of one group.
        max_products: Budget of products.

    Returns:
        The number of copies of the parameters; see `spectrum_copies` for what is not counted.
    """
    pairs = max((_PAIRS.get(name, 0) for name in names), default=0) + ("lambda_min" in names)
    whole = bool(names & _WHOLE)
    if not pairs and not whole:
        return _ONE_PRODUCT
    scaled = _METRIC if any(name.startswith(("preconditioned", "adaptive")) for name in names) else 0
    return spectrum_copies(max_products, pairs=pairs, only_pairs=not whole) + scaled


def evaluation_copies(groups: Iterable[Names], max_products: int) -> int:
    """Return the copies of the parameters that an evaluation holds at most, group after group.

    Args:
        groups: Measures of each group.
        max_products: Budget of products of each.

    Returns:
        The number of copies.
    """
    return max((measure_copies(names, max_products) for names in groups), default=0) + EVALUATION_COPIES
