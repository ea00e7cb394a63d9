"""Configuration of a training run: one flat set of keys, from options, a TOML file or Python."""

from __future__ import annotations

import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Union, cast, get_args, get_origin, get_type_hints

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.storage.files import read_regular

__all__ = ["TrainConfig", "assignment", "from_toml", "shown"]


_MOST: Final = 2**31 - 1
_LONGEST: Final = 4096  # characters of a text or of an assignment
_LARGEST_FILE: Final = 2**20  # bytes of a TOML file
_DEEPEST: Final = 20  # levels of lists and tables in a value
_LARGEST: Final = 10**300  # an integer that every float holds
_SHOWN: Final = 60  # characters of a wrong value in a message
_RENAMED: Final = {"visits": "evaluations"}  # before schema 4
_BEFORE: Final = {"curvature_samples": 512}  # what runs without the setting have used
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "steps": (1, _MOST),
    "batch_size": (1, _MOST),
    "eval_every": (1, _MOST),
    "evaluations": (0, 100_000),
    "checkpoints": (0, 100_000),
    "curvature_samples": (1, _MOST),
    "seed": (0, _MOST),
    "seed_init": (0, _MOST),
    "seed_split": (0, _MOST),
    "seed_order": (0, _MOST),
    "lr": (0.0, 1e30),
    "until_accuracy": (0.0, 1.0),
    "threads": (1, os.cpu_count() or 1),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. None stands for the usual value of the workload."""

    workload: str = "digits-mlp"
    optimizer: str = "ars2-base"
    arm: str | None = None  # group of runs that differ in their seeds only; None: the optimizer
    name: str | None = None  # of the run; None: workload, arm and seed
    out: str = "runs"  # folder of runs
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0  # default of the three seeds below
    seed_init: int | None = None  # weights
    seed_split: int | None = None  # train and test examples
    seed_order: int | None = None  # batches
    preset: str = "standard"  # how much is recorded
    evaluations: int | None = None  # number of log-spaced curvature evaluations; None: the preset's
    evaluate_at: list[int] | None = None  # the steps of the curvature evaluations, in place of their number
    measures: list[str] | None = None  # of the evaluations, by measure or group; None: all that are recorded
    checkpoints: int | None = None  # number of log-spaced checkpoints; None: the preset's
    weights_at_evaluations: bool = False  # save the weights, without the optimizer, at curvature evaluations too
    curvature_samples: int | None = None  # training samples over which curvature is averaged; None: all of them
    eval_every: int | None = None  # period in steps of the evaluation on the test set
    until_accuracy: float | None = None  # stop when the test accuracy reaches it
    replay: str | None = None  # run in `out` whose second gradients `ars2-timer` repeats window by window
    data: str | None = None  # folder with the files of a workload that has none of its own
    device: str = "cpu"  # of model and data
    schedule: str | None = None  # of the learning rate: "cosine" falls to 0 over the steps; None: constant
    threads: int | None = None  # number of CPU threads of torch; None: unchanged
    options: dict[str, Any] = field(default_factory=dict)  # further settings of the optimizer

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return f"{self.workload}-{self.arm_name}-s{self.seed}" if self.name is None else self.name

    @property
    def arm_name(self) -> str:
        """The name of the arm."""
        return self.optimizer if self.arm is None else self.arm

    @property
    def seeds(self) -> dict[str, int]:
        """The three seeds."""
        chosen = {"init": self.seed_init, "split": self.seed_split, "order": self.seed_order}
        return {key: self.seed if value is None else value for key, value in chosen.items()}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Return a config with these settings.

        Raises:
            ConfigError: A key is unknown (the message suggests the nearest), or a value has the wrong type or is out of
                bounds.
        """
        types_of = get_type_hints(cls)
        checked = {key: _checked(key, value, types_of) for key, value in settings.items()}
        config = cls(**checked)
        for key, (low, high) in _BOUNDS.items():
            value = getattr(config, key)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{key} must lie between {low} and {high}, got {shown(value)}")
        if config.schedule not in (None, "cosine"):
            raise ConfigError(f'schedule must be "cosine" or be left out, got {shown(config.schedule)}')
        return config

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Return the config in a run's manifest, with the values that settings had before they were settings.

        Raises:
            ConfigError: As `of`.
        """
        return cls.of({**_BEFORE, **{_RENAMED.get(key, key): value for key, value in settings.items()}})

    def with_settings(self, settings: Mapping[str, Any]) -> TrainConfig:
        """Return a copy with some settings replaced and `options` merged."""
        merged = {**asdict(self), **settings}
        merged["options"] = {**self.options, **settings.get("options", {})}
        return TrainConfig.of(merged)


def _checked(key: str, value: Any, types_of: Mapping[str, Any]) -> Any:
    """Return a value after checking its key and type; a number for a float key as float."""
    if key not in types_of:
        close = get_close_matches(key, list(types_of), n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known keys: {', '.join(types_of)}"
        raise ConfigError(f"unknown key {shown(key)}; {hint}")
    if not _fits(value, types_of[key]):
        kind = type(value).__name__
        raise ConfigError(f"{key} must be {_words(types_of[key])}, got {shown(value)} of type {kind}")
    if key not in _BOUNDS:
        _check_size(key, value)
    if _base(types_of[key]) is not float or value is None or abs(value) > _LARGEST:
        return value  # `of` states the bound
    return float(value)


def _check_size(key: str, value: Any, depth: int = 0) -> None:
    """Raise ConfigError for a text, an integer or a nesting that is out of bounds, at any depth of a value."""
    if depth > _DEEPEST:
        raise ConfigError(f"{key} must have at most {_DEEPEST} levels of lists and tables: make it flat")
    if isinstance(value, str) and (len(value) > _LONGEST or "\0" in value):
        raise ConfigError(f"{key} must be a text of at most {_LONGEST} characters without NUL, got {shown(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} must be an integer of at most 64 bits, got {shown(value)}")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for one in inside:
        _check_size(key, one, depth + 1)


def shown(value: object) -> str:
    """Return a value for a message, shortened to about 60 characters; an integer of any size is allowed."""
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    words = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return words if len(words) <= _SHOWN + 2 else f"{words[:_SHOWN]}…"


def _base(hint: Any) -> Any:
    """Return the type of a hint, without None and without type arguments."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
    return get_origin(hint) or hint


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a value has the type of a hint; an integer is a valid float, a boolean is not an integer."""
    if value is None:
        return type(None) in get_args(hint)
    if isinstance(value, bool):
        return _base(hint) is bool
    if isinstance(value, list) and _base(hint) is list:
        return all(type(one) is _element(hint) for one in value)
    return isinstance(value, int | float if _base(hint) is float else _base(hint))


def _words(hint: Any) -> str:
    """Return the type of a hint in words."""
    if _base(hint) is list:
        return {str: "a list of texts", int: "a list of integers"}[_element(hint)]
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", dict: "a table of settings"}
    return words[_base(hint)]


def _element(hint: Any) -> type:
    """Return the type of the elements of a list's hint."""
    (of_list,) = (arg for arg in (hint, *get_args(hint)) if get_origin(arg) is list)
    (element,) = get_args(of_list)
    return cast(type, element)


