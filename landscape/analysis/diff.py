"""Difference of two sets of weights, tensor by tensor: distances, singular spectra, and angles between subspaces.

Everything is computed in float64 from the numbers that the files hold, so the results are exact to about 1e-12 of the
norms. Distances between weights are no distances between functions: neurons may be permuted or rescaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.analysis.matching_names import Matched, matched
from lossscope.landscape.analysis.subspaces import MatrixDifference, matrix_difference
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.storage.weight_arrays import SavedTensor, SavedWeights

__all__ = ["ModuleDifference", "TensorDifference", "WeightDifference", "module_of", "weight_difference"]

Array: TypeAlias = NDArray[np.float64]

STATISTICS: Final = ("running_mean", "running_var")  # buffers that torch's BatchNorm saves beside its weights
_ROOT: Final = "(root)"


@dataclass(frozen=True)
class TensorDifference:
    """Norms and distance of one tensor of A and B.

    Attributes:
        name: Name in A.
        shape: Its shape.
        norm_a: Euclidean norm in A.
        norm_b: In B.
        distance: Norm of B - A.
        statistics: True for running statistics of BatchNorm, which are no weights and count in no sum.
        matrix: Singular values and subspaces of both as matrices `(size0, -1)`; None for vectors.
    """

    name: str
    shape: tuple[int, ...]
    norm_a: float
    norm_b: float
    distance: float
    statistics: bool = False
    matrix: MatrixDifference | None = None

    @property
    def relative(self) -> float:
        """Distance over the norm in A; nan if the tensor is zero in A, as a bias at the start."""
        return self.distance / self.norm_a if self.norm_a > 0 else math.nan


@dataclass(frozen=True)
class ModuleDifference:
    """Norms and distance of all tensors that a module owns itself, or of the whole model.

    Attributes:
        name: Name of the module.
        size: Number of weights.
        norm_a: Euclidean norm in A.
        norm_b: In B.
        distance: Norm of B - A.
        share: Share of the squared distance of the whole; nan if that is zero.
    """

    name: str
    size: int
    norm_a: float
    norm_b: float
    distance: float
    share: float

    @property
    def relative(self) -> float:
        """Distance over the norm in A; nan if that is zero."""
        return self.distance / self.norm_a if self.norm_a > 0 else math.nan

    @property
    def mutual(self) -> float:
        """Distance over the root of the sum of both squared norms; nan if both are zero.

        It is symmetric, 0 for equal weights, 1 for orthogonal ones, as independent ones nearly are, at any norms.
        """
        both = math.hypot(self.norm_a, self.norm_b)
        return self.distance / both if both > 0 else math.nan


@dataclass(frozen=True)
class WeightDifference:
    """Difference of two sets of weights.

    Attributes:
        a: Name of A.
        b: Name of B.
        whole: All weights that both have.
        modules: By module, in the order of A.
        tensors: By tensor, in the order of A.
        matched: What was compared, and what only one of them has.
    """

    a: str
    b: str
    whole: ModuleDifference
    modules: tuple[ModuleDifference, ...]
    tensors: tuple[TensorDifference, ...]
    matched: Matched


def weight_difference(
    a: SavedWeights,
    b: SavedWeights,
    *,
    top: int = 8,
    subspaces: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> WeightDifference:
    """Compare two sets of weights, tensor by tensor.

    Args:
        a: The first.
        b: The second.
        top: Number of singular directions of the subspaces that are compared, at most half the rank of a matrix.
        subspaces: False for norms and distances alone, without singular values.
        progress: Called with the number of tensors done, and their number.

    Returns:
        The difference. Cost: both files are read once; an eigendecomposition of the smaller side of each matrix.

    Raises:
        ConfigError: They have no tensor in common, or a weight is not finite.
    """
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
    pairs = matched(a, b)
    tensors = []
    for place, (name, other) in enumerate(pairs.common):
        one = _compared(a, name, b, other, top if subspaces else 0)
        if one is not None:
            tensors.append(one)
        if progress is not None:
            progress(place + 1, len(pairs.common))
    weights = [one for one in tensors if not one.statistics]
    if not weights:
        raise ConfigError(f"{a.name} and {b.name} have no floating-point weights in common: nothing can be compared")
    total = math.fsum(one.distance**2 for one in weights)
    groups: dict[str, list[TensorDifference]] = {}
    for one in weights:
        groups.setdefault(module_of(one.name), []).append(one)
    modules = tuple(_together(name, members, total) for name, members in groups.items())
    return WeightDifference(a.name, b.name, _together("all", weights, total), modules, tuple(tensors), pairs)


def module_of(name: str) -> str:
    """Return the module that owns a tensor: its name up to the last point."""
    return name.rpartition(".")[0] or _ROOT


def _compared(a: SavedWeights, name: str, b: SavedWeights, other: str, top: int) -> TensorDifference | None:
    """Return the difference of one tensor; None if it is the same mask in both, which is not finite."""
    first, second = _numbers(a.of(name)), _numbers(b.of(other))
    for side, values, called in ((a, first, name), (b, second, other)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad and np.array_equal(first, second):
            return None
        if bad:
            raise ConfigError(
                f"{side.name} is not finite in {bad} of the {values.size} numbers of {called}, so it has diverged: "
                "take an earlier checkpoint"
            )
    statistics = name.rpartition(".")[2] in STATISTICS
    matrix = None
    if top and first.ndim > 1 and first.size and not statistics:
        flat = (len(first), -1)
        matrix = matrix_difference(first.reshape(flat), second.reshape(flat), top)
    return TensorDifference(
        name, first.shape, _norm(first), _norm(second), _norm(second - first), statistics=statistics, matrix=matrix
    )


def _numbers(tensor: SavedTensor) -> Array:
    assert tensor.read is not None, "matched() leaves out what holds no floating-point numbers"
    return tensor.read()


def _norm(values: Array) -> float:
    """Return the Euclidean norm, of numbers of any size."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * math.sqrt(float(np.square(values / largest).sum())) if largest > 0 else 0.0


def _together(name: str, members: Sequence[TensorDifference], total: float) -> ModuleDifference:
    """Return the row of several tensors."""
    distance, norm_a, norm_b = (
        math.hypot(*values) for values in zip(*((one.distance, one.norm_a, one.norm_b) for one in members), strict=True)
    )
    share = distance**2 / total if total > 0 else math.nan
    return ModuleDifference(name, sum(math.prod(one.shape) for one in members), norm_a, norm_b, distance, share)
