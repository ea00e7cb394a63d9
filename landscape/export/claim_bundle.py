"""Claim bundles: a folder with claims, the runs that decide them, the verdicts, hashes, and the command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version
from typing import TYPE_CHECKING, Any, Final

from lossscope.landscape.errors import LandscapeError, RunError
from lossscope.landscape.export.tables import named
from lossscope.landscape.storage.files import folder_entries, read_regular, reason, remedy
from lossscope.landscape.storage.manifest import MANIFEST, check_name

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.landscape.verdicts.claims import ClaimsFile

__all__ = ["CLAIMS", "RUNS", "SUMS", "environments", "write_bundle"]

CLAIMS: Final = "claims.toml"
RUNS: Final = "runs"
SUMS: Final = "SHA256SUMS"
_JOURNAL: Final = "journal"
_LARGEST: Final = 2**31  # bytes of a table
_PACKAGES: Final = ("lossscope", "numpy", "scipy", "pandas", "pyarrow")


def write_bundle(
    folder: Path, claims: ClaimsFile, files: Mapping[str, bytes], runs: Sequence[Run], *, force: bool = False
) -> int:
    """Write claims, runs and other files into a new folder, with the SHA-256 of each in `SHA256SUMS`.

    Runs come with all their tables and without their checkpoints. The folder appears whole or not at all.

    Args:
        folder: The folder.
        claims: The claims. Their file keeps its date, which verdicts compare with those of the runs.
        files: Contents of other files by path below the folder.
        runs: The runs, which go to `runs/NAME`.
        force: Replace an earlier bundle.

    Returns:
        Bytes that were written.

    Raises:
        LandscapeError: The folder exists and is not to be replaced, or is no bundle, or cannot be written.
    """
    _refuse(folder, force=force)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise LandscapeError(f"--export {folder}: {reason(error)}; {remedy(error)}") from error
    try:
        made.chmod(0o755)
        sums, size = [], 0
        for name, content in _contents({CLAIMS: claims.content, **files}, runs):
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
            size += len(content)
        if claims.modified:
            date = datetime.fromisoformat(claims.modified).timestamp()
            os.utime(made / CLAIMS, (date, date))
        (made / SUMS).write_text("".join(sums))
        _put(made, folder)
    except OSError as error:
        raise LandscapeError(f"--export {folder}: {reason(error)}; {remedy(error)}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return size


def environments(runs: Sequence[Run], command: str) -> bytes:
    """Return where claims were decided and where each run was recorded, as JSON.

    Args:
        runs: The runs.
        command: Command that decides the claims again, inside the bundle.
    """
    decided: dict[str, Any] = {"python": python_version(), "platform": platform(), "packages": {}}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            decided["packages"][package] = version(package)
    recorded = {name: run.manifest.get("environment") for name, run in _names(runs).items()}
    content = {"command": command, "decided": decided, "recorded": recorded}
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _contents(files: Mapping[str, bytes], runs: Sequence[Run]) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of each file of a bundle."""
    yield from files.items()
    for name, run in _names(runs).items():
        for path in [*folder_entries(run.path), *folder_entries(run.path / _JOURNAL)]:
            below = path.relative_to(run.path).as_posix()
            if below == MANIFEST or below.endswith((".parquet", ".arrows")):
                yield f"{RUNS}/{name}/{below}", read_regular(path, _LARGEST)


def _names(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by a name that may become a folder."""
    found: dict[str, Run] = {}
    for place, (name, run) in enumerate(named(runs).items()):
        try:
            check_name(name)
        except RunError:
            name = f"run-{place}"
        found[name] = run
    return found


def _refuse(folder: Path, *, force: bool) -> None:
    """Reject a folder that exists, but for an earlier bundle that is to be replaced."""
    if not os.path.lexists(folder):
        return
    if not force:
        raise LandscapeError(f"--export {folder} exists; add --force to replace it, or choose another folder")
    if not (folder / SUMS).is_file() or folder.is_symlink():
        raise LandscapeError(f"--export {folder} is no claim bundle, and is not replaced; choose another folder")


def _put(made: Path, folder: Path) -> None:
    """Rename a folder to its name, and remove the one that had it."""
    if not folder.exists():
        made.rename(folder)
        return
    earlier = made.with_name(made.name + ".earlier")
    folder.rename(earlier)
    made.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
