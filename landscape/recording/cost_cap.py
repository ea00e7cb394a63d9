"""Cap on the recording overhead: the seconds that recording may still take, and predictions of what it would take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.recording.overhead import Kind, Overhead
from lossscope.probes.budget import Price, price_of
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator

__all__ = ["CostCap", "MeasurementCosts", "overhead_share"]

_COMPARISONS: Final = 4  # products that are taken once more in float64, usually at most
_PART: Final = 0.25  # of the cap, for layers and for pairs of minibatches
_SHARES: Final = (0.1, 0.5)  # shares that a remedy names; above them 1, which is no cap


def overhead_share(given: float | None, usual: float) -> float:
    """Return the largest share of the wall time that recording may take.

    Args:
        given: The argument `overhead`; None for the preset's share.
        usual: The preset's share.

    Raises:
        ConfigError: The share is not in (0, 1].
    """
    if given is None:
        return usual
    share = None if isinstance(given, bool) else _number(given)
    if share is None or not 0 < share <= 1:
        raise ConfigError(
            f"overhead must be a share of the wall time in (0, 1], got {given!r}; use overhead=1 for no cap, and "
            "evaluations=0 to measure no curvature"
        )
    return share


def _number(given: object) -> float | None:
    """Return a number of any library as a float; None if it is no number, such as text."""
    try:
        return None if isinstance(given, str | bytes) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


class CostCap:
    """The seconds that recording may still take under a cap on its share of the wall time.

    Args:
        share: Largest share of the wall time, in (0, 1]. Recording never takes more than all of it, so 1 is no cap.
        overhead: Clock of the recording.
    """

    def __init__(self, share: float, overhead: Overhead) -> None:
        self.share = share
        self._overhead = overhead
        self._most = math.inf  # seconds of recording in all that a narrower cap allows

    @property
    def limited(self) -> bool:
        """Return True if there is a cap."""
        return self.share < 1

    @property
    def left(self) -> float:
        """Seconds that recording may take now; infinite without a cap, negative above it."""
        if not self.limited:
            return math.inf
        return min(self.share * self._overhead.wall, self._most) - self._overhead.total

    def has_room(self) -> bool:
        """Return True while recording is below the cap."""
        return self.left > 0

    def narrowed(self, seconds: float) -> CostCap:
        """Return a cap that leaves at most some seconds of what this one leaves now."""
        narrower = CostCap(self.share, self._overhead)
        narrower._most = self._overhead.total + seconds
        return narrower

    def affords(self, kind: Kind, count: int = 1) -> bool:
        """Return True if samples of a kind are predicted to fit: each takes as long as the last one of its kind.

        All samples of the kind together take at most a quarter of the cap, as they would leave nothing for curvature.
        """
        if not self.limited:
            return True
        quarter = _PART * self.share * self._overhead.wall - self._overhead.seconds[kind]
        return count * self._overhead.latest.get(kind, 0.0) <= min(self.left, quarter)

    def reason(self, kind: Kind) -> str:
        """Return the reason of what is missing because it does not fit under the cap."""
        cap = f"{100 * self.share:g} % of the wall time"
        return f"overhead: it would exceed the cap of {cap}; {self.remedy(kind)}"

    def remedy(self, kind: Kind) -> str:
        """Return a clause that says how to record more of a kind."""
        more = next((one for one in _SHARES if one > self.share), 1)
        if kind != "curvature":
            return f"to record more pass overhead={more:g}"
        return f"to measure more pass overhead={more:g} or a few steps as evaluate_at=, or call recorder.evaluate()"

    def excess(self) -> str:
        """Return a clause for the closing line if recording took more than the cap, else an empty string."""
        over = self._overhead.total / self._overhead.wall - self.share
        return f", {100 * over:.1f} points above the cap of {100 * self.share:g} %" if over > 0 else ""


class MeasurementCosts:
    """Predicted seconds of measurements: those of the last time, or before the first time those of its products.

    A cut measurement takes its products, and beyond them what the last cut one took (the comparison of some products
    with another precision). The first cut one loads kernels, so no more than what is usual is learned from it.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], float] = {}
        self._price: Price | None = None
        self._takes_products = True
        self._cut_before = False
        self._beyond = 0.0  # seconds that the last cut measurement took beyond its products

    def predicted(self, key: tuple[str, ...], products: int, operator: SymmetricOperator) -> float:
        """Return the seconds that a measurement is predicted to take.

        Args:
            key: Names of its measures.
            products: Hessian products that it takes at most.
            operator: The Hessian.
        """
        known = self._seconds.get(key)
        return self.of_products(products, operator) if known is None else known

    def of_products(self, products: int, operator: SymmetricOperator) -> float:
        """Return the seconds that a measurement with some products is predicted to take, if it takes all of them."""
        price = self.price(operator)
        return self._beyond if price is None else price.seconds(products) + self._beyond

    def fitting(self, seconds: float, operator: SymmetricOperator) -> int:
        """Return the number of products of a measurement that is predicted to take some seconds."""
        price, left = self.price(operator), seconds - self._beyond
        return int(left / price.seconds(1)) if price is not None and left > 0 else 0

    def price(self, operator: SymmetricOperator) -> Price | None:
        """Return the cost of one product, timed at the first call; None if it cannot be taken."""
        if self._price is None and self._takes_products:
            try:
                self._price = price_of(operator, weighed=False)
            except ProbeError:  # the measurements that need products will be missing, with this error as the reason
                self._takes_products = False
        return self._price

    @contextmanager
    def timed(self, key: tuple[str, ...], cut_to: int = 0) -> Iterator[None]:
        """Learn from the time of the block, which is that of a measurement.

        Args:
            key: Names of its measures.
            cut_to: Products that it was cut to; 0 if it takes place as a whole.

        Yields:
            Nothing.
        """
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        if not cut_to:
            self._seconds[key] = seconds
        elif self._price is not None:
            usual = math.inf if self._cut_before else self._price.seconds(0, _COMPARISONS)
            self._beyond = min(max(seconds - self._price.seconds(cut_to), 0.0), usual)
            self._cut_before = True
