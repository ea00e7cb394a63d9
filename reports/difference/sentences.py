"""First screen of a difference: how far apart, where, whether there is a barrier, and what two seeds have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Quantity, Statement
from lossscope.reports.shared.number_format import percent, plain, quantity_text
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.analysis.diff import WeightDifference
    from lossscope.landscape.surfaces.difference import Difference, LossChange

__all__ = ["statements"]

_NAMED: Final = 3  # modules that a sentence names


def statements(found: Difference) -> tuple[Statement, ...]:
    """Return the first screen."""
    return tuple(_all(found))


def _all(found: Difference) -> Iterator[Statement]:
    """Yield the answers in the order in which they are asked."""
    if not found.weights.matched.complete:
        yield _unmatched(found.weights)
    yield _distance(found)
    if found.weights.whole.distance > 0:
        yield _where(found.weights)
        if (directions := _directions(found.weights)) is not None:
            yield directions
    if found.path is not None:
        yield _barrier(found)
    if found.change is not None:
        yield _expansion(found.change, found.unit)


def _distance(found: Difference) -> Statement:
    """Return how far apart both are, beside two seeds."""
    whole = found.weights.whole
    if whole.distance == 0:
        subject = "A and B hold the same weights" if found.weights.matched.complete else "What was compared is the same"
        return Statement(f"{subject}: their distance is 0", "fine")
    words = f"B is {plain(whole.distance, 3)} away from A"
    if math.isfinite(whole.relative):
        words += f", {plain(whole.relative, 3)} times the norm of A"
    words += f", {plain(whole.mutual, 3)} times as far as independent weights of these norms"
    apart = [one.weights.whole.mutual for one in found.seeds if math.isfinite(one.weights.whole.mutual)]
    words += _beside(whole.mutual, apart, "farther than", "nearer than", "as far as")
    if found.same_start:
        words += "; A and B began at the same initial weights" + (", two seeds do not" if apart else "")
    return Statement(words, "fine", "modules")


def _where(weights: WeightDifference) -> Statement:
    """Return the modules with most of the squared distance, and the one that moved most for its size."""
    ordered = sorted(weights.modules, key=lambda one: -one.share)
    words = ", ".join(f"{percent(one.share)} in {one.name}" for one in ordered[:_NAMED] if one.share > 0)
    moved = max((one for one in ordered if math.isfinite(one.relative)), key=lambda one: one.relative, default=None)
    most = ""
    if moved is not None and len(ordered) > 1:
        most = f"; for its own norm {moved.name} moved most, by {plain(moved.relative, 3)}"
    return Statement(f"Of the squared distance lie {words}{most}", "fine", "modules")


def _directions(weights: WeightDifference) -> Statement | None:
    """Return how far the leading singular directions agree, beside random ones; None without matrices."""
    sides = [
        side
        for one in weights.tensors
        if one.matrix is not None
        for side in (one.matrix.left, one.matrix.right)
        if side is not None
    ]
    if not sides:
        return None
    alike = sum(side.beyond_chance for side in sides)
    low, high = (pick(side.overlap for side in sides) for pick in (min, max))
    chance = [side.expected[0] for side in sides]
    return Statement(
        f"The leading singular subspaces overlap by {plain(low, 2)} to {plain(high, 2)} (1: equal; random: "
        f"{plain(min(chance), 2)} to {plain(max(chance), 2)}), on {alike} of {len(sides)} sides of matrices more "
        "than random ones",
        "fine",
    )


def _barrier(found: Difference) -> Statement:
    """Return the barrier, beside two seeds."""
    path = found.path
    assert path is not None
    ends = f"from {plain(float(path.drawn[0]), 4)} to {plain(float(path.drawn[-1]), 4)}"
    if not math.isfinite(path.barrier):
        return Statement(f"The loss is not finite on the straight path ({ends}): no barrier can be told", "act", "path")
    heights = [one.path.barrier for one in found.seeds if one.path is not None and math.isfinite(one.path.barrier)]
    beside = _beside(path.barrier, heights, "higher than", "lower than", "as high as")
    if path.barrier == 0:
        words = f"No barrier: on the straight path the loss is never above the line between its ends ({ends})"
        return Statement(words + beside, "fine", "path")
    height = quantity_text(Quantity(path.barrier, error=number(path.barrier_error) or None))
    unit = f" {found.unit}" if found.unit else ""
    return Statement(f"A barrier of {height}{unit} on the straight path ({ends}){beside}", "look", "path")


def _expansion(change: LossChange, unit: str) -> Statement:
    """Return what the expansion at A says of the loss at B."""
    unit = f" {unit}" if unit else ""
    terms = (
        f"The loss changes by {_signed(change.change)}{unit}; to second order at A by {_signed(change.linear)} (slope) "
        f"and {_signed(change.quadratic)} (curvature), which leaves {_signed(change.remainder)}"
    )
    if change.is_exact:
        return Statement(f"{terms}: nothing within rounding", "fine")
    if abs(change.remainder) >= abs(change.quadratic):
        return Statement(f"{terms}, more than the quadratic term: the expansion does not reach B", "look")
    if not change.tells_the_loss:
        return Statement(f"{terms}, more than the change itself: the expansion does not reach B", "look")
    return Statement(terms, "fine")


def _unmatched(weights: WeightDifference) -> Statement:
    """Return the numbers of tensors that were not compared."""
    pairs = weights.matched
    parts = [
        (len(pairs.only_a), "in A only"),
        (len(pairs.only_b), "in B only"),
        (len(pairs.reshaped), "of another shape in B"),
        (len(pairs.unread), "of numbers in a type that is not read"),
    ]
    words = ", ".join(f"{count} {where}" for count, where in parts if count)
    return Statement(f"Not all tensors were compared: {words}; the numbers are over the rest", "look")


def _beside(value: float, seeds: list[float], above: str, below: str, within: str) -> str:
    """Return a clause that sets a number beside those of pairs of seeds; empty if there are none."""
    if not seeds or not math.isfinite(value):
        return ""
    low, high = min(seeds), max(seeds)
    word = above if value > high else below if value < low else within
    span = plain(low, 3) if low == high else f"{plain(low, 3)} to {plain(high, 3)}"
    pairs = f"the {len(seeds)} pairs" if len(seeds) > 1 else "the one pair"
    return f"; {word} {pairs} of two seeds of one optimizer ({span})"


def _signed(value: float) -> str:
    """Return a number with its sign."""
    return plain(value, 3) if value < 0 or not math.isfinite(value) else f"+{plain(value, 3)}"
