"""Trigger table of the dynamics report: rate of second gradients and sign test, one row per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Cell, Column, Missing, Table
from lossscope.reports.shared.quantities import number, run_quantity

if TYPE_CHECKING:
    from lossscope.landscape.analysis import TriggerRecord
    from lossscope.landscape.run import Run

__all__ = ["Triggers", "missing_triggers", "trigger_tables", "triggers_of"]

Triggers: TypeAlias = Mapping[str, "Sequence[tuple[Run, TriggerRecord]]"]  # by arm; only arms that have a trigger

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column(
        "trigger", "trigger", "", "aga, or timer for the random timer; threshold λ in deviations, cap k", words=True
    ),
    Column("steps", "steps", words=True),
    Column("syncs", "syncs", "", "steps that took a second gradient"),
    Column("rate", "rate", "1", "second gradients per step, from the first to the last"),
    Column("chance", "fires before the cap", "1", "share of the steps before the cap; Φ(−λ) of a matching timer"),
    Column("share", "share below [95 %]", "1", "steps before the cap with |phi| beyond the threshold: share below it"),
    Column(
        "expected", "expected", "1", "1/2, of the share under random signs; timer: Φ(−λ), of the steps before the cap"
    ),
    Column("phi_1", "autocorrelation", "1", "of phi at lag 1"),
    Column("outside", "lags outside", "", "the 95 % band of white noise, of the lags measured (1 to 20)", words=True),
)
_NOTE: Final = (
    "Null model: the observed |phi| and thresholds, with random signs. If the interval of the share contains 1/2 and "
    "phi shows no autocorrelation, the trigger is indistinguishable from a random timer with the same rate; compare "
    "with `ars2-timer`. One lag in twenty is outside the band by chance; with more, the interval of a single run is "
    "too narrow."
)


def triggers_of(runs: Sequence[Run]) -> Triggers:
    """Return the trigger records of the runs that have a trigger, by arm."""
    if not any(run.manifest.get("trigger") for run in runs):
        return {}
    from lossscope.landscape.analysis import trigger_of

    found = {
        arm: [(run, record) for run in members if (record := trigger_of(run)) is not None]
        for arm, members in by_arm(runs).items()
    }
    return {arm: records for arm, records in found.items() if records}


def trigger_tables(triggers: Triggers) -> tuple[Table, ...]:
    """Return the trigger table, or nothing if no run could be tested."""
    rows = tuple(_row(run, one) for records in triggers.values() for run, one in records if one.test is not None)
    return (Table("trigger", "Sign test of the trigger", _COLUMNS, rows, _NOTE),) if rows else ()


def missing_triggers(triggers: Triggers) -> tuple[Missing, ...]:
    """Return the runs whose trigger could not be tested, with the reason."""
    return tuple(
        Missing(f"The trigger test of {run.name}", f"{record.why[:1].upper()}{record.why[1:]}.")
        for records in triggers.values()
        for run, record in records
        if record.test is None
    )


def _row(run: Run, record: TriggerRecord) -> tuple[Cell, ...]:
    """Return the table row of a run that has a test."""
    test, timer = record.test, record.mode == "timer"
    assert test is not None
    return (
        run.name,
        f"{record.mode}, λ = {record.lamda:g}, k = {record.k}",
        f"{record.first}–{record.last}",
        test.syncs,
        number(test.rate),
        number(test.chance),
        None if timer else run_quantity(test.share),  # the timer reads no phi
        number(test.expected),
        *_autocorrelation(record),
    )


def _autocorrelation(record: TriggerRecord) -> tuple[Cell, Cell]:
    """Return the autocorrelation of phi at lag 1, and the number of lags outside the band of white noise."""
    phi = record.phi
    if phi is None or not np.isfinite(phi.values).any():
        return None, None
    known = np.isfinite(phi.values)
    outside = int((np.abs(phi.values[known]) > phi.band[known]).sum())
    return number(phi.values[0]), f"{outside} of {int(known.sum())}"
