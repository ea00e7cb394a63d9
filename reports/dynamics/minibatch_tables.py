"""Direction autocorrelation of gradient and shear, and the gradient noise scale: tables and a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Cell, Column, Missing, Quantity, Table
from lossscope.reports.figure_content import Axis, Curve, Curves
from lossscope.reports.shared.loss_unit import LOSS_SQUARED
from lossscope.reports.shared.number_format import quantity_text
from lossscope.reports.shared.quantities import estimated, number, pooled_quantity, run_quantity

if TYPE_CHECKING:
    from lossscope.landscape.analysis import ArmMemory, DirectionOfArm, NoiseRecord, NoiseScale, Pooled
    from lossscope.landscape.run import Run

__all__ = ["Memories", "memories_of", "memory_figure", "memory_tables", "missing_noise", "noise_records", "noise_table"]

Memories: TypeAlias = Mapping[str, "ArmMemory | None"]  # every arm, in order; None if no window was sampled

_WORDS: Final = {"gradient": "gradient g", "shear": "shear v"}
_LAG_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("lag", "lag", "steps"),
    Column("gradient", "A_g [95 %]", "1", "cosine between gradients this many steps apart, over the ceiling"),
    Column("shear", "A_v [95 %]", "1", "the same for shears"),
    Column("difference", "D = A_v − A_g [95 %]", "1", "above 0: the shear turns more slowly than the gradient"),
    Column("raw_gradient", "raw cosine of g", "1", "includes minibatch noise"),
    Column("raw_shear", "raw cosine of v", "1", "cosine between a stored shear and a later one"),
)
_OBJECT_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("object", "object", words=True),
    Column("windows", "windows", "", "lag windows of all runs"),
    Column("over", "intervals over", words=True),
    Column("ceiling", "ceiling [95 %]", "1", "cosine between two batches at one step: 1 reduced by noise"),
    Column(
        "half_life", "half-life", "steps", "A is above 1/2 up to the first lag, below 1/2 at the second", words=True
    ),
    Column("angular_velocity", "angular velocity [95 %]", "°/step", "arccos A(1)"),
    Column("null_sd", "null", "1", "standard deviation of the cosine between random vectors, 1/√n"),
)
_LAG_NOTE: Final = (
    "A is the raw cosine divided by the ceiling: A = 1 is an unchanged direction. The raw cosine is the similarity of "
    "a reused shear with a later batch, noise included. A window is a span of steps over which the same two "
    "minibatches are reused."
)


def memories_of(runs: Sequence[Run]) -> Memories:
    """Return the direction autocorrelation of each arm. Call once: the intervals take time."""
    if not any(len(run.pairs) for run in runs):
        return dict.fromkeys(by_arm(runs))
    from lossscope.landscape.analysis import memory_of_arm

    return {arm: memory_of_arm(members) for arm, members in by_arm(runs).items()}


def memory_tables(memories: Memories) -> tuple[Table, ...]:
    """Return autocorrelation by lag, and the scalars of each object; empty if no window was sampled."""
    lags = tuple(row for arm, memory in memories.items() if memory is not None for row in _by_lag(arm, memory))
    objects = tuple(row for arm, memory in memories.items() if memory is not None for row in _by_object(arm, memory))
    if not lags:
        return ()
    return (
        Table("memory", "Direction autocorrelation by lag", _LAG_COLUMNS, lags, _LAG_NOTE),
        Table("directions", "Ceiling, half-life and angular velocity", _OBJECT_COLUMNS, objects),
    )


def memory_figure(memories: Memories) -> Curves:
    """Return A over the lag, solid for the gradient and dashed for the shear."""
    drawn = tuple(
        _curve(hue, arm, memory.directions[kind], dashed=kind == "shear")
        for hue, (arm, memory) in enumerate(memories.items())
        if memory is not None
        for kind in memory.directions
    )
    last = max((x for curve in drawn for x in curve.x if x is not None), default=2.0)
    return Curves(
        key="memory",
        title="Direction autocorrelation",
        caption="A at each lag: 1 is an unchanged direction, 0 an unrelated one. Whiskers are 95 % intervals; a hollow "
        "point has no reliable interval. Points of one lag are shifted to remain visible.",
        x=Axis("lag", "steps", "log", limits=(0.85, 1.15 * max(last, 2.0))),
        y=Axis("A(lag)"),
        curves=drawn,
        styles=(_WORDS["gradient"], _WORDS["shear"]),
        absent=tuple(arm for arm, memory in memories.items() if memory is None),
        summary=tuple(
            _in_words(arm, kind, found)
            for arm, memory in memories.items()
            if memory is not None
            for kind, found in memory.directions.items()
        ),
    )


def _by_lag(arm: str, memory: ArmMemory) -> Iterable[tuple[Cell, ...]]:
    """Return a row for each lag."""
    normalized = {kind: found.normalized for kind, found in memory.directions.items()}
    raw = {kind: found.raw for kind, found in memory.directions.items()}
    columns = (
        normalized.get("gradient", {}),
        normalized.get("shear", {}),
        memory.differences,
        raw.get("gradient", {}),
        raw.get("shear", {}),
    )
    for lag in memory.lags:
        yield arm, lag, *(_at(column, lag) for column in columns)


def _by_object(arm: str, memory: ArmMemory) -> Iterable[tuple[Cell, ...]]:
    """Return a row for each object."""
    for kind, found in memory.directions.items():
        seeds, first = found.ceiling.seeds, found.normalized.get(1)
        bounded = math.isfinite(found.ceiling.estimate.high)
        yield (
            arm,
            _WORDS[kind],
            memory.windows,
            f"{seeds} seeds" if seeds > 1 else (f"{memory.windows} windows" if bounded else "none"),
            pooled_quantity(found.ceiling),
            _half_life(*found.half_life),
            replace(
                estimated(found.angular_velocity, 180 / math.pi), missing=first.missing if first is not None else 0
            ),
            found.null_sd,
        )


def _at(found: Mapping[int, Pooled], lag: int) -> Quantity:
    """Return the value at a lag; missing if there is none."""
    return pooled_quantity(found[lag]) if lag in found else Quantity(None)


def _half_life(above: float, below: float) -> str:
    """Return the bounds of the half-life implied by the intervals, as text."""
    if math.isinf(below):
        return f"> {above:.0f}" if above else "unknown"
    return f"{above:.0f} to {below:.0f}" if above else f"at most {below:.0f}"


def _curve(hue: int, arm: str, found: DirectionOfArm, *, dashed: bool) -> Curve:
    """Return the curve of one object of an arm, with the interval of each value."""
    estimates = [one.estimate for one in found.normalized.values()]
    values = tuple(number(one.value) for one in estimates)
    low, high = tuple(number(one.low) for one in estimates), tuple(number(one.high) for one in estimates)
    lags, errors = tuple(float(lag) for lag in found.normalized), (None,) * len(estimates)
    return Curve(arm, hue, lags, values, low, high, errors, 1, dashed, interval=True)


def _in_words(arm: str, kind: str, found: DirectionOfArm) -> str:
    """Return the curve as text, from its first lag to its last."""
    parts = (f"{quantity_text(pooled_quantity(one))} at lag {lag}" for lag, one in found.normalized.items())
    return f"{arm}, {_WORDS[kind]}, A [95 %]: {', '.join(parts)}"


_NOISE_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("windows", "windows"),
    Column("samples", "minibatch", "samples", "the other batch is twice as large"),
    Column(
        "scale",
        "noise scale [95 %]",
        "samples",
        "tr Σ / ‖g‖² over all windows; missing if the estimate of ‖g‖² is not positive",
    ),
    Column("late", "second half [95 %]", "samples", "the same over the second half of the run's steps"),
    Column(
        "signal",
        "‖g‖² [95 %]",
        LOSS_SQUARED,
        "squared norm of the mean gradient; an unbiased estimate, which can be negative",
    ),
    Column("noise", "tr Σ [95 %]", LOSS_SQUARED, "variance of the gradient of one sample, summed over all parameters"),
)
_NOISE_NOTE: Final = (
    "The noise scale is the batch size at which noise equals signal. It usually grows during training, so the value of "
    "a whole run is an average. If the interval of the signal contains 0, the scale has no upper end; fewer than five "
    "windows give no interval."
)


def noise_records(runs: Sequence[Run]) -> list[tuple[Run, NoiseRecord]]:
    """Return the noise scales of the runs with minibatch pairs."""
    if not any(len(run.pairs) for run in runs):
        return []
    from lossscope.landscape.analysis import noise_of

    return [(run, record) for run in runs if (record := noise_of(run)) is not None]


def noise_table(records: Sequence[tuple[Run, NoiseRecord]]) -> tuple[Table, ...]:
    """Return one row per run; empty if no run has a noise scale."""
    rows = tuple(_row(run, record, record.whole) for run, record in records if record.whole is not None)
    return (Table("noise_scale", "Gradient noise scale", _NOISE_COLUMNS, rows, _NOISE_NOTE),) if rows else ()


def missing_noise(records: Sequence[tuple[Run, NoiseRecord]]) -> tuple[Missing, ...]:
    """Return the runs without a noise scale, with the reason."""
    return tuple(
        Missing(f"Noise scale of {run.name}", f"{record.why[:1].upper()}{record.why[1:]}.")
        for run, record in records
        if record.whole is None
    )


def _row(run: Run, record: NoiseRecord, whole: NoiseScale) -> tuple[Cell, ...]:
    """Return the row of a run."""
    return (
        run.name,
        record.windows,
        int(record.samples) if record.samples == int(record.samples) else record.samples,
        run_quantity(whole.scale),
        run_quantity(record.late.scale) if record.late else Quantity(None),
        run_quantity(whole.signal),
        run_quantity(whole.noise),
    )
