"""Contrasts: pairs of arms that differ in one part each, judged together with intervals for the table as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.flatter import flatter
from lossscope.landscape.verdicts.level import loss_name, lowest_level
from lossscope.landscape.verdicts.matchups import matchups_of
from lossscope.landscape.verdicts.rule import CONFIDENCE, MARGIN
from lossscope.landscape.verdicts.sentences import margin_words
from lossscope.landscape.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Contrast", "ContrastTable", "contrasts"]

MOST_CONTRASTS: Final = 1000


@dataclass(frozen=True)
class Contrast:
    """One part: an arm with it against an arm without it."""

    name: str
    with_part: str  # arm
    without: str  # arm
    verdict: Verdict  # with the intervals of the table
    word: str  # "flatter", "sharper", "no difference above 25 %", "mixed", "cannot tell", or why nothing was judged
    gradients: float  # gradients of the arm with the part up to the level, over those of the arm without; nan: unknown
    ascents: float  # likewise of its ascents; nan where an arm takes none
    cost: str  # both in words where they differ by more than 10 %; else empty
    test_loss: float  # difference at the level; nan if unknown
    test_loss_low: float
    test_loss_high: float

    @property
    def test_loss_differs(self) -> bool:
        """True if the interval of the test loss leaves out 0."""
        return self.test_loss_low > 0 or self.test_loss_high < 0


@dataclass(frozen=True)
class ContrastTable:
    """All contrasts of an ablation."""

    level: float | None  # training loss, one for all contrasts; None if none could be chosen
    confidence: float  # of each interval: 1 - 0.05 / number, so that 95 % hold for the table as a whole
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...] = ()  # sentences on raw numbers that would have misled


def contrasts(
    table: Mapping[str, tuple[str, str]],
    runs: Iterable[Run],
    *,
    level: float | Literal["lowest"] = "lowest",
    tasks: Sequence[str] = (),
    measures: Sequence[str] = (),
    margin: float = MARGIN,
) -> ContrastTable:
    """Judge contrasts of arms together.

    Args:
        table: Names of the arms with and without a part, by name of the part.
        runs: Recorded runs of all arms.
        level: Training loss; "lowest" is the lowest that all runs of the contrasts reach, one for the table.
        tasks: Tasks to judge; empty for all that are there.
        measures: Measures of the panel; empty for all that are there.
        margin: Ratio below which a difference is small.

    Returns:
        The table. A contrast that cannot be judged is in it, with the reason as its word.

    Raises:
        ConfigError: There is no contrast, more than 1000, or one of an arm with itself.
        RunError: Two runs of one arm have the same seeds and data.
    """
    if not 0 < len(table) <= MOST_CONTRASTS:
        raise ConfigError(f"contrasts must be 1 to {MOST_CONTRASTS} pairs of arms, got {len(table)}")
    runs = list(runs)
    claims = [_claim(name, arms, tasks, measures, margin) for name, arms in table.items()]
    found = [matchups_of(claim, runs) for claim in claims]
    common = _common_level([run for matchups, _ in found for one in matchups for run in one.runs], level)
    confidence = 1 - (1 - CONFIDENCE) / len(table)
    verdicts = [
        flatter(Claim(**{**vars(claim), "level": common or "lowest"}), matchups, reasons, confidence=confidence)
        for claim, (matchups, reasons) in zip(claims, found, strict=True)
    ]
    lines = tuple(
        _contrast(name, *arms, verdict, margin) for (name, arms), verdict in zip(table.items(), verdicts, strict=True)
    )
    notes = tuple(f"{one.name}: {says}" for one in lines if (says := one.verdict.figures.get("raw_says", "")))
    return ContrastTable(common, confidence, lines, notes)


def _claim(name: str, arms: tuple[str, str], tasks: Sequence[str], measures: Sequence[str], margin: float) -> Claim:
    """Return the claim of a contrast."""
    a, b = arms
    if a == b:
        raise ConfigError(f"contrast {name!r} compares {a} with itself; name another arm")
    text = f"{a} is flatter than {b}"
    return Claim(name, text, "flatter", a=(a,), b=(b,), tasks=tuple(tasks), measures=tuple(measures), margin=margin)


def _common_level(runs: Sequence[Run], level: float | Literal["lowest"]) -> float | None:
    """Return the level of the table; None if it could not be chosen."""
    if level != "lowest":
        if not 0 < level < math.inf:
            raise ConfigError(f'level must be a training loss above 0 or "lowest", got {level!r}')
        return float(level)
    return lowest_level(list({id(run): run for run in runs}.values()), loss_name(runs)) if runs else None


def _contrast(name: str, a: str, b: str, verdict: Verdict, margin: float) -> Contrast:
    """Return the line of a contrast. With several tasks, costs and test losses are those of the first."""
    costs: Mapping[str, Any] = next(iter(verdict.figures.get("cost", {}).values()), {})
    gradients, ascents = (_quotient(costs, a, b, kind) for kind in ("gradients", "ascents"))
    test: Mapping[str, Any] = next(iter(verdict.figures.get("test_loss", [])), {})
    numbers = [float(test.get(key, math.nan)) for key in ("difference", "low", "high")]
    cost = next((note.text for note in verdict.notes if note.code == "UNEQUAL_COST"), "")
    return Contrast(name, a, b, verdict, _word(verdict, margin), gradients, ascents, cost, *numbers)


def _quotient(costs: Mapping[str, Any], a: str, b: str, kind: str) -> float:
    """Return the cost of one arm over that of the other; nan if one is unknown or 0."""
    above, below = (float(costs.get(arm, {}).get(kind, math.nan)) for arm in (a, b))
    return above / below if above > 0 and below > 0 else math.nan


def _word(verdict: Verdict, margin: float) -> str:
    """Return the verdict on a contrast in a few words."""
    match verdict.status:
        case "SUPPORTED":
            return "flatter"
        case "CONTRADICTED":
            return "sharper"
        case "EQUIVALENT":
            return f"no difference above {margin_words(margin)}"
        case "MIXED":
            return "mixed"
        case "INCONCLUSIVE":
            return "cannot tell"
        case "NOT_JUDGED":
            return f"not judged: {verdict.reasons[0].text}" if verdict.reasons else "not judged"
