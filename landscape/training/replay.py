"""Replay of second gradients: a control takes as many in each window of steps as a recorded run with its seeds."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import run_path
from lossscope.landscape.training.config import TrainConfig

__all__ = ["replayed", "second_gradients"]

_WINDOWS: Final = 50  # of a run: short ones, since the trigger fires oftener while the loss is high


def replayed(config: TrainConfig) -> TrainConfig:
    """Return a config whose optimizer takes the second gradients of the run that it replays, window by window.

    Args:
        config: A config with its usual settings filled in. One that replays no run is returned as it is.

    Raises:
        ConfigError: That run is not there, has not ended, or recorded no second gradients.
    """
    if config.replay is None:
        return config
    path = run_path(config.out, config.replay)
    hint = "train it first, or leave replay out"
    try:
        run = Run.open(path)
    except RunError as error:
        raise ConfigError(f"replay = {config.replay!r} cannot be read: {error}; {hint}") from error
    if run.status != "finished":
        raise ConfigError(f"replay = {config.replay!r} must be a finished run, it is {run.status}; {hint}")
    window = max((config.steps or 0) // _WINDOWS, 1)
    return config.with_settings({"options": second_gradients(run, window)})


def second_gradients(run: Run, window: int) -> dict[str, Any]:
    """Return the settings of `ars2-timer` that replay a run: its second gradients in each window of its steps.

    Args:
        run: A run whose table `steps` says which of its steps took a second gradient.
        window: Steps in a window.

    Raises:
        ConfigError: It does not say so for every step.
    """
    steps = run.steps
    if not len(steps) or steps["synced"].isna().any():
        raise ConfigError(f"run {run.name} does not say at which steps it took a second gradient: replay another run")
    places = (steps["step"].to_numpy(dtype=np.int64) - 1) // window
    counts = np.bincount(places, weights=steps["synced"].to_numpy(dtype=np.float64)).astype(int)
    return {"replay_counts": counts.tolist(), "replay_window": window}
