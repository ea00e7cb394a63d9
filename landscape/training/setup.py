"""Setup of a training run: model, data, optimizer and objectives, built from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.workloads import Examples, Split, Workload, batch_at, built, chunks, workload
from lossscope.optimizer import OptimizerError, create, settings
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

__all__ = ["Job", "job_of", "optimizer_of"]

_PAIR_SEED: Final = 50_000  # keeps these draws apart from those of training orders
_PAIRS: Final = 32


@dataclass(frozen=True)
class Job:
    """Model, data, optimizer, and the loss on the fixed data of curvature, at the start of a run."""

    config: TrainConfig
    task: Workload
    split: Split
    model: nn.Module
    optimizer: Optimizer
    objective: Objective

    def training_loss(self) -> Objective:
        """Return the loss on all training data: the objective itself if its data are all of them."""
        measured = sum(len(labels) for _, labels in self.objective.data.batches)
        return self.objective if measured == len(self.split.train[1]) else self._loss_on(self.split.train)

    def test_loss(self) -> Objective:
        """Return the loss on the test data."""
        return self._loss_on(self.split.test)

    def _loss_on(self, examples: Examples) -> Objective:
        """Return the loss on some examples, in as few batches as fit."""
        return Objective(self.model, self.objective.loss_fn, chunks(examples, self.task.at_once))

    def batch(self, step: int) -> Examples:
        """Return the batch of step `step` (from 0) of the training, a pure function of the step and the order seed."""
        size, seed = self.config.batch_size or self.task.batch_size, self.config.seeds["order"]
        inputs, labels = batch_at(self.split.train, size, step, seed)
        if self.task.augment is not None:
            draws = torch.Generator().manual_seed((seed * 1_000_003 + step) * 2 + 1)
            inputs = self.task.augment(inputs, draws)
        return inputs, labels

    def minibatch_pairs(self) -> Objective:
        """Return the loss on 32 pairs of minibatches of the training's batch size, all drawn independently.

        Samples are drawn with replacement. Two minibatches of one epoch would have no sample in common, which makes the
        inner product of their gradients smaller than the squared gradient of the training loss by tr(Sigma) / N.
        """
        size, (inputs, labels) = self.config.batch_size or self.task.batch_size, self.split.train
        generator = torch.Generator().manual_seed(_PAIR_SEED + self.config.seeds["order"])
        chosen = torch.randint(len(labels), (2 * _PAIRS, size), generator=generator)
        return Objective(self.model, CrossEntropy(), [(inputs[one], labels[one]) for one in chosen])

    def minibatches(self, count: int, seed: int) -> Objective:
        """Return the loss on `count` batches drawn as in training, in an order of another seed."""
        size = self.config.batch_size or self.task.batch_size
        batches = [batch_at(self.split.train, size, step, seed) for step in range(count)]
        return Objective(self.model, CrossEntropy(), batches)


def optimizer_of(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Build the optimizer of a config for a model.

    Raises:
        ConfigError: Its name or a setting is unknown or out of bounds.
    """
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in config.options.items()}
    if config.lr is not None:
        overrides["lr"] = config.lr
    try:
        seed = {"seed": config.seeds["order"]} if "seed" in settings(config.optimizer) else {}
        return create(config.optimizer, model, **{**seed, **overrides})
    except OptimizerError as error:
        raise ConfigError(str(error)) from error


def job_of(config: TrainConfig) -> Job:
    """Build the job of a config. It is a pure function, so the model and data of a run can be rebuilt.

    An optimizer that draws random numbers uses the order seed, unless its options set another, so that runs of a
    control arm with different seeds are independent samples.

    Raises:
        ConfigError: A name or a setting is unknown or out of bounds.
    """
    task = workload(config.workload, config.data)
    _check_device(config.device)
    split = _on(config.device, task.split(config.seeds["split"]))
    model = built(task.network, config.seeds["init"]).to(config.device)
    optimizer = optimizer_of(config, model)
    count = config.curvature_samples  # None takes all
    probe = (split.train[0][:count], split.train[1][:count])
    if config.schedule is not None:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # the name that torch's schedulers give it
    objective = Objective(model, CrossEntropy(), chunks(probe, task.at_once))
    return Job(config, task, split, model, optimizer, objective)


def _check_device(device: str) -> None:
    """Reject a device that is not there."""
    try:
        torch.empty(1, device=device).add(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {device!r} cannot be used ({why}): choose cpu, or one of this machine") from None


def _on(device: str, split: Split) -> Split:
    """Return examples on a device."""
    if device == "cpu":
        return split
    return Split(*(tuple(part.to(device) for part in some) for some in (split.train, split.test)))  # type: ignore[arg-type]
