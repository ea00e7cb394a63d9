"""Price of measuring checkpoints, told before it is paid."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from lossscope.landscape.unrecorded.matrix_rows import MATRICES, matrix_shapes
from lossscope.landscape.unrecorded.measure import Plan
from lossscope.landscape.unrecorded.stored_tensors import StoredTensor, stored_tensors
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.matrix_spectrum import stored_spectrum

__all__ = ["MeasurePrice", "price_of_plan"]

_SIDE: Final = 384  # of the matrix that is timed
_ENTRIES: Final = 2**21  # of the tensor whose reading is timed


@dataclass(frozen=True)
class MeasurePrice:
    """Predicted cost of a plan at most.

    Attributes:
        checkpoints: Number of checkpoints.
        parameters: Number of parameters.
        matrices: Seconds of the singular values of one checkpoint.
        curvature: Seconds of the measures of the loss at one checkpoint; None if a product could not be timed.
        unknown: The reason.
    """

    checkpoints: int
    parameters: int
    matrices: float
    curvature: float | None
    unknown: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of all checkpoints, without what is unknown."""
        return self.checkpoints * (self.matrices + (self.curvature or 0.0))


def price_of_plan(plan: Plan) -> MeasurePrice:
    """Predict the cost of a plan from the shapes of its matrices, a timed decomposition and a timed Hessian product.

    The first checkpoint is loaded into the model of the loss.

    Raises:
        ConfigError: The first checkpoint cannot be read or does not fit, or the loss raises.
    """
    first, loss = plan.waiting[0], plan.loss
    curvature, unknown = 0.0, ""
    if loss is None:
        tensors, _ = stored_tensors(first)
    else:
        loss.load(first)
        loss.try_once()
        tensors = loss.parameters()
        try:
            curvature = loss.seconds()
        except ProbeError as error:
            return MeasurePrice(len(plan.left), loss.objective.size, _matrices(plan, tensors), None, str(error))
    size = sum(int(np.prod(one.shape)) for one in tensors if one.is_floating and one.is_parameter)
    return MeasurePrice(len(plan.left), size, _matrices(plan, tensors), curvature, unknown)


def _matrices(plan: Plan, tensors: Iterable[StoredTensor]) -> float:
    """Return the seconds of the singular values and norms of one checkpoint."""
    if not any(MATRICES in names for names in plan.left.values()):
        return 0.0
    product, decomposition, entry = _unit_seconds()
    sides = [(min(shape), max(shape)) for shape in matrix_shapes(tensors)]
    return sum(m * m * n * product + m**3 * decomposition + m * n * entry for m, n in sides)


def _unit_seconds() -> tuple[float, float, float]:
    """Return the seconds of a Gram matrix over m^2 n, of its eigenvalues over m^3, and of reading an entry."""
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE))
    np.linalg.eigvalsh(matrix.T @ matrix)  # loads the library
    begun = time.perf_counter()
    gram = matrix.T @ matrix
    between = time.perf_counter()
    np.linalg.eigvalsh(gram)
    decomposed = time.perf_counter()
    entries = np.zeros(_ENTRIES, np.uint16)
    numbers = (entries.astype(np.uint32) << 16).view(np.float32)  # bfloat16, which takes longest
    stored_spectrum(numbers.reshape(-1, 1))
    np.square(numbers.astype(np.float64)).sum()
    read = (time.perf_counter() - decomposed) / _ENTRIES
    return (between - begun) / _SIDE**3, (decomposed - between) / _SIDE**3, read
