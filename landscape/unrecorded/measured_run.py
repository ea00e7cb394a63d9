"""Run whose rows are measured from checkpoints: what is finished in it, and how the next ones are added."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.reprobe.result import Absent
from lossscope.landscape.storage.manifest import MANIFEST, MEASURED, check_name, manifest_text, read_manifest
from lossscope.landscape.storage.missing_values import MISSING_VALUES, missing_values
from lossscope.landscape.storage.run_folder import check_free
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.unrecorded.sources import Checkpoint

__all__ = ["Finished", "MeasuredRun", "environment"]


@dataclass(frozen=True)
class Finished:
    """A checkpoint whose rows are in the run."""

    step: int
    source: str
    sha256: str
    measures: tuple[str, ...]  # measured, or missing with their reason


class MeasuredRun:
    """The run that measured checkpoints are written into, which may not exist yet.

    Rows of a checkpoint are flushed together, and only then is it listed in the manifest as finished. What a killed
    process wrote beyond the last finished checkpoint is superseded by the next rows.

    Args:
        path: Folder of the run.
        settings: What numbers depend on beside the checkpoints: objective, data, tolerances, seed.

    Attributes:
        finished: The finished checkpoints by step.

    Raises:
        RunError: The folder holds something else, a recorded run for example.
        ConfigError: Its checkpoints were measured with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(manifest_text(settings))
        self.finished: dict[int, Finished] = {}
        self._store: RunStore | None = None
        self._absent: list[dict[str, Any]] = []
        self._is_new = not (self.path / MANIFEST).exists()
        if self._is_new:
            check_name(self.path.name)
            check_free(self.path, False)
        else:
            self._read(read_manifest(self.path))

    def _read(self, manifest: Mapping[str, Any]) -> None:
        """Read what is finished, and check that it was measured with the same settings."""
        known = manifest.get(MEASURED)
        if not isinstance(known, Mapping):
            raise RunError(f"{self.path} holds a run that was recorded, not measured: choose another name by --into")
        earlier = known.get("settings") or {}
        for key in dict.fromkeys([*earlier, *self.settings]):
            values = earlier.get(key), self.settings.get(key)
            same_loss = key == "objective" and None not in values  # whose data and kind are compared
            if values[0] != values[1] and not same_loss:
                raise ConfigError(
                    f"{self.path} was measured with {key} {_shown(values[0])}, now it is {_shown(values[1])}: "
                    "repeat the earlier settings, or choose another run by --into"
                )
        try:
            done = [
                Finished(one["step"], one["source"], one["sha256"], tuple(one["measures"]))
                for one in known["checkpoints"]
            ]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{self.path / MANIFEST} has no list of checkpoints: choose another run by --into"
            ) from error
        self.finished = {one.step: one for one in done}
        self._absent = [dict(one) for one in missing_values(manifest)]

    def left(self, checkpoint: Checkpoint, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the measures that are not finished at a checkpoint.

        Raises:
            ConfigError: Another file was measured at this step.
        """
        done = self.finished.get(checkpoint.step)
        if done is None:
            return tuple(wanted)
        sha256 = checkpoint.checksum()
        if done.sha256 != sha256:
            raise ConfigError(
                f"{self.path} has step {checkpoint.step} of another file: {done.source} had the checksum "
                f"{done.sha256[:12]}, {checkpoint.path} has {sha256[:12]}; choose another run by --into"
            )
        return tuple(name for name in wanted if name not in done.measures)

    def tensors(self) -> list[Mapping[str, Any]] | None:
        """Return name and shape of the parameters of the run; None before the first checkpoint."""
        manifest = read_manifest(self.path) if self._store is None and not self._is_new else None
        manifest = self._store.manifest if self._store is not None else manifest
        return None if manifest is None else list((manifest.get("model") or {}).get("tensors") or [])

    def begin(self, facts: Mapping[str, Any], steps: Sequence[int]) -> None:
        """Open the run for writing, before its first rows; later calls do nothing.

        Args:
            facts: Manifest of a new run: model, data, environment.
            steps: Steps that are going to be measured, ascending.

        Raises:
            RunError: It is being recorded, or cannot be written.
        """
        if self._store is not None:
            return
        last = max(self.finished, default=None)
        if last is None:
            mine = {"settings": self.settings, "checkpoints": []}
            self._store = RunStore.create(self.path, {**facts, MEASURED: mine}, force=not self._is_new)
        elif steps[0] > last:
            self._store = RunStore.resume(self.path, last)
        else:
            self._store = RunStore.extend(self.path, {"code_version": version("lossscope")})

    def add(self, done: Finished, rows: Iterable[tuple[str, Mapping[str, Any]]], absent: Iterable[Absent]) -> None:
        """Write the rows of a checkpoint, and then list it as finished.

        Raises:
            RunError: They cannot be written.
        """
        if self._store is None:
            raise ValueError("begin the run before adding rows to it")
        for table, row in rows:
            self._store.append(table, row)
        self._store.flush()
        earlier = self.finished.get(done.step)
        measures = tuple(dict.fromkeys([*(earlier.measures if earlier else ()), *done.measures]))
        self.finished[done.step] = Finished(done.step, done.source, done.sha256, measures)
        for one in absent:
            self._absent.append(
                {"step": one.step, "instrument": "curvature", "why": one.why, "measures": [*one.measures]}
            )
        missing = {MISSING_VALUES: self._absent} if self._absent else {}
        self._store.update_manifest(**{MEASURED: {"settings": self.settings, "checkpoints": self._listed()}}, **missing)

    def end(self, why: str | None) -> None:
        """End the session: finished, or stopped for a reason.

        Raises:
            RunError: The rows cannot be written.
        """
        if self._store is None:
            return
        count = len(self.finished)
        how = f"{count} checkpoint{'s' * (count != 1)} measured"
        store, self._store = self._store, None
        store.close("finished" if why is None else "stopped", how if why is None else f"{how}, then {why}")

    def _listed(self) -> list[dict[str, Any]]:
        """Return the finished checkpoints for the manifest."""
        return [
            {"step": one.step, "source": one.source, "sha256": one.sha256, "measures": [*one.measures]}
            for _, one in sorted(self.finished.items())
        ]


def environment() -> dict[str, Any]:
    """Return the versions that can change a number, without loading torch."""
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "lossscope": version("lossscope"),
        "platform": platform.platform(),
    }


def _shown(value: Any) -> str:
    """Return a setting as text."""
    return "none" if value is None else str(value)[:80]
