"""Request for quantities of a spectrum: what it implies for the Krylov space, the products and the memory."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lossscope.probes.eigenvalues.extreme_pairs import WHOLE, restart_dimensions
from lossscope.probes.eigenvalues.memory_plan import REFERENCE, MemoryPlan, memory_plan
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator

__all__ = ["QUANTITIES", "SpectrumRequest", "least_products", "spectrum_copies", "spectrum_plan", "spectrum_request"]

QUANTITIES: Final = ("top", "bottom", "trace", "frobenius", "density")
_PAIR_WORK: Final = REFERENCE  # vectors beside a basis: those of a product in float64, and others
_WORK: Final = 18  # and with the products of the first random probes
_SPACE: Final = 4  # smallest dimension of a space
_SAMPLES: Final = 2  # random vectors needed for a standard error
_PROBES: Final = 10  # products reserved for the probes, at least
_PROBES_SHARE: Final = 3  # and one third of the budget


@dataclass(frozen=True)
class SpectrumRequest:
    """A request for spectral quantities, and the Krylov dimension and budget it implies."""

    wanted: frozenset[str]
    top: int
    bottom: int
    rel: float
    trace_rel: float
    max_products: int
    seed: int
    proof: bool = True

    @property
    def probes(self) -> tuple[str, ...]:
        """Requested quantities that are estimated by random probes."""
        return tuple(name for name in ("trace", "frobenius") if name in self.wanted)

    @property
    def pairs(self) -> tuple[int, int]:
        """Number of eigenpairs at the upper and at the lower end."""
        return self.top * ("top" in self.wanted), self.bottom * ("bottom" in self.wanted)

    @property
    def krylov(self) -> bool:
        """True if a quantity is read off the Krylov space itself."""
        return bool(self.wanted & {"top", "bottom", "density"})

    @property
    def least(self) -> int:
        """Smallest dimension of a space with all requested pairs."""
        return max(sum(self.pairs) + 1, _SPACE)

    def space_budget(self, size: int) -> int:
        """Return the part of the budget for the space before the probes; all products that a small matrix needs."""
        if size <= min(WHOLE, self.max_products):
            return size
        kept = max(_PROBES, self.max_products // _PROBES_SHARE) if self.probes else 0
        return max(self.max_products - kept, self.max_products // 2, min(self.least, self.max_products))

    @property
    def width(self) -> int:
        """Block width: 2 if multiple eigenvalues or the density matter."""
        return 2 if max(self.pairs) > 1 or "density" in self.wanted else 1

    @property
    def comparisons(self) -> int:
        """Number of products that are compared with those of another precision, at most.

        Two for eigenpairs, of an eigenvector and of a random vector that serves the probes, too; else one for the
        probes; and one for a density unless eigenpairs alone are beside it.
        """
        pairs, probes = any(self.pairs), bool(self.probes)
        return (2 if pairs else int(probes)) + ("density" in self.wanted and (probes or not pairs))

    @property
    def only_pairs(self) -> bool:
        """True if no other quantity than eigenpairs is requested, for which a long space may be restarted."""
        return self.wanted <= {"top", "bottom"}

    @property
    def only_density(self) -> bool:
        """True if the density is the only quantity that decides when the space is large enough."""
        return self.wanted == {"density"}

    @property
    def work(self) -> int:
        """Number of vectors held beside a basis."""
        return (_PAIR_WORK if self.only_pairs else _WORK) + sum(self.pairs)

    def check_budget(self, size: int) -> None:
        """Raise if the budget is too small for the requested quantities."""
        least = least_products(size, pairs=sum(self.pairs), space=self.krylov, probes=bool(self.probes))
        if self.max_products < least:
            raise ProbeError(
                f"max_products must be at least {least} for {', '.join(sorted(self.wanted))} "
                f"(top={self.top}, bottom={self.bottom}), got {self.max_products}: raise it or request less"
            )


def least_products(size: int, *, pairs: int, space: bool, probes: bool) -> int:
    """Return the smallest possible budget: a space with the pairs and one more, and two probes.

    Args:
        size: `n`.
        pairs: Number of eigenpairs at both ends together.
        space: True if a quantity is read off the Krylov space.
        probes: True if random probes are needed.

    Returns:
        The number of products; `measure_spectrum` raises for fewer.
    """
    least = min(size, max(pairs + 1, _SPACE)) if space else 0
    return least + (_SAMPLES if probes and size > least else 0)


def spectrum_copies(max_products: int, *, pairs: int, only_pairs: bool) -> int:
    """Return the vectors of the length of the parameters that `measure_spectrum` holds at most at a time.

    A basis has as many as products were taken; one for eigenpairs alone is cut where it is long. Parameters in float32
    are assumed: beside those in float64 less is needed. Not counted are about 8 MiB, and the graphs of the loss.

    Args:
        max_products: Budget of products.
        pairs: Number of eigenpairs at both ends together.
        only_pairs: True if nothing else is requested; False for the trace, the norm or the density too.

    Returns:
        The number, in units of the parameters in their own dtype.
    """
    if only_pairs:
        return min(max_products, restart_dimensions(sys.maxsize, pairs)) + _PAIR_WORK + pairs
    return max_products + _WORK + pairs


def spectrum_request(
    operator: SymmetricOperator,
    quantities: Collection[str] | None,
    pairs: tuple[int, int],
    accuracy: tuple[float, float],
    max_products: int,
    *,
    seed: int = 0,
    proof: bool = True,
) -> SpectrumRequest:
    """Return a request after checking it, as `measure_spectrum` does.

    Args:
        operator: `(n, n)`.
        quantities: As for `measure_spectrum`, as the rest.
        pairs: `top` and `bottom`.
        accuracy: `rel` and `trace_rel`.
        max_products: Budget of products.
        seed: Seed.
        proof: False to stop by residuals alone.

    Raises:
        ProbeError: An argument is out of range, or the budget is too small for the quantities.
    """
    _check(*pairs, accuracy)
    top, bottom = (min(count, operator.size) for count in pairs)
    request = SpectrumRequest(_wanted(quantities), top, bottom, *accuracy, max_products, seed, proof)
    request.check_budget(operator.size)
    return request


def spectrum_plan(
    operator: SymmetricOperator, request: SpectrumRequest, memory: int | str | None, spill: str | Path | None
) -> MemoryPlan:
    """Return the plan of a request for a memory budget, see `memory_plan`."""
    pairs = sum(request.pairs)
    dimensions = restart_dimensions(operator.size, pairs) if request.only_pairs else operator.size
    return memory_plan(
        operator,
        memory,
        spill,
        work=request.work,
        basis=min(request.max_products, dimensions),
        pairs=pairs,
    )


def _wanted(quantities: Collection[str] | None) -> frozenset[str]:
    """Return the set of quantities to compute."""
    wanted = frozenset(QUANTITIES if quantities is None else quantities)
    if not wanted or isinstance(quantities, str):
        raise ProbeError(f"quantities must be None for all, or a tuple of {', '.join(QUANTITIES)}, got {quantities!r}")
    if unknown := sorted(wanted - set(QUANTITIES)):
        raise ProbeError(f"unknown quantities {unknown}: use some of {', '.join(QUANTITIES)}")
    return wanted


def _check(top: int, bottom: int, rels: tuple[float, ...]) -> None:
    """Raise if an argument is out of range."""
    for name, count in (("top", top), ("bottom", bottom)):
        if count < 1:
            raise ProbeError(f"{name} must be at least 1 eigenpair, got {count}: for none, name the other quantities")
    for rel in rels:
        if not 0 < rel < 1:
            raise ProbeError(f"rel must be between 0 and 1, got {rel:g}")
