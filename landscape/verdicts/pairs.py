"""Pairs of runs: two runs of different arms that share workload, data, seeds and batch size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lossscope.landscape.analysis.arms import SEED_SETTINGS, WITHOUT_EFFECT, by_arm
from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.verdicts.verdict import Reason
from lossscope.landscape.verdicts.wrong_values import nearest

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = [
    "Matchup",
    "Pair",
    "arms_of",
    "date_of",
    "different_setup",
    "keyed",
    "matchup",
    "resolve",
    "seed_name",
    "task_of",
]

SEEDS: Final = ("init", "split", "order")
UNNAMED: Final = "unnamed task"  # of runs that no workload of lossscope trained
# Settings that differ by intent, or that change no number: the optimizer, the length, seeds, names, and what is
# recorded.
LENGTH: Final = frozenset({"steps", "until_accuracy"})
_FREE: Final = LENGTH | SEED_SETTINGS | WITHOUT_EFFECT | {"optimizer", "lr", "options"}
_SHOWN: Final = 40  # characters of a value in a message
_SHOWN_OF_HASH: Final = 9
Key: TypeAlias = tuple[str, str, str, str]  # workload, seeds, data hash, batch size


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in the optimizer alone."""

    name: str  # of the seeds: "3", or "init 0, split 1, order 2"
    a: Run
    b: Run


@dataclass(frozen=True)
class Matchup:
    """All pairs of two arms on one task."""

    task: str
    a: str
    b: str
    pairs: tuple[Pair, ...] = ()
    reasons: tuple[Reason, ...] = ()  # why there are none, or why they may not be compared
    unpaired: tuple[str, ...] = ()  # names of runs without a partner

    @property
    def runs(self) -> list[Run]:
        """The runs of all pairs."""
        return [run for pair in self.pairs for run in (pair.a, pair.b)]


def task_of(run: Run) -> str:
    """Return the name of a run's task: its workload."""
    return str(_config(run).get("workload") or UNNAMED)


