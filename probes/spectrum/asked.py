"""What is asked of a spectrum, and what follows for the space and for the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lossscope.probes.errors import ProbeError
from lossscope.probes.spectrum.extreme_pairs import WHOLE

__all__ = ["Asked", "least_products"]

_SPACE: Final = 4  # dimensions of the smallest space
_SAMPLES: Final = 2  # random vectors that give a standard error
_PROBES: Final = 10  # products that are kept for the probes at least
_PROBES_SHARE: Final = 3  # and the part of the budget, one third
_FEW: Final = 16  # products that ends usually take


@dataclass(frozen=True)
class Asked:
    """What is asked for."""

    wanted: frozenset[str]
    top: int
    bottom: int
    rel: float
    trace_rel: float
    max_products: int
    seed: int

    @property
    def probes(self) -> tuple[str, ...]:
        """The quantities that random probes give."""
        return tuple(name for name in ("trace", "frobenius") if name in self.wanted)

    @property
    def pairs(self) -> tuple[int, int]:
        """Pairs wanted at the upper and at the lower end."""
        return self.top * ("top" in self.wanted), self.bottom * ("bottom" in self.wanted)

    @property
    def krylov(self) -> bool:
        """Whether anything is read off the Krylov space itself."""
        return bool(self.wanted & {"top", "bottom", "density"})

    @property
    def expected(self) -> int:
        """A guess at the products it will take."""
        return min(self.max_products, sum(self.pairs) + _FEW * (self.krylov + bool(self.probes)))

    @property
    def least(self) -> int:
        """Dimensions of the space that hold all pairs asked for."""
        return max(sum(self.pairs) + 1, _SPACE)

    def for_the_space(self, size: int) -> int:
        """The part of the budget that the space may take before the probes; all that a small one needs."""
        if size <= min(WHOLE, self.max_products):
            return size
        kept = max(_PROBES, self.max_products // _PROBES_SHARE) if self.probes else 0
        return max(self.max_products - kept, self.max_products // 2, min(self.least, self.max_products))

    @property
    def width(self) -> int:
        """Vectors of a block: two where copies of eigenvalues or the density matter."""
        return 2 if max(self.pairs) > 1 or "density" in self.wanted else 1

    @property
    def density_alone(self) -> bool:
        """Whether nothing else says when the space is large enough."""
        return self.wanted == {"density"}

    def check_budget(self, size: int) -> None:
        """Refuse a budget that cannot hold what is asked for."""
        least = least_products(size, pairs=sum(self.pairs), space=self.krylov, probes=bool(self.probes))
        if self.max_products < least:
            raise ProbeError(
                f"max_products={self.max_products} is too few for {', '.join(sorted(self.wanted))} "
                f"(top={self.top}, bottom={self.bottom}), need at least {least}: raise it or ask for less"
            )


def least_products(size: int, *, pairs: int, space: bool, probes: bool) -> int:
    """The fewest products that a measurement can be made with: a space with the pairs and one more, and two probes.

    Args:
        size: `n`.
        pairs: Eigenpairs wanted at both ends together.
        space: Whether anything is read off the Krylov space.
        probes: Whether random probes of the rest are wanted.

    Returns:
        The number; `measure_spectrum` refuses fewer.
    """
    least = min(size, max(pairs + 1, _SPACE)) if space else 0
    return least + (_SAMPLES if probes and size > least else 0)
