"""Tables of what steps did: against their second-order model, in the Hessian's directions, and with the shear."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.quantities import median_and_range, number
from lossscope.reports.shared.step_quality import step_evaluations

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.analysis import LayerRecord
    from lossscope.landscape.run import Run

__all__ = ["alignment_table", "injection_table", "layer_records", "layer_table", "step_quality_table"]

_ARM: Final = Column("arm", "arm", words=True)
_EVALUATIONS: Final = Column("evaluations", "evaluations", "", "of all runs")
_QUALITY_COLUMNS: Final = (
    _ARM,
    _EVALUATIONS,
    Column("trust_ratio", "trust ratio", "1", "actual over predicted change of the loss, g'D + D'HD/2"),
    Column("relative_first", "r1", "1", "|R1| / |g'D|: what the slope alone leaves"),
    Column("relative_second", "r2", "1", "|R2| / (|g'D| + |D'HD|/2): what slope and curvature leave"),
    Column("secant_curvature", "secant curvature", LOSS, "s'y / s's: mean curvature over the step"),
    Column("directional_sharpness", "D'HD / ‖D‖²", LOSS, "the same at its start"),
    Column("lambda_max", "λ_max", LOSS, "largest of any direction, after the step"),
)
_ALIGNMENT_COLUMNS: Final = (
    _ARM,
    _EVALUATIONS,
    Column("top_share", "share in the top direction", "1", "of ‖g‖², along the eigenvector of λ_max"),
    Column("top_null", "of a random vector", "1", "1 / n parameters"),
    Column("top5_share", "in the top five", "1", "eigenvectors"),
    Column("top5_null", "of a random vector", "1", "5 / n parameters"),
    Column("gradient_cosine", "cos(g, Hg)", "1"),
    Column("gradient_rayleigh", "g'Hg / ‖g‖² over λ_max", "1"),
)
_INJECTION_COLUMNS: Final = (
    _ARM,
    Column("tensor", "tensor", words=True),
    Column("samples", "samples", "", "steps times seeds at which a shear was injected and the angle was taken"),
    Column("angle", "angle", "°", "between the update and the one without the shear"),
)
_QUALITY_NOTE: Final = (
    "Medians and ranges over evaluations and seeds, on the fixed data of curvature. Remainders and changes of the loss "
    "below their rounding are unknown, not small: they count as missing. Where slope and curvature cancel, the trust "
    "ratio is far from 1 though the model is right: read r2."
)
_ALIGNMENT_NOTE: Final = (
    "Medians and ranges over evaluations and seeds. Each share stands beside that of a random vector."
)
_INJECTION_NOTE: Final = "0 is a shear without effect; after orthogonalization a strong shear may turn a step little."
_MOST_TENSORS: Final = 40


def step_quality_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Each arm's steps against their models; nothing where no step was."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        found = [evaluation for run in members for evaluation in step_evaluations(run)]
        if found:
            model = [[getattr(evaluation, name) for evaluation in found] for name in ("trust", "first", "second")]
            curvature = [_values(members, column.key) for column in _QUALITY_COLUMNS[-3:]]
            rows.append((arm, len(found), *(median_and_range(values) for values in (*model, *curvature))))
    title = "Steps against their second-order model: median [range over evaluations and seeds]"
    return (Table("step_quality", title, _QUALITY_COLUMNS, tuple(rows), _QUALITY_NOTE),) if rows else ()


def alignment_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """How each arm's gradients lie in the Hessian's eigenvectors; nothing where that was not measured."""
    rows: list[dict[str, Cell]] = []
    for arm, members in by_arm(runs).items():
        values = {column.key: _values(members, column.key) for column in _ALIGNMENT_COLUMNS[2:]}
        if not any(values.values()):
            continue
        n = _parameters(members)
        nulls: dict[str, Cell] = {"top_null": n and 1 / n, "top5_null": n and 5 / n if values["top5_share"] else None}
        evaluations = max(len(found) for found in values.values())
        measured = {key: median_and_range(found) for key, found in values.items() if key not in nulls}
        rows.append({"arm": arm, "evaluations": evaluations, **measured, **nulls})
    five = any(row["top5_null"] is not None or row["top5_share"] != Quantity(None) for row in rows)
    columns = tuple(column for column in _ALIGNMENT_COLUMNS if five or not column.key.startswith("top5"))
    cells = tuple(tuple(row[column.key] for column in columns) for row in rows)
    title = "Gradients in the Hessian's directions: median [range over evaluations and seeds]"
    return (Table("alignment", title, columns, cells, _ALIGNMENT_NOTE),) if rows else ()


def injection_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """By how much the injected shear turned the updates, in all and by tensor; nothing where none was injected."""
    rows = [row for arm, members in by_arm(runs).items() for row in _injections(arm, members)]
    more = f" {len(rows) - _MOST_TENSORS} more rows are not listed." if len(rows) > _MOST_TENSORS else ""
    title = "The update with and without the shear: median [range over steps and seeds]"
    note = f"{_INJECTION_NOTE}{more}"
    return (Table("injection", title, _INJECTION_COLUMNS, tuple(rows[:_MOST_TENSORS]), note),) if rows else ()


def _injections(arm: str, runs: Sequence[Run]) -> Iterable[tuple[Cell, ...]]:
    """The whole update of an arm first, then each tensor's."""
    whole = [angle for run in runs for angle in _degrees(run.steps)]
    if whole:
        yield arm, "all", len(whole), median_and_range(whole)
    tensors: dict[str, list[float]] = {}
    for run in runs:
        for name, rows in run.tensors.dropna(subset=["injection_angle"]).groupby("tensor", sort=False):
            tensors.setdefault(str(name), []).extend(_degrees(rows))
    for name, angles in tensors.items():
        yield arm, name, len(angles), median_and_range(angles)


