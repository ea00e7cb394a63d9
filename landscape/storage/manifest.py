"""The manifest of a run, `run.json`, and what a run may be called."""

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
PROBING: Final = "probe"  # the purpose of a session that measures checkpoints and trains nothing


def run_path(root: str | Path, name: str) -> Path:
    """The folder of a run: directly inside `root`, never anywhere else.

    Raises:
        RunError: The name could lead out of `root`, hide the folder or break a line.
    """
    check_name(name)
    return Path(root) / name


def check_name(name: str) -> None:
    """Refuse a run name that is empty, hidden, too long, or more than one plain path component."""
    shown = ascii(name if len(name) <= LONGEST_NAME else f"{name[:20]}...")
    if not name:
        raise RunError("a run needs a name, this one is empty: choose letters, digits, '-', '_' or '@'")
    if len(name) > LONGEST_NAME:
        raise RunError(f"the run name {shown} has {len(name)} characters, at most {LONGEST_NAME} fit: shorten it")
    if name.startswith("."):
        raise RunError(f"the run name {shown} begins with a dot, which hides the folder: choose another name")
    if "/" in name or "\\" in name or not name.isprintable():
        raise RunError(f"the run name {shown} holds a slash or an unprintable character: leave it out")


def utc_now() -> str:
    """The present time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as JSON, keys in their order; a float that is not finite becomes null.

    Raises:
        ValueError: A value has no JSON form (a programming error; the message names its place).
    """
    return json.dumps(_plain(manifest, "manifest"), indent=2, allow_nan=False) + "\n"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace `run.json`: written aside and renamed, so a reader sees the old one or the new one, whole."""
    atomic_write(folder / MANIFEST, manifest_text(manifest).encode())


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a file in one go: the content goes to `.<name>.tmp-<pid>`, to the disk, then takes the name.

    Raises:
        RunError: The disk is full or the folder cannot be written; the old file is untouched.
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
        raise RunError(f"cannot write {path}: {error.strerror}; make room or choose another folder") from error


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the renaming before anything that relies on it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the run in a folder.

    Raises:
        RunError: There is no such folder, no run in it, or its manifest is not JSON.
        SchemaError: A newer lossscope wrote it.
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
        raise RunError(f"{path} holds no JSON object but {_kind(manifest)}: restore it, the run's tables are intact")
    _check_version(path, manifest.get("schema_version"))
    return manifest


def _check_version(path: Path, found: object) -> None:
    """Refuse a manifest without a version or with one from the future."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise RunError(f"{path} has no schema_version, so it is no run of lossscope: point at another folder")
    if found > SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema version {found}, this lossscope reads up to {SCHEMA_VERSION}: pip install -U lossscope"
        )


def _absence(folder: Path) -> str:
    """Why there is no manifest, in one line."""
    if folder.is_dir():
        return f"{folder} holds no run (no {MANIFEST}): pass the folder of a run, or a folder of such folders"
    if folder.exists():
        return f"{folder} is a file, not the folder of a run: pass the folder that holds {MANIFEST}"
    return f"{folder} does not exist: check the path, or record a run there with lossscope train"


def _where(error: Exception) -> str:
    """The place of a JSON error, on one line."""
    return f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _kind(value: object) -> str:
    """What a JSON value is called."""
    return "null" if value is None else f"a {type(value).__name__}"


def _plain(value: object, place: str) -> Any:
    """The value in JSON's own types: numpy scalars unwrapped, tuples as lists, what is not finite as None."""
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
    raise ValueError(f"{place} is a {type(value).__name__}, which JSON cannot hold: turn it into text or numbers")
