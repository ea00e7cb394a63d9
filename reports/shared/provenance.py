"""Provenance of a report: versions, data, seeds, curvature settings, and the end of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.landscape.analysis.arms import by_arm, step_of_another_rate
from lossscope.landscape.storage.missing_values import is_curvature, label_of, missing_values
from lossscope.reports.content import Column, Missing, Table
from lossscope.reports.shared.quantities import curvature_cost

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["ending_notes", "listed", "missing_curvature", "missing_spectra", "provenance", "runs_in_words"]

_ENVIRONMENT: Final = ("lossscope", "torch", "python", "numpy", "platform", "threads")
_MOST_FAILED: Final = 3  # measures named in place of their instrument
_MOST_NAMES: Final = 6
_TEXTS: Final = (  # columns of probes, densities and curves
    ("mode", "mode of the model"),
    ("loss_kind", "loss differentiated"),
    ("additivity", "loss over batches"),
    ("gauge", "gauge"),
    ("method", "products by"),
    ("dtype", "dtype of the products"),
    ("engine", "engine"),
)
_COUNTS: Final = (
    ("parameters", "parameters differentiated"),
    ("samples", "random probes or draws"),
    ("seed", "seed of the random probes"),
)
_PAIR_COLUMNS: Final = ("mode", "loss_kind", "additivity", "dtype", "data_hash")


def provenance(runs: Sequence[Run]) -> Table:
    """Return a table of item, value and runs; a value shared by all runs is one row."""
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
    """Return a note for each run that did not finish, has no steps, or whose fixed data have another loss.

    An arm whose runs recorded different learning rates gets one too.
    """
    ended = [f"{run.name}: {run.status}. {run.ends}" for run in runs if run.status != "finished"]
    empty = [f"{run.name}: no step was recorded." for run in runs if not len(run.steps)]
    other = [f"{run.name}: {note}." for run in runs if isinstance(note := run.manifest.get("fixed_loss"), str)]
    rates = [
        f"{arm}: its runs have different learning rates from step {step} on and are counted as one arm; "
        "if their schedules differ on purpose, give them different names (arm=)."
        for arm, members in by_arm(runs).items()
        if len(members) > 1 and (step := step_of_another_rate(members)) is not None
    ]
    return (*ended, *empty, *other, *rates)


def runs_in_words(runs: Sequence[Run]) -> str:
    """Return the number of runs and the arms: `9 runs of 3 arms: a, b, c`."""
    arms = list(by_arm(runs))
    named = ", ".join(arms[:_MOST_NAMES]) + (" …" if len(arms) > _MOST_NAMES else "")
    return f"{_counted(len(runs), 'run')} of {_counted(len(arms), 'arm')}: {named}"


def missing_curvature(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return an entry for each run or evaluation without curvature."""
    without = [
        run.name for run in runs if not len(run.probes) and not any(map(is_curvature, missing_values(run.manifest)))
    ]
    how = "Pass objective=Objective(model, loss_fn, batches) to the Recorder; curvature is measured on its fixed data."
    absent = (Missing(f"Curvature of {listed(without)}", how),) if without else ()
    return (*absent, *(one for run in runs for one in _failed_measurements(run)))


def missing_spectra(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return an entry for the runs without singular spectra."""
    without = [run.name for run in runs if not len(run.spectra)]
    if not without:
        return ()
    how = "Record with preset standard or full, and a model with at least one matrix."
    return (Missing(f"Singular spectra of {listed(without)}", how),)


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    """Return the provenance of one run, as item and value."""
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
    """Return the curvature settings and cost of a run, as item and value."""
    tables = (run.probes, run.densities, run.curves)
    for column, words in _TEXTS:
        if values := _texts(tables, column):
            yield words, ", ".join(values)
    for column, words in _COUNTS:
        if counts := sorted({int(one) for table in tables if column in table for one in table[column].dropna()}):
            yield words, " to ".join(str(one) for one in dict.fromkeys((counts[0], counts[-1])))
    own = run.manifest.get("data_hash")
    if others := [one for one in _texts(tables, "data_hash") if one != own]:
        yield "curvature on other data", ", ".join(others)
    if methods := _texts((run.spectra,), "method"):
        yield "singular values by", ", ".join(methods)
    if pairs := [", ".join(found) for column in _PAIR_COLUMNS if (found := _texts((run.pairs,), column))]:
        yield "minibatch pairs", "; ".join(pairs)
    cost = curvature_cost(run)
    if cost.evaluations:
        yield "curvature evaluations", str(cost.evaluations)
    if cost.products is not None:
        yield "Hessian products", str(cost.products)


def _texts(tables: Sequence[pd.DataFrame], column: str) -> list[str]:
    """Return the distinct texts of a column of several tables, sorted; a table without the column has none."""
    return sorted({str(one) for table in tables if column in table for one in table[column].dropna().unique()})


def _failed_measurements(run: Run) -> Iterable[Missing]:
    """Return the missing values of a run by what is missing, with their steps and the first reason."""
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for gap in missing_values(run.manifest):
        by_label.setdefault(label_of(gap), []).append(gap)
    names = {"curvature": "Part of the curvature" if len(run.probes) else "Curvature"}
    names |= {"layers": "Layer-wise remainders", "minibatches": "Minibatch pairs", "files": "Writing"}
    for label, gaps in by_label.items():
        steps = list(dict.fromkeys(str(gap.get("step", "?")) for gap in gaps))
        count = len(steps) + sum(more for gap in gaps if isinstance(more := gap.get("more"), int))
        samples = _counted(count, "evaluation" if is_curvature(gaps[0]) else "sample")
        where = f"at {samples} (step {listed(steps)})"
        reason = gaps[0].get("why") or "no reason was recorded"
        first = "First reason: " if len(gaps) > 1 else ""
        yield Missing(f"{names.get(label, label)} of {run.name} {where}", f"{first}{reason}")


def _seeds(run: Run) -> str:
    """Return the three seeds, or "not recorded"."""
    seeds = run.manifest.get("seeds")
    if not isinstance(seeds, Mapping) or not seeds:
        return "not recorded"
    return " / ".join(str(seeds.get(factor, "–")) for factor in ("init", "split", "order"))


def _grouped(item: str, facts: Sequence[tuple[str, Mapping[str, str]]]) -> Iterable[tuple[str, str, str]]:
    """Return one row for each distinct value of an item."""
    values: dict[str, list[str]] = {}
    for name, known in facts:
        values.setdefault(known.get(item, "not recorded"), []).append(name)
    for value, names in values.items():
        yield item, value, "all" if len(names) == len(facts) and len(facts) > 1 else ", ".join(names)


def _counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 run`, `2 runs`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Return the names, separated by commas; a long list ends with the number of the others."""
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown
