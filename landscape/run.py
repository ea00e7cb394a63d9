"""A run as its reader sees it: tables, a manifest, whether it still goes on and where it ends."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.manifest import MANIFEST, PROBING, read_manifest
from lossscope.landscape.storage.run_folder import is_recorded
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import RENAMED_MEASURES, TABLES

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "Status", "open_runs", "run_folders"]

Status: TypeAlias = Literal["running", "finished", "failed", "crashed"]


class Run:
    """A recorded run, opened with `Run.open`; it writes nothing.

    All tables show the moment of opening, whenever they are read; only where recording ended since then, a table
    not yet read shows the end. To see what a live run has written since, open it again.

    Each table is read when first asked for and kept. It has every column of the schema, rows ordered by step, null
    as nan, pd.NA or None: int64 or Int64, float64, boolean, and objects for text and for float64 arrays.

    Attributes:
        path: The run's folder.
        name: The folder's name.
        manifest: The contents of `run.json`.
        status: `running`, `finished`, `failed`, or `crashed` (said to be running, but no process records it).
    """

    def __init__(self, path: Path, manifest: dict[str, Any], status: Status, tables: RunTables) -> None:
        self.path = path
        self.name = path.resolve().name
        self.manifest = manifest
        self.status: Status = status
        self._tables = tables

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in a folder, be it live, crashed or finished.

        Raises:
            RunError: There is no run, or its manifest cannot be read. A garbled table raises when it is read.
            SchemaError: A newer lossscope wrote it.
        """
        path = Path(path)
        recorded = is_recorded(path)  # asked before and after: it may close, or be resumed, at any moment
        manifest = read_manifest(path)
        return cls(path, manifest, _status(manifest, recorded or is_recorded(path)), RunTables(path))

    @property
    def loss_unit(self) -> str:
        """The unit of the training loss ("nats"), which the schema calls "loss"; "" if the run does not record it.

        Runs recorded before schema 4 have no unit; those of `lossscope train` are cross-entropies, in nats.
        """
        if "loss_unit" in self.manifest:
            return str(self.manifest["loss_unit"] or "")
        config = self.manifest.get("config")
        return "nats" if isinstance(config, dict) and "workload" in config else ""

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per optimizer step. Raises RunError where its files are garbled."""
        return self._frame("steps")

    @cached_property
    def tensors(self) -> pd.DataFrame:
        """One row per step and parameter. Raises RunError where its files are garbled."""
        return self._frame("tensors")

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """One row per step, parameter and object, with its singular values. Raises RunError likewise."""
        return self._frame("spectra")

    @cached_property
    def probes(self) -> pd.DataFrame:
        """One row per estimate, measured again or not. Raises RunError where its files are garbled."""
        rows = self._frame("probes")
        rows["measure"] = rows["measure"].replace(RENAMED_MEASURES)
        return rows

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """The rows of `probes` that count, one per step, measure and tensor: see `storage.deduplicate`."""
        from lossscope.landscape.storage.deduplicate import deduplicate

        return deduplicate(self.probes, self.manifest.get("data_hash"))

    @cached_property
    def densities(self) -> pd.DataFrame:
        """One row per random probe of a density: quadrature nodes and weights. Raises RunError likewise."""
        return self._frame("densities")

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row per object and pair of points that two minibatches were sampled. Raises RunError likewise."""
        return self._frame("pairs")

    @cached_property
    def ends(self) -> str:
        """Where and how the run ends, in a sentence or two; a table that cannot be read is named, not raised."""
        try:
            rows = self._tables.rows("steps")
            last = f"after step {rows['step'][-1].as_py()}" if len(rows) else "before any step was recorded"
        except RunError as error:
            last = f"nobody knows where ({error})"
        how = str(self.manifest.get("how_it_ended") or "no reason given")
        match self.status:
            case "running":
                return f"Still recording; so far flushed: {'up to' + last[5:] if last[:5] == 'after' else 'no step'}."
            case "crashed":
                return " ".join([f"The recording process died; the record ends {last}.", *self._torn()])
            case "finished" | "failed":
                return f"{self.status.capitalize()} {last}: {how}."

    def _torn(self) -> list[str]:
        """Where each segment that a crash cut short ends."""
        try:
            segments = [segment for table in TABLES for segment in self._tables.segments(table)]
        except (RunError, FileNotFoundError):
            return []
        return [f"{one.ending}." for one in segments if one.end < one.size and not one.problem]

    def _frame(self, table: str) -> pd.DataFrame:
        """A table as a data frame."""
        from lossscope.landscape.storage.row_codec import frame

        return frame(self._tables.rows(table))


def open_runs(path: str | Path) -> list[Run]:
    """Open the runs at a path, those that `run_folders` finds.

    Raises:
        RunError: There is no run, or one of them cannot be opened.
        SchemaError: A newer lossscope wrote one of them.
    """
    return [Run.open(folder) for folder in run_folders(path)]


def run_folders(path: str | Path) -> list[Path]:
    """Return the run folders at a path: the path itself if it is a run, else those one and two levels below it.

    So a path may be a run, a folder of runs, or a folder of such folders (one for each demo or experiment). Folders
    below a run and hidden folders are not searched. Runs of the first level come first, each level sorted by name. A
    path that is not a folder is returned as it is: `Run.open` explains what is wrong with it.

    Raises:
        RunError: The folder cannot be listed, or holds no run.
    """
    path = Path(path)
    try:
        if not path.is_dir() or (path / MANIFEST).exists():
            return [path]
        inside = _subfolders(path)
    except OSError as error:
        raise RunError(f"cannot list {path}: {error.strerror}; check its permissions") from error
    deeper = [folder for one in inside if not _is_run(one) for folder in _subfolders(one, skip_unreadable=True)]
    found = [folder for folder in (*inside, *deeper) if _is_run(folder)]
    if not found:
        raise RunError(
            f"no run in {path}: searched it and two levels of folders below for {MANIFEST}, hidden folders excluded; "
            "check the path, or record a run there with lossscope train"
        )
    return found


def _subfolders(path: Path, *, skip_unreadable: bool = False) -> list[Path]:
    """Return the folders directly inside a folder, sorted by name, without the hidden ones."""
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else []
    except OSError:
        if not skip_unreadable:
            raise
        inside = []
    return [one for one in inside if not one.name.startswith(".")]


def _is_run(folder: Path) -> bool:
    """Return True if the folder has a manifest."""
    return (folder / MANIFEST).is_file()


def _status(manifest: dict[str, Any], recorded: bool) -> Status:
    """What became of the run."""
    match manifest.get("status"):
        case "finished":
            return "finished"
        case "failed":
            return "failed"
    sessions = manifest.get("sessions") or [{}]
    probed = isinstance(sessions[-1], dict) and sessions[-1].get("purpose") == PROBING
    return "running" if recorded and not probed else "crashed"
