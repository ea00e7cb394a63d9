"""Figures of sharpness with the stability threshold that holds for each arm, dashed, over the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.edge_of_stability import RunThreshold, threshold_of
from lossscope.landscape.analysis.series import Series, probe_series
from lossscope.reports.figure_content import Axis, Curves
from lossscope.reports.shared.curves import curves
from lossscope.reports.shared.known_errors import known_series
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.notes import ENDS_NOTE, HESSIAN_NOTE
from lossscope.reports.shared.provenance import listed

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["eigenvalue_figure", "threshold_figures", "thresholds_in_words"]

_Known: TypeAlias = "dict[str, list[tuple[Run, RunThreshold]]]"  # of each run, by arm
_PRECONDITIONED: Final = (
    "Largest eigenvalue of the Hessian in the metric of the optimizer's last step, the sharpness that its step meets."
)
_BATCHES: Final = (
    "Mean over minibatches of g_B'H_B g_B / |g_B|², with 95 % intervals: the sharpness that a minibatch step meets."
)


def eigenvalue_figure(runs: Sequence[Run]) -> Curves:
    """Return the largest Hessian eigenvalue over steps, with its bounds and its threshold where one holds."""
    title, caption = "λ_max, the largest Hessian eigenvalue", f"{ENDS_NOTE} {HESSIAN_NOTE}"
    return _with_threshold(runs, "lambda_max", title, caption, Axis("λ_max", loss_unit(runs)))


def threshold_figures(runs: Sequence[Run]) -> tuple[Curves, ...]:
    """Return the other kinds of sharpness that a run measured, each with its threshold where one holds."""
    kinds = (
        ("preconditioned_sharpness", "S_P, sharpness in the optimizer's metric", _PRECONDITIONED, Axis("S_P")),
        ("batch_sharpness", "Batch sharpness", _BATCHES, Axis("batch sharpness", loss_unit(runs))),
    )
    return tuple(
        _with_threshold(runs, measure, title, caption, axis)
        for measure, title, caption, axis in kinds
        if any(np.isfinite(probe_series(run, measure).y).any() for run in runs)
    )


def thresholds_in_words(runs: Sequence[Run], measure: str) -> str:
    """Return the formulas of the thresholds that hold, and the reason of each arm without one.

    Args:
        runs: Runs; grouped by arm.
        measure: Name of the quantity.

    Returns:
        Sentences; "" if no run measured the quantity.
    """
    drawn, absent = _by_words(_of_arms(runs, measure))
    parts = [f"{formula} ({listed(arms)})" for formula, arms in drawn.items()]
    sentences = [f"Dashed: the stability threshold, {'; '.join(parts)}."] if parts else []
    sentences += [f"No threshold is drawn for {listed(arms)}: {why}." for why, arms in absent.items()]
    return " ".join(sentences)


def _with_threshold(runs: Sequence[Run], measure: str, title: str, caption: str, y: Axis) -> Curves:
    """Return a figure of a measure, its key, with the levels of its threshold as dashed lines."""
    known = _of_arms(runs, measure)
    formulas = list(_by_words(known)[0])
    of_runs = {run.name: one for run, one in ((run, one) for found in known.values() for run, one in found)}
    made = [
        curves(
            runs,
            key=measure,
            title=title,
            caption=" ".join(filter(None, (thresholds_in_words(runs, measure), caption))),
            y=y,
            series=lambda run: known_series(run, measure),
            dashed=lambda run, place=place: _level(run, of_runs[run.name], place),  # type: ignore[misc]
        )
        for place in range(max([len(one.levels) for one in of_runs.values()] or [1]) or 1)
    ]
    figure, lines = made[0], [line for one in made[1:] for line in one.curves if line.dashed]
    figure = replace(figure, curves=(*figure.curves, *lines), summary=_in_words(made, known))
    return replace(figure, styles=("measured", f"threshold: {'; '.join(formulas)}")) if formulas else figure


def _in_words(made: Sequence[Curves], known: _Known) -> tuple[str, ...]:
    """Return the summaries of figures without repetition, each threshold with its formula or the reason without one."""
    first, (drawn, absent) = made[0], _by_words(known)
    formula = {arm: words for words, arms in drawn.items() for arm in arms}
    lines = [
        f"{words} (threshold {formula[line.name]})" if line.dashed else words
        for figure in made
        for line, words in zip(figure.curves, figure.summary, strict=True)
        if line.dashed or figure is first
    ]
    return (*lines, *(f"no threshold for {listed(arms)}: {why}" for why, arms in absent.items()))


def _of_arms(runs: Sequence[Run], measure: str) -> _Known:
    """Return the threshold of each run, by arm."""
    return {arm: [(run, threshold_of(run, measure)) for run in members] for arm, members in by_arm(runs).items()}


def _by_words(known: _Known) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the arms by formula, and those that measured the quantity without a threshold by reason."""
    drawn: dict[str, list[str]] = {}
    absent: dict[str, list[str]] = {}
    for arm, found in known.items():
        formulas = dict.fromkeys(one.formula for _, one in found if one.levels)
        for formula in formulas:
            drawn.setdefault(formula, []).append(arm)
        reasons = dict.fromkeys(one.why for _, one in found if not one.levels and one.measured)
        for why in () if formulas else reasons:
            absent.setdefault(why, []).append(arm)
    return drawn, absent


def _level(run: Run, found: RunThreshold, place: int) -> Series:
    """Return a level of the threshold of a run; an empty series if it has none."""
    return found.levels[place] if place < len(found.levels) else Series(run.name, *([np.empty(0)] * 3))
