"""Catalogue of measures: what the recorder, `probe`, lists and reports look up by name.

To add a measure, add an entry to `entries.py`, or call `register` at run time. This module imports no torch; the
functions that measure import it when they are called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.entries import ENTRIES
from lossscope.landscape.measures.measure import Limit, Measure
from lossscope.landscape.measures.measure_group import MeasureGroup, Schedule

__all__ = ["GROUPS", "group_of", "known_measures", "limit_of", "recorded_groups", "register", "reports_of"]

REPORTS: Final = ("overview", "sharpness", "entropy", "flatness", "dynamics")
TABLE_REPORTS: Final = ("sharpness", "flatness")  # reports with a generic table of measures

GROUPS: Final[dict[str, MeasureGroup]] = {}


def register(group: MeasureGroup) -> None:
    """Add a group to the catalogue: `probe --measures`, `list measures`, the recorder and the reports then know it.

    Raises:
        ConfigError: The group has no measures, a name is already in use, or a measure has no place in its reports.
    """
    taken = {*GROUPS, *known_measures()}
    if clash := [name for name in dict.fromkeys([group.name, *group.names]) if name in taken]:
        raise ConfigError(
            f"measure names must be unique, {clash[0]!r} is already in the catalogue: choose another name"
        )
    if not group.measures or len(set(group.names)) < len(group.names):
        raise ConfigError(f"group {group.name!r} needs at least one measure and distinct names, got {group.names}")
    if not group.reports:
        raise ConfigError(f"group {group.name!r} must name at least one report that shows its measures, got none")
    if unknown := [name for name in group.reports if name not in REPORTS]:
        raise ConfigError(f"reports of group {group.name!r} must be among {', '.join(REPORTS)}, got {unknown[0]!r}")
    if not group.own_table and not set(group.reports) <= set(TABLE_REPORTS):
        raise ConfigError(
            f"reports of group {group.name!r} must be among {', '.join(map(repr, TABLE_REPORTS))}, got "
            f"{group.reports}: others have no table for a new measure"
        )
    GROUPS[group.name] = group


@cache
def _index(groups: tuple[MeasureGroup, ...]) -> Mapping[str, tuple[Measure, MeasureGroup]]:
    """Return each measure with its group, by name."""
    return {measure.name: (measure, group) for group in groups for measure in group.measures}


def _by_name() -> Mapping[str, tuple[Measure, MeasureGroup]]:
    return _index(tuple(GROUPS.values()))


def known_measures() -> dict[str, Measure]:
    """Return all measures by name, in the order of the catalogue."""
    return {name: measure for name, (measure, _) in _by_name().items()}


def recorded_groups() -> list[tuple[Schedule, MeasureGroup]]:
    """Return the groups that the recorder takes with their schedules, in the order of one evaluation."""
    found = [(group.recorded, group) for group in GROUPS.values() if group.recorded is not None]
    return sorted(found, key=lambda one: one[0].position)


def limit_of(measure: str) -> Limit:
    """Return the limit of the precision of a measure; `effort` if the measure is unknown."""
    found = _by_name().get(measure)
    return Limit.EFFORT if found is None else found[0].bound.limit


def group_of(measure: str, tensor: object = None) -> str:
    """Return the name of the group that computed a row, whose measures share one cost.

    Args:
        measure: Name of the measure; an unknown one, of a later version, is a group of its own.
        tensor: Name of the block that the row is about; None for the whole model.
    """
    if isinstance(tensor, str):
        return next((group.name for group in GROUPS.values() if group.by_block), measure)
    found = _by_name().get(measure)
    return measure if found is None else found[1].name


def reports_of(measures: Collection[tuple[str, object]]) -> tuple[str, ...]:
    """Return the fewest reports that together show some rows, by measure and block.

    A group that several reports show adds none if one of them is needed anyway; otherwise its main report is added.
    """
    groups = {group_of(measure, tensor) for measure, tensor in measures}
    shown = [group.reports for group in GROUPS.values() if group.name in groups]
    chosen: list[str] = []
    for reports in sorted(shown, key=len):
        if not set(reports) & set(chosen):
            chosen.append(reports[0])
    return tuple(chosen)


for _entry in ENTRIES:
    register(_entry)
