"""Tables of the shear-force angle, of the ascent and of the Fisher energy: by arm, by track and by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import FloatArray
from lossscope.landscape.storage.schema import columns as schema_columns
from lossscope.reports.content import Cell, Column, Missing, Quantity, Table
from lossscope.reports.shared.loss_unit import LOSS, LOSS_SQUARED
from lossscope.reports.shared.provenance import listed
from lossscope.reports.shared.quantities import median_and_range

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["ascent_table", "energy_table", "missing_shear_and_energy", "shear_table"]

_WORDS: Final = (Column("arm", "arm", words=True), Column("tensor", "tensor", words=True))
_SHEAR_COLUMNS: Final = (
    *_WORDS,
    Column("samples", "samples", "", "steps times seeds (times tensors, for a track) with a recorded angle"),
    Column("adversarial_angle", "shear angle", "°", "angle between base and adversarial gradient"),
    Column("shear_norm", "‖s‖", LOSS, "norm of the fresh shear s: the adversarial gradient minus its projection on g"),
    Column("shear_ratio", "‖s‖ / ‖g‖", "1", "norm of the fresh shear over the norm of the base gradient g"),
    Column("freshness", "freshness", "1", "cosine between the stored shear and the fresh shear that replaces it"),
    Column("phi", "phi", "1", "cosine between g and the stored shear, also at steps without an angle"),
)
_ASCENT_COLUMNS: Final = (
    *_WORDS,
    Column("samples", "samples", "", "steps times seeds (times tensors, for a track) with a recorded ascent"),
    Column("perturbation_norm", "‖e‖", "1", "norm of the ascent e from the parameters to the adversarial point"),
    Column("relative_radius", "‖e‖ / ‖W‖", "1", "norm of the ascent over that of the parameters (all: after the step)"),
    Column("adversarial_norm", "‖g_adv‖", LOSS, "norm of the gradient at the adversarial point; whole model only"),
    Column("adversarial_loss", "adversarial loss", LOSS, "batch loss at the adversarial point; whole model only"),
    Column("surrogate_gap", "surrogate gap", LOSS, "adversarial loss minus loss: what the ascent gained; whole model"),
    Column("secant_gradient", "secant, gradients", LOSS, "<g_adv − g, e> / ‖e‖²: curvature along e"),
    Column("secant_loss", "secant, losses", LOSS, "2 (surrogate gap − <g, e>) / ‖e‖²: the same from two losses"),
)
_ENERGY_COLUMNS: Final = (
    *_WORDS,
    Column("samples", "samples", "", "steps times seeds (times tensors, for a track) with a recorded energy"),
    Column("energy", "E", "1", "‖A‖_F, norm of the whitened momentum of one tensor"),
    Column(
        "energy_rms", "E / √n", "1", "E over the square root of the number of entries: a signal-to-noise ratio, 0 to 1"
    ),
    Column("alignment", "<O, A>", "1", "inner product of A with its orthogonalization O: near the nuclear norm of A"),
    Column("natural_energy", "natural", LOSS_SQUARED, "Σ A² v of one tensor, with v the bias-corrected second moment"),
    Column("gradient_energy", "gradient", LOSS, "Σ g² / (√v + eps) of one tensor"),
    Column("update_energy", "update", LOSS_SQUARED, "Σ ΔW² v of one tensor"),
    Column(
        "second_moment_sum",
        "Σ v",
        LOSS_SQUARED,
        "sum of v of one tensor; not a Fisher trace: it depends on the batch size",
    ),
)
_ANGLE: Final = ("adversarial_angle",)
_ASCENT: Final = ("perturbation_norm", "surrogate_gap")
_ENERGIES: Final = tuple(column.key for column in _ENERGY_COLUMNS[3:])
_TRACKS: Final = ("matrix", "vector")
_OF_STEPS: Final = ("gradient_norm", "shear_norm", "adversarial_angle", "freshness", "phi")
_OF_ASCENT: Final = (
    "weight_norm",
    *(column.key for column in _ASCENT_COLUMNS if column.key in schema_columns("steps")),
)
_TRACK_NOTE: Final = (
    'The row of a track is the median over its tensors, steps and seeds, not a sum over the track. "(n missing)": n '
    "seeds have no value."
)
_SHEAR_NOTE: Final = (
    "`all` treats the parameters as one vector. Each tensor has its own projection: its shear is not a component of "
    "the shear of `all`. For `all`, phi is recorded at every step with a value, more often than the angle."
)
_ASCENT_NOTE: Final = (
    "A surrogate gap below 0 is an ascent that lowered the batch loss. The two secants agree where the loss is "
    "quadratic along the ascent; both are of the step's batch, not of the fixed data of curvature."
)
_MOST_TENSORS: Final = 20  # rows per arm
_ROUNDING: Final = 1e-6  # relative; a norm that an optimizer sets is the same number at every step
_SHEAR_HOW: Final = (
    "The run has second passes, but no recorded angle. Use one of lossscope's own optimizers, which expose both "
    "gradients of a step; preset economy samples every 100th step, standard every 10th, full every step."
)
_STORED_HOW: Final = (
    "The optimizer steps along the adversarial gradient and stores no shear, so only the angle is recorded; ars2-lazy, "
    "ars2-aga and looksam store a shear."
)
_ENERGY_HOW: Final = (
    "The energies require a lossscope optimizer with second moments, see `lossscope list optimizers`; optimizers "
    "without second moments, such as sgd, have none."
)


def shear_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the shear of each arm: whole model, each track and each tensor.

    Args:
        runs: Any runs. An arm with neither a recorded second pass nor phi has no row.

    Returns:
        One table, or none if no run recorded a shear.
    """
    title = "Shear-force angle: median [range over sampled steps and seeds]"
    rows, more = _arms(runs, _SHEAR_COLUMNS, _ANGLE, _whole)
    note = " ".join([_SHEAR_NOTE, _TRACK_NOTE, *more])
    return (_table("shear", title, _SHEAR_COLUMNS, rows, note),) if rows else ()