def from_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file.

    Raises:
        ConfigError: The file cannot be read, or is not valid TOML.
    """
    try:
        content = read_regular(path, _LARGEST_FILE)
    except RunError as error:
        raise ConfigError(f"config: {error}") from error
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read ({error.strerror}); check the path") from error
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"config {path} is nested too deeply, at most {_DEEPEST} levels: make it flat") from None
    except ValueError as error:  # of the syntax, the encoding, or an integer of thousands of digits
        raise ConfigError(f"config {path} is not valid TOML: {_reason(error)}") from error


def _reason(error: ValueError) -> str:
    """Return the first sentence of an error's message."""
    return str(error).partition(";")[0].partition("\n")[0][:200]


def assignment(text: str) -> dict[str, Any]:
    """Parse `key=value` into a setting; `options.rho=0.1` is a setting of the optimizer.

    The value is parsed as TOML (a number, true, a list in brackets), and taken as text if it is not valid TOML.

    Raises:
        ConfigError: The text has no `=`, or no key before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        example = "--set steps=500 or --set options.rho=0.1"
        raise ConfigError(f"--set must be key=value, such as {example}, got {shown(text)}")
    if len(text) > _LONGEST:
        raise ConfigError(f"--set {shown(key)} has {len(text)} characters, at most {_LONGEST} allowed: shorten it")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except RecursionError:
        raise ConfigError(f"--set {shown(key)} is nested too deeply, at most {_DEEPEST} levels: make it flat") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(f"--set {shown(key)} cannot be read: {_reason(error)}") from error
    outer, _, inner = key.strip().partition(".")
    if outer == "options" and inner:
        return {"options": {inner: parsed}}
    return {key.strip(): parsed}
