"""Diagnosis in reports: a table of the rules with their verdicts, and statements for the first screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.diagnosis.rule import Rule, Verdict
from lossscope.landscape.analysis.diagnosis.rules import RULES, diagnose
from lossscope.reports.content import Column, Statement, Table

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["diagnosis_statements", "diagnosis_table", "false_alarm_table"]

_ORDER: Final = ("fine", "look", "act")
_EVERYTHING: Final = "overview"  # kind of the report with every rule
# the first screen has own sentences on them
_TOLD: Final = ("divergence", "edge", "ascent", "shear", "unconverged", "overhead")
_COLUMNS: Final = (
    Column("question", "question", meaning="what the rule decides", words=True),
    Column("verdict", "verdict", meaning="fine, look (may need attention) or act (something is wrong)", words=True),
    Column("evidence", "evidence", meaning="of the run with the worst verdict", words=True),
    Column("advice", "advice", meaning="what to look at, where the rule gives an alarm", words=True),
)
_NOTE: Final = "Rules about what no run has are left out. Their rates of false alarms are in the table of that name."
_ALARM_COLUMNS: Final = (
    Column("question", "question", meaning="what the rule decides", words=True),
    Column(
        "false_alarms", "false alarms", "per 1000 steps", "in a healthy run as the null model describes it, at most"
    ),
    Column("null", "null model", meaning="the healthy run of which the false alarms are stated", words=True),
)
_ALARM_NOTE: Final = (
    "How often a rule of the diagnosis gives an alarm in a healthy run, measured by simulation of the null model; 0 "
    "where nothing is random."
)


def diagnosis_table(runs: Sequence[Run], kind: str) -> tuple[Table, ...]:
    """Return the rules that fit a kind of report, the worst first; none if they are about what no run has."""
    judged = sorted(_fitting(runs, kind), key=lambda one: -_severity(_worst(one[1])[1]))
    rows = tuple((rule.question, _counted(found), _evidence(found), _advice(rule, found)) for rule, found in judged)
    return (Table("diagnosis", "Diagnosis", _COLUMNS, rows, _NOTE, opens=True),) if rows else ()


def false_alarm_table(runs: Sequence[Run], kind: str) -> tuple[Table, ...]:
    """Return the rates of false alarms of the rules in the diagnosis of a kind of report; none without rules."""
    rows = tuple((rule.question, f"{rule.false_alarms:g}", rule.null) for rule, _ in _fitting(runs, kind))
    return (Table("false_alarms", "False alarms", _ALARM_COLUMNS, rows, _ALARM_NOTE),) if rows else ()


def diagnosis_statements(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return a statement for each rule that gives an alarm and that the first screen does not tell anyway."""
    told = []
    for rule, found in _judged(runs).items():
        level = _worst(found)[1].level
        if level != "fine" and rule.key not in _TOLD:
            evidence = _evidence(found)
            count = f" in {_alarms(found)} of {len(found)} runs" if len(found) > 1 else ""
            words = f"{evidence[:1].upper()}{evidence[1:]}{count and f' (alarm{count})'}."
            told.append(Statement(words, level, "loss" if rule.key == "loss_spike" else ""))
    return tuple(told)


def _fitting(runs: Sequence[Run], kind: str) -> list[tuple[Rule, list[tuple[str, Verdict]]]]:
    """Return the rules that fit a kind of report, with their verdicts."""
    return [one for one in _judged(runs).items() if kind == _EVERYTHING or kind in one[0].reports]


def _judged(runs: Sequence[Run]) -> dict[Rule, list[tuple[str, Verdict]]]:
    """Return the verdicts of each rule with the names of the runs."""
    by_run = [(run.name, diagnose(run)) for run in runs]
    found = {rule: [(name, verdicts[rule]) for name, verdicts in by_run if rule in verdicts] for rule in RULES}
    return {rule: some for rule, some in found.items() if some}


def _severity(verdict: Verdict) -> int:
    """Return the order of a verdict."""
    return _ORDER.index(verdict.level)


def _worst(found: Sequence[tuple[str, Verdict]]) -> tuple[str, Verdict]:
    """Return the first of the worst verdicts, with the name of its run."""
    return max(found, key=lambda one: _severity(one[1]))


def _alarms(found: Sequence[tuple[str, Verdict]]) -> int:
    """Return the number of runs with an alarm."""
    return sum(verdict.level != "fine" for _, verdict in found)


def _counted(found: Sequence[tuple[str, Verdict]]) -> str:
    """Return the worst verdict, and of how many runs."""
    level = _worst(found)[1].level
    if len(found) == 1 or level == "fine":
        return level
    return f"{level}: {sum(verdict.level == level for _, verdict in found)} of {len(found)} runs"


def _evidence(found: Sequence[tuple[str, Verdict]]) -> str:
    """Return the evidence of the worst verdict, with the name of its run where there are several."""
    name, verdict = _worst(found)
    return verdict.evidence if len(found) == 1 else f"{name}: {verdict.evidence}"


def _advice(rule: Rule, found: Sequence[tuple[str, Verdict]]) -> str:
    """Return the advice of a rule that gives an alarm."""
    return rule.advice if _alarms(found) else ""
