"""Check of a grid before anything is trained: workloads, optimizers with their settings, presets and measures."""

from __future__ import annotations

from torch import nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.experiments.grid import Grid
from lossscope.landscape.recording.cadence import preset_of
from lossscope.landscape.recording.curvature_evaluations import wanted_measures
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.setup import optimizer_of
from lossscope.landscape.training.training import resolved

__all__ = ["resolved_configs"]


def resolved_configs(grid: Grid) -> list[TrainConfig]:
    """Return the configs of all runs with the usual settings of their workloads, after checking every arm.

    Raises:
        ConfigError: A workload, an optimizer, one of its settings, the preset or a measure is unknown or out of bounds;
            the message names the arm and suggests the nearest name.
    """
    for task in grid.workloads:
        for arm in grid.arms:
            try:
                _check(grid.config(task, arm, grid.seeds[0]))
            except ConfigError as error:
                raise ConfigError(f"arm {arm}: {error}") from error
    return [resolved(config) for config in grid.configs()]


def _check(config: TrainConfig) -> None:
    """Raise ConfigError for a config that cannot be trained."""
    preset_of(config.preset)
    wanted_measures(config.measures)
    optimizer_of(resolved(config), nn.Linear(2, 2))  # the network of the workload may take time to build
