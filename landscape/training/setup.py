"""Everything a training run is made of, built anew from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.workloads import Split, Workload, batch_at, built, workload
from lossscope.optimizer import OptimizerError, create, settings
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

__all__ = ["Job", "job_of"]

_PAIR_SEED: Final = 50_000  # away from the seeds of training orders
_PAIRS: Final = 32


@dataclass(frozen=True)
class Job:
    """Model, data, optimizer and the loss on curvature's fixed data, at the start of the run."""

    config: TrainConfig
    task: Workload
    split: Split
    model: nn.Module
    optimizer: Optimizer
    objective: Objective

    def minibatch_pairs(self) -> Objective:
        """The loss on pairs of minibatches of the training's size, all of them drawn independently.

        Samples are drawn with replacement. Two minibatches of one epoch would have no sample in common, and what one of
        them has the other would lack: their gradients agree by tr(Sigma) / N less than the training loss says.
        """
        size, (inputs, labels) = self.config.batch_size or self.task.batch_size, self.split.train
        generator = torch.Generator().manual_seed(_PAIR_SEED + self.config.seeds["order"])
        chosen = torch.randint(len(labels), (2 * _PAIRS, size), generator=generator)
        return Objective(self.model, CrossEntropy(), [(inputs[one], labels[one]) for one in chosen])

    def minibatches(self, count: int, seed: int) -> Objective:
        """The loss on `count` batches of the training's size, drawn as training draws them but in another order."""
        size = self.config.batch_size or self.task.batch_size
        batches = [batch_at(self.split.train, size, step, seed) for step in range(count)]
        return Objective(self.model, CrossEntropy(), batches)


def job_of(config: TrainConfig) -> Job:
    """The job of a config: a pure function of it, so a run's model and data can be had again.

    An optimizer that draws numbers of its own draws them by the seed of the order, unless its options say otherwise:
    the seeds of a control arm are then independent samples of it.

    Raises:
        ConfigError: A name or a setting does not exist or is out of bounds.
    """
    task = workload(config.workload)
    split = task.split(config.seeds["split"])
    model = built(task.network, config.seeds["init"])
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in config.options.items()}
    if config.lr is not None:
        overrides["lr"] = config.lr
    try:
        drawn = {"seed": config.seeds["order"]} if "seed" in settings(config.optimizer) else {}
        optimizer = create(config.optimizer, model, **{**drawn, **overrides})
    except OptimizerError as error:
        raise ConfigError(str(error)) from error
    count = task.curvature_samples
    probe = (split.train[0][:count], split.train[1][:count])
    return Job(config, task, split, model, optimizer, Objective(model, CrossEntropy(), [probe]))
