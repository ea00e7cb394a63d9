"""What `train` is asked to do: one flat set of keys, from options, a TOML file or Python."""

from __future__ import annotations

import os
import sys
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from lossscope.landscape.errors import ConfigError

__all__ = ["TrainConfig", "assignment", "from_toml"]


_MOST: Final = 2**31 - 1
_RENAMED: Final = {"visits": "evaluations"}  # before schema 4
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "steps": (1, _MOST),
    "batch_size": (1, _MOST),
    "eval_every": (1, _MOST),
    "evaluations": (0, _MOST),
    "seed": (0, _MOST),
    "seed_init": (0, _MOST),
    "seed_split": (0, _MOST),
    "seed_order": (0, _MOST),
    "lr": (0.0, sys.float_info.max),
    "until_accuracy": (0.0, 1.0),
    "threads": (1, os.cpu_count() or 1),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. `None` stands for what is usual for the workload."""

    workload: str = "digits-mlp"
    optimizer: str = "ars2-base"
    name: str | None = None  # of the run; made of workload, optimizer and seed where absent
    out: str = "runs"  # folder of runs
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0  # for the three below where they are absent
    seed_init: int | None = None  # weights
    seed_split: int | None = None  # train and test examples
    seed_order: int | None = None  # batches
    preset: str = "standard"  # how much is recorded
    evaluations: int | None = None  # log-spaced curvature evaluations in place of the preset's
    eval_every: int | None = None  # steps between two looks at the test set
    until_accuracy: float | None = None  # stop once the test accuracy is there
    threads: int | None = None  # of the processor
    options: dict[str, Any] = field(default_factory=dict)  # more settings of the optimizer

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return f"{self.workload}-{self.optimizer}-s{self.seed}" if self.name is None else self.name

    @property
    def seeds(self) -> dict[str, int]:
        """The three seeds."""
        chosen = {"init": self.seed_init, "split": self.seed_split, "order": self.seed_order}
        return {key: self.seed if value is None else value for key, value in chosen.items()}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The config with these settings.

        Raises:
            ConfigError: A key does not exist (the nearest is told), has the wrong type or is out of bounds.
        """
        types_of = get_type_hints(cls)
        checked = {key: _checked(key, value, types_of) for key, value in settings.items()}
        config = cls(**checked)
        for key, (low, high) in _BOUNDS.items():
            value = getattr(config, key)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{key} = {value} must lie between {low} and {high}")
        return config

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Return the config in a run's manifest; settings of runs before schema 4 are read under their new names.

        Raises:
            ConfigError: As `of`.
        """
        return cls.of({_RENAMED.get(key, key): value for key, value in settings.items()})

    def with_settings(self, settings: Mapping[str, Any]) -> TrainConfig:
        """This config with some settings replaced; `options` are merged."""
        merged = {**asdict(self), **settings}
        merged["options"] = {**self.options, **settings.get("options", {})}
        return TrainConfig.of(merged)


def _checked(key: str, value: Any, types_of: Mapping[str, Any]) -> Any:
    if key not in types_of:
        close = get_close_matches(key, list(types_of), n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known keys: {', '.join(types_of)}"
        raise ConfigError(f"unknown key {key!r}; {hint}")
    if not _fits(value, types_of[key]):
        raise ConfigError(f"{key} = {value!r} has type {type(value).__name__}; it must be {_words(types_of[key])}")
    return float(value) if _base(types_of[key]) is float and value is not None else value


def _base(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
    return get_origin(hint) or hint


def _fits(value: Any, hint: Any) -> bool:
    if value is None:
        return type(None) in get_args(hint)
    if isinstance(value, bool):
        return _base(hint) is bool
    return isinstance(value, int | float if _base(hint) is float else _base(hint))


def _words(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", dict: "a table of settings"}[_base(hint)]


def from_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        ConfigError: The file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not valid TOML: {error}") from error


def assignment(text: str) -> dict[str, Any]:
    """The setting that `key=value` makes; `options.rho=0.1` sets one of the optimizer's.

    The value is read as TOML (a number, true, a list in brackets), and as plain text where it is none.

    Raises:
        ConfigError: There is no `=` in it, or no key before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r} is not key=value, such as --set steps=500 or --set options.rho=0.1")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    outer, _, inner = key.strip().partition(".")
    if outer == "options" and inner:
        return {"options": {inner: parsed}}
    return {key.strip(): parsed}
