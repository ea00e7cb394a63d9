"""Tables of step quality, gradient alignment with the Hessian, injected shear, and layer-wise remainders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import FloatArray
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.quantities import median_and_range, number
from lossscope.reports.shared.step_quality import step_evaluations

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.analysis import LayerRecord
    from lossscope.landscape.run import Run

__all__ = [
    "alignment_table",
    "injection_table",
    "layer_records",
    "layer_table",
    "step_quality_table",
    "step_terms_table",
]

_ARM: Final = Column("arm", "arm", words=True)
_EVALUATIONS: Final = Column("evaluations", "evaluations", "", "curvature evaluations of all runs")
_QUALITY_COLUMNS: Final = (
    _ARM,
    _EVALUATIONS,
    Column("trust_ratio", "trust ratio", "1", "actual change of the loss over the predicted g'D + D'HD/2"),
    Column("relative_first", "r1", "1", "|R1| / |g'D|: relative error of the linear model"),
    Column("relative_second", "r2", "1", "|R2| / (|g'D| + |D'HD|/2): relative error of the quadratic model"),
    Column("secant_curvature", "secant curvature", LOSS, "s'y / s's: mean curvature over the step"),
    Column("directional_sharpness", "D'HD / ‖D‖²", LOSS, "curvature along the step at its start"),
    Column("lambda_max", "λ_max", LOSS, "largest curvature of any direction, after the step"),
)
_TERM_COLUMNS: Final = (
    _ARM,
    _EVALUATIONS,
    Column("loss_change", "ΔL", LOSS, "change of the loss on the fixed data along the step D"),
    Column("first_remainder", "R1", LOSS, "ΔL − g'D: what the linear model misses"),
    Column("second_remainder", "R2", LOSS, "R1 − D'HD/2: what the quadratic model misses"),
    Column("secant_norm", "‖y‖ / ‖s‖", LOSS, "change y of the gradient over the length of the step s"),
    Column("secant_alignment", "cos(s, y)", "1", "1 where the change of the gradient is parallel to the step"),
)
_ALIGNMENT_COLUMNS: Final = (
    _ARM,
    _EVALUATIONS,
    Column("top_share", "share in the top direction", "1", "share of ‖g‖² along the eigenvector of λ_max"),
    Column("top_null", "random vector", "1", "expected share of a random vector: 1 / n parameters"),
    Column("top5_share", "share in the top five", "1", "share of ‖g‖² in the top five eigenvectors"),
    Column("top5_null", "random vector", "1", "expected share of a random vector: 5 / n parameters"),
    Column("gradient_cosine", "cos(g, Hg)", "1"),
    Column("gradient_rayleigh", "g'Hg / ‖g‖² over λ_max", "1"),
)
_INJECTION_COLUMNS: Final = (
    _ARM,
    Column("tensor", "tensor", words=True),
    Column("samples", "samples", "", "steps times seeds with an injected shear and a recorded angle"),
    Column("strength", "α", "1", "strength of the injected shear; whole model only"),
    Column("injected", "‖injected‖", LOSS, "norm of the shear added to the gradient; single tensors only"),
    Column("angle", "angle", "°", "angle between the update with and without the shear"),
)
_QUALITY_NOTE: Final = (
    "Medians and ranges over evaluations and seeds, on the fixed data of curvature. Remainders and loss changes below "
    "their rounding error are missing, not small. If the linear and the quadratic term cancel, the trust ratio is far "
    "from 1 although the model is accurate: use r2."
)
_TERM_NOTE: Final = "Compare R1 and R2 with ΔL: a remainder as large as the change is a model that says nothing."
_ALIGNMENT_NOTE: Final = (
    "Medians and ranges over evaluations and seeds. Compare each share with that of a random vector."
)
_INJECTION_NOTE: Final = (
    "0° is a shear without effect. After orthogonalization, a strong shear may turn the update only slightly."
)
_MOST_TENSORS: Final = 40


def step_quality_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the accuracy of the quadratic model for each arm; empty if no step was evaluated."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        found = [evaluation for run in members for evaluation in step_evaluations(run)]
        if found:
            model = [[getattr(evaluation, name) for evaluation in found] for name in ("trust", "first", "second")]
            curvature = [_values(members, column.key) for column in _QUALITY_COLUMNS[-3:]]
            rows.append((arm, len(found), *(median_and_range(values) for values in (*model, *curvature))))
    title = "Accuracy of the quadratic model of the loss: median [range over evaluations and seeds]"
    return (Table("step_quality", title, _QUALITY_COLUMNS, tuple(rows), _QUALITY_NOTE),) if rows else ()


def step_terms_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the loss change along the step and what its models miss, for each arm; empty if no step was evaluated."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        found = [_values(members, column.key) for column in _TERM_COLUMNS[2:]]
        if any(found):
            rows.append((arm, max(map(len, found)), *map(median_and_range, found)))
    title = "Loss change along the step and its remainders: median [range over evaluations and seeds]"
    return (Table("step_terms", title, _TERM_COLUMNS, tuple(rows), _TERM_NOTE),) if rows else ()


def alignment_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the alignment of each arm's gradients with the Hessian's eigenvectors; empty if not measured."""
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
    title = "Alignment of gradients with the Hessian: median [range over evaluations and seeds]"
    return (Table("alignment", title, columns, cells, _ALIGNMENT_NOTE),) if rows else ()


def injection_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the rotation of the updates by the injected shear, overall and by tensor; empty if none was injected."""
    rows = [row for arm, members in by_arm(runs).items() for row in _injections(arm, members)]
    more = f" {len(rows) - _MOST_TENSORS} more rows are not listed." if len(rows) > _MOST_TENSORS else ""
    title = "Rotation of the update by the injected shear: median [range over steps and seeds]"
    note = f"{_INJECTION_NOTE}{more}"
    return (Table("injection", title, _INJECTION_COLUMNS, tuple(rows[:_MOST_TENSORS]), note),) if rows else ()


def _injections(arm: str, runs: Sequence[Run]) -> Iterable[tuple[Cell, ...]]:
    """Return the row of an arm's whole update, then one row per tensor."""
    whole = np.concatenate([_degrees(run.columns("steps", "injection_angle")) for run in runs])
    if len(whole):
        strength = np.concatenate([run.columns("steps", "alpha")["alpha"].dropna().to_numpy() for run in runs])
        yield arm, "all", len(whole), median_and_range(strength), Quantity(None), median_and_range(whole)
    tensors: dict[str, tuple[list[FloatArray], list[FloatArray]]] = {}
    for run in runs:
        sampled = run.columns("tensors", "tensor", "injected_norm", "injection_angle")
        for name, rows in sampled.dropna(subset=["injection_angle"]).groupby("tensor", sort=False):
            norms, angles = tensors.setdefault(str(name), ([], []))
            norms.append(rows["injected_norm"].dropna().to_numpy(dtype=np.float64))
            angles.append(_degrees(rows))
    for name, (norms, angles) in tensors.items():
        turned = np.concatenate(angles)
        strengths = median_and_range(np.concatenate(norms))
        yield arm, name, len(turned), Quantity(None), strengths, median_and_range(turned)


def _degrees(rows: pd.DataFrame) -> FloatArray:
    """Return the recorded injection angles in degrees."""
    found: FloatArray = np.degrees(rows["injection_angle"].dropna().to_numpy(dtype=np.float64))
    return found


def _values(runs: Sequence[Run], measure: str) -> list[float | None]:
    """Return a measure of the whole model at every evaluation that has it."""
    found = []
    for run in runs:
        rows = run.estimates[(run.estimates["measure"] == measure) & run.estimates["tensor"].isna()]
        found += [number(value) for value in rows["value"]]
    return found


def _parameters(runs: Sequence[Run]) -> int | None:
    """Return the number of parameters of the model; None if the manifest lacks it."""
    for run in runs:
        model = run.manifest.get("model")
        count = model.get("parameters") if isinstance(model, Mapping) else None
        if isinstance(count, int) and count > 0:
            return count
    return None


_LAYER_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("samples", "samples", "", "steps at which the layers were sampled"),
    Column("judged", "tested", "", "samples with enough earlier samples"),
    Column("since", "from step", "", "first tested step"),
    Column("layer", "first outlier", words=True),
    Column("step", "step", "", "step of the first outlier"),
    Column("ratio", "over its threshold", "1", "its remainder over ten times its median"),
    Column("before", "loss before", LOSS, "median of the batch losses over the 10 steps up to that step"),
    Column("after", "loss after", LOSS, "median of the batch losses over the 10 steps after it"),
    Column("rose", "loss rose", words=True),
)
_LAYER_NOTE: Final = (
    "A layer is an outlier if its remainder, the part of the loss change that its linear term does not explain, is "
    "ten times its median over the previous 20 samples; it is tested from its 11th sample on. A layer that is always "
    "far from its Taylor model is not an outlier: see r1 and r2. Losses are of minibatches: a small rise may be noise, "
    "and a rise after an outlier need not be caused by it."
)


def layer_records(runs: Sequence[Run]) -> list[tuple[Run, LayerRecord]]:
    """Return the layer-wise remainders of the runs that sampled them."""
    sampled = [run for run in runs if run.columns("tensors", "remainder")["remainder"].notna().any()]
    if not sampled:
        return []
    from lossscope.landscape.analysis import layers_of

    return [(run, record) for run in sampled if (record := layers_of(run)) is not None]


def layer_table(records: Sequence[tuple[Run, LayerRecord]]) -> tuple[Table, ...]:
    """Return one row per run with layer-wise remainders; empty if there is none."""
    rows = tuple(_layer_row(run, record) for run, record in records)
    return (
        (Table("layers", "First layer with an outlying remainder", _LAYER_COLUMNS, rows, _LAYER_NOTE),) if rows else ()
    )


def _layer_row(run: Run, record: LayerRecord) -> tuple[Cell, ...]:
    """Return the row of a run."""
    rose = None if record.rose is None else ("yes" if record.rose else "no")
    without = "none" if record.judged else "too few samples"
    numbers = (number(record.ratio), number(record.loss_before), number(record.loss_after))
    counts = (record.samples, record.judged, record.since)
    return (run.name, *counts, record.layer or without, record.step, *numbers, rose)
