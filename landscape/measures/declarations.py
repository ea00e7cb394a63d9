"""Parts of which entries of the catalogue are made: invariances in words, schedules, and least numbers of products."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from lossscope.landscape.measures.measure_group import Evaluation, LeastProducts, Names

__all__ = ["DIAGONAL", "EVERY", "LINEAR", "OPTIMIZER", "RESCALING", "ROTATIONS", "krylov", "long"]

EVERY: Final = "every function-preserving map"
ROTATIONS: Final = "rotations only"
LINEAR: Final = "every linear map"
DIAGONAL: Final = "every diagonal rescaling"
RESCALING: Final = "every rescaling of neurons, channels and layers that is known"
OPTIMIZER: Final = "those maps that its optimizer's own metric follows"


def long(*names: str) -> Callable[[Evaluation], Collection[str]]:
    """Return a schedule of the long evaluations."""
    return lambda evaluation: names if evaluation.long else ()


def krylov(pairs: Callable[[Names], int], *, space: bool = True, probes: bool = False) -> LeastProducts:
    """Return the rule of a measurement by a Krylov space, random probes or both."""

    def least(names: Names, size: int) -> int:
        from lossscope.probes.eigenvalues.spectrum_request import least_products

        return least_products(size, pairs=pairs(names), space=space, probes=probes)

    return least
