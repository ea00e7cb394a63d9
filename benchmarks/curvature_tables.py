"""Results of the curvature benchmark as markdown, and its targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from curvature_jobs import Result, Series, Track
from curvature_products import JOB, ProductArm
from curvature_reference import Reference
from curvature_rivals import Found
from networks import Problem

ErrorOf = Callable[[Reference, Found], float]


@dataclass(frozen=True)
class Verdict:
    """A target, the measured value, and whether the target was met."""

    aim: str
    measured: str
    met: bool

    def row(self) -> list[str]:
        """Return the row of the table of targets."""
        return [self.aim, self.measured, "met" if self.met else "**missed**"]


def print_table(title: str, head: str, rows: Iterable[Sequence[str]]) -> None:
    """Print a markdown table, row by row."""
    print(f"\n{title}\n\n| {head} |\n|{'---|' * (head.count('|') + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(numbers: Sequence[float]) -> str:
    """Return median and worst in percent; a dash for a missing value."""
    known = [100 * abs(number) for number in numbers if not np.isnan(number)]
    if not known:
        return "-"
    middle, worst = (f"{number:.2g}" if number >= 1e-3 else "<0.001" for number in (median(known), max(known)))
    return middle if middle == worst else f"{middle} ({worst})"


def print_references(pairs: Sequence[tuple[Problem, Reference]]) -> None:
    """Print the references with their errors; a dash for those that were not needed."""
    rows = []
    for problem, truth in pairs:
        facts = [f"{problem.size}", f"{len(problem.batch[1])}", f"{float(problem.loss().detach()):.3f}"]
        numbers = [
            (truth.top[0], ".4f"),
            (truth.bottom, ".4f"),
            (truth.residual, ".0e"),
            (truth.agreement, ".0e"),
            (truth.trace, ".3f"),
            (100 * truth.trace_error, ".2g"),
            (100 * truth.density_error, ".1g"),
        ]
        rows.append([problem.name, *facts, *("-" if np.isnan(x) else f"{x:{form}}" for x, form in numbers)])
    head = (
        "network | parameters | samples | loss | λ_max | λ_min | residual / λ_max | difference to eigsh / λ_max"
        " | trace | its standard error % | error of the density %"
    )
    print_table("References", head, rows)


def errors(result: Result, arm: Series, error: ErrorOf) -> list[float]:
    """Return the error of each round."""
    return [error(result.truth, found) for found in arm.found]


def cost(result: Result, arm: Series) -> list[str]:
    """Return products, seconds, gradients, and the time relative to ours."""
    gradients, ratio = arm.time / result.gradient, arm.time / result.arms[0].time
    parts = " + ".join(f"{part}" for part in arm.found[0].parts)
    products = f"{arm.products:g}" + (f" (first {parts})" if parts else "")
    return [products, f"{arm.time:.3f}", f"{gradients:.0f}", f"{ratio:.2f}"]


# -- lambda_max -----------------------------------------------------------------------------------------------


def top_error(truth: Reference, found: Found) -> float:
    """Return the largest error of the largest eigenvalues, relative to lambda_max."""
    return truth.top_error(np.array(found.top))


def print_top(results: Sequence[Result]) -> list[Verdict]:
    """Print the table of lambda_max and return its targets."""
    rows = [
        [result.problem.name, arm.label, percent(errors(result, arm, top_error)), *cost(result, arm)]
        for result in results
        for arm in result.arms
    ]
    title = "λ_max to 1 %. Error in % of λ_max: median over the rounds (worst)"
    print_table(title, "network | library | error % | products | seconds | gradients | time / ours", rows)
    worst = max(max(errors(result, result.arms[0], top_error)) for result in results)
    verdicts = [Verdict("λ_max: our worst error at most 1 %", f"{100 * worst:.2g} %", worst <= 0.01)]
    if default := _labeled(results, "pyhessian, tol 0.001"):
        verdicts += _against_pyhessian(default)
        verdicts.append(_at_least("λ_max without the proof: pyhessian at least 1.5x", default, 1.5, ours=1))
    if default := _labeled(results, "curvlinops + eigsh, tol 0.01"):
        verdicts.append(_at_least("λ_max: curvlinops + eigsh, tol 0.01, at least 4x", default, 4))
    return verdicts


def _labeled(results: Sequence[Result], label: str) -> list[tuple[Result, Series]]:
    """Return the arms with a name."""
    return [(result, arm) for result in results for arm in result.arms if arm.label == label]


def _against_pyhessian(default: Sequence[tuple[Result, Series]]) -> list[Verdict]:
    """Return the targets for lambda_max relative to pyhessian's default rule."""
    larger = [
        f"{result.problem.name} ({100 * ours:.2g} % beside {100 * theirs:.2g} %)"
        for result, arm in default
        if (ours := max(errors(result, result.arms[0], top_error))) > (theirs := max(errors(result, arm, top_error)))
    ]
    lowest = min(arm.time / result.arms[0].time for result, arm in default)
    return [
        _at_least("λ_max: pyhessian at least 1.5x (aim 2x)", default, 1.5),
        Verdict("λ_max: pyhessian on no network below 0.9x", f"{lowest:.2f}x", lowest >= 0.9),
        Verdict("λ_max: our worst error at most pyhessian's", f"larger on {', '.join(larger) or 'none'}", not larger),
    ]


