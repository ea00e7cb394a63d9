"""Recorder of a Hugging Face `Trainer`: a callback, and a mix-in for optimizers that take two passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from lossscope.landscape.errors import ConfigError, LandscapeError
from lossscope.landscape.recording.faults import say
from lossscope.landscape.recording.recorded_optimizer import recorded_optimizers
from lossscope.landscape.recording.recorder import Recorder
from lossscope.optimizer.base import TwoPassOptimizer
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.hugging_face import HuggingFaceLoss
from lossscope.probes.objective.isolation import isolated
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

__all__ = ["RecorderCallback", "TwoPassTrainerMixin", "first_batches"]

ObjectiveOf: TypeAlias = Callable[[nn.Module], Objective]

_SAMPLES: Final = 64  # of the training set, on which curvature is measured
_ROUNDING: Final = 1e-3  # relative, between a model's loss and the cross-entropy of its logits; bf16 has 8e-3 at 1


class RecorderCallback(TrainerCallback):
    """Callback of a `Trainer` that records its training.

        Trainer(model, args, train_dataset=data, callbacks=[RecorderCallback("runs/mine")]).train()

    The loss of a step is the sum of the losses that the model returns in its micro-batches, each times the factor with
    which it is differentiated. That is what the step descends, whether the trainer averages micro-batches or sums
    tokens. (For causal models it divides by all tokens with a label, the first of a sequence included, which nothing
    predicts: with sequences of T tokens this is (T - 1) / T of the mean loss of which curvature is measured.) A loss
    that the trainer computes itself (`compute_loss_func`, label smoothing) is missing. On several processes it is the
    loss of the samples of the recording one.

    Curvature is that of the model's own loss on the first samples of the training set, in eval mode.

    Args:
        path: The run's folder.
        objective: The loss on fixed data, or a function that makes it from the model. Default: the model's own loss on
            the first `samples` samples, collated as the trainer does. False: no curvature is recorded.
        preset: `economy`, `standard` or `full`.
        samples: Number of samples of the default objective.
        recorder: More arguments of `Recorder`, such as `measures=` or `force=True`.

    Attributes:
        recorder: The recorder, from the begin of the training on.
    """

    def __init__(
        self,
        path: str | Path,
        objective: Objective | ObjectiveOf | bool | None = None,
        preset: str = "standard",
        *,
        samples: int = _SAMPLES,
        **recorder: Any,
    ) -> None:
        if objective is True:
            raise ConfigError("objective must be an Objective, a function that makes one, None or False, got True")
        if samples < 1:
            raise ConfigError(f"samples must be at least 1, got {samples}")
        self._path, self._given, self._preset, self._samples = Path(path), objective, preset, samples
        self._settings = recorder
        self._loss: _StepLoss | None = None
        self.recorder: Recorder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin the run, or continue it where the trainer resumes from a checkpoint."""
        model, done = given["model"], int(state.global_step)
        settings: dict[str, Any] = {"steps": state.max_steps, "seeds": {"order": _order_seed(args)}}
        if done and self._path.exists():
            settings["resume_at"] = done
        settings |= self._settings
        objective = self._objective(model, given["train_dataloader"], args)
        self.recorder = Recorder(self._path, model, given["optimizer"], objective, self._preset, **settings)
        self._loss = _StepLoss(model, given["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the rows of the step."""
        if self.recorder is None or self._loss is None:
            return
        loss = self._loss.take()
        with self._loss.paused():
            self.recorder.step(loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """End the run."""
        if self.recorder is not None and self._loss is not None:
            with self._loss.paused():
                self.recorder.close()
            self._loss.remove()
            self._loss = None

    def _objective(self, model: nn.Module, loader: Any, args: Any) -> Objective | None:
        """Return the loss on fixed data; None if there is none."""
        if self._given is False:
            return None
        if isinstance(self._given, Objective):
            return self._given
        if callable(self._given):
            return self._given(model)
        try:
            batches = first_batches(loader, self._samples, model)
            return Objective(model, _loss_function(model, batches[0]), batches)
        except (ProbeError, LandscapeError) as error:
            say(f"{self._path}: no curvature is recorded, as no objective was given and none could be made: {error}")
            return None


class TwoPassTrainerMixin:
    """Mix-in of a `Trainer` whose optimizer takes two passes, such as `ARS2Neo(mode="sync")` or SAM.

        class TwoPassTrainer(TwoPassTrainerMixin, Trainer): ...

    All micro-batches of a step are passed at the parameters, and on a step that ascends a second time at the ascended
    ones, with the same random numbers. The trainer clips and steps with the second gradient, as with any other.

    Raises:
        LandscapeError: The optimizer does not take two passes.
    """

    accelerator: Any
    optimizer: Any

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Pass a micro-batch; with the last one of a step, pass all of them again where the step ascends."""
        work = vars(self).setdefault("_passed", _Passed())
        if work.passes is None:
            optimizer = _two_pass_optimizer(self.optimizer)
            work.passes = optimizer.passes(model, getattr(self.accelerator, "scaler", None))
            work.first = next(work.passes)
        work.inputs.append(inputs)
        loss: Tensor = super().training_step(model, dict(inputs), *args, **kwargs)  # type: ignore[misc]
        work.first.loss = loss if work.first.loss is None else work.first.loss + loss
        if self.accelerator.sync_gradients:
            for second in work.passes:
                for again in work.inputs:
                    raised = super().training_step(model, dict(again), *args, **kwargs)  # type: ignore[misc]
                    second.loss = raised if second.loss is None else second.loss + raised
            vars(self).pop("_passed")
        return loss


class _Passed:
    """Micro-batches of the present step."""

    def __init__(self) -> None:
        self.passes: Iterator[Any] | None = None
        self.first: Any = None
        self.inputs: list[Any] = []


def first_batches(loader: Any, samples: int, model: nn.Module) -> list[Any]:
    """Return the first samples of a loader's dataset as batches of its size, on the device of a model.

    Random numbers that the collating function draws are not those of the training.

    Args:
        loader: A `DataLoader`.
        samples: Number of samples, at most.
        model: The model.

    Raises:
        LandscapeError: The dataset has no length.
    """
    dataset = loader.dataset
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)  # Accelerate keeps it in the sampler
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise LandscapeError(f"{type(dataset).__name__} has no length, so no first samples: pass objective=")
    device = next(model.parameters()).device
    with isolated(model, training=False, devices=[device]):
        indices = iter(range(min(samples, len(dataset))))
        parts = iter(lambda: list(itertools.islice(indices, size)), [])
        return [_on(loader.collate_fn([dataset[i] for i in part]), device) for part in parts]


def _on(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _on(value, device) for name, value in batch.items()}
    return type(batch)(_on(one, device) for one in batch) if isinstance(batch, tuple | list) else batch


def _loss_function(model: nn.Module, batch: Any) -> Any:
    """Return the loss of a model: with logits where it is the mean cross-entropy of them, else the number alone."""
    with isolated(model, training=False, devices=[next(model.parameters()).device]), torch.no_grad():
        for shift in (True, False):
            found = HuggingFaceLoss(shift=shift)
            try:
                loss, logits = float(found(model, batch)), found.logits(model, batch)
                entropy = float(CrossEntropy.of_outputs(found, logits, batch))
            except (ProbeError, ValueError, RuntimeError, IndexError, TypeError):
                continue
            if abs(loss - entropy) <= _ROUNDING * max(abs(loss), 1e-3):
                return found
    return lambda m, b: m(**b).loss


def _order_seed(args: Any) -> int:
    """Return the seed of the order of samples."""
    return int(args.seed if args.data_seed is None else args.data_seed)


def _two_pass_optimizer(given: Any) -> TwoPassOptimizer:
    """Return the optimizer of two passes inside a wrapper."""
    for one in recorded_optimizers(given):
        if isinstance(one.optimizer, TwoPassOptimizer):
            return one.optimizer
    raise LandscapeError(
        "TwoPassTrainerMixin needs an optimizer of lossscope that takes two passes, got "
        f"{type(recorded_optimizers(given)[0].optimizer).__name__}: use a Trainer without it"
    )


class _StepLoss:
    """Loss of a step, gathered from the outputs of the model in train mode and the gradients that reach their losses.

    Args:
        model: The model.
        optimizer: Its optimizer, or a wrapper.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self._optimizer, self._inside = optimizer, recorded_optimizers(optimizer)[0].optimizer
        self._paused, self._told = False, False
        self._sum: Tensor | None = None
        self._hook = model.register_forward_hook(self._watch)

    def take(self) -> Tensor | None:
        """Return the loss since the last call; None if no loss of the model was differentiated."""
        found, self._sum = self._sum, None
        if isinstance(self._inside, TwoPassOptimizer) and self._inside.last is not None:
            first = self._inside.last.losses[0]
            found = found if first is None else first
        scaler = getattr(self._optimizer, "scaler", None)
        if found is None and not self._told:
            self._told = True
            say("losses of steps are missing: the trainer does not differentiate the loss that the model returns")
        return found if found is None or scaler is None else found / scaler.get_scale()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore outputs of the model inside this context: they are not those of the training."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def remove(self) -> None:
        """Stop watching the model."""
        self._hook.remove()

    def _watch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note the loss of an output once it is differentiated."""
        if self._paused or not module.training:
            return
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad and loss.ndim == 0:
            value = loss.detach()
            loss.register_hook(partial(self._add, value))  # type: ignore[no-untyped-call]

    def _add(self, loss: Tensor, gradient: Tensor) -> None:
        """Add a loss times its factor in what the step descends."""
        if not self._paused:
            with torch.no_grad():
                part = loss * gradient
                self._sum = part if self._sum is None else self._sum + part
