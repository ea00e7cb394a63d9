"""Findings shared by several reports: checkable statements about the recorded data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.landscape.analysis.series import FloatArray
from lossscope.landscape.measures.catalogue import limit_of
from lossscope.landscape.measures.measure import WITHOUT_TOLERANCE
from lossscope.reports.content import Finding
from lossscope.reports.shared.gaps import cut_steps, missing_evaluations, missing_in_words
from lossscope.reports.shared.number_format import percent, plain, quantity_text
from lossscope.reports.shared.provenance import listed
from lossscope.reports.shared.quantities import at_last_evaluation, last_spectra, loss_at_last_evaluation, number

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = [
    "NOT_RECORDED",
    "all_bounds_met",
    "bounds_met",
    "edge_below_one",
    "entropy_raised",
    "losses_matched",
    "no_negative_curvature",
    "precise",
    "runs_finished",
    "spectra_precise",
]

_SHORT: Final = {"lambda_max": "λ_max", "lambda_min": "λ_min"}
NOT_RECORDED: Final = "not recorded in these runs"
_LARGEST_RELATIVE_ERROR: Final = 0.10
_LARGEST_SPECTRUM_ERROR: Final = 0.01
_LOSS_TOLERANCE: Final = 0.10


def runs_finished(runs: Sequence[Run]) -> Finding:
    """Check that every run finished."""
    others = [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]
    live = any(run.status == "running" for run in runs)
    outcome = None if not runs or (live and all("(running)" in one for one in others)) else not others
    numbers = f"{len(runs) - len(others)} of {len(runs)}" + (f"; not {', '.join(others)}" if others else "")
    return Finding("Every run finished.", outcome, numbers, "run.json: status", "Not every run finished.")


def bounds_met(runs: Sequence[Run], measure: str = "lambda_max") -> Finding:
    """Check that every value of a measure met its requested error bound.

    Evaluations that the cap on the recording time cut decide nothing where they missed it.
    """
    flags: list[bool] = []
    cut = 0
    for run in runs:
        rows = _rows(run, measure)
        rows = rows[rows["value"].notna()].dropna(subset=["converged"])
        short = cut_steps(run)
        for step, met in zip(rows["step"], rows["converged"].astype(bool), strict=True):
            if met or int(step) not in short:
                flags.append(bool(met))
            else:
                cut += 1
    name = _SHORT.get(measure, measure)
    numbers = f"met at {sum(flags)} of {len(flags)} evaluations" if flags else ("" if cut else NOT_RECORDED)
    words = f"{cut} cut by the cap on the recording time" if cut else ""
    return _whole(
        Finding(
            f"{name} met the error bound that was asked at every evaluation.",
            False if not all(flags) else True if flags and not cut else None,
            "; ".join(filter(None, (numbers, words))),
            f"probes.parquet: {measure}, converged",
            f"{name} missed the error bound that was asked at some evaluations; its error is as stated.",
        ),
        runs,
        measure,
    )


def all_bounds_met(runs: Sequence[Run]) -> Finding:
    """Check that every measure of the whole model met its requested precision, and count by measure.

    Evaluations that the cap on the recording time cut are left out where they missed it, as measures are missing there.
    """
    claim = "Every measure of the whole model met its requested precision at every evaluation."
    otherwise = "Some measures missed their requested precision; their errors are as stated."
    source = "probes.parquet: converged"
    counts: dict[str, list[int]] = {}
    for run in runs:
        rows = run.estimates.dropna(subset=["converged"])
        rows = rows[rows["value"].notna() & rows["tensor"].isna()]
        rows = rows[rows["converged"].astype(bool) | ~rows["step"].isin(list(cut_steps(run)))]
        for measure, met in zip(rows["measure"], rows["converged"].astype(bool), strict=True):
            if limit_of(measure) in WITHOUT_TOLERANCE:
                continue
            count = counts.setdefault(str(measure), [0, 0])
            count[0] += bool(met)
            count[1] += 1
    if not counts:
        return Finding(claim, None, NOT_RECORDED, source)
    missed = {measure: count for measure, count in counts.items() if count[0] < count[1]}
    numbers = "; ".join(f"{measure} met {met} of {all_of_it}" for measure, (met, all_of_it) in missed.items())
    return _whole(
        Finding(claim, not missed, numbers if missed else f"{len(counts)} measures", source, otherwise),
        runs,
        *_all_measures(runs),
    )


def edge_below_one(runs: Sequence[Run]) -> Finding:
    """Check that the directional edge ratio stayed below 1 in the last quarter of each run's steps.

    A step that is not a descent direction on the fixed data has no directional edge ratio. If the evaluations include
    such a step, the claim is refuted or open, but not what happened. Nor is it if a loss rose far above its
    start, or if a late evaluation is missing.
    """
    measure = "directional_edge_ratio"
    evaluated = [(value, run.name, step) for run in runs for value, step in _late(run, measure)]
    found = [(value, name, step) for value, name, step in evaluated if value is not None]
    claim = "The directional edge ratio stayed below 1 in the last quarter of the steps."
    otherwise = (
        "The directional edge ratio reached 1 in the last quarter of the steps: there the quadratic model predicts "
        "that the loss rises along the step."
    )
    source = "probes.parquet: directional_edge_ratio"
    if not found:
        return Finding(claim, None, NOT_RECORDED, source)
    largest, name, step = max(found)
    above = sum(value >= 1 for value, _, _ in found)
    numbers = f"{above} of {len(found)} evaluations at or above 1; largest {plain(largest, 3)} ({name}, step {step})"
    uphill = len(evaluated) - len(found)
    if uphill:
        numbers += f"; {uphill} more without a value: the step was not a descent direction on the fixed data"
    known = {(name, step) for _, name, step in evaluated}
    late = [(run.name, step) for run in runs for step in missing_evaluations(run, measure) if step >= _late_from(run)]
    lost = len(set(late) - known)
    numbers += f"; missing at {lost} more" if lost else ""
    risen = [run.name for run in runs if (one := divergence_of(run)) is not None and one.finite]
    numbers += f"; but the loss of {listed(risen)} rose far above its start" if risen else ""
    outcome = False if above else (None if uphill or lost or risen else True)
    return Finding(claim, outcome, numbers, source, otherwise)


def precise(runs: Sequence[Run], measure: str, words: str) -> Finding:
    """Check that the relative standard error of a measure is below 10 % at every evaluation."""
    largest_allowed = f"{100 * _LARGEST_RELATIVE_ERROR:.0f} %"
    claim = f"The relative standard error of {words} is below {largest_allowed} at every evaluation."
    otherwise = f"The relative standard error of {words} is {largest_allowed} or more at some evaluations."
    source = f"probes.parquet: {measure}, stderr"
    found = [
        (stderr / abs(value), run.name, int(step))
        for run in runs
        for value, stderr, step in _with_stderr(run, measure)
        if value
    ]
    if not found:
        return Finding(claim, None, NOT_RECORDED, source)
    largest, name, step = max(found)
    good = sum(share < _LARGEST_RELATIVE_ERROR for share, _, _ in found)
    numbers = f"below at {good} of {len(found)} evaluations; largest {percent(largest)} ({name}, step {step})"
    return _whole(Finding(claim, good == len(found), numbers, source, otherwise), runs, measure)


def no_negative_curvature(runs: Sequence[Run]) -> Finding:
    """Check that the smallest Ritz value at the last evaluation is not negative.

    It bounds the smallest eigenvalue from above only, so the claim is about the value found.
    """
    claim = "No negative curvature was found at the last evaluation (measured λ_min ≥ 0)."
    otherwise = "Negative curvature was found at the last evaluation, as is usual in deep networks."
    found = [(run.name, at_last_evaluation(run, "lambda_min")) for run in runs]
    bounds = [(q.value, q.error or 0.0, name) for name, q in found if q.value is not None]
    if not bounds:
        return Finding(claim, None, NOT_RECORDED, "probes.parquet: lambda_min")
    below = sum(value + bound < 0 for value, bound, _ in bounds)
    above = sum(value - bound >= 0 for value, bound, _ in bounds)
    name, lowest = min(found, key=lambda one: math.inf if one[1].value is None else one[1].value)
    shown = quantity_text(replace(lowest, low=None, high=None))
    numbers = f"λ_min below 0 beyond its bound in {below} of {len(bounds)} runs; lowest {shown} ({name})"
    outcome = False if below else (True if above == len(bounds) else None)
    source = "probes.parquet: lambda_min"
    return _whole(Finding(claim, outcome, numbers, source, otherwise, usual=True), runs, "lambda_min")


def entropy_raised(runs: Sequence[Run]) -> Finding:
    """Check that O has a higher energy entropy than A in every matrix: true by construction, so it tests the data."""
    claim = "Newton-Schulz raised the entropy of every matrix (true by construction: a consistency check of the data)."
    pairs = [pair for run in runs for pair in _before_after(run)]
    if not pairs:
        return Finding(claim, None, NOT_RECORDED, "spectra.parquet: entropy_energy")
    raised = sum(after >= before - 1e-9 for before, after in pairs)
    numbers = f"{raised} of {len(pairs)} matrices at the last evaluations"
    source = "spectra.parquet: entropy_energy of whitened, orthogonal"
    otherwise = "Newton-Schulz lowered the entropy of some matrices, which its exact form cannot: check the data."
    return Finding(claim, raised == len(pairs), numbers, source, otherwise)


def spectra_precise(runs: Sequence[Run]) -> Finding:
    """Check that every singular value is accurate to 1 % of the largest of its matrix."""
    claim = f"Every singular value is accurate to {100 * _LARGEST_SPECTRUM_ERROR:.0f} % of the largest of its matrix."
    parts = [_relative_errors(run) for run in runs]
    errors = np.concatenate(parts) if parts else np.empty(0)
    if not len(errors):
        return Finding(claim, None, NOT_RECORDED, "spectra.parquet: values, error")
    numbers = f"largest error {percent(float(errors.max()))} over {len(errors)} spectra"
    otherwise = f"Some singular values are less accurate than {100 * _LARGEST_SPECTRUM_ERROR:.0f} % of the largest."
    good = bool(errors.max() <= _LARGEST_SPECTRUM_ERROR)
    return Finding(claim, good, numbers, "spectra.parquet: values, error", otherwise)


def _relative_errors(run: Run) -> FloatArray:
    """Return the error of each spectrum that has one, over its largest singular value."""
    rows = run.columns("spectra", "values.first", "error")
    largest, error = rows["values.first"].to_numpy(dtype=np.float64), rows["error"].to_numpy(dtype=np.float64)
    there = np.isfinite(error) & (largest > 0)
    found: FloatArray = error[there] / largest[there]
    return found


def losses_matched(runs: Sequence[Run]) -> Finding:
    """Check that the arms' median train losses at their last evaluations agree to 10 %."""
    claim = f"The arms have the same train loss at their last evaluations, within {100 * _LOSS_TOLERANCE:.0f} %."
    medians = {
        arm: float(np.median(present))
        for arm, members in by_arm(runs).items()
        if (present := [loss for run in members if (loss := loss_at_last_evaluation(run)) is not None])
    }
    if len(medians) < 2:
        numbers = f"{len(medians)} arm(s) with a recorded train loss"
        return _whole(Finding(claim, None, numbers, "probes.parquet: loss"), runs, "loss")
    numbers = "; ".join(f"{arm} {plain(loss)}" for arm, loss in medians.items())
    apart = max(medians.values()) - min(medians.values())
    matched = apart <= _LOSS_TOLERANCE * min(map(abs, medians.values()))  # a likelihood may be negative
    otherwise = "The arms end at different train losses: compare their curvature at equal loss."
    return _whole(Finding(claim, matched, numbers, "probes.parquet: loss", otherwise), runs, "loss")


