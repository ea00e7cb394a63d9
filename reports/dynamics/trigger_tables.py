"""What triggers of second gradients did, beside one that sees noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Cell, Column, Missing, Table
from lossscope.reports.shared.quantities import number, run_quantity

if TYPE_CHECKING:
    from lossscope.landscape.analysis import TriggerRecord
    from lossscope.landscape.run import Run

__all__ = ["Triggers", "missing_triggers", "trigger_tables", "triggers_of"]

Triggers: TypeAlias = Mapping[str, "Sequence[tuple[Run, TriggerRecord]]"]  # by arm; only arms that have a trigger

_RUN_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column(
        "trigger", "trigger", "", "aga, or timer for the one that draws lots; its threshold and its cap", words=True
    ),
    Column("steps", "steps", words=True),
    Column("rate", "rate [95 %]", "1", "second gradients per step"),
    Column("null_rate", "of noise", "1", "the same for phi of the same sizes with signs drawn; of a timer, as drawn"),
    Column(
        "capped_rate", "of Φ(−λ), cap", "1", "the same for normal noise whose deviation is known: p / (1 − (1−p)^k)"
    ),
    Column("chance", "fires before the cap [95 %]", "1", "share of the steps before the cap at which it fired"),
    Column("null_chance", "of noise", "1", "half of those with phi beyond the threshold on either side; timer: Φ(−λ)"),
    Column("share", "below, of those beyond [95 %]", "1", "of the steps beyond it on either side; noise has 1/2"),
)
_PHI_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("mean", "mean", "1", "of phi; noise has 0"),
    Column("deviation", "standard deviation", "1", "of phi around its mean"),
    Column("phi_1", "autocorrelation, 1 step", "1", "of phi around its mean"),
    Column("band", "band of noise", "1", "white noise is within ± this at 95 % of the lags"),
    Column("outside", "lags outside", "", "of those of 1 to 20 steps"),
    Column("lags", "of"),
)
_LENGTH_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("length", "steps from one to the next"),
    Column("found", "found", "", "runs of that length, of all seeds"),
    Column("null", "of noise", "", "of as many"),
)
_NOTE: Final = (
    "Noise is a phi of the sizes found, against the thresholds found, whose signs are tosses of a coin. Where 1/2 lies "
    "in the interval of the last share and phi in its band, a random timer of the same rate would have done the same: "
    "compare with one. Intervals are over the steps of each run; too few of them give none."
)
_PHI_NOTE: Final = "Noise has no memory of its sign; of white noise, one lag in twenty is outside by chance."
_LENGTH_NOTE: Final = (
    "The last length is the cap: there nobody can tell whether the trigger fired. Of a long cap some lengths are left "
    "out."
)
_LONGEST: Final = 12  # rows of an arm


def triggers_of(runs: Sequence[Run]) -> Triggers:
    """The triggers of the runs that have one, by arm."""
    if not any(run.manifest.get("trigger") for run in runs):
        return {}
    from lossscope.landscape.analysis import trigger_of

    found = {
        arm: [(run, record) for run in members if (record := trigger_of(run)) is not None]
        for arm, members in by_arm(runs).items()
    }
    return {arm: records for arm, records in found.items() if records}


def trigger_tables(triggers: Triggers) -> tuple[Table, ...]:
    """Rates and runs beside those of noise; nothing where no run has an audit."""
    audited = [(run, one) for records in triggers.values() for run, one in records if one.audit]
    rows = tuple(_row(run, record) for run, record in audited)
    lengths = tuple(row for arm, records in triggers.items() for row in _lengths(arm, [one for _, one in records]))
    if not rows:
        return ()
    title = "From one second gradient to the next"
    return (
        Table("trigger", "The trigger beside one that sees noise", _RUN_COLUMNS, rows, _NOTE),
        *([Table("trigger_runs", title, _LENGTH_COLUMNS, lengths, _LENGTH_NOTE)] if lengths else []),
        Table("phi", "phi and its memory", _PHI_COLUMNS, tuple(_phi_row(run, one) for run, one in audited), _PHI_NOTE),
    )


def missing_triggers(triggers: Triggers) -> tuple[Missing, ...]:
    """The runs whose trigger could not be audited, with the reason."""
    return tuple(
        Missing(f"The trigger audit of {run.name}", f"{record.why[:1].upper()}{record.why[1:]}.")
        for records in triggers.values()
        for run, record in records
        if record.audit is None
    )


def _row(run: Run, record: TriggerRecord) -> tuple[Cell, ...]:
    """The audit of a run."""
    settings = f"{record.mode}, λ = {record.lamda:g}, k = {record.k}"
    audit = record.audit
    if audit is None:
        return (run.name, settings, *[None] * (len(_RUN_COLUMNS) - 2))
    share = None if record.mode == "timer" else run_quantity(audit.share)
    return (
        run.name,
        settings,
        f"{record.first}–{record.last}",
        run_quantity(audit.rate),
        number(audit.null_rate),
        number(audit.capped_rate),
        run_quantity(audit.chance),
        number(audit.null_chance),
        share,
    )


def _phi_row(run: Run, record: TriggerRecord) -> tuple[Cell, ...]:
    """The memory of phi in a run."""
    phi = record.phi
    if phi is None or not np.isfinite(phi.autocorrelation).any():
        return (run.name, *[None] * (len(_PHI_COLUMNS) - 1))
    moments, known = (number(phi.mean), number(phi.deviation)), np.isfinite(phi.autocorrelation)
    outside = np.abs(phi.autocorrelation[known]) > phi.band[known]
    first = (number(phi.autocorrelation[0]), number(phi.band[0]))
    return (run.name, *moments, *first, int(outside.sum()), int(known.sum()))


def _lengths(arm: str, records: Sequence[TriggerRecord]) -> Iterable[tuple[Cell, ...]]:
    """The lengths that occurred, and those that noise would have; runs of one cap together."""
    audits = [one.audit for one in records if one.audit is not None]
    k = max((len(one.runs) for one in audits), default=0)
    alike = [one for one in audits if len(one.runs) == k]
    if not alike:
        return
    found, null = (np.sum([getattr(one, name) for one in alike], axis=0) for name in ("runs", "null_runs"))
    lengths = [length for length in range(1, k + 1) if k <= _LONGEST or found[length - 1] or length == k]
    for length in [*lengths[: _LONGEST - 1], *lengths[_LONGEST - 1 :][-1:]]:
        yield arm, length, int(found[length - 1]), float(null[length - 1])
