"""Spectral entropy report: singular spectra of gradient, momentum, update and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.layer_spectra import orthogonalizes
from lossscope.reports.content import Cell, Column, Report, Table
from lossscope.reports.entropy.checkpoint_table import checkpoint_table
from lossscope.reports.entropy.heat_maps import entropy_maps
from lossscope.reports.entropy.layer_table import spectra_by_layer_table
from lossscope.reports.entropy.tables import newton_schulz_table, order_table
from lossscope.reports.first_screen.screen import with_first_screen
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.figures import entropy_figure
from lossscope.reports.shared.findings import entropy_raised, spectra_precise
from lossscope.reports.shared.loss_unit import in_loss_unit
from lossscope.reports.shared.norm_tables import norm_table
from lossscope.reports.shared.notes import FLATTENING_NOTE, UPDATE_NOTE, VERDICT_NOTE, flattening_notes
from lossscope.reports.shared.provenance import ending_notes, missing_spectra, provenance, runs_in_words
from lossscope.reports.shared.quantities import last_spectra, mean_and_range, median_and_range, number

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["spectral_entropy"]

_OBJECTS: Final = {
    "gradient": "gradient",
    "momentum": "momentum",
    "whitened": "A, before Newton-Schulz",
    "orthogonal": "O, after Newton-Schulz",
    "update": "update",
    "weight": "weight",
    "movement": "W − W0",
}
_SUBJECT: Final = (Column("object", "object", words=True), Column("arm", "arm", words=True))
_ENTROPY_COLUMNS: Final = (
    *_SUBJECT,
    Column("matrices", "matrices", "", "number of spectra: matrices times seeds"),
    Column("norm", "‖M‖_F", "", "Frobenius norm"),
    Column("entropy_energy", "energy entropy", "1", "entropy of s²/Σs² over ln r"),
    Column("entropy_nuclear", "nuclear entropy", "1", "entropy of s/Σs over ln r"),
    Column("stable_rank", "stable rank", "1", "‖M‖_F² / ‖M‖_2²"),
    Column("effective_rank", "effective rank", "1", "exp of the unnormalized nuclear entropy"),
)
_CONDITION_COLUMNS: Final = (
    *_SUBJECT,
    Column("condition", "condition, median", "1", "largest over smallest singular value"),
    Column("singular", "singular", "", "number of singular matrices, which have no condition number"),
    Column("orthogonality_defect", "orthogonality defect, mean", "1", "‖MMᵀ − I‖_F/√r after scaling"),
)
_TENSOR_COLUMNS: Final = (
    Column("tensor", "tensor", words=True),
    Column("shape", "shape", words=True),
    Column("track", "track", words=True),
    Column("spectra", "spectra", "", "objects with a recorded spectrum", words=True),
)
_MOST_TENSORS: Final = 40


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def spectral_entropy(runs: Sequence[Run]) -> Report:
    """Return the spectral entropy report: entropies, ranks and condition, before and after Newton-Schulz.

    Args:
        runs: Any runs; live, crashed and failed runs are allowed.

    Returns:
        The report as data. Vectors have no spectral entropy: the table of tensors shows it as missing.
    """
    report = Report(
        kind="entropy",
        title="Spectral entropy",
        subtitle=runs_in_words(runs),
        findings=(*([entropy_raised(runs)] if any(map(orthogonalizes, runs)) else []), spectra_precise(runs)),
        tables=in_loss_unit(
            (
                _entropy_table(runs),
                *checkpoint_table(runs),
                _condition_table(runs),
                *newton_schulz_table(runs),
                *spectra_by_layer_table(runs),
                *order_table(runs),
                *norm_table(runs),
                _tensor_table(runs),
            ),
            runs,
        ),
        figures=(entropy_figure(runs), *entropy_maps(runs)),
        notes=(
            *ending_notes(runs),
            *_update_notes(runs),
            *flattening_notes(runs),
            VERDICT_NOTE,
        ),
        missing=missing_spectra(runs),
        provenance=provenance(runs),
    )
    return with_first_screen(completed(report, runs), runs)


def _entropy_table(runs: Sequence[Run]) -> Table:
    """Return entropies and ranks per object and arm."""
    columns = ("norm", "entropy_energy", "entropy_nuclear", "stable_rank", "effective_rank")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (words, arm, len(rows), *(mean_and_range(_numbers(rows, column)) for column in columns))
        for words, arm, rows in _subjects(runs)
    )
    title = "Entropy and rank at the last step with spectra: mean [range over matrices and seeds]"
    return Table("entropy", title, _ENTROPY_COLUMNS, rows, FLATTENING_NOTE)


def _condition_table(runs: Sequence[Run]) -> Table:
    """Return condition number and orthogonality defect per object and arm."""
    rows = tuple(
        (
            words,
            arm,
            median_and_range(conditions := _numbers(rows, "condition")),
            len(rows) - len(conditions),
            mean_and_range(_numbers(rows, "orthogonality_defect")),
        )
        for words, arm, rows in _subjects(runs)
    )
    title = "Condition and orthogonality at the same steps, with ranges over matrices and seeds"
    note = "The condition number of an update is not that of the loss landscape."
    return Table("condition", title, _CONDITION_COLUMNS, rows, note)


def _subjects(runs: Sequence[Run]) -> list[tuple[str, str, pd.DataFrame]]:
    """Return every object and arm with the spectra at the runs' last steps, ordered by object."""
    import pandas as pd

    arms = {
        arm: pd.concat(frames, ignore_index=True)
        for arm, members in by_arm(runs).items()
        if (frames := [rows for run in members if len(rows := last_spectra(run))])
    }
    subjects = [
        (words, arm, rows[(rows["object"] == kind) & rows["entropy_energy"].notna()])
        for kind, words in _OBJECTS.items()
        for arm, rows in arms.items()
    ]
    return [subject for subject in subjects if len(subject[2])]


def _update_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a note if updates with and without weight decay are compared; only lossscope's optimizers record A."""
    recorded = [set(run.columns("spectra", "object")["object"]) for run in runs]
    kinds = {"whitened" in objects for objects in recorded if "update" in objects}
    return (UPDATE_NOTE,) if len(kinds) == 2 else ()


def _tensor_table(runs: Sequence[Run]) -> Table:
    """Return the tensors of the model and the objects with recorded spectra."""
    tensors: dict[str, tuple[Cell, ...]] = {}
    for run in runs:
        recorded = run.columns("spectra", "tensor", "object").groupby("tensor")["object"].unique().to_dict()
        for entry in _model_tensors(run):
            name = str(entry.get("name"))
            objects = [kind for kind in _OBJECTS if kind in set(recorded.get(name, ()))]
            tensors.setdefault(name, (name, _shape(entry), str(entry.get("track", "–")), ", ".join(objects) or None))
    rows = tuple(tensors.values())
    more = f" {len(rows) - _MOST_TENSORS} more tensors are not listed." if len(rows) > _MOST_TENSORS else ""
    note = f"Vectors have no spectral entropy.{more}"
    return Table("tensors", "Tensors", _TENSOR_COLUMNS, rows[:_MOST_TENSORS], note)


def _model_tensors(run: Run) -> list[Mapping[str, object]]:
    """Return the tensors listed in the manifest."""
    model = run.manifest.get("model")
    tensors = model.get("tensors") if isinstance(model, Mapping) else None
    return [entry for entry in tensors if isinstance(entry, Mapping)] if isinstance(tensors, list) else []


def _shape(entry: Mapping[str, object]) -> str:
    """Return the shape of a tensor as `64 × 32`."""
    shape = entry.get("shape")
    return " × ".join(str(size) for size in shape) if isinstance(shape, list | tuple) else "–"


def _numbers(rows: pd.DataFrame, column: str) -> list[float]:
    """Return the finite values of a column."""
    return [found for value in rows[column] if (found := number(value)) is not None]
