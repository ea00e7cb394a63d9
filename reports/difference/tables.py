"""Tables of a difference: modules, loss change, tensors, spectra, subspaces, seeds, and what was not compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lossscope.landscape.analysis.subspaces import random_angles
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.quantities import median_and_range, number

if TYPE_CHECKING:
    from lossscope.landscape.analysis.diff import ModuleDifference
    from lossscope.landscape.analysis.subspaces import MatrixDifference, Subspaces
    from lossscope.landscape.surfaces.difference import Difference, LossChange, ModuleChange

__all__ = ["mutual_of_seeds", "tables"]


def tables(found: Difference, most: int | None = None) -> tuple[Table, ...]:
    """Return all tables with rows.

    Args:
        found: The difference.
        most: Largest number of modules and of tensors, the farthest apart. Default: all of them.
    """
    found = _farthest(found, most)
    made = [
        _modules(found),
        *([_loss(found.change, found.unit, most)] if found.change is not None else []),
        _seeds(found),
        _tensors(found),
        _spectra(found),
        _subspaces(found),
        _unmatched(found),
    ]
    return tuple(one for one in made if one.rows)


def _farthest(found: Difference, most: int | None) -> Difference:
    """Return a difference with the modules and tensors that are farthest apart, in their order."""
    weights = found.weights

    def kept(members: Sequence[Any]) -> tuple[Any, ...]:
        """Return the farthest apart."""
        largest = sorted(members, key=lambda one: -one.distance)[:most]
        return tuple(one for one in members if one in largest)

    return replace(found, weights=replace(weights, modules=kept(weights.modules), tensors=kept(weights.tensors)))


def mutual_of_seeds(found: Difference, module: str) -> list[float | None]:
    """Return the mutual distances of a module, or of `all`, between pairs of seeds."""
    rows = [one for pair in found.seeds for one in (pair.weights.whole, *pair.weights.modules) if one.name == module]
    return [number(one.mutual) for one in rows]


def _modules(found: Difference) -> Table:
    """Return norms and distances by module."""
    columns = (
        Column("module", "module", words=True),
        Column("weights", "weights"),
        Column("norm_a", "norm of A"),
        Column("norm_b", "norm of B"),
        Column("distance", "distance", "", "norm of B - A"),
        Column("relative", "over norm of A", "1", "distance over the norm of A"),
        Column("share", "share", "%", "share of the squared distance of all"),
        Column("mutual", "over both norms", "1", "|B - A| / sqrt(|A|² + |B|²): 1 for independent weights"),
        *((Column("seeds", "two seeds", "1", "the same of pairs of seeds: median and range"),) if found.seeds else ()),
    )

    def row(one: ModuleDifference, seeds: str) -> tuple[Cell, ...]:
        """Return the row of a module."""
        cells = (one.name, one.size, one.norm_a, one.norm_b, one.distance, number(one.relative))
        beside = (median_and_range(mutual_of_seeds(found, seeds)),) if found.seeds else ()
        return (*cells, number(100 * one.share), number(one.mutual), *beside)

    whole = found.weights.whole
    rows = [row(one, one.name) for one in found.weights.modules]
    return Table("modules", "Distance by module", columns, (*rows, row(whole, whole.name)))


def _loss(change: LossChange, unit: str, most: int | None) -> Table:
    """Return the parts of the loss change by module, and the remainder."""
    columns = (
        Column("module", "module", words=True),
        Column("linear", "slope g·Δ", unit, "sum over the module of gradient at A times B - A"),
        Column("quadratic", "curvature ½Δ·HΔ", unit, "half the sum over the module of (B - A) times H (B - A)"),
        Column("sum", "both", unit),
    )
    largest = sorted(change.modules, key=lambda one: -abs(one.linear) - abs(one.quadratic))[:most]
    shown = [one for one in change.modules if one in largest]
    rest = [one for one in change.modules if one not in largest]
    rows = [
        *(_part(one.name, [one]) for one in shown),
        *([_part(f"{len(rest)} others", rest)] if rest else []),
        _part("all", change.modules),
        ("remainder", None, None, Quantity(number(change.remainder), error=number(change.remainder_error))),
        ("loss change", None, None, Quantity(number(change.change), error=number(change.change_error))),
    ]
    note = "± bounds the rounding error, as measured in another precision. Cross terms count half in each module."
    return Table("loss_change", "Loss change by module, to second order at A", columns, tuple(rows), note)


def _part(name: str, modules: Sequence[ModuleChange]) -> tuple[Cell, ...]:
    """Return the row of some modules together."""
    linear, quadratic = (math.fsum(one.linear for one in modules), math.fsum(one.quadratic for one in modules))
    errors = math.fsum(one.linear_error for one in modules), math.fsum(one.quadratic_error for one in modules)
    cells = ((linear, errors[0]), (quadratic, errors[1]), (linear + quadratic, sum(errors)))
    return name, *(Quantity(number(value), error=number(error)) for value, error in cells)


def _seeds(found: Difference) -> Table:
    """Return the pairs of seeds of one optimizer, and A and B."""
    columns = (
        Column("pair", "pair", words=True),
        Column("arm", "arm", words=True),
        Column("distance", "distance"),
        Column("mutual", "over both norms", "1"),
        Column("barrier", "barrier", found.unit, "the error is that of the points of the path"),
    )
    if not found.seeds:
        return Table("seeds", "Two seeds of one optimizer", columns, ())
    mine = found.weights
    rows: list[tuple[Cell, ...]] = [
        ("A and B", "", mine.whole.distance, number(mine.whole.mutual), _height(found.path)),
        *(
            (
                one.name,
                one.arm,
                one.weights.whole.distance,
                number(one.weights.whole.mutual),
                _height(one.path),
            )
            for one in found.seeds
        ),
    ]
    return Table("seeds", "Two seeds of one optimizer", columns, tuple(rows))


def _height(path: object) -> Quantity | None:
    """Return the barrier of a path; None if there is none."""
    barrier, error = getattr(path, "barrier", None), getattr(path, "barrier_error", None)
    return None if barrier is None else Quantity(number(barrier), error=number(error) or None)


def _tensors(found: Difference) -> Table:
    """Return norms and distances by tensor."""
    columns = (
        Column("tensor", "tensor", words=True),
        Column("shape", "shape", words=True),
        Column("norm_a", "norm of A"),
        Column("norm_b", "norm of B"),
        Column("distance", "distance"),
        Column("relative", "over norm of A", "1"),
    )
    rows = [
        (
            one.name + (" (statistics)" if one.statistics else ""),
            _shape(one.shape),
            one.norm_a,
            one.norm_b,
            one.distance,
            number(one.relative),
        )
        for one in found.weights.tensors
    ]
    return Table("tensors", "Distance by tensor", columns, tuple(rows))


def _spectra(found: Difference) -> Table:
    """Return summaries of the singular values."""
    columns = (
        Column("matrix", "matrix", words=True),
        Column("norm_a", "spectral norm of A"),
        Column("norm_b", "of B"),
        Column("rank_a", "stable rank of A", "1"),
        Column("rank_b", "of B", "1"),
        Column("entropy_a", "spectral entropy of A", "1", "energy entropy of the singular values over ln r"),
        Column("entropy_b", "of B", "1"),
    )
    rows = []
    for name, matrix in _matrices(found):
        a, b = matrix.a, matrix.b
        values = (a.norm, b.norm, a.stable_rank, b.stable_rank, a.entropy, b.entropy)
        rows.append((name, *map(number, values)))
    return Table("spectra", "Singular values", columns, tuple(rows))


def _subspaces(found: Difference) -> Table:
    """Return overlaps and angles of the leading singular subspaces, a row for each side."""
    columns = (
        Column("matrix", "matrix", words=True),
        Column("side", "side", words=True),
        Column("directions", "directions"),
        Column("overlap", "overlap", "1", "mean squared cosine of the angles between both subspaces: 1 if equal"),
        Column("random", "random", "1", "mean and standard deviation of the overlap of random subspaces"),
        Column("angles", "angles", "°", "median, smallest and largest principal angle"),
        Column("random_angles", "random angles", "°", "medians of those of random subspaces"),
        Column("gap", "gap", "1", "(s_k - s_k+1) / s_k: near 0 the cut through the singular values is arbitrary"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, matrix in _matrices(found):
        for side, angles in (("left", matrix.left), ("right", matrix.right)):
            if angles is not None:
                rows.append((name, side, *_angle_cells(angles), number(matrix.gap)))
    return Table("subspaces", "Leading singular subspaces of A and B", columns, tuple(rows))


def _angle_cells(one: Subspaces) -> tuple[Cell, ...]:
    """Return number, overlap and angles of a pair of subspaces, beside those of random ones."""
    mean, deviation = one.expected
    degrees = np.degrees(one.angles)
    chance = np.degrees(random_angles(one.dimension, len(one.angles)))
    low, middle, high = (float(np.median(some)) for some in (chance[:, 0], np.median(chance, 1), chance[:, -1]))
    return (
        len(one.angles),
        one.overlap,
        Quantity(mean, error=deviation or None),
        Quantity(float(np.median(degrees)), low=float(degrees[0]), high=float(degrees[-1])),
        Quantity(middle, low=low, high=high),
    )


def _matrices(found: Difference) -> list[tuple[str, MatrixDifference]]:
    return [(one.name, one.matrix) for one in found.weights.tensors if one.matrix is not None]


def _unmatched(found: Difference) -> Table:
    """Return the tensors that were not compared, with the reason."""
    columns = (Column("tensor", "tensor", words=True), Column("reason", "not compared", words=True))
    pairs = found.weights.matched
    rows = [
        *((name, "in A only") for name in pairs.only_a),
        *((name, "in B only") for name in pairs.only_b),
        *((name, f"{_shape(first)} in A, {_shape(second)} in B") for name, first, second in pairs.reshaped),
        *((name, "a type of numbers that is not read") for name in pairs.unread),
        *((name, "no floating-point numbers") for name in pairs.others),
    ]
    return Table("unmatched", "Not compared", columns, tuple(rows))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
