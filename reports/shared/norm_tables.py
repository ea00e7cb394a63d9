"""Norm controls for comparisons of curvature: norms of weights, steps and logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeGuard

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.evaluation_tables import MOST_RUNS
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.notes import LOSS_NOTE
from lossscope.reports.shared.quantities import (
    at_last_evaluation,
    last_number,
    loss_at_last_evaluation,
    median_and_range,
    number,
)

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["norm_table", "tensor_norm_table"]

_ARM: Final = Column("arm", "arm", words=True)
_SCALE: Final = (
    _ARM,
    Column("loss", "train loss", LOSS, LOSS_NOTE),
    Column("weight_norm", "‖θ‖", "1", "norm of all parameters at the last sampled step"),
    Column("update_norm", "‖Δθ‖", "1", "norm of that step, weight decay included"),
    Column("decay", "lr · wd", "1", "learning rate times weight decay of the first group at the last step"),
    Column("logit_norm", "logit norm", "1", "mean norm of the centered logits at the last evaluation"),
    Column("mean_margin", "margin", "1", "mean of the target logit minus the largest other logit"),
)
_TENSOR: Final = (
    Column("tensor", "tensor", words=True),
    _ARM,
    Column("weight_norm", "‖W‖_F", "1", "Frobenius norm"),
    Column("spectral_norm", "‖W‖_2", "1", "largest singular value, at the last step with spectra"),
    Column("update_norm", "‖ΔW‖_F", "1", "norm of the step, weight decay included"),
    Column("update_rms", "RMS ΔW", "1", "‖ΔW‖_F / √numel"),
    Column("update_ratio", "‖ΔW‖/‖W‖", "1", "relative size of the step"),
    Column("gradient_norm", "‖g‖", LOSS, "norm of the base gradient of that step"),
    Column("lr", "lr", "1", "learning rate of the tensor's group"),
    Column("weight_decay", "decay", "1", "weight decay of the group; times lr it is the decay per step"),
)
_SHOWN: Final = ("update_ratio", "gradient_norm", "lr", "weight_decay")  # as recorded
_MOST_ROWS: Final = 40
_FEW_ROWS: Final = 14  # of many runs
_LARGEST_SIZE: Final = 2**40  # of a dimension; anything above is no shape of a tensor
_NOTE: Final = (
    "Raw curvature depends on these norms: it decreases as the weights before a normalization grow, and as logits "
    "grow. Arms that differ here are not comparable by raw curvature."
)


def norm_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the norm controls of each arm at its end, median [range over seeds].

    Args:
        runs: Any runs.

    Returns:
        One table, or none if no run recorded a norm.
    """
    found = [(arm, [median_and_range(map(value, members)) for value in _VALUES]) for arm, members in _arms(runs)]
    known = any(one.value is not None for _, numbers in found for one in numbers)
    rows: tuple[tuple[Cell, ...], ...] = tuple((arm, *numbers) for arm, numbers in found)
    title = "Norm controls at the end: median [range over seeds]"
    return (Table("norms", title, _SCALE, rows, _NOTE),) if known else ()


def tensor_norm_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the norms of each tensor at its last sampled step, median [range over seeds]; empty if none was."""
    rows: list[tuple[Cell, ...]] = []
    arms = [(arm, [_by_tensor(run) for run in members]) for arm, members in _arms(runs)]
    names = dict.fromkeys(name for _, seeds in arms for seed in seeds for name in seed)
    for name in names:
        for arm, seeds in arms:
            found = [seed[name] for seed in seeds if name in seed]
            if found:
                columns = (median_and_range(row[column.key] for row in found) for column in _TENSOR[2:])
                rows.append((name, arm, *columns))
    most = _MOST_ROWS if len(runs) <= MOST_RUNS else _FEW_ROWS
    more = f"{len(rows) - most} more rows are not shown." if len(rows) > most else ""
    title = "Norms of each tensor at the last sampled step: median [range over seeds]"
    return (Table("tensor_norms", title, _TENSOR, tuple(rows[:most]), more),) if rows else ()


def _arms(runs: Sequence[Run]) -> Iterable[tuple[str, Sequence[Run]]]:
    """Return the runs by arm."""
    return by_arm(runs).items()


def _decay(run: Run) -> float | None:
    """Return learning rate times weight decay, each from the last step with a value."""
    lr, decay = (last_number(run, column) for column in ("lr", "weight_decay"))
    return None if lr is None or decay is None else lr * decay


_VALUES: Final[tuple[Callable[[Run], float | None], ...]] = (
    loss_at_last_evaluation,
    lambda run: last_number(run, "weight_norm"),
    lambda run: last_number(run, "update_norm"),
    _decay,
    lambda run: at_last_evaluation(run, "logit_norm").value,
    lambda run: at_last_evaluation(run, "mean_margin").value,
)


def _by_tensor(run: Run) -> dict[str, dict[str, float | None]]:
    """Return the norms of each tensor at its last sampled step."""
    rows = run.columns("tensors", "tensor", "weight_norm", "update_norm", *_SHOWN)
    last = rows.drop_duplicates("tensor", keep="last")
    largest, sizes = _largest_singular_values(run), _sizes(run)
    found: dict[str, dict[str, float | None]] = {}
    for row in last.to_dict("records"):
        name = str(row["tensor"])
        update, size = number(row["update_norm"]), sizes.get(name)
        found[name] = {
            "weight_norm": number(row["weight_norm"]),
            "spectral_norm": largest.get(name),
            "update_norm": update,
            "update_rms": update / math.sqrt(size) if update is not None and size else None,
            **{column: number(row[column]) for column in _SHOWN},
        }
    return found


def _largest_singular_values(run: Run) -> dict[str, float]:
    """Return the spectral norm of each weight at its last step with spectra; the largest for a batch of matrices."""
    rows = run.columns("spectra", "step", "tensor", "object", "values.first")
    rows = rows[rows["object"] == "weight"]
    found: dict[str, float] = {}
    for name, of_one in rows.groupby("tensor"):
        last = of_one[of_one["step"] == of_one["step"].max()]
        largest = [one for value in last["values.first"] if (one := number(value)) is not None]
        if largest:
            found[str(name)] = max(largest)
    return found


def _sizes(run: Run) -> dict[str, int]:
    """Return the number of entries of each tensor, from the manifest."""
    model = run.manifest.get("model")
    tensors = model.get("tensors") if isinstance(model, Mapping) else None
    entries = [one for one in tensors if isinstance(one, Mapping)] if isinstance(tensors, list) else []
    shapes = {str(one.get("name")): one.get("shape") for one in entries}
    return {name: math.prod(shape) for name, shape in shapes.items() if _is_shape(shape)}


def _is_shape(shape: object) -> TypeGuard[list[int]]:
    """Return True for a list of sizes."""
    return isinstance(shape, list) and all(isinstance(size, int) and 0 <= size < _LARGEST_SIZE for size in shape)
