"""Recorded runs: open a run or a folder of runs, and read tables, manifest and status."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import remedy
from lossscope.landscape.storage.manifest import MANIFEST, MEASURED, read_manifest
from lossscope.landscape.storage.run_folder import is_recorded
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import RENAMED_MEASURES, TABLES

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from lossscope.landscape.storage.column_cache import ColumnCache
    from lossscope.probes.objective.objective import Objective

__all__ = ["Run", "Status", "open_runs", "run_folders"]

Status: TypeAlias = Literal["running", "finished", "stopped", "failed", "crashed"]


class Run:
    """A recorded run, opened with `Run.open`. Reading only: it never writes to the folder.

    All tables show the state at the time of opening, whenever they are read; only if recording has ended since then, a
    table not yet read shows the final state. Open a live run again to see its new rows.

    Each table is read on first use and cached. It has every column of the schema and its rows are ordered by step.
    Missing values are nan, pd.NA or None; the dtypes are int64 or Int64, float64, boolean, and object for text and for
    float64 arrays.

    Attributes:
        path: The run's folder.
        name: The folder's name.
        manifest: The contents of `run.json`.
        status: `running`, `finished`, `stopped` (ended early on purpose), `failed`, or `crashed` (not ended, but no
            process is recording it).
    """

    def __init__(self, path: Path, manifest: dict[str, Any], status: Status, tables: RunTables) -> None:
        self.path = path
        self.name = os.path.basename(os.path.realpath(path))
        self.manifest = manifest
        self.status: Status = status
        self._tables = tables

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run in a folder, whether it is live, crashed or finished.

        Raises:
            RunError: There is no run, or its manifest cannot be read or holds a wrong type. A corrupted table raises
                when it is read.
            SchemaError: A newer lossscope wrote the run.
        """
        path = Path(path)
        recorded = is_recorded(path)  # checked again below: the run may be closed or resumed in between
        manifest = read_manifest(path)
        return cls(
            path, manifest, _status(manifest, recorded or is_recorded(path)), RunTables(path, manifest.get("id"))
        )

    @property
    def loss_unit(self) -> str:
        """The unit of the training loss ("nats"), which the schema calls "loss"; "" if the run does not record it.

        Runs recorded before schema 4 have no unit; those of `lossscope train` are cross-entropies, in nats.
        """
        if "loss_unit" in self.manifest:
            return str(self.manifest["loss_unit"] or "")
        config = self.manifest.get("config")
        return "nats" if isinstance(config, dict) and "workload" in config else ""

    @property
    def is_measured(self) -> bool:
        """True if `lossscope measure` made the run from checkpoints that nobody recorded: it has no training."""
        return MEASURED in self.manifest

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per optimizer step. Raises RunError if its files are corrupted."""
        return self._frame("steps")

    @cached_property
    def tensors(self) -> pd.DataFrame:
        """One row per step and parameter. Raises RunError if its files are corrupted."""
        return self._frame("tensors")

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """One row per step, parameter and object: singular values. Raises RunError if its files are corrupted."""
        return self._frame("spectra")

    @cached_property
    def probes(self) -> pd.DataFrame:
        """One row per estimate, repeated measurements included. Raises RunError if its files are corrupted.

        Rows written before `parameters` was a column are of all trained parameters.
        """
        rows = self._frame("probes")
        trained = (self.manifest.get("model") or {}).get("parameters")
        if trained is not None:
            rows["parameters"] = rows["parameters"].fillna(trained)
        rows["measure"] = rows["measure"].replace(RENAMED_MEASURES)
        return rows

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """Rows of `probes`, one per step, measure and tensor; `storage.deduplicate` has the rule."""
        from lossscope.landscape.storage.deduplicate import deduplicate

        return deduplicate(self.probes, self.manifest.get("data_hash"))

    @cached_property
    def densities(self) -> pd.DataFrame:
        """One row per random probe: nodes and weights of a density. Raises RunError if its files are corrupted."""
        return self._frame("densities")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per curve, such as a noise curve: its points and intervals. Raises RunError if corrupted."""
        return self._frame("curves")

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row per object and lag, from a pair of minibatches. Raises RunError if its files are corrupted."""
        return self._frame("pairs")

    @cached_property
    def spikes(self) -> pd.DataFrame:
        """One row per loss spike and parameter: norms of the steps before it. Raises RunError if corrupted."""
        return self._frame("spikes")

    @cached_property
    def ends(self) -> str:
        """One or two sentences that say where and how the run ends. A corrupted table is named in them, not raised."""
        try:
            (steps,) = self.numbers("steps", "step")
            last = f"after step {steps[-1]:.0f}" if len(steps) else "before any step was recorded"
        except RunError as error:
            last = f"at an unknown step ({error})"
        how = str(self.manifest.get("how_it_ended") or "no reason given")
        match self.status:
            case "running":
                return f"Still recording; flushed so far: {'up to' + last[5:] if last[:5] == 'after' else 'no step'}."
            case "crashed":
                return " ".join([f"The recording process died; the record ends {last}.", *self._torn()])
            case "finished" | "stopped" | "failed":
                return f"{self.status.capitalize()} {last}: {how}."

    def objective(self, step: int) -> Objective:
        """Return the loss on the run's fixed data of curvature, with the weights of the checkpoint at a step.

        The model is new at each call. `checkpoints(run.path)` has the steps.

        Raises:
            RunError: There is no checkpoint at this step, it is damaged, or `lossscope train` has not made the run.
        """
        from lossscope.landscape.reprobe.rebuilt_run import objective_at

        return objective_at(self, step)

    def model(self, step: int) -> nn.Module:
        """Return the run's network with the weights of the checkpoint at a step.

        Raises:
            RunError: As `objective`.
        """
        from lossscope.landscape.reprobe.rebuilt_run import model_at

        return model_at(self, step)

    def columns(self, table: str, *names: str) -> pd.DataFrame:
        """Return some columns of a table, as the table itself has them; only these are read.

        A run of a million steps has gigabytes in columns that a number does not need. The columns returned by one call
        show one state of the table. Do not change their values in place: those used last are kept for the next call.

        Args:
            table: Name of a table, such as `tensors`.
            names: Names of its columns; of a list `values` also `values.first` and `values.length`.

        Raises:
            RunError: What is read of its files is corrupted.
        """
        from lossscope.landscape.storage.column_cache import of_frame

        if table in vars(self) or table == "probes":
            return of_frame(getattr(self, table), names)
        if table not in TABLES:
            raise ValueError(f"unknown table {table!r}: use one of {', '.join(TABLES)}")
        return self._columns.frame(table, names)

    def numbers(self, table: str, *names: str) -> list[NDArray[np.float64]]:
        """Return columns of numbers or flags as float64 arrays with nan for null; otherwise as `columns`."""
        if table in vars(self) or table == "probes":
            rows = self.columns(table, *names)
            return [rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names]
        return self._columns.numbers(table, names)

    def last_rows(self, table: str) -> pd.DataFrame:
        """Return the rows of a table at its last step; of earlier ones only the steps are read.

        Args:
            table: Name of a table, such as `spectra`.

        Raises:
            RunError: What is read of its files is corrupted.
        """
        if table in vars(self) or table == "probes":
            rows: pd.DataFrame = getattr(self, table)
            last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
            return last
        return self._columns.last_rows(table)

    def forget(self) -> None:
        """Forget the tables read so far; they are read again on the next use. Long lists of runs would fill memory."""
        for table in (*TABLES, "estimates", "_columns"):
            vars(self).pop(table, None)

    @cached_property
    def _columns(self) -> ColumnCache:
        """Columns that were read one by one."""
        from lossscope.landscape.storage.column_cache import ColumnCache

        return ColumnCache(self._tables)

    def _torn(self) -> list[str]:
        """Return a sentence for each segment truncated by a crash, with the position of its end."""
        try:
            segments = [segment for table in TABLES for segment in self._tables.segments(table)]
        except (RunError, FileNotFoundError):
            return []
        return [f"{one.ending}." for one in segments if one.end < one.size and not one.problem]

    def _frame(self, table: str) -> pd.DataFrame:
        """Return a table as a data frame."""
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
        if not os.path.isdir(path) or _is_run(path):
            return [path]
        inside = _subfolders(path)
    except OSError as error:
        raise RunError(f"cannot list {path}: {error.strerror}; {remedy(error)}") from error
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
        inside = sorted(path.iterdir()) if os.path.isdir(path) else []
    except OSError:
        if not skip_unreadable:
            raise
        inside = []
    return [one for one in inside if not one.name.startswith(".")]


def _is_run(folder: Path) -> bool:
    """Return True if the folder has a manifest, were it a link to nothing: `Run.open` says what is wrong with it."""
    return os.path.lexists(folder / MANIFEST)


def _status(manifest: dict[str, Any], recorded: bool) -> Status:
    """Return the status of a run: as in the manifest, or running or crashed if the manifest has no end."""
    match manifest.get("status"):
        case "finished":
            return "finished"
        case "stopped":
            return "stopped"
        case "failed":
            return "failed"
    return "running" if recorded else "crashed"
