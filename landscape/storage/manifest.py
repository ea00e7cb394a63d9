"""Manifest of a run, `run.json`: read, write, and check the name of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lossscope.landscape.errors import RunError, SchemaError
from lossscope.landscape.storage.files import atomic_write, read_regular
from lossscope.landscape.storage.manifest_types import check_types
from lossscope.landscape.storage.schema import SCHEMA_VERSION

__all__ = [
    "DEEPEST",
    "LONGEST_MANIFEST",
    "LONGEST_NAME",
    "MANIFEST",
    "MEASURED",
    "PROBING",
    "check_name",
    "manifest_text",
    "read_manifest",
    "run_path",
    "utc_now",
    "write_manifest",
]

MANIFEST: Final = "run.json"
MEASURED: Final = "measured"  # key of a run whose rows are measured from checkpoints that nobody recorded
LONGEST_NAME: Final = 100
LONGEST_MANIFEST: Final = 16 * 2**20  # bytes; a network of 10,000 tensors needs 3 MiB
DEEPEST: Final = 50  # objects and lists inside each other
PROBING: Final = "probe"  # purpose of a session that measures checkpoints without training


def run_path(root: str | Path, name: str) -> Path:
    """Return the folder of a run, which is always directly inside `root`.

    Raises:
        RunError: The name could leave `root`, hide the folder or contain a line break.
    """
    check_name(name)
    return Path(root) / name


def check_name(name: str) -> None:
    """Check that a run name is one plain path component: not empty, not hidden, and not too long.

    Raises:
        RunError: The name is not allowed.
    """
    shown = ascii(name if len(name) <= LONGEST_NAME else f"{name[:20]}...")
    if not name:
        raise RunError("the run name is empty: choose letters, digits, '-', '_' or '@'")
    if len(name) > LONGEST_NAME:
        raise RunError(f"the run name {shown} has {len(name)} characters, at most {LONGEST_NAME} allowed: shorten it")
    if name.startswith("."):
        raise RunError(f"the run name {shown} starts with a dot, which hides the folder: choose another name")
    if "/" in name or "\\" in name or not name.isprintable():
        raise RunError(f"the run name {shown} contains a slash or an unprintable character: remove it")


def utc_now() -> str:
    """Return the current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return the manifest as strict JSON, in the order of its keys.

    NaN becomes null, a missing value; an infinite float, which may be a setting, becomes `{"float": "inf"}` or
    `{"float": "-inf"}`, and `read_manifest` returns the float again.

    Raises:
        ValueError: A value has no JSON form or a known key the wrong type, the message names it; or the text is longer
            than `LONGEST_MANIFEST`.
    """
    plain = _plain(manifest, "manifest", DEEPEST)
    check_types(plain)
    text = json.dumps(_without_infinity(plain), indent=2, allow_nan=False) + "\n"
    if len(text) > LONGEST_MANIFEST:
        raise ValueError(f"the manifest has {len(text):,} bytes, at most {LONGEST_MANIFEST:,} are allowed: shorten it")
    return text


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace `run.json` atomically: a reader sees either the old or the new file, complete."""
    atomic_write(folder / MANIFEST, manifest_text(manifest).encode())


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of the run in a folder, and check the types of the keys that lossscope reads.

    Raises:
        RunError: The folder does not exist or holds no run, or the manifest is no regular file, longer than
            `LONGEST_MANIFEST`, deeper than `DEEPEST`, not valid JSON, or has a value of the wrong type.
        SchemaError: A newer lossscope wrote the run.
    """
    path = Path(folder) / MANIFEST
    try:
        data = read_regular(path, LONGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(_absence(Path(folder))) from None
    try:
        manifest = json.loads(data, parse_constant=lambda _: None, object_hook=_with_floats)
        _check_depth(manifest)
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is not valid JSON ({_where(error)}): restore it, the run's tables are intact"
        ) from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} must be a JSON object, got {_kind(manifest)}: restore it, the run's tables are intact")
    _check_version(path, manifest.get("schema_version"))
    try:
        check_types(manifest)
    except ValueError as error:
        raise RunError(f"{path}: {error}; restore it, the run's tables are intact") from error
    return manifest


def _without_infinity(value: Any) -> Any:
    """Return the value with its infinite floats as the objects that `_with_floats` reads."""
    if isinstance(value, dict):
        return {key: _without_infinity(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinity(inner) for inner in value]
    return {"float": str(value)} if isinstance(value, float) and math.isinf(value) else value


def _with_floats(found: dict[str, Any]) -> Any:
    """Return the float that `manifest_text` wrote as an object; any other object as it is."""
    return float(found["float"]) if found.keys() == {"float"} and found["float"] in ("inf", "-inf") else found


def _check_depth(value: Any) -> None:
    """Raise ValueError if objects and lists lie deeper inside each other than `DEEPEST`."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for values in inside for one in values]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} objects and lists inside each other")


def _check_version(path: Path, found: object) -> None:
    """Raise an error if the schema version is missing or newer than this lossscope."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise RunError(f"{path} has no schema_version, so it is not a lossscope run: choose another folder")
    if found > SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema version {found}, this lossscope reads up to {SCHEMA_VERSION}: pip install -U lossscope"
        )


def _absence(folder: Path) -> str:
    """Return one line that explains why a folder has no manifest."""
    if os.path.isdir(folder):
        return f"{folder} holds no run (no {MANIFEST}): pass the folder of a run"
    if os.path.exists(folder):
        return f"{folder} is a file, not the folder of a run: pass the folder that holds {MANIFEST}"
    return f"{folder} does not exist: check the path, or record a run there with lossscope train"


def _where(error: Exception) -> str:
    """Return the position or the reason of an error, on one line."""
    match error:
        case json.JSONDecodeError():
            return f"line {error.lineno}"
        case ValueError() if not isinstance(error, UnicodeError):
            return str(error).splitlines()[0][:200]
    return type(error).__name__


def _kind(value: object) -> str:
    """Return the name of a JSON value's type."""
    return "null" if value is None else f"a {type(value).__name__}"


def _plain(value: object, place: str, deeper: int) -> Any:
    """Return the value in JSON types: numpy scalars as numbers, tuples as lists, NaN as None."""
    if not deeper:
        raise ValueError(f"{place[:100]} has more than {DEEPEST} objects and lists inside each other: flatten it")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{place}.{key}", deeper - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{place}[{index}]", deeper - 1) for index, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, bool | int | float | str | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"{place} has type {type(value).__name__}, which has no JSON form: use text or numbers")
