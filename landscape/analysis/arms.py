"""Arms of a comparison: runs of one name and equal settings, which differ in their seeds only."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["SEED_SETTINGS", "WITHOUT_EFFECT", "by_arm", "has_seeds", "step_of_another_rate"]

Settings: TypeAlias = dict[str, Any]  # by name; a setting that was not recorded is left out

SEED_SETTINGS: Final = frozenset({"seed", "seed_init", "seed_split", "seed_order"})
# settings of `lossscope train` that change no step and no number on the fixed data: names, what is recorded, and the
# run that a control replays, which goes with the seeds
WITHOUT_EFFECT: Final = frozenset(
    ("arm", "name", "out", "threads", "preset", "evaluations", "visits", "eval_every", "measures", "checkpoints")
) | {"evaluate_at", "weights_at_evaluations", "replay", "data", "device"}
_FREE: Final = SEED_SETTINGS | WITHOUT_EFFECT
_OF_ONE_RUN: Final = {"seed", "replay_counts", "replay_window"}  # settings of an optimizer that go with the seeds
_OF_THE_OPTIMIZER: Final = {"optimizer", "lr"}  # of the config; the facts of the optimizer are more exact
_MOST_NAMED: Final = 3  # differences in the name of an arm
_LONGEST_VALUE: Final = 24
_SAME_RATE: Final = 1e-6  # relative difference of learning rates that is rounding
_KNOWN: WeakKeyDictionary[Run, Settings] = WeakKeyDictionary()


def by_arm(runs: Iterable[Run], *, free: Collection[str] = ()) -> dict[str, list[Run]]:
    """Group runs by arm, in the order in which arms first appear.

    Runs whose recorded settings differ are never in one arm: the class, the rule, the groups and the settings of the
    optimizer, the architecture, the dtype, and the config except seeds, names and what is recorded. Where runs of one
    name differ, the differences are added to it: `adamw (lr=0.01)`. A setting that a run did not record, as runs of
    earlier versions, is compared with nothing.

    Args:
        runs: Any runs.
        free: Further settings that may differ within an arm.
    """
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(str(run.manifest.get("arm") or run.name), []).append(run)
    arms: dict[str, list[Run]] = {}
    for name, members in named.items():
        groups = _groups(members, free) if len(members) > 1 else [({}, members)]
        for words, (_, same) in zip(_names(name, [settings for settings, _ in groups]), groups, strict=True):
            arms[_unused(words, arms)] = same
    return arms


def has_seeds(run: Run) -> bool:
    """Return True if a run recorded its seeds, so that a range over such runs is one over seeds."""
    seeds = run.manifest.get("seeds")
    return isinstance(seeds, Mapping) and bool(seeds)


def step_of_another_rate(runs: Sequence[Run]) -> int | None:
    """Return the first step at which two of these runs recorded different learning rates; None if there is none.

    Schedules are code of the user and no setting: runs of equal settings at the start may follow different ones.
    """
    import pandas as pd

    rates = pd.concat([run.columns("steps", "step", "lr").dropna() for run in runs])
    extremes = rates.groupby("step")["lr"].agg(["min", "max"])
    different = extremes.index[extremes["max"] - extremes["min"] > _SAME_RATE * extremes["max"].abs()]
    return int(different[0]) if len(different) else None


def _groups(runs: Sequence[Run], free: Collection[str] = ()) -> list[tuple[Settings, list[Run]]]:
    """Return groups of runs that agree in every setting that they recorded, with their settings."""
    groups: list[tuple[Settings, list[Run]]] = []
    for run in runs:
        settings = {key: value for key, value in _settings(run).items() if key not in free}
        for common, members in groups:
            if all(common[key] == settings[key] for key in common.keys() & settings.keys()):
                common.update(settings)
                members.append(run)
                break
        else:
            groups.append((dict(settings), [run]))
    return groups


def _names(name: str, groups: Sequence[Settings]) -> Iterator[str]:
    """Return the names of groups of one arm, each with its settings that differ between groups."""
    if len(groups) == 1:
        yield name
        return
    keys = dict.fromkeys(key for settings in groups for key in settings)
    different = [key for key in keys if len({_text(one.get(key, "not recorded")) for one in groups}) > 1]
    shown = [key for key in different if any(key in one for one in groups)][:_MOST_NAMED]
    for settings in groups:
        words = ", ".join(f"{key}={_short(settings.get(key, 'not recorded'))}" for key in shown)
        yield f"{name} ({words})"


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """Return the name, with a number if another arm has it."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name} #{count}"
    return found


def _settings(run: Run) -> Settings:
    """Return the settings of a run that may differ between arms."""
    if run not in _KNOWN:
        _KNOWN[run] = dict(_recorded(run.manifest))
    return _KNOWN[run]


def _recorded(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the recorded settings of a manifest by name, those of the optimizer first."""
    optimizers = list(_optimizers(manifest.get("optimizer_facts")))
    of_groups = dict(_of_groups([group for one in optimizers for group in _mappings(one.get("groups"))]))
    config = manifest.get("config")
    config = config if isinstance(config, Mapping) else {}
    options = config.get("options")
    given = {key: value for key, value in config.items() if key not in _FREE | {"options"} and value is not None}
    if optimizers:
        given = {key: value for key, value in given.items() if key not in _OF_THE_OPTIMIZER}
    given |= {
        key: value for key, value in (options.items() if isinstance(options, Mapping) else ()) if key not in _OF_ONE_RUN
    }
    yield from {**of_groups, **{key: value for key, value in given.items() if key not in of_groups}}.items()
    for key in ("class", "rule"):
        if optimizers:
            yield key, [one.get(key) for one in optimizers] if len(optimizers) > 1 else optimizers[0].get(key)
    if isinstance(manifest.get("dtype"), str):
        yield "dtype", manifest["dtype"]
    model = manifest.get("model")
    if isinstance(model, Mapping) and model:
        yield "parameters", model.get("parameters")
        yield "tensors", [[one.get("name"), one.get("shape")] for one in _mappings(model.get("tensors"))]


def _optimizers(facts: object) -> Iterator[Mapping[str, Any]]:
    """Yield the facts of each optimizer of a run: one, or a list of them."""
    if isinstance(facts, Mapping):
        several = _mappings(facts.get("optimizers"))
        yield from several or ([facts] if facts else [])


def _of_groups(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield each setting of parameter groups: its value if all groups share it, else the list of values by group."""
    settings = [one["settings"] for one in groups if isinstance(one.get("settings"), Mapping)]
    for key in dict.fromkeys(key for one in settings for key in one if key not in _OF_ONE_RUN):
        values = [one.get(key) for one in settings]
        yield key, values[0] if all(value == values[0] for value in values) else values
    if len(groups) > 1:
        yield "groups", [one.get("parameters") for one in groups]


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """Return the mappings in a list; none if it is no list."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _text(value: object) -> str:
    """Return a value as text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: object) -> str:
    """Return a value as short text for a name."""
    words = f"{value:g}" if isinstance(value, float) else str(value)
    return words if len(words) <= _LONGEST_VALUE else f"{words[: _LONGEST_VALUE - 1]}…"
