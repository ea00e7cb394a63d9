"""Where a report's numbers come from: versions, data, seeds, how curvature was measured, how each run ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Column, Missing, Table
from lossscope.reports.shared.quantities import curvature_cost

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["ending_notes", "listed", "missing_curvature", "missing_spectra", "provenance", "runs_in_words"]

_ENVIRONMENT: Final = ("lossscope", "torch", "python", "numpy", "platform", "threads")
_MOST_NAMES: Final = 6
_PROBE_COLUMNS: Final = (
    ("mode", "mode of the model"),
    ("loss_kind", "loss differentiated"),
    ("gauge", "gauge"),
    ("dtype", "dtype of the products"),
    ("engine", "engine"),
)


def provenance(runs: Sequence[Run]) -> Table:
    """A table of item, value and the runs that have it; what all runs share is one row."""
    facts = [(run.name, dict(_facts(run))) for run in runs]
    items = dict.fromkeys(item for _, known in facts for item in known)
    rows = [row for item in items for row in _grouped(item, facts)]
    columns = (
        Column("item", "item", words=True),
        Column("value", "value", words=True),
        Column("runs", "runs", words=True),
    )
    return Table("provenance", "Provenance", columns, tuple(rows))


def ending_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """One note for each run that did not finish, saying where it ends, and one for a run without steps."""
    ended = [f"{run.name}: {run.status}. {run.ends}" for run in runs if run.status != "finished"]
    empty = [f"{run.name}: no step was recorded." for run in runs if not len(run.steps)]
    return (*ended, *empty)


def runs_in_words(runs: Sequence[Run]) -> str:
    """How many runs and arms, and how far they go: `9 runs of 3 arms: a, b, c`."""
    arms = list(by_arm(runs))
    named = ", ".join(arms[:_MOST_NAMES]) + (" …" if len(arms) > _MOST_NAMES else "")
    return f"{_counted(len(runs), 'run')} of {_counted(len(arms), 'arm')}: {named}"


def missing_curvature(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """What to say about runs and evaluations without curvature; nothing where all have it."""
    without = [run.name for run in runs if not len(run.probes) and not any(map(_of_curvature, _gaps(run)))]
    how = "Pass objective=Objective(model, loss_fn, batches) to the Recorder; curvature is measured on its fixed data."
    absent = (Missing(f"Curvature of {listed(without)}", how),) if without else ()
    return (*absent, *(gap for run in runs for gap in _evaluation_gaps(run)))


def missing_spectra(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """What to say about runs that recorded no spectrum; nothing where all did."""
    without = [run.name for run in runs if not len(run.spectra)]
    if not without:
        return ()
    how = "Record with preset standard or full, on a model with at least one matrix."
    return (Missing(f"Singular spectra of {listed(without)}", how),)


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    """The facts of one run, as item and value."""
    environment = run.manifest.get("environment")
    if isinstance(environment, Mapping):
        yield from ((key, str(environment[key])) for key in _ENVIRONMENT if environment.get(key) is not None)
    if run.manifest.get("code_version"):
        yield "code version", str(run.manifest["code_version"])
    if run.manifest.get("preset"):
        yield "preset", str(run.manifest["preset"])
    yield "data hash", str(run.manifest.get("data_hash") or "not recorded")
    yield "seeds (init / split / order)", _seeds(run)
    yield from _probe_facts(run)


def _probe_facts(run: Run) -> Iterable[tuple[str, str]]:
    """How the curvature of a run was measured."""
    for column, words in _PROBE_COLUMNS:
        values = sorted({str(value) for value in run.probes[column].dropna()})
        if values:
            yield words, ", ".join(values)
    cost = curvature_cost(run)
    if cost.evaluations:
        yield "curvature evaluations", str(cost.evaluations)
    if cost.products is not None:
        yield "Hessian products", str(cost.products)


def _evaluation_gaps(run: Run) -> Iterable[Missing]:
    """What a run lacks of each instrument, at which steps, and the first reason."""
    by_instrument: dict[str, list[Mapping[str, object]]] = {}
    for gap in _gaps(run):
        by_instrument.setdefault(str(gap.get("instrument", "curvature")), []).append(gap)
    names = {"curvature": "Part of the curvature" if len(run.probes) else "Curvature"}
    names |= {"layers": "Remainders of the layers", "minibatches": "Pairs of minibatches"}
    for instrument, gaps in by_instrument.items():
        steps = list(dict.fromkeys(str(gap.get("step", "?")) for gap in gaps))
        samples = _counted(len(steps), "evaluation" if instrument == "curvature" else "sample")
        where = f"at {samples} (step {listed(steps)})"
        reason = gaps[0].get("why") or "no reason was recorded"
        what = f"{names.get(instrument, instrument)} of {run.name} {where}"
        yield Missing(what, f"{'First reason: ' if len(gaps) > 1 else ''}{reason}")


def _of_curvature(gap: Mapping[str, object]) -> bool:
    """Whether a gap is one of a curvature evaluation; gaps of earlier versions all are."""
    return gap.get("instrument", "curvature") == "curvature"


def _gaps(run: Run) -> list[Mapping[str, object]]:
    """What the manifest knows of measurements that failed; a live or crashed run has them too."""
    gaps = run.manifest.get("curvature_gaps")
    return [gap for gap in gaps if isinstance(gap, Mapping)] if isinstance(gaps, list) else []


def _seeds(run: Run) -> str:
    """The three seeds, or a plain statement that there are none."""
    seeds = run.manifest.get("seeds")
    if not isinstance(seeds, Mapping) or not seeds:
        return "not recorded"
    return " / ".join(str(seeds.get(factor, "–")) for factor in ("init", "split", "order"))


def _grouped(item: str, facts: Sequence[tuple[str, Mapping[str, str]]]) -> Iterable[tuple[str, str, str]]:
    """A row for each distinct value of an item."""
    values: dict[str, list[str]] = {}
    for name, known in facts:
        values.setdefault(known.get(item, "not recorded"), []).append(name)
    for value, names in values.items():
        yield item, value, "all" if len(names) == len(facts) and len(facts) > 1 else ", ".join(names)


def _counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """The names, the last of a long list counted only."""
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown
