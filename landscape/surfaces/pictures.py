"""Losses around and between points, as numbers that a report draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["HELD", "Array", "Fan", "Mark", "Nulls", "Path", "Plane", "Trail"]

Array: TypeAlias = NDArray[np.float64]

_BAND: Final = (10.0, 90.0)  # percentiles
HELD: Final = 0.9  # share of the variance of a trajectory in a plane on which it may be drawn
_ON_A_LINE: Final = 2  # checkpoints, which tell nothing of the way between them
_ALIKE: Final = 0.05  # difference of two shares of the variance that tells nothing


@dataclass(frozen=True, eq=False)
class Fan:
    """Loss along random relative directions: L(theta + sigma theta * z), z ~ N(0, I).

    Attributes:
        sigmas: `(k,)`, ascending, with 0 in the middle: standard deviation of the relative noise, and its sign.
        losses: `(draws, k)`, nan where the loss is not finite; at 0 the model's own loss, exactly.
        quadratic: `(draws, k)`, L + sigma g'd + sigma^2 d'Hd / 2 along the same directions d; None if not measured.
        sharp: `(k,)`, the loss along the top eigenvector u of diag(theta) H diag(theta), of length 1: L(theta + sigma
            theta * u); None if not measured.
        sharpness: The eigenvalue of u.
        sharpness_error: Bound of its error.
        loss: The model's own loss.
        seed: Seed of z.
        seconds: Time of all.
        missing: What could not be measured, with the reason.
        evaluated: How the losses were evaluated, in words.
        kept: Number of losses that an earlier call had left.
    """

    sigmas: Array
    losses: Array
    quadratic: Array | None
    sharp: Array | None
    sharpness: float
    sharpness_error: float
    loss: float
    seed: int
    seconds: float
    missing: dict[str, str] = field(default_factory=dict)
    evaluated: str = ""
    kept: int = 0

    @property
    def median(self) -> Array:
        """`(k,)`, median over the directions; nan where the loss of half of them is not finite."""
        return _percentile(self.losses, 50.0)

    @property
    def band(self) -> tuple[Array, Array]:
        """The 10th and the 90th percentile over the directions; nan where they are not finite."""
        return _percentile(self.losses, _BAND[0]), _percentile(self.losses, _BAND[1])

    @property
    def lost(self) -> Array:
        """`(k,)`, number of directions whose loss is not finite."""
        found: Array = (~np.isfinite(self.losses)).sum(0)
        return found


@dataclass(frozen=True, eq=False)
class Path:
    """Loss on the straight line between two points.

    Attributes:
        shares: `(k,)`, from 0 at the first point to 1 at the second.
        losses: `(k,)`, with the buffers of the first point at each; nan where the loss is not finite.
        restated: `(k,)`, with statistics of BatchNorm measured anew on the data at each point; None without BatchNorm.
        distance: Length of the line in the space of the parameters.
        seconds: Time.
        sampling_error: Standard error of the height of the highest inner point over the samples, which are the same at
            all points of the path; nan if missing.
        parts: Number of parts of the samples from which it was taken.
        missing: What could not be measured, with the reason.
        label: Short words for its ends.
    """

    shares: Array
    losses: Array
    restated: Array | None
    distance: float
    seconds: float
    sampling_error: float = math.nan
    parts: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def drawn(self) -> Array:
        """The losses that a picture shows: with new statistics of BatchNorm where there are any."""
        return self.losses if self.restated is None else self.restated

    @property
    def barrier(self) -> float:
        """Largest height of the loss above the straight line between its ends; 0 if it is never above, nan if lost.

        It is a lower bound: between two points of the grid the loss may be higher by about `grid_error`.
        """
        return _barrier(self.shares, self.drawn)

    @property
    def grid_error(self) -> float:
        """Difference to the barrier of a parabola through the highest point of the grid and its neighbors."""
        return _between_points(self.shares, self.drawn)

    @property
    def barrier_error(self) -> float:
        """Error of the grid and of the samples, added in quadrature; nan if one is missing."""
        return math.hypot(self.grid_error, self.sampling_error)

    @property
    def top(self) -> int:
        """Place of the highest inner point above the straight line between the ends."""
        return int(np.argmax(_above(self.shares, self.drawn)[1:-1])) + 1

    @property
    def height(self) -> float:
        """Height of the highest inner point above the line, below 0 without a barrier; nan if a loss is lost."""
        return float(np.max(_above(self.shares, self.drawn)[1:-1]))


@dataclass(frozen=True, eq=False)
class Nulls:
    """Paths whose ends differ by chance alone.

    Attributes:
        paths: Paths by what their ends are, in words.
        seeds: Arms by the names of those paths, drawn for their own sake, that join two seeds of one arm.
        missing: What could not be had, with the reason.
        notes: Sentences about what was loaded, and about what the ends share.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A point in the space of the parameters, projected onto a plane.

    Attributes:
        name: Its name.
        x: First coordinate.
        y: Second coordinate.
        loss: Its own loss, with its own buffers: that of the plane below it is another one unless `distance` is 0.
        distance: Its distance from the plane.
    """

    name: str
    x: float
    y: float
    loss: float
    distance: float


@dataclass(frozen=True)
class Trail:
    """Checkpoints of one training on a plane.

    Attributes:
        name: Name of the run.
        plane: Number of the plane, from 0.
        marks: The checkpoints in the order of training.
        held: Share of their variance that lies along the axes of the plane.
    """

    name: str
    plane: int
    marks: tuple[Mark, ...]
    held: float

    @property
    def is_held(self) -> bool:
        """True for three checkpoints or more, of whose variance the plane holds 90 %: a line may join them."""
        return len(self.marks) > _ON_A_LINE and self.held >= HELD


@dataclass(frozen=True, eq=False)
class Plane:
    """Losses on planes through a point; coordinates are distances in the space of the parameters.

    Attributes:
        x: `(k,)`, ascending, along the first axis.
        y: `(m,)`, ascending, along the second axis, orthogonal to the first.
        losses: `(planes, m, k)`, nan where the loss is not finite. Only random planes are several.
        axes: Names of both axes.
        loss: Loss at the origin.
        marks: Points that are shown.
        explained: Shares of the variance of the marks along both axes; None if the axes are no principal components.
        walk: The same shares, as expected of a random walk with the same steps.
        trails: Checkpoints of trainings on each plane.
        seconds: Time.
        evaluated: How the losses were evaluated, in words.
        kept: Number of losses that an earlier call had left.
    """

    x: Array
    y: Array
    losses: Array
    axes: tuple[str, str]
    loss: float
    marks: tuple[Mark, ...] = ()
    explained: tuple[float, float] | None = None
    walk: tuple[float, float] | None = None
    trails: tuple[Trail, ...] = ()
    seconds: float = 0.0
    evaluated: str = ""
    kept: int = 0

    @property
    def looks_random(self) -> bool:
        """True if the shares of both axes are those of a random walk, to a twentieth."""
        if self.explained is None or self.walk is None:
            return False
        return abs(sum(self.explained) - sum(self.walk)) < _ALIKE


def _percentile(losses: Array, share: float) -> Array:
    """Return a percentile over the rows; losses that are not finite are the largest, and the result nan among them."""
    filled = np.where(np.isfinite(losses), losses, math.inf)
    with np.errstate(invalid="ignore"):
        found: Array = np.percentile(filled, share, axis=0, method="linear")
    return np.where(np.isfinite(found), found, math.nan)


def _above(shares: Array, losses: Array) -> Array:
    """Return the height above the straight line between the ends."""
    height: Array = losses - (losses[0] + shares * (losses[-1] - losses[0]))
    return height


def _barrier(shares: Array, losses: Array) -> float:
    """Return the largest height above the line between the ends; nan if a loss is not finite."""
    return max(float(np.max(_above(shares, losses))), 0.0)


def _between_points(shares: Array, losses: Array) -> float:
    """Return how much higher a parabola through the highest inner point and its neighbors is; nan if one is lost."""
    height = _above(shares, losses)
    if not np.isfinite(height).all():
        return math.nan
    place = min(max(int(np.argmax(height)), 1), len(height) - 2)
    left, middle, right = height[place - 1 : place + 2]
    bend = left - 2 * middle + right
    return float((right - left) ** 2 / (-8 * bend)) if bend < 0 else 0.0