def ascent_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the ascent of each arm: its size, what it gained, and the curvature along it.

    Args:
        runs: Any runs. An arm without a recorded ascent has no row.

    Returns:
        One table, or none if no run recorded an ascent.
    """
    title = "Ascent, surrogate gap and secant curvature: median [range over sampled steps and seeds]"
    rows, more = _arms(runs, _ASCENT_COLUMNS, _ASCENT, _ascents)
    note = " ".join([_ASCENT_NOTE, *more])
    return (_table("ascent", title, _ASCENT_COLUMNS, rows, note),) if rows else ()


def energy_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the Fisher energy of each arm: each track and each tensor.

    Args:
        runs: Any runs. An arm whose optimizer exposes no second moments has no row.

    Returns:
        One table, or none if no run recorded an energy.
    """
    title = "Fisher energy: median [range over sampled steps and seeds]"
    rows, more = _arms(runs, _ENERGY_COLUMNS, _ENERGIES, None)
    note = " ".join([_TRACK_NOTE, *more])
    return (_table("energy", title, _ENERGY_COLUMNS, rows, note),) if rows else ()


def missing_shear_and_energy(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return the runs without shear despite second passes, and those without energies, with how to record them."""
    energies = {run.name: _with_energy(run) for run in runs}
    lacking = (
        (
            "Shear-force angle",
            _SHEAR_HOW,
            [run.name for run in runs if _ascended(run) and not _has(run, "adversarial_angle")],
        ),
        (
            "Norm, freshness and phi of the shear",
            _STORED_HOW,
            [run.name for run in runs if _has(run, "adversarial_angle") and not _has(run, "shear_norm")],
        ),
        ("Fisher energy", _ENERGY_HOW, [name for name, having in energies.items() if not any(having.values())]),
        *(
            (
                f"Fisher energy of the {track} track",
                _ENERGY_HOW,
                [name for name, having in energies.items() if any(having.values()) and not having.get(track, True)],
            )
            for track in _TRACKS
        ),
    )
    return tuple(
        Missing(f"{what} of {listed(names)}", how, by_nature=how != _SHEAR_HOW) for what, how, names in lacking if names
    )


def _table(key: str, title: str, columns: Sequence[Column], rows: Sequence[tuple[Cell, ...]], note: str) -> Table:
    """Return a table without the columns that no row has, such as phi of an optimizer without a stored shear."""
    there = [
        place
        for place in range(len(columns))
        if any(not isinstance(row[place], Quantity) or row[place] != Quantity(None) for row in rows)
    ]
    kept = tuple(columns[place] for place in there)
    return Table(key, title, kept, tuple(tuple(row[place] for place in there) for row in rows), note)


@dataclass(frozen=True)
class _Part:
    """Rows of one seed, which are not copied: a run may have millions."""

    rows: pd.DataFrame
    places: NDArray[np.intp] | None = None  # of the rows; None for all

    def column(self, name: str) -> FloatArray:
        """Return a column as float64, with nan for null; one of floats is not copied."""
        found = self.rows[name]
        known = found.dtype == np.float64
        values: FloatArray = found.to_numpy() if known else found.to_numpy(dtype=np.float64, na_value=np.nan)
        return values if self.places is None else values[self.places]

    def counted(self, names: Sequence[str]) -> int:
        """Return the number of rows with a value in at least one of the columns."""
        there = [~np.isnan(self.column(name)) for name in names if name in self.rows]
        return int(np.logical_or.reduce(there).sum()) if there else 0


def _of_track(rows: pd.DataFrame, track: str) -> _Part:
    """Return the rows of a track."""
    return _Part(rows, np.flatnonzero((rows["track"] == track).to_numpy(dtype=bool)))


def _by_tensor(rows: pd.DataFrame) -> dict[str, _Part]:
    """Return the rows of each tensor, in the order in which tensors first appear."""
    if not len(rows):
        return {}
    codes, names = rows["tensor"].factorize()
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    return {str(name): _Part(rows, part) for name, part in zip(names, np.split(order, ends[:-1]), strict=True)}


def _arms(
    runs: Sequence[Run],
    columns: Sequence[Column],
    counted: Sequence[str],
    whole: Callable[[Run], pd.DataFrame] | None,
) -> tuple[list[tuple[Cell, ...]], list[str]]:
    """Return the rows of every arm, and a sentence for each arm with more tensors than are listed.

    A sample has a value in at least one of the `counted` columns; `whole` returns the rows of all parameters together.
    """
    found: list[tuple[Cell, ...]] = []
    sentences: list[str] = []
    for arm, members in by_arm(runs).items():
        sums: dict[str, list[_Part]] = {"all": [_Part(whole(run)) for run in members]} if whole else {}
        sampled = [_sampled(run, columns[3:]) for run in members]
        sums |= {f"{one} track": [_of_track(rows, one) for rows in sampled] for one in _TRACKS}
        seeds = [_by_tensor(rows) for rows in sampled]
        none = _Part(sampled[0], np.empty(0, np.intp))
        layers = {name: [seed.get(name, none) for seed in seeds] for name in dict.fromkeys(n for s in seeds for n in s)}
        summed, single = (_rows(arm, parts, columns[3:], counted) for parts in (sums, layers))
        found += [*summed, *single[:_MOST_TENSORS]]
        if len(single) > _MOST_TENSORS:
            sentences.append(f"{len(single) - _MOST_TENSORS} more tensors of {arm} are not listed.")
    return found, sentences


def _sampled(run: Run, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the columns of `tensors` that a table needs."""
    recorded = schema_columns("tensors")
    return run.columns("tensors", "tensor", "track", *(one.key for one in columns if one.key in recorded))


def _rows(
    arm: str, parts: Mapping[str, Sequence[_Part]], columns: Sequence[Column], counted: Sequence[str]
) -> list[tuple[Cell, ...]]:
    """Return one row per part of the model with a value; each part has one entry per seed."""
    rows: list[tuple[Cell, ...]] = []
    for part, seeds in parts.items():
        values = [np.concatenate([_numbers(seed, column.key) for seed in seeds]) for column in columns]
        if any(np.isfinite(of_column).any() for of_column in values):
            samples = sum(seed.counted(counted) for seed in seeds)
            rows.append((arm, part, samples, *map(_median_and_range, values)))
    return rows


def _median_and_range(values: FloatArray) -> Quantity:
    """Return the median and range; without a range where the values differ by no more than rounding in float32."""
    found = median_and_range(values)
    if found.value is None or found.low is None or found.high is None or found.missing:
        return found
    return Quantity(found.value) if 0 < found.high - found.low <= _ROUNDING * abs(found.value) else found


def _numbers(seed: _Part, column: str) -> FloatArray:
    """Return the finite values of a seed's rows, angles in degrees; one nan if the seed has none."""
    if column not in seed.rows:
        return np.array([np.nan])
    values = seed.column(column)
    there: FloatArray = values[np.isfinite(values)]
    if not len(there):
        return np.array([np.nan])
    return np.degrees(there) if column == "adversarial_angle" else there


def _whole(run: Run) -> pd.DataFrame:
    """Return `steps` with the ratio of shear to gradient norm, which is not recorded; infinite for a zero gradient."""
    steps = run.columns("steps", *_OF_STEPS)
    return steps.assign(shear_ratio=steps["shear_norm"] / steps["gradient_norm"])


def _ascents(run: Run) -> pd.DataFrame:
    """Return `steps` with the relative size of the ascent, from the weights after the step."""
    steps = run.columns("steps", *_OF_ASCENT)
    return steps.assign(relative_radius=steps["perturbation_norm"] / steps["weight_norm"])


def _ascended(run: Run) -> bool:
    """Return True if any step computed a second gradient."""
    return bool(run.columns("steps", "synced")["synced"].eq(True).any())


def _has(run: Run, column: str) -> bool:
    """Return True if the column was recorded for any step or tensor."""
    return any(run.columns(table, column)[column].notna().any() for table in ("steps", "tensors"))


def _with_energy(run: Run) -> dict[str, bool]:
    """Return for each track of the run whether any energy was recorded."""
    rows = run.columns("tensors", "track", *_ENERGIES)
    there = rows[list(_ENERGIES)].notna().any(axis=1)
    return {str(track): bool(found.any()) for track, found in there.groupby(rows["track"])}