def _at_least(aim: str, pairs: Sequence[tuple[Result, Series]], bound: float, ours: int = 0) -> Verdict:
    """Return a target for the median over the networks of the time relative to one of our arms."""
    ratios = [arm.time / result.arms[ours].time for result, arm in pairs]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return Verdict(aim, f"{median(ratios):.2f}x, the median of {each}", median(ratios) >= bound)


# -- the panel ------------------------------------------------------------------------------------------------


def print_panel(results: Sequence[Result]) -> list[Verdict]:
    """Print the table of the panel and return its targets."""
    measures: tuple[ErrorOf, ...] = (
        top_error,
        lambda truth, found: truth.bottom_error(found.bottom),
        lambda truth, found: found.trace / truth.trace - 1,
        lambda truth, found: truth.density_distance(found.density) if found.density else float("nan"),
    )
    rows = [
        [
            result.problem.name,
            arm.label,
            *(percent(errors(result, arm, measure)) for measure in measures),
            *cost(result, arm),
            f"{len(arm.found)}",
        ]
        for result in results
        for arm in result.arms
    ]
    title = (
        "The panel: top-5, λ_min, trace to 1 % standard error, density. Errors in %, of λ_max for eigenvalues and for "
        "the Wasserstein distance of the densities, of itself for the trace: median over the rounds (worst)"
    )
    head = "network | library | top-5 | λ_min | trace | density | products | seconds | gradients | time / ours | rounds"
    print_table(title, head, rows)
    for result in results:
        if unmet := sorted({name for found in result.arms[0].found for name in found.unmet}):
            print(f"\nOurs reports that it did not meet its bound for {', '.join(unmet)} on {result.problem.name}.")
    verdicts = []
    for library, aim, bound in (
        ("pyhessian, three calls", "at least 5x (aim 8x)", 5),
        ("pyhessian, trace to 1 % too", "at least 5x (aim 8x)", 5),
        ("curvlinops", "at least 3x", 3),
    ):
        pairs = [(r, arm) for r in results for arm in r.arms if arm.label.startswith(library)]
        if pairs:
            verdicts.append(_at_least(f"panel: {library} {aim}", pairs, bound))
    return verdicts


# -- tracking -------------------------------------------------------------------------------------------------


def print_tracks(runs: Sequence[tuple[str, Sequence[Track], float]]) -> list[Verdict]:
    """Print the table of tracked runs and return its targets."""
    rows, verdicts = [], []
    for name, tracks, gradient in runs:
        ours = tracks[0]
        for one in tracks:
            rows.append(
                [
                    name,
                    one.label,
                    percent(one.errors),
                    f"{np.mean(one.products):.2f}",
                    f"{max(one.products)}",
                    f"{median(one.seconds):.2f}",
                    f"{median(one.seconds) / gradient * len(one.seconds) / len(one.errors):.1f}",
                    f"{np.mean(one.products) / np.mean(ours.products):.2f}",
                    f"{median(one.seconds) / median(ours.seconds):.2f}",
                ]
            )
        worst, mean = max(ours.errors), float(np.mean(ours.products))
        verdicts.append(Verdict(f"tracking, {name}: worst error below 3 %", f"{100 * worst:.2g} %", worst < 0.03))
        verdicts.append(Verdict(f"tracking, {name}: at most 3 products an evaluation", f"{mean:.2f}", mean <= 3))
        for one in tracks:
            if one.label.startswith("pyhessian"):
                ratio = float(np.mean(one.products)) / mean
                aim = f"tracking, {name}: at least 6x fewer products than pyhessian"
                measured = f"{ratio:.1f}x, its worst error {100 * max(one.errors):.2g} %"
                verdicts.append(Verdict(aim, measured, ratio >= 6))
    head = "run | library | error % | products an evaluation | most | seconds | gradients an evaluation"
    head += " | products over ours | time / ours"
    print_table(
        "λ_max along a run, every fifth step. Error in % of λ_max: median over the evaluations (worst)", head, rows
    )
    return verdicts


# -- one product ----------------------------------------------------------------------------------------------


def print_products(timings: Sequence[tuple[Problem, Sequence[ProductArm], float]]) -> list[Verdict]:
    """Print the table of single products and return its target."""
    rows, ratios = [], []
    for problem, arms, gradient in timings:
        ran = [arm for arm in arms if not arm.refusal]
        best = min(arm.amortized for arm in ran if arm.candidate)
        ratios.append(ran[0].amortized / best)
        for arm in ran:
            steady, whole = arm.product / gradient, arm.amortized / gradient
            numbers = (steady, arm.setup / gradient, whole, arm.amortized / best, steady / 2)
            rows.append([problem.name, arm.label, *(f"{number:.2f}" for number in numbers)])
    title = (
        f"One product with the Hessian, in gradients per column; its set-up; the cost with the set-up amortized over "
        f"{JOB} columns, and its ratio to the best method; the cost without set-up over the minimum of 2 gradients"
    )
    head = f"network | method | gradients | set-up | with set-up / {JOB} | over the best | over the floor"
    print_table(title, head, rows)
    for problem, arms, _ in timings:
        for arm in arms:
            if arm.refusal:
                print(f"\n{arm.label} has no row on {problem.name}: {arm.refusal}")
    measured = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [
        Verdict(
            "one product: our default within 1.25x of our best method on each network", measured, max(ratios) <= 1.25
        )
    ]