def arms_of(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """Return the runs by task and arm. Runs of one arm may differ in their length."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        tasks.setdefault(task_of(run), []).append(run)
    return {task: by_arm(members, free=LENGTH) for task, members in tasks.items()}


def resolve(name: str, arms: Mapping[str, list[Run]]) -> list[Run]:
    """Return the runs of an arm on one task; none if it has none there.

    Raises:
        ConfigError: Several groups of runs with different settings have this name.
    """
    if name in arms:
        return arms[name]
    split = [full for full, runs in arms.items() if str(runs[0].manifest.get("arm") or runs[0].name) == name]
    if len(split) > 1:
        raise ConfigError(
            f"arm {name} has runs of different settings: {', '.join(split)}; name one of these, or train them as "
            "different arms"
        )
    return arms[split[0]] if split else []


def unknown_arm(name: str, known: Iterable[str]) -> str:
    """Return a clause that says that no run of an arm is here, with the nearest names."""
    return f"no run of arm {name} is here; {nearest(name, known, 'arms here')}"


def matchup(task: str, a: str, b: str, of_a: Sequence[Run], of_b: Sequence[Run]) -> Matchup:
    """Pair the runs of two arms.

    Raises:
        RunError: Two runs of one arm have the same key; the message names both.
    """
    keyed_a, keyed_b = keyed(a, of_a), keyed(b, of_b)
    shared = [key for key in keyed_a if key in keyed_b]
    pairs = tuple(sorted((Pair(seed_name(keyed_a[k]), keyed_a[k], keyed_b[k]) for k in shared), key=_order))
    for pair in pairs:
        if found := different_setup(pair.a, pair.b, a, b):
            return Matchup(task, a, b, reasons=(found,))
    paired = {id(run) for pair in pairs for run in (pair.a, pair.b)}
    unpaired = tuple(run.name for run in (*of_a, *of_b) if id(run) not in paired)
    return Matchup(task, a, b, pairs, () if pairs else (_no_pairs(a, b, of_a, of_b),), unpaired)


def one_pair(a: str, b: str, run_a: Run, run_b: Run) -> Matchup:
    """Pair two single runs, whatever their seeds."""
    found = different_setup(run_a, run_b, a, b)
    task = task_of(run_a)
    return Matchup(task, a, b, reasons=(found,)) if found else Matchup(task, a, b, (Pair("one pair", run_a, run_b),))


def different_setup(a: Run, b: Run, name_a: str, name_b: str) -> Reason | None:
    """Return the first difference between two runs that is not the optimizer's; None if there is none.

    A setting that one of them did not record is compared with nothing.
    """
    mine, other = _setup(a), _setup(b)
    for key in mine:
        if key in other and _text(mine[key]) != _text(other[key]):
            most = _SHOWN_OF_HASH if key == "data_hash" else _SHOWN
            words = f"{name_a} was trained with {key} = {_short(mine[key], most)}, {name_b} with "
            words += _short(other[key], most) + (", other data or another split" if key == "data_hash" else "")
            return Reason("DIFFERENT_SETUP", f"{words}: the difference may be theirs", (a.name, b.name))
    return None


def seed_name(run: Run) -> str:
    """Return the seeds of a run as a short name."""
    seeds = _seeds(run)
    values = [str(seeds.get(key)) for key in SEEDS if key in seeds] or [str(value) for value in seeds.values()]
    if len(set(values)) == 1:
        return values[0]
    return ", ".join(f"{key} {value}" for key, value in seeds.items())


def _no_pairs(a: str, b: str, of_a: Sequence[Run], of_b: Sequence[Run]) -> Reason:
    """Return the reason that no two runs of two arms can be paired."""
    by_seeds = {_text(_seeds(run)): run for run in of_b if _seeds(run)}
    for run in of_a:
        partner = by_seeds.get(_text(_seeds(run))) if _seeds(run) else None
        if partner is not None and (found := different_setup(run, partner, a, b)):
            return found
    text = f"the runs of {a} and {b} share no seeds, split and data; only runs that differ in the optimizer alone can "
    bare = [run.name for run in (*of_a, *of_b) if not _seeds(run)]
    more = f" ({', '.join(bare[:3])} recorded no seeds: Recorder(..., seeds=...))" if bare else ""
    return Reason("NO_PAIRS", f"{text}be paired{more}", tuple(bare))


def keyed(arm: str, runs: Sequence[Run]) -> dict[Key, Run]:
    """Return the runs of an arm that have seeds, by key."""
    found: dict[Key, Run] = {}
    for run in runs:
        key = _key(run)
        if key is None:
            continue
        if key in found:
            names = [str(one.path if found[key].name == run.name else one.name) for one in (found[key], run)]
            raise RunError(
                f"runs {names[0]} and {names[1]} are both {arm} with seeds {seed_name(run)} on the same data: "
                "leave one out, or give them different arms"
            )
        found[key] = run
    return found


def _key(run: Run) -> Key | None:
    """Return the key of a run; None if it recorded no seeds."""
    seeds = _seeds(run)
    if not seeds:
        return None
    size = _config(run).get("batch_size")
    return task_of(run), _text(seeds), str(run.manifest.get("data_hash") or ""), _text(size)


def _setup(run: Run) -> dict[str, Any]:
    """Return what two runs of a pair must share, as far as it was recorded."""
    return dict(_recorded(run))


def _recorded(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield what two runs of a pair must share: config, data, unit, precision and architecture."""
    manifest = run.manifest
    yield from ((key, value) for key, value in _config(run).items() if key not in _FREE and value is not None)
    yield from ((key, manifest[key]) for key in ("data_hash", "loss_unit", "dtype") if manifest.get(key))
    model = manifest.get("model")
    if isinstance(model, Mapping) and model.get("parameters") is not None:
        yield "parameters", model["parameters"]


def _config(run: Run) -> Mapping[str, Any]:
    """Return the recorded config of a run; empty if there is none."""
    config = run.manifest.get("config")
    return config if isinstance(config, Mapping) else {}


def _seeds(run: Run) -> Mapping[str, Any]:
    """Return the recorded seeds of a run; empty if there are none."""
    seeds = run.manifest.get("seeds")
    return seeds if isinstance(seeds, Mapping) else {}


def _order(pair: Pair) -> tuple[int, str]:
    """Return the place of a pair: by number where the name is one."""
    return (int(pair.name), "") if pair.name.isdecimal() else (2**63, pair.name)


def date_of(text: object) -> datetime | None:
    """Return a date of a manifest; None if the text is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _text(value: object) -> str:
    """Return a value as text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: object, most: int) -> str:
    """Return a value as text of at most that many characters for a message."""
    words = f"{value:g}" if isinstance(value, float) else str(value)
    return words if len(words) <= most else f"{words[: most - 1]}…"
