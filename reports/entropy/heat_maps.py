"""Heat maps of spectral entropy, layer by step, before and after Newton-Schulz, with the entropy of white noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.layer_spectra import LayerSpectra, layer_spectra
from lossscope.reports.figure_content import Axis, HeatMap, HeatPanel, Numbers
from lossscope.reports.shared.number_format import plain
from lossscope.reports.shared.quantities import number
from lossscope.reports.shared.trajectory import bars

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["entropy_maps"]

_ARMS: Final = 4  # arms with a figure
_ROWS: Final = 24
_COLUMNS: Final = 40
_CAPTION: Final = (
    "Energy entropy over ln r of every matrix; rows in the order of the model. One scale of colors for both panels and "
    "for every arm, {low} to {high}. The cells on the right are white noise of the same shape: a matrix below it is "
    "more ordered than noise. Newton-Schulz raises the entropy by construction."
)


def entropy_maps(runs: Sequence[Run]) -> tuple[HeatMap, ...]:
    """Return a heat map for each of the first arms that orthogonalize; empty if none does.

    Args:
        runs: Any runs. Of several seeds, a cell is the median over those with a value.
    """
    arms = ((arm, _layers(members)) for arm, members in by_arm(runs).items())
    found = [(arm, before, after) for arm, (before, after) in arms if after.names][:_ARMS]
    limits = _limits([one for _, before, after in found for one in (before, after)])
    return tuple(_map(place, *one, limits) for place, one in enumerate(found, start=1))


def _layers(runs: Sequence[Run]) -> tuple[LayerSpectra, LayerSpectra]:
    """Return the entropies of the input and of the output of Newton-Schulz."""
    after = layer_spectra(runs, ("orthogonal",), "entropy_energy")
    return layer_spectra(runs, ("source", "whitened"), "entropy_energy", like=after), after


def _limits(found: Sequence[LayerSpectra]) -> tuple[float, float]:
    """Return the limits of the scale: from the lowest entropy or null, rounded down to a tenth, to 1."""
    parts = [array[np.isfinite(array)] for one in found for array in (one.values, one.null)]
    lowest = min((float(part.min()) for part in parts if len(part)), default=0.0)
    return math.floor(10 * min(max(lowest, 0.0), 0.9)) / 10, 1.0


def _map(place: int, arm: str, before: LayerSpectra, after: LayerSpectra, limits: tuple[float, float]) -> HeatMap:
    """Return the heat map of an arm."""
    columns = _some(len(before.steps), _COLUMNS)
    rows = range(min(len(before.names), _ROWS))
    low, high = (plain(one, 2) for one in limits)
    left_out = len(before.names) - len(rows)
    more = f" {left_out} more matrices are not drawn." if left_out else ""
    return HeatMap(
        key="entropy_map" if place == 1 else f"entropy_map_{place}",
        title=f"Spectral entropy of every matrix over the run: {arm}",
        caption=_CAPTION.format(low=low, high=high) + more,
        x=Axis("optimizer step"),
        color=Axis("entropy / ln r", limits=limits),
        columns=tuple(float(before.steps[column]) for column in columns),
        rows=tuple(before.names[row] for row in rows),
        panels=tuple(
            HeatPanel(
                title,
                tuple(_numbers(one.values[row, columns]) for row in rows),
                _numbers(before.null[: len(rows)]),
            )
            for title, one in (("before", before), ("after", after))
        ),
        beside="noise",
        summary=(f"bars from {low} to {high}, from the first step to the last", *_in_words(before, after, limits)),
    )


def _in_words(before: LayerSpectra, after: LayerSpectra, limits: tuple[float, float]) -> Iterable[str]:
    """Yield a line for each matrix: bars before and after, with the last values, and the entropy of noise."""
    width = max(map(len, before.names[:_ROWS]), default=0)
    for row, name in list(enumerate(before.names))[:_ROWS]:
        parts = []
        for words, one in (("before", before), ("after", after)):
            values = _numbers(one.values[row])
            last = next((value for value in reversed(values) if value is not None), None)
            parts.append(f"{words} {bars(values, limits)} {'–' if last is None else plain(last, 3)}")
        null = number(before.null[row])
        yield f"{name.ljust(width)}  {'  '.join(parts)}" + ("" if null is None else f"  noise {plain(null, 3)}")


def _some(count: int, most: int) -> list[int]:
    """Return equally spaced places with both ends, or all of a few."""
    return list(dict.fromkeys(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def _numbers(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Numbers:
    """Return an array as floats, nan as None."""
    return tuple(number(value) for value in values)
