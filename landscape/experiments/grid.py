"""Grid of an ablation: arms, paired seeds and contrasts, from a TOML file that names no code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import recorded_groups
from lossscope.landscape.storage.manifest import check_name, run_path
from lossscope.landscape.training.config import TrainConfig, from_toml, shown

__all__ = ["MEASURES", "Grid", "grid_of", "read_grid", "shipped_grids"]

# The panel that verdicts read, and raw lambda_max, which is shown beside it.
MEASURES: Final = ("adaptive_lambda_max", "adaptive_trace", "balanced_lambda_max", "balanced_trace", "lambda_max")
_MOST_RUNS: Final = 10_000
_MOST_SEED: Final = 2**31 - 1
_OWN: Final = ("name", "workload", "workloads", "seeds", "arms", "contrasts", "level")
_SEEDS: Final = ("seed", "seed_init", "seed_split", "seed_order")
_ALIASES: Final[Mapping[str, str]] = {"visits": "evaluations"}
_NOT_AT_THE_TOP: Final = {
    "arm": "[arms] names them",
    "seed": "seeds = [0, 1, ...] lists them",
    "replay": "an arm replays another one",
}
_NOT_IN_AN_ARM: Final = {
    "arm": "its name in [arms] is the arm's",
    "name": "runs are named after arm and seed",
    "out": "all arms are in one folder",
    "workload": "all arms are trained on the same, so that runs pair up",
    **dict.fromkeys(_SEEDS, "all arms share the seeds, so that runs pair up"),
}


@dataclass(frozen=True)
class Grid:
    """Arms that are trained with the same seeds on the same workloads, and the contrasts between them.

    Attributes:
        name: Name of the folder of runs in `out`.
        workloads: Names of the workloads. With more than one, the names of runs start with theirs.
        seeds: Each for weights, split and order, unless a setting fixes one of these for all runs.
        arms: Settings of `TrainConfig` by arm; they replace those of `settings`. `replay` names another arm, whose
            runs are trained before and give the number of second gradients in each window.
        contrasts: Arms (with, without) by name of the part.
        settings: Settings of all runs.
        out: Folder of experiments.
        level: Training loss at which arms are compared; None for the lowest that all runs reach.
    """

    name: str
    workloads: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, Any]]
    contrasts: Mapping[str, tuple[str, str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    out: str = "runs"
    level: float | None = None

    @property
    def folder(self) -> Path:
        """The folder of the runs."""
        return run_path(self.out, self.name)

    @property
    def size(self) -> int:
        """The number of runs."""
        return len(self.workloads) * len(self.arms) * len(self.seeds)

    def configs(self) -> list[TrainConfig]:
        """Return the configs of all runs: seed by seed, so that an ablation that is stopped has pairs."""
        return [self.config(task, arm, seed) for seed in self.seeds for task in self.workloads for arm in self.arms]

    def config(self, workload: str, arm: str, seed: int) -> TrainConfig:
        """Return the config of one run.

        Raises:
            ConfigError: A setting is out of bounds.
        """
        given = {**_usual(), **self.settings, **self.arms[arm]}
        given["options"] = {**self.settings.get("options", {}), **self.arms[arm].get("options", {})}
        prefix = f"{workload}-" if len(self.workloads) > 1 else ""
        names = {"arm": arm, "name": f"{prefix}{arm}-s{seed}", "out": str(self.folder)}
        if given.get("replay") is not None:
            names["replay"] = f"{prefix}{given['replay']}-s{seed}"
        return TrainConfig.of({**given, "workload": workload, "seed": seed, **names})


def _usual() -> dict[str, Any]:
    """Return the settings of a run that a grid may replace: what comparisons read, and bits for any number of jobs."""
    known = {name for _, group in recorded_groups() for name in group.names}
    return {"preset": "comparison", "threads": 1, "measures": [name for name in MEASURES if name in known]}


def shipped_grids() -> dict[str, Path]:
    """Return the grids that ship with this package, by name."""
    folder = Path(str(files("lossscope.landscape.experiments")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_grid(source: str | Path, replaced: Mapping[str, Any] | None = None) -> Grid:
    """Return the grid in a TOML file, or the one of that name that ships with this package.

    Args:
        source: The file, or the name.
        replaced: Keys of the table to replace.

    Raises:
        ConfigError: The file cannot be read, or is no grid; see `grid_of`.
    """
    shipped = shipped_grids()
    path = shipped.get(str(source), Path(source))
    if not path.suffix and not path.exists():
        raise ConfigError(f"{source} is no file and no shipped grid{_near(str(source), shipped)}")
    return grid_of({**from_toml(path), **(replaced or {})}, usual_name=path.stem)


def grid_of(table: Mapping[str, Any], *, usual_name: str = "ablation") -> Grid:
    """Return the grid that a table describes, after checking its keys, names and numbers.

    Optimizers and their settings are checked by `check_grid`, which loads torch.

    Args:
        table: Name, workload(s), seeds, [arms], [contrasts], and settings of `TrainConfig`.
        usual_name: Name of the grid if the table gives none.

    Raises:
        ConfigError: A key, an arm or a value is not allowed; the message suggests the nearest name.
    """
    given = _renamed(table, "the grid")
    settings = {key: value for key, value in given.items() if key not in (*_OWN, "out")}
    _check_settings(settings, "the grid", _NOT_AT_THE_TOP, {*_OWN, "out", *_ALIASES})
    name, out = _text(given, "name", usual_name), _text(given, "out", "runs")
    run_path(out, name)
    arms = _arms(given.get("arms"))
    count = 10 if "seeds" not in given else _count_of(given["seeds"])
    workloads = _workloads(given)
    size = count * len(arms) * len(workloads)
    if size > _MOST_RUNS:
        raise ConfigError(
            f"the grid has {size:,} runs ({len(arms)} arms, {count:,} seeds, workloads: {len(workloads)}), at most "
            f"{_MOST_RUNS:,} are allowed: take fewer seeds"
        )
    _check_replays(arms)
    contrasts = _contrasts(given.get("contrasts"), arms)
    seeds, level = _seeds(given.get("seeds", count)), _level(given.get("level", "lowest"))
    grid = Grid(name, workloads, seeds, arms, contrasts, settings, out, level)
    _check_names(grid)
    return grid


def _text(given: Mapping[str, Any], key: str, usual: str) -> str:
    """Return a text of the grid."""
    value = given.get(key, usual)
    if not isinstance(value, str):
        raise ConfigError(f"{key} of the grid must be a text, got {shown(value)}")
    return value


def _check_settings(settings: Mapping[str, Any], where: str, refused: Mapping[str, str], more: Iterable[str]) -> None:
    """Raise ConfigError for a setting that is unknown, of the wrong type, or not allowed here."""
    known = {one.name for one in fields(TrainConfig)} - set(refused) | set(more)
    for key in settings:
        if key in refused:
            raise ConfigError(f"{where} cannot set {key}: {refused[key]}")
        if key not in known:
            raise ConfigError(f"unknown key {shown(key)} in {where}{_near(key, known)}")
    try:
        TrainConfig.of(settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _arms(table: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of each arm."""
    if not isinstance(table, dict) or not table:
        raise ConfigError('the grid needs a table [arms] of lines such as base = { optimizer = "ars2-base" }')
    arms: dict[str, dict[str, Any]] = {}
    for name, settings in table.items():
        if not isinstance(settings, dict):
            raise ConfigError(f"arm {name} must be a table such as {{ optimizer = ... }}, got {shown(settings)}")
        arms[name] = _renamed(settings, f"arm {name}")
        _check_settings(arms[name], f"arm {name}", _NOT_IN_AN_ARM, _ALIASES)
    return arms