def _whole(finding: Finding, runs: Sequence[Run], *measures: str) -> Finding:
    """Return a finding about every evaluation with the number of those missing, open instead of true if any."""
    missing = missing_in_words(runs, measures)
    if not missing:
        return finding
    outcome = None if finding.outcome is True else finding.outcome
    return replace(finding, outcome=outcome, numbers=f"{finding.numbers}; {missing}")


def _all_measures(runs: Sequence[Run]) -> list[str]:
    """Return every measure of the whole model in the runs."""
    rows = (run.estimates for run in runs)
    return list(dict.fromkeys(str(name) for one in rows for name in one[one["tensor"].isna()]["measure"]))


def _rows(run: Run, measure: str) -> pd.DataFrame:
    """Return the rows of a measure of the whole model, one per step."""
    return run.estimates.loc[(run.estimates["measure"] == measure) & run.estimates["tensor"].isna()]


def _late(run: Run, measure: str) -> list[tuple[float | None, int]]:
    """Return the values of a measure in the last quarter of the run, with their steps."""
    rows = _rows(run, measure)
    late = rows[rows["step"] >= _late_from(run)]
    return [(number(value), int(step)) for value, step in zip(late["value"], late["step"], strict=True)]


def _late_from(run: Run) -> float:
    """Return the step at which the last quarter of a run begins."""
    steps = run.columns("steps", "step")
    rows = steps if len(steps) else run.estimates
    return 0.75 * float(rows["step"].max()) if len(rows) else 0.0


def _with_stderr(run: Run, measure: str) -> list[tuple[float, float, int]]:
    """Return value, standard error and step wherever both numbers are present."""
    rows = _rows(run, measure).dropna(subset=["value", "stderr"])
    columns = (rows["value"], rows["stderr"], rows["step"])
    return [(float(value), float(stderr), int(step)) for value, stderr, step in zip(*columns, strict=True)]


def _before_after(run: Run) -> list[tuple[float, float]]:
    """Return the energy entropies of A and O of each matrix at the last step with spectra."""
    rows = last_spectra(run)
    entropies = {
        (tensor, None if np.isnan(part) else int(part), kind): entropy
        for tensor, part, kind, entropy in zip(
            rows["tensor"],
            rows["slice"].to_numpy(dtype=np.float64, na_value=np.nan),
            rows["object"],
            rows["entropy_energy"].to_numpy(dtype=np.float64, na_value=np.nan),
            strict=True,
        )
        if np.isfinite(entropy)
    }
    return [
        (float(before), float(entropies[tensor, part, "orthogonal"]))
        for (tensor, part, kind), before in entropies.items()
        if kind == "whitened" and (tensor, part, "orthogonal") in entropies
    ]
