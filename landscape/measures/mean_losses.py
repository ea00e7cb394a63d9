"""Mean losses: on the fixed data of curvature, on all training data, on test data."""

from __future__ import annotations

import time
from typing import Final

from lossscope.landscape.measures.estimate_rows import estimate_row
from lossscope.landscape.measures.host_transfer import Row
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.statistics.estimate import rounded_estimate

__all__ = ["NO_DATA", "loss_row", "of_other_data", "row_on_other_data", "same_loss"]

NO_DATA: Final = {
    "train_loss": "all training data are not known here, only those of curvature: use loss",
    "test_loss": "no test data are known here",
}  # reasons by measure


def loss_row(measure: str, objective: Objective) -> Row:
    """Return the row of a mean loss, without provenance columns.

    Args:
        measure: Name of the measure.
        objective: The loss on the data over which it is averaged.
    """
    begun = time.perf_counter()
    value = objective.value()
    (rounding,) = number_rounding(objective, lambda other: (other.value(),), (value,))
    return estimate_row(measure, rounded_estimate(value, rounding, seconds=time.perf_counter() - begun))


def row_on_other_data(measure: str, objective: Objective) -> Row:
    """Return the row of a mean loss on other data than those of curvature, with the provenance that differs.

    Args:
        measure: Name of the measure.
        objective: The loss on these data.
    """
    row = loss_row(measure, objective)  # first, as it finds the additivity
    return {**row, **of_other_data(objective)}


def of_other_data(objective: Objective) -> Row:
    """Return the provenance columns in which a loss on other data than those of curvature may differ."""
    return {
        "mode": objective.mode,
        "loss_kind": objective.loss_kind,
        "data_hash": objective.data_hash,
        "additivity": objective.additivity,
        "dtype": str(objective.dtype).removeprefix("torch."),
        "parameters": objective.size,
    }


def same_loss(one: Objective, other: Objective) -> bool:
    """Return True if two objectives are one function of the parameters of one model, on the same data."""
    if one is other:
        return True
    same = one.model is other.model and one.loss_fn is other.loss_fn and one.mode == other.mode
    return same and one.names == other.names and one.data_hash == other.data_hash
