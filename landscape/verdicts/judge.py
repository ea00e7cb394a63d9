"""Verdicts on claims, and comparisons of two arms or two runs without a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.run import Run
from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.flatter import flatter
from lossscope.landscape.verdicts.matchups import matchups_of, unknown_arms
from lossscope.landscape.verdicts.pairs import Matchup, arms_of, matchup, one_pair, resolve, task_of, unknown_arm
from lossscope.landscape.verdicts.verdict import Reason, Verdict

__all__ = ["check", "compare", "judge"]

Side: TypeAlias = "str | Run | Sequence[Run]"
Level: TypeAlias = "float | Literal['lowest'] | None"
Arms: TypeAlias = "dict[str, dict[str, list[Run]]]"


def judge(claim: Claim, runs: Iterable[Run]) -> Verdict:
    """Judge a claim from recorded runs.

    `figures` of a claim of kind `flatter` has these keys, where arms are inside tasks (`figures[key][task][arm]`):

    - `margin`: ratio below which a difference is small. `confidence`: coverage of the intervals.
    - `loss`: the training loss that was read, `train_loss` or `loss` (that of the curvature data).
    - `lowest`: the lowest training loss that all runs reach, rounded up to one digit.
    - `series`: a list of runs with `run`, `seeds`, `measure` (`adaptive_trace`), `step`, `loss` and `value`.
    - `sigma_star`: `value` (geometric mean over seeds at the level), `low` and `high` (range), `n` of `of` runs.
    - `noise_curve`: `x`, `y` (geometric mean over seeds at the level), `low` and `high` (range), `n`.
    - `cost`: mean `gradients`, `ascents` and `steps` up to the level; nan where not recorded.
    - `test_loss`: a list of matchups with `task`, `a`, `b`, `n`, `a_value`, `b_value`, `difference`, `low`, `high` and
      `differences`, at the level.
    - `weakest`, `strongest`: the rows nearest to 1 and farthest from it: `label`, `task`, `a`, `b`, `ratio`.
    - `other_levels`: a list of `level`, `status` and `small`, for the usual levels that all runs reach.
    - `raw_says`: a sentence where raw numbers contradict the verdict, else empty. The raw row is in `rows`, with
      `counts` False.
    - `unpaired`: names of the runs without a partner. `unconverged`: number of values used that missed the asked
      accuracy, by measure. `file`: `path`, `sha256` and `modified` of the claim's file.

    A bound on times has `shares`: a list of `task`, `a`, `b`, `wins`, `losses`, `open`, `n`, and `low`, `high` of the
    share of wins, with open pairs counted against the claim in `low` and for it in `high`. An identity has `tries` and
    `counter_examples`.

    Args:
        claim: The claim.
        runs: Any runs; those of other arms and tasks are left alone.

    Raises:
        RunError: Two runs of one arm have the same seeds and data.
        ConfigError: An arm has runs of different settings.
    """
    runs = list(runs)
    match claim.kind:
        case "flatter":
            return flatter(claim, *matchups_of(claim, runs))
        case "bound":
            from lossscope.landscape.verdicts.bound import bound

            return bound(claim, runs)
        case "identity":
            from lossscope.landscape.verdicts.identity import identity

            return identity(claim, runs)
        case "untestable":
            reason = Reason("NOT_TESTABLE", claim.reason)
            words = f"Not testable: {claim.reason.rstrip('.')}."
            return Verdict(
                claim.id, "untestable", claim.text, "NOT_JUDGED", False, words, (reason,), source=claim.source
            )


def check(claims: Iterable[Claim], runs: Iterable[Run]) -> list[Verdict]:
    """Judge claims from recorded runs, in their order; `judge` has the details."""
    opened = list(runs)
    return [judge(claim, opened) for claim in claims]


def compare(a: Side, b: Side, runs: Iterable[Run] = (), *, level: Level = None, margin: float | None = None) -> Verdict:
    """Compare two arms, or two runs, at equal training loss.

    Args:
        a: Name of an arm among `runs`, or a run, or the runs of an arm.
        b: What it is compared with, likewise.
        runs: The runs in which arms are looked up.
        level: Training loss, above 0. Default: the lowest that all runs reach.
        margin: Ratio below which a difference is small, above 1. Default: 1.25.

    Returns:
        The verdict; its figures are those of `judge`. Two single runs are one pair, whatever their seeds: the table has
        no intervals, and nothing is judged.

    Raises:
        ConfigError: No run of an arm is there (the message names the nearest), or level or margin are out of bounds.
        RunError: Two runs of one arm have the same seeds and data.
    """
    claim = _comparison(a, b, level, margin)
    if isinstance(a, str) and isinstance(b, str):
        return flatter(claim, *_known_matchups(claim, list(runs)))
    sides = [_members(side, list(runs)) for side in (a, b)]
    (name_a,), (name_b,) = claim.a, claim.b
    if all(len(side) == 1 for side in sides):
        return flatter(claim, [one_pair(name_a, name_b, sides[0][0], sides[1][0])])
    shared = [task for task in dict.fromkeys(map(task_of, sides[0])) if task in set(map(task_of, sides[1]))]
    parts = [[[run for run in side if task_of(run) == task] for side in sides] for task in shared]
    return flatter(claim, [matchup(t, name_a, name_b, *part) for t, part in zip(shared, parts, strict=True)])


def _known_matchups(claim: Claim, runs: Sequence[Run]) -> tuple[list[Matchup], list[Reason]]:
    """Return the matchups of a comparison. Raises ConfigError if no run of an arm is there."""
    for text in unknown_arms(claim, arms_of(runs)):
        raise ConfigError(text)
    return matchups_of(claim, runs)


def _comparison(a: Side, b: Side, level: Level, margin: float | None) -> Claim:
    """Return the claim that a comparison judges."""
    if level not in (None, "lowest") and not (isinstance(level, int | float) and 0 < level < float("inf")):
        raise ConfigError(f'level must be a training loss above 0 or "lowest", got {level!r}')
    if margin is not None and not 1 < margin < float("inf"):
        raise ConfigError(f"margin must be a ratio above 1, such as 1.25, got {margin!r}")
    names = [_name(side) for side in (a, b)]
    if names[0] == names[1]:
        if isinstance(a, str) and isinstance(b, str):
            raise ConfigError(f"{names[0]} cannot be compared with itself; name another arm")
        names = [f"{name} ({place})" for name, place in zip(names, ("A", "B"), strict=True)]
    text = f"{names[0]} is flatter than {names[1]}"
    found = Claim("", text, "flatter", a=(names[0],), b=(names[1],), level=level or "lowest")
    return found if margin is None else Claim(**{**vars(found), "margin": margin})


def _name(side: Side) -> str:
    """Return the name of a side."""
    if isinstance(side, str):
        return side
    if isinstance(side, Run):
        return side.name
    if not side:
        raise RunError("a side of the comparison has no run: give at least one")
    return side[0].name if len(side) == 1 else str(side[0].manifest.get("arm") or side[0].name)


def _members(side: Side, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of a side."""
    if isinstance(side, Run):
        return [side]
    if not isinstance(side, str):
        return list(side)
    found = [run for arms in arms_of(runs).values() for run in resolve(side, arms)]
    if not found:
        raise ConfigError(unknown_arm(side, (name for arms in arms_of(runs).values() for name in arms)))
    return found
