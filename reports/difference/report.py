"""Difference of two runs or files of weights as a report."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.reports.content import Column, Missing, Report, Table
from lossscope.reports.difference.sentences import statements
from lossscope.reports.difference.tables import mutual_of_seeds, tables
from lossscope.reports.figure_content import Axis, Curve, Curves, FigureData, Forest, ForestRow, Numbers
from lossscope.reports.shared.number_format import percent, plain
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.difference import Difference, SeedPair
    from lossscope.landscape.surfaces.pictures import Path

__all__ = ["difference_report"]

_MODULES: Final = 24  # lines of the figure of modules
_WEIGHTS: Final = (
    "Distances between weights are no distances between functions: neurons may be permuted, and layers rescaled, "
    "without any change of the function. "
    "Independent weights are nearly orthogonal: √(|A|² + |B|²) apart."
)
_SUBSPACES: Final = (
    "Singular subspaces are those of each tensor as a matrix (first dimension by the rest). Left ones do not change if "
    "the inputs of the layer are rotated, right ones if its outputs are."
)
_PATH: Final = (
    "A barrier on the straight path need not separate two functions, as neurons may be permuted; and no barrier is no "
    "proof of one basin elsewhere."
)
_EXPANSION: Final = (
    "The parts of the loss change belong to the point A: from B they are others. They do not change if neurons are "
    "rescaled in A and B alike."
)


def difference_report(found: Difference, version: str, command: str, *, rows: int | None = None) -> Report:
    """Return a difference as a report.

    Args:
        found: The difference.
        version: Version of lossscope.
        command: Command that makes it again.
        rows: Largest number of modules and of tensors in a table, the farthest apart. Default: all of them.
    """
    weights = found.weights
    return Report(
        kind="difference",
        title="Difference of two checkpoints",
        subtitle=f"A: {weights.a}; B: {weights.b}",
        findings=(),
        tables=tables(found, rows),
        figures=tuple(_figures(found)),
        notes=_notes(found, rows),
        missing=(
            *(Missing(what, reason) for what, reason in found.missing.items()),
            *(Missing(what, reason) for what, reason in (found.path.missing if found.path else {}).items()),
            *(
                Missing(f"angles of {one.name}", one.matrix.missing)
                for one in weights.tensors
                if one.matrix is not None and one.matrix.missing
            ),
        ),
        provenance=_provenance(found, version, command),
        summary=statements(found),
    )


def _notes(found: Difference, rows: int | None) -> tuple[str, ...]:
    """Return what a reader must know, for the parts that are there."""
    notes = [*found.notes, _WEIGHTS]
    if rows is not None and len(found.weights.tensors) > rows:
        notes.append(
            f"Tables of this text have the {rows} modules and tensors that are farthest apart; --format markdown, html "
            "or json has all."
        )
    if any(one.matrix is not None and one.matrix.left is not None for one in found.weights.tensors):
        notes.append(_SUBSPACES)
    if found.path is not None:
        notes.append(_PATH)
        if found.path.restated is not None:
            notes.append("The network has BatchNorm: at each point of the path its statistics were measured anew.")
    if found.change is not None:
        notes.append(_EXPANSION)
    if any(one.statistics for one in found.weights.tensors):
        notes.append("Running statistics of BatchNorm are listed by tensor, but are no weights: no sum counts them.")
    if found.seeds:
        notes.append(_on_seeds(len(found.seeds)))
    return tuple(notes)


def _on_seeds(pairs: int) -> str:
    """Return what a range of pairs of seeds can tell."""
    words = "Pairs of seeds differ in their initial weights, and are a range, not a test: "
    if pairs > 1:
        words += f"one more pair like them lies outside that of {pairs} with a chance of {percent(2 / (pairs + 1))}. "
    else:
        words += "one pair has none. "
    return words + "A pair that shares a run with A and B is not independent of them."


def _figures(found: Difference) -> list[FigureData]:
    """Return the figure of the modules, and that of the path."""
    figures: list[FigureData] = []
    if found.weights.whole.distance > 0:
        figures.append(_module_figure(found))
    if found.path is not None:
        figures.append(_path_figure(found, found.path))
    return figures


def _module_figure(found: Difference) -> Forest:
    """Return the relative distance of each module, with those of pairs of seeds as dots."""
    largest = sorted(found.weights.modules, key=lambda one: -one.share)[:_MODULES]
    shown = [one for one in found.weights.modules if one in largest]
    rows = tuple(
        ForestRow(
            one.name,
            number(one.mutual),
            None,
            None,
            tuple(mutual_of_seeds(found, one.name)),
            f"{plain(number(one.mutual), 3)} ({plain(100 * one.share, 2)} %)",
        )
        for one in (*shown, found.weights.whole)
        if math.isfinite(one.share)
    )
    left = len(found.weights.modules) - len(shown)
    dots = "; dots are pairs of seeds of one optimizer" if found.seeds else ""
    rest = f" The {left} modules with the smallest distances are left out." if left else ""
    return Forest(
        key="modules",
        title="Distance by module",
        caption=f"Diamonds: distance over the norm of both{dots}. Line: independent weights. In brackets: share of the "
        f"squared distance.{rest}",
        x=Axis("distance over both norms"),
        rows=rows,
        narrow=True,
        summary=tuple(f"{row.label}: {row.words}" for row in rows),
    )


def _path_figure(found: Difference, path: Path) -> Curves:
    """Return the loss on the straight path, with the range of pairs of seeds of each arm."""
    curves = [_curve("A to B", 0, path.shares, _numbers(path.drawn))]
    drawn = [one for one in found.seeds if one.path is not None and len(one.path.shares) == len(path.shares)]
    for hue, (arm, pairs) in enumerate(groupby(drawn, key=lambda one: one.arm), start=1):
        curves.append(_band(arm, hue, list(pairs)))
    return Curves(
        key="path",
        title="Loss on the straight path",
        caption="Loss at θ = (1 - t) A + t B"
        + ("; bands: median and range of pairs of two seeds of one optimizer, on the same data." if drawn else "."),
        x=Axis("share t of the way"),
        y=Axis("loss", found.unit),
        curves=tuple(curves),
        summary=tuple(one.words for one in statements(found) if one.figure == "path"),
    )


def _band(arm: str, hue: int, pairs: list[SeedPair]) -> Curve:
    """Return the median and range of the losses between pairs of seeds."""
    lines = np.array([pair.path.drawn for pair in pairs if pair.path is not None])
    lost = ~np.isfinite(lines).all(0)
    with np.errstate(invalid="ignore"):
        low, middle, high = (np.where(lost, np.nan, pick(lines, axis=0)) for pick in (np.min, np.median, np.max))
    shares = pairs[0].path.shares if pairs[0].path is not None else np.empty(0)
    count = len(lines)
    return Curve(
        f"two seeds of {arm}",
        hue,
        _numbers(shares),
        _numbers(middle),
        _numbers(low),
        _numbers(high),
        (None,) * len(shares),
        count,
    )


def _curve(name: str, hue: int, shares: np.ndarray[tuple[int], np.dtype[np.float64]], losses: Numbers) -> Curve:
    return Curve(name, hue, _numbers(shares), losses, losses, losses, (None,) * len(losses), 1)


def _numbers(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Numbers:
    return tuple(number(one) for one in values)


def _provenance(found: Difference, version: str, command: str) -> Table:
    """Return how the numbers were made."""
    columns = (Column("item", "item", words=True), Column("value", "value", words=True))
    weights = found.weights
    loss = f"mean over {found.samples:g} samples, data {found.data[:12]}" if found.data else "none"
    known = {
        "A": weights.a,
        "B": weights.b,
        "weights": f"{weights.whole.size} in {len(weights.tensors)} tensors, float64 sums of the stored numbers",
        "loss": loss,
        "seconds": plain(found.seconds, 2),
        "lossscope": version,
        "command": command,
    }
    return Table("provenance", "Provenance", columns, tuple(known.items()))
