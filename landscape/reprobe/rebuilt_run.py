"""Models and objectives of recorded runs, rebuilt from the manifest with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.recording.checkpoints import checkpoints, load_weights
from lossscope.landscape.run import Run
from lossscope.landscape.storage.checkpoint_files import requested_folders
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.setup import Job, job_of
from lossscope.probes.objective.objective import Objective

__all__ = ["model_at", "objective_at", "rebuilt_job", "requested_checkpoints"]


def rebuilt_job(run: Run, remedy: str) -> Job:
    """Rebuild model, optimizer and data of a run of `lossscope train`, on the data that it was recorded on.

    Args:
        run: The run.
        remedy: Clause that says what to do where the run cannot be rebuilt.

    Raises:
        RunError: `lossscope train` has not made the run, or its data are not those of the workload now.
    """
    config = run.manifest.get("config")
    if not isinstance(config, dict) or "workload" not in config:
        raise RunError(f"run {run.path} was not made by `lossscope train`, so its model and data are unknown: {remedy}")
    try:
        job = job_of(TrainConfig.recorded(config))
    except ConfigError as error:
        raise RunError(f"run {run.path} cannot be rebuilt ({error}): {remedy}") from error
    recorded, rebuilt = run.manifest.get("data_hash"), job.objective.data_hash
    if recorded != rebuilt:
        raise RunError(
            f"the data of {config['workload']} have the hash {rebuilt[:12]}, the run was recorded on "
            f"{str(recorded)[:12]}: use the versions of its manifest's environment, or {remedy}"
        )
    return job


def requested_checkpoints(run: Run, steps: Iterable[int]) -> dict[int, Path]:
    """Return the checkpoints at some steps of a run, ascending.

    Raises:
        RunError: There is none at one of the steps.
    """
    if run.is_measured and not checkpoints(run.path):
        raise RunError(
            f"run {run.path} has no checkpoint of its own, its rows are of other files: repeat `lossscope measure` "
            "into it with more --measures"
        )
    return requested_folders(run.path, steps)


def objective_at(run: Run, step: int) -> Objective:
    """Return the loss on the run's fixed data of curvature, at the weights of a checkpoint.

    Raises:
        RunError: There is no checkpoint at this step, it is damaged, or the run cannot be rebuilt.
    """
    (folder,) = requested_checkpoints(run, [step]).values()
    objective = rebuilt_job(
        run,
        f"build the model in your program, and load_weights(checkpoints({str(run.path)!r})[{step}], model) of "
        "lossscope.landscape loads these weights",
    ).objective
    load_weights(folder, objective.model)
    return objective


def model_at(run: Run, step: int) -> nn.Module:
    """Return the run's network with the weights of a checkpoint, as `objective_at`."""
    return objective_at(run, step).model
