"""Provenance of a report: versions, data, seeds, curvature settings, and the end of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.landscape.analysis.arms import by_arm, step_of_another_rate
from lossscope.landscape.storage.missing_values import is_curvature, label_of, missing_values
from lossscope.reports.content import Column, Missing, Table
from lossscope.reports.shared.quantities import curvature_cost
from lossscope.reports.shared.reasons import in_plain_words

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["ending_notes", "listed", "missing_curvature", "missing_spectra", "provenance", "runs_in_words"]

_ENVIRONMENT: Final = ("lossscope", "torch", "python", "numpy", "platform", "threads")
_MANIFEST: Final = (("code version", "code_version"), ("preset", "preset"))
_HASH: Final = 16  # characters of a hash; run.json has all
_MOST_NAMES: Final = 6
_ARM: Final = " (an arm: runs of the same settings that differ by their seeds)"
_TEXTS: Final = (  # columns of probes, densities and curves
    ("mode", "mode"),
    ("loss_kind", "loss"),
    ("additivity", "over batches"),
    ("gauge", "gauge"),
    ("method", "products by"),
    ("dtype", "products in"),
    ("engine", "engine"),
)
_PAIR_COLUMNS: Final = ("mode", "loss_kind", "additivity", "dtype")


def provenance(runs: Sequence[Run]) -> Table:
    """Return a table with one row for each group of runs that agree in all but data, seeds and cost."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_facts(run)), []).append(run)
    rows = tuple(
        (_named(members, len(runs)), "; ".join((*facts, *_ranges(members)))) for facts, members in groups.items()
    )
    columns = (Column("runs", "runs", words=True), Column("provenance", "provenance", words=True))
    return Table("provenance", "Provenance", columns, rows)


def ending_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a note for each run that did not finish, has no steps, or whose fixed data have another loss.

    An arm whose runs recorded different learning rates gets one too.
    """
    ended = [f"{run.name}: {run.status}. {in_plain_words(run.ends)}" for run in runs if run.status != "finished"]
    empty = [f"{run.name}: no step was recorded." for run in runs if not len(run.columns("steps", "step"))]
    other = [f"{run.name}: {note}." for run in runs if isinstance(note := run.manifest.get("fixed_loss"), str)]
    rates = [
        f"{arm}: its runs have different learning rates from step {step} on and are counted as one arm; "
        "if their schedules differ on purpose, give them different names (arm=)."
        for arm, members in by_arm(runs).items()
        if len(members) > 1 and (step := step_of_another_rate(members)) is not None
    ]
    return (*ended, *empty, *other, *rates)


def runs_in_words(runs: Sequence[Run]) -> str:
    """Return the number of runs and the arms, with what an arm is."""
    arms = list(by_arm(runs))
    named = ", ".join(arms[:_MOST_NAMES]) + (" …" if len(arms) > _MOST_NAMES else "")
    return f"{_counted(len(runs), 'run')} of {_counted(len(arms), 'arm')}: {named}{_ARM * bool(arms)}"


def missing_curvature(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return an entry for each run or evaluation without curvature."""
    without = [
        run.name for run in runs if not len(run.probes) and not any(map(is_curvature, missing_values(run.manifest)))
    ]
    how = "Pass objective=Objective(model, loss_fn, batches) to the Recorder; curvature is measured on its fixed data."
    if all(run.is_measured for run in runs):
        how = "Measure the checkpoints with a loss: lossscope measure CKPT... --objective FILE.py:NAME, --hf or --timm."
    absent = (Missing(f"Curvature of {listed(without)}", how),) if without else ()
    return (*absent, *(one for run in runs for one in _failed_measurements(run)))


def missing_spectra(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return an entry for the runs without singular spectra."""
    without = [run.name for run in runs if not len(run.columns("spectra", "step"))]
    if not without:
        return ()
    how = "Record with preset standard or full, and a model with at least one matrix."
    return (Missing(f"Singular spectra of {listed(without)}", how),)


def _facts(run: Run) -> Iterable[str]:
    """Yield how a run was made, and the settings of its curvature, spectra and minibatch pairs."""
    environment = run.manifest.get("environment")
    known = environment if isinstance(environment, Mapping) else {}
    made = [f"{key} {known[key]}" for key in _ENVIRONMENT if known.get(key) is not None]
    yield ", ".join(made + [f"{key} {run.manifest[name]}" for key, name in _MANIFEST if run.manifest.get(name)])
    tables = (run.probes, run.densities, run.curves)
    settings = [f"{words} {', '.join(values)}" for column, words in _TEXTS if (values := _texts(tables, column))]
    if counts := _counts(tables, "parameters"):
        settings.append(f"{_extent(counts)} parameters")
    yield f"curvature: {', '.join(settings) or 'not measured'}"
    if methods := _texts((run.columns("spectra", "method"),), "method"):
        yield f"singular values by {', '.join(methods)}"
    if pairs := [", ".join(found) for column in _PAIR_COLUMNS if (found := _texts((run.pairs,), column))]:
        yield f"minibatch pairs: {', '.join(pairs)}"


def _ranges(members: Sequence[Run]) -> Iterable[str]:
    """Yield data hashes, seeds and cost of the runs of a group, which may differ among them."""
    tables = [table for run in members for table in (run.probes, run.densities, run.curves)]
    own = dict.fromkeys(str(run.manifest.get("data_hash") or "not recorded")[:_HASH] for run in members)
    yield f"data hash {listed(list(own))}"
    others = [one for one in _texts([*tables, *(run.pairs for run in members)], "data_hash") if one[:_HASH] not in own]
    if others:
        yield f"other data {listed([one[:_HASH] for one in others])}"
    yield f"seeds (init / split / order) {_seeds(members)}"
    if seeds := _counts(tables, "seed"):
        yield f"seed of the random probes {_extent(seeds)}"
    costs = [curvature_cost(run) for run in members]
    products = [cost.products for cost in costs if cost.products is not None]
    yield f"curvature evaluations {_extent([cost.evaluations for cost in costs])}"
    yield f"Hessian products {_extent(products)}"
    if samples := _counts(tables, "samples"):
        yield f"random probes or draws {_extent(samples)}"


def _named(members: Sequence[Run], count: int) -> str:
    """Return the runs of a group."""
    return "all" if len(members) == count and count > 1 else listed([run.name for run in members])


def _counts(tables: Iterable[pd.DataFrame], column: str) -> list[int]:
    """Return the distinct whole numbers of a column of several tables."""
    return sorted({int(one) for table in tables if column in table for one in table[column].dropna()})


def _extent(counts: Sequence[int]) -> str:
    """Return numbers as one, or from the smallest to the largest."""
    ends = sorted({min(counts), max(counts)}) if counts else []
    return " to ".join(map(str, ends)) or "not recorded"


def _texts(tables: Iterable[pd.DataFrame], column: str) -> list[str]:
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
        yield Missing(f"{names.get(label, label)} of {run.name} {where}", f"{first}{in_plain_words(str(reason))}")


def _seeds(members: Sequence[Run]) -> str:
    """Return the seeds of the runs of a group, each once; "not recorded" if there are none."""
    found = dict.fromkeys(map(_seeds_of, members))
    return listed(list(found))


def _seeds_of(run: Run) -> str:
    """Return the three seeds, or "not recorded"."""
    seeds = run.manifest.get("seeds")
    if not isinstance(seeds, Mapping) or not seeds:
        return "not recorded"
    return " / ".join(str(seeds.get(factor, "–")) for factor in ("init", "split", "order"))


def _counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 run`, `2 runs`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Return the names, separated by commas; a long list ends with the number of the others."""
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown
