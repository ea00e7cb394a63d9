"""Check that a loss is the mean of its batches, weighted by their counts: batches are joined, or one is cut in two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.batch_tree import (
    CannotJoinError,
    array_places,
    cut,
    joined,
    offset_joined,
    sample_axes,
)
from lossscope.probes.objective.counts import suggested_counts
from lossscope.probes.objective.data import FixedData

__all__ = ["BATCHES", "SAMPLES", "UNCHECKED", "Additivity", "BatchLosses", "checked_additivity"]

SAMPLES: Final = "mean of samples"
BATCHES: Final = "mean of batches"
UNCHECKED: Final = "unchecked"
_MARGIN: Final = 100  # a difference counts if it is this many times the measured rounding
_TELLING: Final = 100  # two batches tell weights apart if their losses differ by this many tolerances
_COARSE: Final = 0.01  # rounding relative to the loss above which a comparison confirms nothing
_MOST_BATCHES: Final = 64  # among which a pair is chosen


@dataclass(frozen=True)
class Additivity:
    """Result of the check."""

    kind: str  # `mean of samples` (found to hold), `mean of batches` (declared, or one batch), or `unchecked`
    note: str = ""  # reason that it is unchecked; empty if the weights of batches cannot matter


@dataclass(frozen=True)
class BatchLosses:
    """Losses that the check may evaluate, at parameters at which those of all batches are known."""

    data: FixedData
    values: Sequence[float]  # loss of each batch
    evaluate: Callable[[Any], float]  # loss of another batch
    evaluate_double: Callable[[Any], float]  # the same in float64
    unit: float  # rounding unit of the loss's dtype
    counted: bool  # the count was declared, by the user or by the loss
    own_statistics: bool  # the loss of a batch may depend on its other samples: batch norm in train mode
    loss_fn: Any  # searched for class weights, which a suggestion names
    nearby: Callable[[], BatchLosses]  # the same at nearby parameters

    def attempt(self, batch: Any, *, double: bool = False) -> float | None:
        """Return the loss of a batch; None if it fails, which says nothing about the loss of the real ones."""
        try:
            found = (self.evaluate_double if double else self.evaluate)(batch)
        except Exception:  # of the user's code, or out of memory
            return None
        return found if math.isfinite(found) else None


def checked_additivity(losses: BatchLosses) -> Additivity:
    """Check by two further forward passes that the loss of joined batches is their weighted mean.

    Two batches are joined along the samples, those whose losses differ most. If no two fit together, one batch is cut
    in two, and a single batch is joined with itself, which tells a sum from a mean. A difference is compared with 100
    times the rounding, which is measured where it matters: by the joined batch in reversed order and in float64. A
    third pass is spent before a refusal, or where all batches have the same loss, which fits all weights: nearby
    parameters are then taken. Where a batch is evaluated with its own statistics only sums are found.

    Args:
        losses: The losses.

    Returns:
        The result; `unchecked` where nothing could be compared: batches that do not fit together, a loss that fails
        on joined ones or depends on their order.

    Raises:
        ProbeError: the loss is no mean of its batches with these weights; the message names the `count` to pass.
    """
    if len(losses.values) == 1:
        return _joined_with_itself(losses)
    if losses.own_statistics:
        _joined_with_itself(losses)
        return Additivity(UNCHECKED)
    pair = _pair(losses)
    if pair is None:
        return _cut_batch(losses)
    one, two = pair
    values = losses.values[one], losses.values[two]
    if abs(values[0] - values[1]) <= _TELLING * _floor(max(map(abs, values))):
        moved = losses.nearby()
        found = _both((losses.data.batches[one], losses.data.batches[two]), moved.attempt)
        if found is not None:
            return _joined_pair(moved, pair, found) or _cut_batch(losses)
    return _joined_pair(losses, pair, values) or _cut_batch(losses)


@dataclass(frozen=True)
class _Comparison:
    """Losses of two parts, and of the batch that holds both."""

    parts: tuple[Any, Any]
    losses: tuple[float, float]
    whole: float
    swapped: Callable[[], Any]  # the whole with its parts in the other order
    clean: bool  # nothing but the tensors depends on the number of samples
    names: tuple[str, str]
    along_samples: bool = True  # False if samples may lie along another axis than the one that was joined

    def mean(self, counts: Sequence[float]) -> float:
        """Return the mean of the parts' losses weighted by counts."""
        total = counts[0] + counts[1]
        return (counts[0] * self.losses[0] + counts[1] * self.losses[1]) / total if total > 0 else math.nan

    def fits(self, counts: Sequence[float]) -> bool:
        """Return True if the loss of the whole is that mean up to rounding to float32."""
        return abs(self.whole - self.mean(counts)) <= _floor(self.scale)

    @property
    def scale(self) -> float:
        """The largest of the losses."""
        return max(map(abs, (*self.losses, self.whole)))


def _floor(scale: float) -> float:
    """Return the difference that rounding to float32 alone explains."""
    return _MARGIN * torch.finfo(torch.float32).eps * scale


def _joined_with_itself(losses: BatchLosses) -> Additivity:
    """Join the first batch with itself: a sum doubles."""
    batch, value = losses.data.batches[0], losses.values[0]
    axes = sample_axes(batch)
    try:
        double, clean = joined(batch, batch, _axes(batch))
    except CannotJoinError:
        return Additivity(UNCHECKED)
    found = losses.attempt(double)
    if found is None or not clean or axes is None:
        return Additivity(UNCHECKED)
    slack = max(_floor(abs(value)), 2 * losses.unit * abs(value))
    if abs(found - value) <= slack:
        return Additivity(SAMPLES)
    if abs(found - 2 * value) <= 2 * slack:
        raise ProbeError(_a_sum(value, found))
    exact = losses.attempt(double, double=True)
    if exact is not None and abs(found - value) <= _MARGIN * abs(found - exact):
        return Additivity(SAMPLES)
    return Additivity(BATCHES)  # a function of the batch as a whole; the number is that of this batch


def _a_sum(value: float, found: float) -> str:
    return (
        f"loss_fn must return the mean over the batch, got a sum: {value:.6g}, and {found:.6g} for the batch joined "
        "with itself; take reduction='mean', or pass additive=False for the mean over batches"
    )


def _axes(batch: Any) -> list[int]:
    """Return the axis of samples of each tensor, the first if it is not known."""
    return sample_axes(batch) or [0] * len(list(array_places(batch)))


def _pair(losses: BatchLosses) -> tuple[int, int] | None:
    """Return the two batches that fit together whose losses differ most; None if there are none."""
    values = losses.values
    by_shape: dict[Any, list[int]] = {}
    for index, batch in enumerate(losses.data.batches[:_MOST_BATCHES]):
        axes, places = _axes(batch), list(array_places(batch))
        rest = [
            (at, x.dtype, *x.shape[:axis], *x.shape[axis + 1 :]) for (at, x), axis in zip(places, axes, strict=True)
        ]
        by_shape.setdefault((*axes, *rest) if rest else index, []).append(index)
    groups = [sorted(group, key=values.__getitem__) for group in by_shape.values() if len(group) > 1]
    if not groups:
        return None
    widest = max(groups, key=lambda group: values[group[-1]] - values[group[0]])
    return min(widest[0], widest[-1]), max(widest[0], widest[-1])


