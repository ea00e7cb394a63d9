"""A column of the spectra table by matrix and step: medians over the seeds of an arm, and the value of white noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.series import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["LayerSpectra", "layer_spectra", "orthogonalizes"]

_COLUMNS: Final = ("step", "tensor", "slice", "object", "values.length", "entropy_energy", "excess_order")


@dataclass(frozen=True, eq=False)
class LayerSpectra:
    """A quantity of every matrix at every step with spectra, median over the seeds."""

    names: tuple[str, ...]  # in the order of the model; `name[3]` is a slice of a batched matrix
    steps: FloatArray  # (T,)
    values: FloatArray  # (matrices, T), nan where there is none
    null: FloatArray  # (matrices,) energy entropy over ln r of white noise of the shape; nan if unknown


def orthogonalizes(run: Run) -> bool:
    """Return True if a run recorded the output of Newton-Schulz."""
    return bool((run.columns("spectra", "object")["object"] == "orthogonal").any())


def layer_spectra(
    runs: Sequence[Run], objects: Sequence[str], column: str, *, like: LayerSpectra | None = None
) -> LayerSpectra:
    """Return a column of the spectra table by matrix and step.

    Args:
        runs: Runs of one arm.
        objects: Objects, the preferred first: of each run, matrix and step the first that was recorded counts.
        column: A column of floats.
        like: Take the matrices and steps of these numbers; all by default.

    Returns:
        The medians over the seeds with a value.
    """
    import pandas as pd

    parts = [_preferred(run, objects, column) for run in runs]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if not len(rows):
        names, steps = ((), np.empty(0)) if like is None else (like.names, like.steps)
        return LayerSpectra(names, steps, np.full((len(names), len(steps)), np.nan), np.full(len(names), np.nan))
    order = list(dict.fromkeys(rows["matrix"]) if like is None else like.names)
    wide = rows.pivot_table(index="matrix", columns="step", values=column, aggfunc="median", dropna=False)
    wide = wide.reindex(order).sort_index(axis=1)
    if like is not None:
        wide = wide.reindex(columns=like.steps)
    null = rows.groupby("matrix")["null"].median().reindex(order).to_numpy(dtype=np.float64)
    return LayerSpectra(tuple(order), wide.columns.to_numpy(dtype=np.float64), wide.to_numpy(dtype=np.float64), null)


def _preferred(run: Run, objects: Sequence[str], column: str) -> pd.DataFrame:
    """Return the rows of a run with the first of the objects that was recorded, named by matrix, with their null."""
    rows = run.columns("spectra", *dict.fromkeys((*_COLUMNS, column)))
    rows = rows[rows["object"].isin(objects)]
    slices = rows["slice"].to_numpy(dtype=np.float64, na_value=np.nan)
    whole = np.isnan(slices)
    names = np.array(rows["tensor"], dtype=object)
    names[~whole] = [f"{tensor}[{part:.0f}]" for tensor, part in zip(names[~whole], slices[~whole], strict=True)]
    ranks = np.log(np.maximum(rows["values.length"].to_numpy(dtype=np.float64), 1))
    with np.errstate(all="ignore"):
        null = (
            rows["entropy_energy"].to_numpy(dtype=np.float64) + rows["excess_order"].to_numpy(dtype=np.float64) / ranks
        )
    rows = rows.assign(matrix=names, null=null, place=rows["object"].map(list(objects).index))
    rows = rows.sort_values("place", kind="stable").drop_duplicates(["matrix", "step"])
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    found: pd.DataFrame = rows.sort_values(
        ["matrix", "step"], key=lambda one: one.map(order) if one.name == "matrix" else one
    )
    return found
