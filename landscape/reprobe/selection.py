"""Selection of the measures that a checkpoint is probed for, by measure or by group, and their least budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import GROUPS, known_measures
from lossscope.landscape.measures.measure import BY_PYHESSIAN, FROM_DENSITY
from lossscope.landscape.measures.options import SolverOptions

__all__ = ["check_budget", "least_products", "select_measures"]

_USUAL_PYHESSIAN: Final = ("lambda_max", "trace")


def select_measures(names: Sequence[str] | None, engine: str) -> Mapping[str, tuple[str, ...]]:
    """Return the requested measures by group, groups and measures in the order of the catalogue.

    Args:
        names: Names of measures (`lambda_max`) or of groups (`spectrum`, `per_module`); None for the usual groups.
        engine: `lossscope`, or `pyhessian`, which has few measures.

    Raises:
        ConfigError: A name is unknown (the error suggests similar ones), or the measure needs the step taken or is not
            available from this engine.
    """
    if names is None:
        usual = tuple(group.name for group in GROUPS.values() if group.usual)
        names = _USUAL_PYHESSIAN if engine == "pyhessian" else usual
    requested = dict.fromkeys(measure for name in names for measure in _measures(name))
    if engine == "pyhessian":
        offered = (*BY_PYHESSIAN, *FROM_DENSITY)
        other = [name for name in requested if name not in offered]
        if other:
            raise ConfigError(
                f"pyhessian has no {other[0]}: ask for {', '.join(offered)} (the last four by lossscope), or leave "
                "--engine out"
            )
    found = {group.name: tuple(name for name in group.names if name in requested) for group in GROUPS.values()}
    return {group: measures for group, measures in found.items() if measures}


def _measures(name: str) -> tuple[str, ...]:
    """Return the measures that a name stands for: those of a group, or the measure itself."""
    if name in _recorded_only():
        raise ConfigError(_needs_the_step(name))
    if name in GROUPS:
        return GROUPS[name].names
    if name in known_measures():
        return (name,)
    close = get_close_matches(name, list(dict.fromkeys([*GROUPS, *known_measures()])), n=3, cutoff=0.6)
    if close and close[0] in _recorded_only():
        raise ConfigError(f"unknown measure {name!r}, and {_needs_the_step(close[0])}")
    close = [one for one in close if one not in _recorded_only()]
    hint = f"did you mean {' or '.join(close)}?" if close else "see `lossscope list measures`"
    raise ConfigError(f"unknown measure {name!r}; {hint}")


def _recorded_only() -> set[str]:
    """Return the names of groups that need the step taken, and of their measures."""
    return {name for group in GROUPS.values() if group.needs_step for name in (group.name, *group.names)}


def _needs_the_step(name: str) -> str:
    return (
        f"{name} needs the step that was taken, which no checkpoint holds: it is recorded during training only, see "
        "`lossscope report dynamics RUN`"
    )


def check_budget(chosen: Mapping[str, Collection[str]], effort: SolverOptions, size: int) -> None:
    """Refuse a budget that is too small for one of the groups.

    Args:
        chosen: Measures by group, from `select_measures`.
        effort: Options with the budget of each group.
        size: `n`, the number of parameters.

    Raises:
        ConfigError: The budget is too small; the error names the most demanding group and the budget that all groups
            need.
    """
    needed = {group: least_products(group, names, size) for group, names in chosen.items()}
    group, least = max(needed.items(), key=lambda one: one[1])
    if effort.max_products < least:
        every = GROUPS[group].names
        words = group if len(every) > 2 and set(every) == set(chosen[group]) else ", ".join(chosen[group])
        raise ConfigError(f"--max-products {effort.max_products} is too few for {words}: need at least {least}")


def least_products(group: str, names: Collection[str], size: int) -> int:
    """Return the smallest budget of Hessian products that a group accepts; 0 if it uses no budget.

    Args:
        group: Name of a group of measures.
        names: Measures of this group.
        size: `n`, the number of parameters.
    """
    rule = GROUPS[group].least_products
    return 0 if rule is None else rule(frozenset(names), size)