def _joined_pair(losses: BatchLosses, pair: tuple[int, int], values: tuple[float, float]) -> Additivity | None:
    """Compare two joined batches with their weighted mean; None if they do not fit or the loss fails."""
    first, second = (losses.data.batches[index] for index in pair)
    axes = sample_axes(first)
    if axes is None:
        return _numbered_on(losses, pair, values)
    found = _along(losses, pair, values, axes)
    if found is None:
        return None
    counts = losses.data.counts[pair[0]], losses.data.counts[pair[1]]
    other = None if found.fits(counts) else _other_axis(first, second)
    if other is not None:  # sequences of one length with time first fit along the first axis as well
        again = _along(losses, pair, values, other)
        if again is not None and again.fits(counts):
            found = again
        elif again is None and found.clean:
            half = cut(first, other, 0, max(1, next(iter(array_places(first)))[1].shape[1] // 2))
            found = replace(found, along_samples=losses.attempt(half) is None)
    return _judged(losses, found, counts)


def _along(
    losses: BatchLosses, pair: tuple[int, int], values: tuple[float, float], axes: Sequence[int]
) -> _Comparison | None:
    """Evaluate two batches joined along an axis; None if they do not fit or the loss fails."""
    first, second = (losses.data.batches[index] for index in pair)
    try:
        whole, clean = joined(first, second, axes)
    except CannotJoinError:
        return None
    if (value := losses.attempt(whole)) is None:
        return None
    names = (f"batch {pair[0]}", f"batch {pair[1]}")
    return _Comparison((first, second), values, value, lambda: joined(second, first, axes)[0], clean, names)


def _other_axis(first: Any, second: Any) -> list[int] | None:
    """Return the second axis of every tensor if their lengths agree there; None if they do not."""
    for batch in (first, second):
        shapes = [tuple(leaf.shape) for _, leaf in array_places(batch)]
        if any(len(shape) < 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
            return None
    return [1] * len(shapes)


def _numbered_on(losses: BatchLosses, pair: tuple[int, int], values: tuple[float, float]) -> Additivity:
    """Compare two joined sets of graphs, numbered on: this can confirm a weighting only."""
    first, second = (losses.data.batches[index] for index in pair)
    try:
        value = losses.attempt(offset_joined(first, second))
    except CannotJoinError:
        value = None
    if value is None:
        return _unchecked(losses, "their tensors do not fit together")
    names = (f"batch {pair[0]}", f"batch {pair[1]}")
    at = _Comparison((first, second), values, value, lambda: offset_joined(second, first), False, names)
    return _judged(losses, at, (losses.data.counts[pair[0]], losses.data.counts[pair[1]]))


def _cut_batch(losses: BatchLosses) -> Additivity:
    """Compare the batch with most samples with the weighted mean of two parts of it."""
    sizes = {}
    for index, batch in enumerate(losses.data.batches[:_MOST_BATCHES]):
        if (axes := sample_axes(batch)) is not None:
            sizes[index] = next(iter(array_places(batch)))[1].shape[axes[0]]
    index = max(sizes, key=sizes.__getitem__, default=0)
    if sizes.get(index, 0) < 2:
        values = losses.values
        order = sorted(range(len(values)), key=values.__getitem__)
        pair = min(order[0], order[-1]), max(order[0], order[-1])
        return _numbered_on(losses, pair, (values[pair[0]], values[pair[1]]))
    batch, count, middle = losses.data.batches[index], sizes[index], max(1, sizes[index] // 3)
    axes = _axes(batch)
    parts = (cut(batch, axes, 0, middle), cut(batch, axes, middle, count))
    counts = _both(parts, partial(_terms, losses))
    found = _both(parts, losses.attempt)
    if counts is None or found is None:
        return _unchecked(losses, "their tensors do not fit together")
    names = (f"samples 0 to {middle - 1} of batch {index}", "its other samples")
    clean, value = joined(*parts, axes)[1], losses.values[index]
    at = _Comparison(parts, found, value, lambda: joined(parts[1], parts[0], axes)[0], clean, names)
    judged = _judged(losses, at, counts)
    if judged.kind == SAMPLES and not losses.counted:
        return _unchecked(losses, "their tensors do not fit together")
    return judged


def _both(batches: tuple[Any, Any], function: Callable[[Any], float | None]) -> tuple[float, float] | None:
    """Return a function of two batches; None if either has none."""
    one, two = function(batches[0]), function(batches[1])
    return None if one is None or two is None else (one, two)


def _terms(losses: BatchLosses, part: Any) -> float | None:
    """Return the terms of a part of a batch by the objective's own count; None if they cannot be counted."""
    data = losses.data
    try:
        found = float(data.count(part)) if data.count is not None else float(next(_first_axes(part)))
    except Exception:  # of the user's own function, which knows whole batches only
        return None
    return found if math.isfinite(found) and found >= 0 else None


def _first_axes(batch: Any) -> Iterator[int]:
    return (leaf.shape[0] for _, leaf in array_places(batch) if leaf.ndim)


def _judged(losses: BatchLosses, at: _Comparison, counts: tuple[float, float]) -> Additivity:
    """Return the result of a comparison, or raise with the weights that would fit."""
    if at.fits(counts):
        return Additivity(SAMPLES)
    rounding = _rounding(losses, at)
    if rounding is None or rounding > _COARSE * at.scale:
        return _unchecked(losses, "the loss depends on the order of its samples, or rounds too coarsely to tell")
    slack = max(_floor(at.scale), _MARGIN * rounding)
    if abs(at.whole - at.mean(counts)) <= slack:
        other = losses.attempt(at.swapped())  # rounding hardly depends on the order of samples
        if other is not None and abs(other - at.whole) <= max(_floor(at.scale), 4 * losses.unit * at.scale):
            return Additivity(SAMPLES)
        return _unchecked(losses, "the loss depends on the order of its samples")
    for one in suggested_counts(at.parts, losses.loss_fn):
        if abs(at.whole - at.mean(one.values)) <= slack:
            raise ProbeError(_wrong_weights(at, counts, one.source))
    if at.clean and abs(at.whole - sum(at.losses)) <= slack:
        raise ProbeError(_summed(at))
    if not (at.clean and at.along_samples):
        return _unchecked(losses, "the loss of a batch may depend on its other samples")
    raise ProbeError(_no_mean(at, counts))


def _rounding(losses: BatchLosses, at: _Comparison) -> float | None:
    """Return the change of the joined loss in reversed order and float64; None if it cannot be evaluated."""
    try:
        other = at.swapped()
    except CannotJoinError:
        return None
    found = losses.attempt(other, double=True)
    if found is not None:
        return abs(found - at.whole)
    found = losses.attempt(other)
    return None if found is None else max(abs(found - at.whole), losses.unit * at.scale)


def _wrong_weights(at: _Comparison, counts: tuple[float, float], source: str) -> str:
    """Return the message for a loss that is a mean with other weights, which are known."""
    return (
        f"batches are weighted by the wrong counts: {at.names[0]} and {at.names[1]} count {counts[0]:g} and "
        f"{counts[1]:g}, so their mean loss is {at.mean(counts):.6g}, but loss_fn gives {at.whole:.6g} for both "
        f"together: pass count={source}"
    )


def _summed(at: _Comparison) -> str:
    """Return the message for a sum."""
    return (
        f"loss_fn must return the mean over the batch, got a sum: {at.losses[0]:.6g} and {at.losses[1]:.6g}, and "
        f"{at.whole:.6g} for {at.names[0]} and {at.names[1]} together; take reduction='mean', or pass additive=False "
        "for the mean over batches"
    )


def _no_mean(at: _Comparison, counts: tuple[float, float]) -> str:
    """Return the message for a loss that is no mean with known weights."""
    first, second = at.losses
    begin = (
        f"the loss is no mean of batches weighted by {counts[0]:g} and {counts[1]:g}: it is {first:.6g} for "
        f"{at.names[0]}, {second:.6g} for {at.names[1]} and {at.whole:.6g} for both together, not {at.mean(counts):.6g}"
    )
    share = (at.whole - second) / (first - second) if first != second else math.nan
    if 0 < share < 1:
        labels = _labels_place(at.parts[0])
        return (
            f"{begin}: pass count=lambda batch: ... that returns what loss_fn divides by ({share:.4g} of it is in the "
            f"first); with class weights w that is float(w[{labels}].sum()), or use CrossEntropy(weight=w); or pass "
            "additive=False for the mean over batches"
        )
    return (
        f"{begin}: pass additive=False for the mean over batches, if the loss compares the samples of a batch with "
        "each other (contrastive losses do), or return a mean over samples"
    )


def _labels_place(batch: Any) -> str:
    """Return the expression of what looks like class indices in a batch: its last integer tensor."""
    places = [place for place, leaf in array_places(batch) if not leaf.is_floating_point() and not leaf.is_complex()]
    return places[-1] if places else "labels"


def _unchecked(losses: BatchLosses, why: str) -> Additivity:
    """Return the result where nothing could be compared; weights that were declared need no note."""
    if losses.counted:
        return Additivity(UNCHECKED)
    counts = losses.data.counts
    listed = ", ".join(f"{count:g}" for count in counts[:4]) + (", ..." if len(counts) > 4 else "")
    return Additivity(
        UNCHECKED,
        f"additivity: unchecked. Batches are weighted by the lengths of their first tensors ({listed}), which could "
        f"not be compared with the loss of joined batches: {why}. Pass count=lambda batch: ... with the number of "
        "terms that each loss is a mean over, or additive=False for the plain mean over batches",
    )
