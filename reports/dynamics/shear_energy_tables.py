"""Tables of the shear-force angle and of the Fisher energy: by arm, by track and by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Cell, Column, Missing, Table
from lossscope.reports.shared.loss_unit import LOSS, LOSS_SQUARED
from lossscope.reports.shared.provenance import listed
from lossscope.reports.shared.quantities import median_and_range, number

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["energy_table", "missing_shear_and_energy", "shear_table"]

_WORDS: Final = (Column("arm", "arm", words=True), Column("tensor", "tensor", words=True))
_SHEAR_COLUMNS: Final = (
    *_WORDS,
    Column("samples", "samples", "", "steps times seeds, for a track times its tensors, with a recorded angle"),
    Column("adversarial_angle", "shear angle", "°", "between the base and the adversarial gradient"),
    Column("shear_norm", "‖s‖", LOSS, "norm of the fresh shear s, the adversarial gradient without its part along g"),
    Column("shear_ratio", "‖s‖ / ‖g‖", "1", "norm of the fresh shear over that of the base gradient g"),
    Column("freshness", "freshness", "1", "cosine of the stored shear with the fresh one that replaces it"),
    Column("phi", "phi", "1", "cosine of g with the stored shear, also at steps without an angle"),
    Column("surrogate_gap", "surrogate gap", LOSS, "adversarial loss minus loss; of the whole model only"),
)
_ENERGY_COLUMNS: Final = (
    *_WORDS,
    Column("samples", "samples", "", "steps times seeds, for a track times its tensors, with a recorded energy"),
    Column("energy", "E", "1", "‖A‖_F, the norm of the whitened momentum of one tensor"),
    Column("energy_rms", "E / √n", "1", "E over the root of the tensor's entries: a signal-to-noise meter, 0 to 1"),
    Column("natural_energy", "natural", LOSS_SQUARED, "Σ A² v of one tensor, v the bias-corrected second moment"),
    Column("gradient_energy", "gradient", LOSS, "Σ g² / (√v + eps) of one tensor"),
    Column("update_energy", "update", LOSS_SQUARED, "Σ ΔW² v of one tensor"),
    Column("second_moment_sum", "Σ v", LOSS_SQUARED, "of one tensor; not a Fisher trace, it depends on the batch size"),
)
_ANGLE: Final = ("adversarial_angle",)
_ENERGIES: Final = tuple(column.key for column in _ENERGY_COLUMNS[3:])
_TRACKS: Final = ("matrix", "vector")
_TRACK_NOTE: Final = (
    "A row of a track pools its tensors, each with its own number at each step: it is the median over tensors, steps "
    "and seeds, not a sum over the track. Seeds counted as missing have no such number."
)
_SHEAR_NOTE: Final = (
    "`all` takes the parameters as one vector. A tensor has its own projection, so its shear is not a part of the one "
    "of `all`. Of `all`, phi and the surrogate gap are recorded at every step that has one, so they have more numbers "
    "than the angle."
)
_MOST_TENSORS: Final = 20  # of an arm
_SHEAR_HOW: Final = (
    "Second passes were taken, and no angle was recorded. Train with one of lossscope's own optimizers, which show "
    "both gradients of a step; every 100th step is sampled with preset economy, every 10th with standard, each with "
    "full."
)
_STORED_HOW: Final = (
    "Their optimizer steps along the adversarial gradient and stores no shear, so only the angle is recorded; "
    "ars2-lazy, ars2-aga and looksam store one."
)
_ENERGY_HOW: Final = (
    "The energies need the second moments of one of lossscope's own optimizers, see `lossscope list optimizers`; those "
    "without second moments, such as sgd, have none."
)


def shear_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """The shear of each arm: of the whole model, of each track and of each tensor; nothing where no run has one.

    Args:
        runs: any runs. An arm without a recorded second pass and without phi has no row.

    Returns:
        One table, or none.
    """
    title = "Shear-force angle: median [range over sampled steps and seeds]"
    rows, more = _arms(runs, _SHEAR_COLUMNS, _ANGLE, _whole)
    note = " ".join([_SHEAR_NOTE, _TRACK_NOTE, *more])
    return (Table("shear", title, _SHEAR_COLUMNS, tuple(rows), note),) if rows else ()


def energy_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """The Fisher energy of each arm, of each track and of each tensor; nothing where no run has one.

    Args:
        runs: any runs. An arm whose optimizer shows no second moments has no row.

    Returns:
        One table, or none.
    """
    title = "Fisher energy: median [range over sampled steps and seeds]"
    rows, more = _arms(runs, _ENERGY_COLUMNS, _ENERGIES, None)
    note = " ".join([_TRACK_NOTE, *more])
    return (Table("energy", title, _ENERGY_COLUMNS, tuple(rows), note),) if rows else ()


def missing_shear_and_energy(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """What runs lack of the shear although they took second passes, and of the energies, with how to record it."""
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
    return tuple(Missing(f"{what} of {listed(names)}", how) for what, how, names in lacking if names)


def _arms(
    runs: Sequence[Run],
    columns: Sequence[Column],
    counted: Sequence[str],
    whole: Callable[[Run], pd.DataFrame] | None,
) -> tuple[list[tuple[Cell, ...]], list[str]]:
    """The rows of every arm, and a sentence for each arm with more tensors than are listed.

    `counted` are the columns of which a sample has at least one; `whole` gives the rows about all parameters.
    """
    found: list[tuple[Cell, ...]] = []
    sentences: list[str] = []
    for arm, members in by_arm(runs).items():
        sums: dict[str, list[pd.DataFrame]] = {"all": [whole(run) for run in members]} if whole else {}
        sums |= {f"{one} track": [run.tensors[run.tensors["track"] == one] for run in members] for one in _TRACKS}
        seeds = [{str(name): rows for name, rows in run.tensors.groupby("tensor", sort=False)} for run in members]
        none = members[0].tensors.iloc[:0]
        layers = {name: [seed.get(name, none) for seed in seeds] for name in dict.fromkeys(n for s in seeds for n in s)}
        summed, single = (_rows(arm, parts, columns[3:], counted) for parts in (sums, layers))
        found += [*summed, *single[:_MOST_TENSORS]]
        if len(single) > _MOST_TENSORS:
            sentences.append(f"{len(single) - _MOST_TENSORS} more tensors of {arm} are not listed.")
    return found, sentences


def _rows(
    arm: str, parts: Mapping[str, Sequence[pd.DataFrame]], columns: Sequence[Column], counted: Sequence[str]
) -> list[tuple[Cell, ...]]:
    """A row for each part of the model that has a number; of each part there is a frame for every seed."""
    rows: list[tuple[Cell, ...]] = []
    for part, seeds in parts.items():
        values = [[one for seed in seeds for one in _numbers(seed, column.key)] for column in columns]
        if any(one is not None for of_column in values for one in of_column):
            samples = sum(int(seed[list(counted)].notna().any(axis=1).sum()) for seed in seeds)
            rows.append((arm, part, samples, *map(median_and_range, values)))
    return rows


def _numbers(rows: pd.DataFrame, column: str) -> list[float | None]:
    """The numbers of a seed's rows, angles in degrees; one missing number where the seed has none."""
    values = rows.get(column, ())
    there = [one for value in values if (one := number(value)) is not None]
    return [math.degrees(one) if column == "adversarial_angle" else one for one in there] or [None]


def _whole(run: Run) -> pd.DataFrame:
    """The rows of `steps`, with the ratio of shear to gradient, which is not recorded; infinite for a gradient of 0."""
    steps = run.steps
    return steps.assign(shear_ratio=steps["shear_norm"] / steps["gradient_norm"])


def _ascended(run: Run) -> bool:
    """Tell whether a step took a second gradient."""
    return bool(run.steps["synced"].eq(True).any())


def _has(run: Run, column: str) -> bool:
    """Tell whether that number of the shear was recorded anywhere."""
    return bool(run.steps[column].notna().any() or run.tensors[column].notna().any())


def _with_energy(run: Run) -> dict[str, bool]:
    """Tell of each track of the run whether any energy of it was recorded."""
    there = run.tensors[list(_ENERGIES)].notna().any(axis=1)
    return {str(track): bool(found.any()) for track, found in there.groupby(run.tensors["track"])}
