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
from lossscope.landscape.storage.schema import SCHEMA_VERSION

__all__ = [
    "LONGEST_NAME",
    "MANIFEST",
    "PROBING",
    "atomic_write",
    "check_name",
    "manifest_text",
    "read_manifest",
    "run_path",
    "utc_now",
    "write_manifest",
]

MANIFEST: Final = "run.json"
LONGEST_NAME: Final = 100
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
    """Return the manifest as JSON, in the order of its keys. A float that is not finite becomes null.

    Raises:
        ValueError: A value has no JSON form; the message names its position.
    """
    return json.dumps(_plain(manifest, "manifest"), indent=2, allow_nan=False) + "\n"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace `run.json` atomically: a reader sees either the old or the new file, complete."""
    atomic_write(folder / MANIFEST, manifest_text(manifest).encode())


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a file atomically: write `.<name>.tmp-<pid>`, sync it to disk, then rename it.

    Raises:
        RunError: The disk is full or the folder cannot be written; the old file is unchanged.
    """
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that a rename is on disk before anything that relies on it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of the run in a folder.

    Raises:
        RunError: The folder does not exist or holds no run, or the manifest is not valid JSON.
        SchemaError: A newer lossscope wrote the run.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(_absence(Path(folder))) from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is not valid JSON ({_where(error)}): restore it, the run's tables are intact"
        ) from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} must be a JSON object, got {_kind(manifest)}: restore it, the run's tables are intact")
    _check_version(path, manifest.get("schema_version"))
    return manifest


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
    if folder.is_dir():
        return f"{folder} holds no run (no {MANIFEST}): pass the folder of a run"
    if folder.exists():
        return f"{folder} is a file, not the folder of a run: pass the folder that holds {MANIFEST}"
    return f"{folder} does not exist: check the path, or record a run there with lossscope train"


def _where(error: Exception) -> str:
    """Return the position of a JSON error, on one line."""
    return f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _kind(value: object) -> str:
    """Return the name of a JSON value's type."""
    return "null" if value is None else f"a {type(value).__name__}"


def _plain(value: object, place: str) -> Any:
    """Return the value in JSON types: numpy scalars as numbers, tuples as lists, non-finite floats as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{place}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, bool | int | float | str | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"{place} has type {type(value).__name__}, which has no JSON form: use text or numbers")