def _degrees(rows: pd.DataFrame) -> list[float]:
    """The injection angles that are there, in degrees."""
    return [math.degrees(angle) for angle in rows["injection_angle"].dropna()]


def _values(runs: Sequence[Run], measure: str) -> list[float | None]:
    """A measure of the whole model at every evaluation that has it."""
    found = []
    for run in runs:
        rows = run.estimates[(run.estimates["measure"] == measure) & run.estimates["tensor"].isna()]
        found += [number(value) for value in rows["value"]]
    return found


def _parameters(runs: Sequence[Run]) -> int | None:
    """How many parameters the model has; None where the manifest does not tell."""
    for run in runs:
        model = run.manifest.get("model")
        count = model.get("parameters") if isinstance(model, Mapping) else None
        if isinstance(count, int) and count > 0:
            return count
    return None


_LAYER_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("samples", "samples", "", "steps at which the layers were sampled"),
    Column("judged", "judged", "", "of them, those with enough samples before"),
    Column("since", "from step"),
    Column("layer", "first to stand out", words=True),
    Column("step", "step"),
    Column("ratio", "over its threshold", "1", "its remainder over ten times its usual size"),
    Column("before", "loss before", LOSS, "median of the batches' losses over 10 steps, up to that step's"),
    Column("after", "loss after", LOSS, "the same over the 10 steps after it"),
    Column("rose", "rose", words=True),
)
_LAYER_NOTE: Final = (
    "A layer stands out where its remainder, the part of the loss's change that its slope does not explain, is ten "
    "times its own usual size, the median over the 20 samples before; it is judged from its 11th look on. One that is "
    "far from its Taylor model all along does not stand out: read r1 and r2. Losses are of batches, so a small rise "
    "may be their noise, and what follows need not follow from it."
)


def layer_records(runs: Sequence[Run]) -> list[tuple[Run, LayerRecord]]:
    """The layers of the runs in which they were sampled."""
    sampled = [run for run in runs if run.tensors["remainder"].notna().any()]
    if not sampled:
        return []
    from lossscope.landscape.analysis import layers_of

    return [(run, record) for run in sampled if (record := layers_of(run)) is not None]


def layer_table(records: Sequence[tuple[Run, LayerRecord]]) -> tuple[Table, ...]:
    """A row for each run whose layers were sampled; nothing where none was."""
    rows = tuple(_layer_row(run, record) for run, record in records)
    return (
        (Table("layers", "The layer whose remainder stood out first", _LAYER_COLUMNS, rows, _LAYER_NOTE),)
        if rows
        else ()
    )


def _layer_row(run: Run, record: LayerRecord) -> tuple[Cell, ...]:
    """The layers of a run."""
    rose = None if record.rose is None else ("yes" if record.rose else "no")
    without = "none" if record.judged else "too few samples to tell"
    numbers = (number(record.ratio), number(record.loss_before), number(record.loss_after))
    seen = (record.samples, record.judged, record.since)
    return (run.name, *seen, record.layer or without, record.step, *numbers, rose)
