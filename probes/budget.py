"""Cost of a curvature measurement before it is taken: bytes, products, seconds and gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.eigenvalues.memory_plan import REFERENCE, MemoryPlan, Mode
from lossscope.probes.eigenvalues.spectrum_request import (
    SpectrumRequest,
    spectrum_copies,
    spectrum_plan,
    spectrum_request,
)
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.timing import now
from lossscope.probes.sums import dot

__all__ = ["Budget", "Price", "budget", "price_of"]

_SPARING: Final = 6  # vectors of a recurrence, and of a probe, beside what one product takes
_SUMS: Final = (
    12  # inner products that go with a product: norms, orthogonalization, random vectors (benchmarks/scale.py)
)
_COMPARISON: Final = 3.5  # products that one in float64 takes, by which the rounding of one in float32 is measured
_DOUBLE: Final = 8  # bytes of a number in float64, which is compared with float32
_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")  # "5" sets the peak of the resident memory back to its present size


@dataclass(frozen=True)
class Price:
    """Measured cost of one Hessian product.

    Attributes:
        parameters: Number of parameters, n.
        vector_bytes: Bytes of a vector of that length.
        product_seconds: Time of a product once the graph is cached.
        sum_seconds: Time of an inner product of two vectors.
        gradient_seconds: Time of a gradient; nan if it was not measured.
        product_bytes: Memory that the first product took beyond what was resident before: activations, the graph that
            is kept for the next ones, gradients. Memory that the process had freed and kept is taken again, and does
            not count. None where the system does not tell.
        method: Method of the products.
    """

    parameters: int
    vector_bytes: int
    product_seconds: float
    sum_seconds: float
    gradient_seconds: float
    product_bytes: int | None
    method: str

    @property
    def gradients(self) -> float:
        """Time of a product over that of a gradient."""
        return self.product_seconds / self.gradient_seconds

    def seconds(self, products: int, comparisons: int = 0) -> float:
        """Return the time of a measurement.

        Args:
            products: Products that are taken.
            comparisons: Products that are taken once more in another precision, by which rounding is measured.
        """
        compared = 1.0 if self.vector_bytes >= _DOUBLE * self.parameters else _COMPARISON
        return (products + compared * comparisons) * self.product_seconds + _SUMS * products * self.sum_seconds


@dataclass(frozen=True)
class Budget:
    """Predicted cost of `measure_spectrum`.

    Attributes:
        quantities: What is measured.
        price: Cost of one product.
        least: Products without which nothing is measured.
        products: Products that are taken at most. An easy spectrum needs fewer.
        comparisons: Products that are taken once more in float64, by which rounding is measured.
        basis: Mode that the memory allows, see `measure_spectrum`.
        memory: Bytes for the vectors, for which the mode was chosen.
        vectors: Vectors of the length of the parameters that are held at most at a time.
    """

    quantities: tuple[str, ...]
    price: Price
    least: int
    products: int
    comparisons: int
    basis: Mode
    memory: int
    vectors: int

    @property
    def bytes(self) -> int:
        """Growth of the resident memory at most: the vectors and what a product takes, twice as much in float64."""
        graphs = (2 if self.comparisons else 1) * (self.price.product_bytes or 0)
        return self.vectors * self.price.vector_bytes + graphs

    @property
    def seconds(self) -> float:
        """Time of all products, of the sums that go with them, and of the comparisons."""
        return self.price.seconds(self.products, self.comparisons)

    @property
    def gradients(self) -> float:
        """That time over the time of a gradient; nan if that was not measured."""
        return self.seconds / self.price.gradient_seconds


def budget(
    objective: Objective,
    quantities: Collection[str] | None = None,
    *,
    top: int = 5,
    bottom: int = 1,
    max_products: int = 200,
    memory: int | str | None = None,
    spill: str | Path | None = None,
) -> Budget:
    """Predict what `measure_spectrum` of the Hessian costs at most, by a formula and one timed product.

    Args:
        objective: The loss.
        quantities: As for `measure_spectrum`, as the rest.
        top: Number of eigenpairs at the upper end.
        bottom: Number of eigenpairs at the lower end.
        max_products: Budget of products.
        memory: Memory for the vectors.
        spill: Folder of a basis that does not fit.

    Returns:
        The prediction. Cost: two products and a gradient.

    Raises:
        ProbeError: An argument is out of range, or the memory holds fewer than three vectors; the message names how
            many parameters it would hold.

    Example:
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(4, 3)])
        >>> found = budget(objective, ["top"], max_products=50)
        >>> found.products, found.basis  # a matrix of three rows has no more
        (3, 'whole basis')
    """
    operator = hessian(objective)
    request = spectrum_request(operator, quantities, (top, bottom), (0.01, 0.01), max_products)
    plan = spectrum_plan(operator, request, memory, spill)
    return budget_of(request, plan, price_of(operator))


def budget_of(request: SpectrumRequest, plan: MemoryPlan, price: Price) -> Budget:
    """Return the cost of a request in the mode of a plan.

    Args:
        request: The request.
        plan: Its plan.
        price: Cost of one product.
    """
    products = request.max_products
    if request.only_pairs:
        products = min(products, price.parameters)
    return Budget(
        tuple(sorted(request.wanted)),
        price,
        min(request.least, price.parameters) if request.krylov else 2,
        products,
        request.comparisons if plan.measures_rounding else 0,
        plan.mode,
        plan.memory,
        _vectors(request, plan, min(products, price.parameters)),
    )


def price_of(operator: SymmetricOperator, *, weighed: bool = True) -> Price:
    """Measure the cost of one product.

    The first product loads kernels and builds what is cached; its memory counts, and the time of the second.

    Args:
        operator: `(n, n)`.
        weighed: False for no `product_bytes`. On Linux they are the growth of the peak of the resident memory of the
            process, which is set back for that.

    Raises:
        ProbeError: A product cannot be taken.
    """
    v = operator.normal(torch.Generator().manual_seed(0))
    v /= math.sqrt(operator.size)
    with operator.cached():
        peak = _Peak(operator.device) if weighed else None
        _ = operator @ v
        taken = peak.growth() if peak else None
        begun = now(operator.device)
        image = operator @ v
        seconds = now(operator.device) - begun
    return Price(
        operator.size,
        v.numel() * v.element_size(),
        seconds,
        _sum_seconds(v, image),
        operator.gradient_seconds,
        taken,
        operator.method,
    )


def _sum_seconds(v: Tensor, image: Tensor) -> float:
    """Return the time of the second of two inner products."""
    dot(v, image)
    begun = now(v.device)
    dot(v, image)
    return now(v.device) - begun


def _vectors(request: SpectrumRequest, plan: MemoryPlan, dimensions: int) -> int:
    """Return the number of vectors held at most in the mode of a plan."""
    if plan.mode == "three vectors":
        return max(_SPARING, REFERENCE if plan.measures_rounding else 0)
    if plan.mode == "spilled basis":
        return request.work
    whole = spectrum_copies(dimensions, pairs=sum(request.pairs), only_pairs=request.only_pairs)
    return min(whole, plan.dimensions + request.work)


class _Peak:
    """Growth of the peak of the memory in use on a device, from now on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif device.type == "cpu" and sys.platform == "linux":
            try:
                _RESET.write_text("5")
                self._before = _resident("VmRSS")
            except OSError:
                self._before = None

    def growth(self) -> int | None:
        """Return the growth in bytes; None where the system does not tell."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        return max(0, _resident("VmHWM") - self._before)


def _resident(name: str) -> int:
    """Return an entry of the status of this process, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
