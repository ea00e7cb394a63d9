"""Tables of loss spikes: the modules in the order in which they left their past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.spikes import Departure, Spike, spikes_of
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.loss_unit import LOSS

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["spike_tables"]

_MOST_SPIKES: Final = 10  # in the tables
_MOST_MODULES: Final = 5  # of a spike
_RUN: Final = Column("run", "run", words=True)
_STEP: Final = Column("step", "step", "", "step of the spike")
_SPIKES: Final = (
    _RUN,
    _STEP,
    Column("cause", "cause", "", "loss: it passed its level; not finite: the loss, or the norms without a loss", True),
    Column("loss", "loss", LOSS, "training loss of the step, at the parameters before it"),
    Column("level", "level", LOSS, "median + 8 MAD of up to 32 losses before it"),
    Column("first", "left first", "", "module whose norms left their past first, before the loss did", True),
    Column("left", "left", "modules", "modules that left their past up to the spike, of all"),
)
_MODULES: Final = (
    _RUN,
    _STEP,
    Column("module", "module", "", "module that holds the parameter", True),
    Column("tensor", "tensor", words=True),
    Column("at", "left at step", "", "first step at which a norm of the module was above its past"),
    Column("norm", "norm", "", "of the gradient, update or weight, or the largest change of an entry", True),
    Column("mads", "MAD above", "", "distance of its logarithm from the median of its past, in MADs", True),
    Column("usual", "usual", "", "median of its past"),
    Column("value", "value", "", "at that step", True),
)
_NOTE: Final = (
    "A norm leaves its past where its logarithm is more than 8 MAD above the median of at least 16 earlier steps, and "
    "stays there until the spike. The loss of a step is taken before its update: a module that left at the step of the "
    "spike followed the batch. None is named if no module left before, or more than half at once."
)


def spike_tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the first spikes, and the modules of each; nothing if no run wrote one."""
    found = [(run.name, spike) for run in runs for spike in spikes_of(run)]
    if not found:
        return ()
    shown = found[:_MOST_SPIKES]
    more = f" {len(found) - len(shown)} more spikes are in the table spikes." if len(found) > len(shown) else ""
    modules = tuple(_module(name, spike, one) for name, spike in shown for one in _ordered(spike))
    tables = (Table("spikes", "Loss spikes", _SPIKES, tuple(_spike(*one) for one in shown), _NOTE + more),)
    if not modules:
        return tables
    return (*tables, Table("spike_modules", "Modules before loss spikes, the first to leave first", _MODULES, modules))


def _ordered(spike: Spike) -> list[Departure]:
    """Return the modules of a spike that are shown, the one that is named first."""
    others = [one for one in spike.left if one is not spike.first]
    return [*([spike.first] if spike.first else []), *others][:_MOST_MODULES]


def _spike(name: str, spike: Spike) -> tuple[Cell, ...]:
    """Return the row of a spike."""
    first = spike.first.module if spike.first else f"none: {spike.why}"
    left = f"{len(spike.left)} of {spike.modules}"
    return name, spike.step, spike.cause, _known(spike.loss), _known(spike.level), first, left


def _module(name: str, spike: Spike, one: Departure) -> tuple[Cell, ...]:
    """Return the row of a module."""
    lost = math.isinf(one.mads)
    far, value = ("not finite", "not finite") if lost else (f"{one.mads:.0f}", f"{one.value:.3g}")
    return name, spike.step, one.module, one.tensor, one.step, one.norm.replace("_", " "), far, _known(one.usual), value


def _known(value: float) -> float | None:
    """Return a number; None if it is not finite."""
    return value if math.isfinite(value) else None