def _renamed(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a table with today's names of its keys."""
    for old, new in _ALIASES.items():
        if old in table and new in table:
            raise ConfigError(f"{where} has both {old} and {new}, which are one setting: leave out {old}")
    return {_ALIASES.get(key, key): value for key, value in table.items()}


def _check_replays(arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for an arm that replays an unknown arm, or one that replays another."""
    for name, settings in arms.items():
        other = settings.get("replay")
        if other is None:
            continue
        if other not in arms:
            raise ConfigError(f"arm {name} replays the unknown arm {shown(other)}{_near(other, arms)}")
        if arms[other].get("replay") is not None:
            raise ConfigError(f"arm {name} replays arm {other}, which replays another: name an arm that replays none")


def _contrasts(table: Any, arms: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Return the contrasts; without any, those of the other arms with the first one."""
    first = next(iter(arms))
    if table is None:
        return {arm: (arm, first) for arm in arms if arm != first}
    if not isinstance(table, dict):
        raise ConfigError(f"[contrasts] must be a table, got {shown(table)}")
    found = {}
    for name, pair in table.items():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
            raise ConfigError(f"contrast {name!r} must be two arms, [with, without], got {shown(pair)}")
        for arm in pair:
            if arm not in arms:
                raise ConfigError(f"contrast {name!r} names the unknown arm {shown(arm)}{_near(arm, arms)}")
        if pair[0] == pair[1]:
            raise ConfigError(f"contrast {name!r} compares arm {pair[0]} with itself: name two arms")
        found[name] = (pair[0], pair[1])
    return found


def _workloads(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the workloads."""
    if "workload" in given and "workloads" in given:
        raise ConfigError("the grid has workload and workloads: keep one of them")
    value = given.get("workloads", [given.get("workload", "digits-mlp")])
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"workloads must be a list of names, got {shown(value)}")
    if "workloads" not in given and ":" in value[0]:
        raise ConfigError(f"a grid names no code, got workload = {shown(value[0])}: use --workload FILE.py:NAME")
    _check_duplicates("workloads", value)
    return tuple(value)


def _count_of(seeds: Any) -> int:
    """Return the number of seeds."""
    numbers = seeds if isinstance(seeds, list) else [seeds]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in numbers) or not numbers:
        raise ConfigError(f"seeds must be a number of seeds or a list of them, got {shown(seeds)}")
    if not isinstance(seeds, list):
        if seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {shown(seeds)}")
        return int(seeds)
    for one in seeds:
        if not 0 <= one <= _MOST_SEED:
            raise ConfigError(f"seeds must lie between 0 and {_MOST_SEED}, got {shown(one)}")
    _check_duplicates("seeds", seeds)
    return len(seeds)


def _seeds(seeds: int | list[int]) -> tuple[int, ...]:
    """Return the seeds; a number stands for those from 0 on."""
    return tuple(seeds) if isinstance(seeds, list) else tuple(range(seeds))


def _level(level: Any) -> float | None:
    """Return the training loss at which arms are compared."""
    if level == "lowest":
        return None
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < math.inf:
        raise ConfigError(f'level must be a training loss above 0 or "lowest", got {shown(level)}')
    return float(level)


def _check_duplicates(key: str, values: Sequence[Any]) -> None:
    """Raise ConfigError for a value that occurs twice."""
    twice = next((one for place, one in enumerate(values) if one in values[:place]), None)
    if twice is not None:
        raise ConfigError(f"{key} has {shown(twice)} twice: each pair of runs counts once")


def _check_names(grid: Grid) -> None:
    """Raise for names of runs that are not allowed, or the same for two runs."""
    known: dict[str, str] = {}
    for task in grid.workloads:
        for arm in grid.arms:
            config = grid.config(task, arm, grid.seeds[-1])
            check_name(config.run_name)
            if config.run_name in known:
                raise ConfigError(f"arms {known[config.run_name]} and {arm} make runs of one name: rename one of them")
            known[config.run_name] = arm


def _near(word: str, words: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known ones, or all of them."""
    close = get_close_matches(word, list(words), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(words))}"
