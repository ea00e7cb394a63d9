"""One run of an ablation: train it, resume it, keep it, or leave it to the process that records it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, Final, Literal, TypeAlias

from lossscope.errors import LossscopeError
from lossscope.landscape.errors import ConfigError, RunError, TrainingError
from lossscope.landscape.recording.checkpoints import checkpoints
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import MANIFEST, run_path
from lossscope.landscape.storage.run_folder import is_recorded
from lossscope.landscape.training.config import TrainConfig, shown
from lossscope.landscape.training.parallel import Count
from lossscope.landscape.training.training import recorded_config, train
from lossscope.landscape.training.user_code import error_summary
from lossscope.landscape.training.user_workload import register_workload
from lossscope.landscape.training.workloads import workload

__all__ = ["FINISHED", "LOST", "Outcome", "State", "Task", "check_same", "folder_of", "outcome_of", "state_of", "work"]

State: TypeAlias = Literal["absent", "kept", "diverged", "resumable", "broken", "busy"]
Status: TypeAlias = Literal["trained", "resumed", "kept", "diverged", "failed", "killed", "busy"]

FINISHED: Final = ("trained", "resumed", "kept")  # statuses of a run with all of its steps
LOST: Final = "diverged"  # status of a run whose loss stopped being finite
_DIVERGED: Final = "the loss became"  # first words of the end of a run whose loss was lost
_FREE: Final = ("name", "out")  # settings that change nothing in a run
_ATTEMPTS: Final = 3  # another ablation may begin or end the run between a look and the training
_ONE_AT_A_TIME: Final = Lock()  # torch's random state and number of threads are those of the process


@dataclass(frozen=True)
class Task:
    """A run to make, as it is sent to a process."""

    config: TrainConfig  # with the usual settings of its workload
    code: str | None = None  # FILE.py:NAME of the user's workload
    replace: bool = False  # whatever is there, unless another process records it


@dataclass(frozen=True)
class Outcome:
    """End of a run of an ablation."""

    name: str
    workload: str
    arm: str
    seed: int
    status: Status
    why: str = ""  # reason of a run that is not finished, as a clause
    seconds: float = 0.0  # spent on it now

    @property
    def finished(self) -> bool:
        """True if the run has all of its steps."""
        return self.status in FINISHED


def work(task: Task, count: Count) -> Outcome:
    """Make a run in this process, whatever is there of it, and return how it ended. A failure is a result.

    Args:
        task: The run.
        count: Called after every step with the step, the number of steps and the loss.
    """
    if task.code is not None:
        register_workload(task.code)
    started = perf_counter()
    with _ONE_AT_A_TIME:
        try:
            status, why = _made(task, count)
        except ConfigError as error:  # another ablation made the run meanwhile, from another grid
            status, why = "failed", str(error)
    if status in ("kept", "diverged"):
        count(task.config.steps or 0, task.config.steps or 0, 0.0)
    return replace(outcome_of(task.config, status, why), seconds=perf_counter() - started)


def outcome_of(config: TrainConfig, status: Status, why: str = "") -> Outcome:
    """Return an outcome of the run of a config."""
    return Outcome(config.run_name, config.workload, config.arm_name, config.seed, status, why)


def folder_of(config: TrainConfig) -> Path:
    """Return the folder of the run of a config."""
    return run_path(config.out, config.run_name)


def state_of(config: TrainConfig) -> State:
    """Return what is there of a run: nothing, a finished or diverged one, one to go on with, or one that is recorded.

    Raises:
        RunError: The run cannot be read.
    """
    path = folder_of(config)
    if not (path / MANIFEST).exists():
        return "absent"
    run = Run.open(path)
    if run.status == "running":
        return "busy"
    how = str(run.manifest.get("how_it_ended") or "")
    if run.status == "failed" and how.startswith(_DIVERGED):
        return "diverged"
    if run.status == "finished" and (run.manifest.get("steps") == config.steps or "stopped_early" in run.manifest):
        return "kept"
    return "resumable" if checkpoints(path) else "broken"


def check_same(config: TrainConfig) -> None:
    """Check that a run that is there was made with this config.

    Raises:
        ConfigError: It has another value of a setting, or other code of the user; the message names run and setting.
        RunError: The run cannot be read, or was not made by lossscope.
    """
    path = folder_of(config)
    if not (path / MANIFEST).exists():
        return
    old, new = asdict(recorded_config(path)), asdict(config)
    other = "rename the grid to keep it, or --force to replace it"
    for key in new:
        if key not in _FREE and _plain(old[key]) != _plain(new[key]):
            raise ConfigError(
                f"run {path} was made with {key} = {shown(_plain(old[key]))}, the grid says {shown(_plain(new[key]))}: "
                f"{other}"
            )
    if Run.open(path).manifest.get("workload_source", "") != workload(config.workload).source:
        raise ConfigError(f"run {path} was made with other code of workload {config.workload}: {other}")


def _plain(value: Any) -> Any:
    """Return a value with its tuples replaced by lists, as JSON reads them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _made(task: Task, count: Count) -> tuple[Status, str]:
    """Make the run, and return its status with the reason of one that is not finished."""
    path = folder_of(task.config)
    for _ in range(_ATTEMPTS):
        state = None
        try:
            state = _state(task)
            return _from(state, task.config, count)
        except RunError as error:
            why = str(error)
            if is_recorded(path):
                return "busy", ""
            if state is None or _state(task) == state:
                return "failed", why
    return "failed", why


def _state(task: Task) -> State:
    """Return what is there of the run, after checking that it was made with the same config if it is to be kept.

    Raises:
        ConfigError: It was made with another config.
        RunError: It cannot be read.
    """
    path = folder_of(task.config)
    if task.replace and (path / MANIFEST).exists():
        return "busy" if is_recorded(path) else "broken"
    check_same(task.config)
    return state_of(task.config)


def _from(state: State, config: TrainConfig, count: Count) -> tuple[Status, str]:
    """Make the run from what is there, and return its status with the reason of one that is not finished.

    Raises:
        RunError: The run cannot be written, or another process began it meanwhile.
    """
    if state == "busy" or state == "kept":
        return state, ""
    if state == "diverged":
        return state, _end_of(config)
    try:
        train(config, resume=state == "resumable", force=state == "broken", progress=count)
    except RunError:
        raise
    except TrainingError as error:
        how = _end_of(config)
        return ("diverged", how) if how.startswith(_DIVERGED) else ("failed", str(error))
    except LossscopeError as error:
        return "failed", str(error)
    except Exception as error:  # the user's own workload may raise anything
        return "failed", error_summary(error)
    return ("resumed" if state == "resumable" else "trained"), ""


def _end_of(config: TrainConfig) -> str:
    """Return how the run ended, in the words of its manifest."""
    return str(Run.open(folder_of(config)).manifest.get("how_it_ended") or "")
