"""Recorded training of a workload: reproducible from its config, and resumable bit for bit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossscope.landscape.errors import ConfigError, RecordingWarning, RunError, TrainingError
from lossscope.landscape.recording.cadence import given_steps, preset_of
from lossscope.landscape.recording.checkpoints import checkpoints, load_checkpoint
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import run_path
from lossscope.landscape.storage.run_folder import check_free
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.replay import replayed
from lossscope.landscape.training.setup import Job, job_of
from lossscope.landscape.training.workloads import Examples, Workload, chunks, workload
from lossscope.optimizer import ENTRIES, OptimizerError, TwoPassOptimizer, settings
from lossscope.probes.errors import ProbeError

__all__ = ["recorded_config", "resolved", "train"]

Progress = Callable[[int, int, float], None]  # step, steps, loss


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the config with its missing settings replaced by the usual ones of its workload.

    Raises:
        ConfigError: The workload, the optimizer or one of its settings is unknown, more training examples are asked
            for than there are, or an evaluation is asked for beyond the last step.
    """
    task = workload(config.workload, config.data)
    for key in ("batch_size", "curvature_samples"):
        if (asked := getattr(config, key) or 0) > task.train_size:
            raise ConfigError(
                f"{key} must be at most {task.train_size}, the number of training examples of {task.name}, got {asked}"
            )
    try:
        known = _read(config)
    except OptimizerError as error:
        raise ConfigError(f"{error}; see `lossscope list optimizers`") from error
    if config.replay is not None and "replay_counts" not in known:
        raise ConfigError(f"replay needs an optimizer that can replay, such as ars2-timer, got {config.optimizer}")
    if config.evaluate_at is not None:
        given_steps(config.steps or task.steps, config.evaluate_at)
    usual = {key: value for key, value in task.options.items() if key in known} | _usual_rate(config, task)
    return config.with_settings(
        {
            "steps": config.steps or task.steps,
            "batch_size": config.batch_size or task.batch_size,
            "curvature_samples": config.curvature_samples or task.curvature_count,
            "eval_every": config.eval_every or task.eval_every,
            "name": config.run_name,
            "options": {**usual, **config.options},
        }
    )


def _rule(config: TrainConfig) -> str:
    """Return the update rule: the base of a two-pass optimizer, else the optimizer itself."""
    return str(config.options.get("base") or ENTRIES[config.optimizer].usual.get("base", config.optimizer))


def _read(config: TrainConfig) -> set[str]:
    """Return the settings that the optimizer accepts, for a two-pass optimizer those of its base included."""
    if "base" not in settings(config.optimizer):
        return set(settings(config.optimizer))
    own = {setting for setting, usual in ENTRIES[config.optimizer].usual.items() if usual is not None}
    return own | {"weight_decay"} | set(settings(_rule(config)) if _rule(config) in ENTRIES else ())


def _usual_rate(config: TrainConfig, task: Workload) -> dict[str, float]:
    """Return the workload's learning rate for the update rule, unless it has none or the config sets one."""
    usual = task.rates.get(_rule(config))
    return {} if usual is None or config.lr is not None else {"lr": usual}


def train(config: TrainConfig, *, resume: bool = False, force: bool = False, progress: Progress | None = None) -> Run:
    """Train a workload, record it, and return the run.

    Weights, batches and random numbers depend on the three seeds only, so a resumed run continues bit for bit from its
    last checkpoint.

    Args:
        config: The configuration of the run.
        resume: Continue the run of that name from its last checkpoint.
        force: Replace the run of that name.
        progress: Called after every step with the step, the number of steps and the loss.

    Raises:
        ConfigError: A name or a setting is unknown or out of bounds.
        RunError: The run exists and neither `resume` nor `force` is given, or it cannot be written.
        TrainingError: The loss became NaN or infinite, or a step failed; the rows recorded until then are kept.
    """
    config = resolved(config)
    path = run_path(Path(config.out), config.run_name)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    job = job_of(replayed(config))
    start = _resume_point(path, config, job) if resume else None
    if start is None:
        check_free(path, force)  # in the words of the command line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordingWarning)  # the last line and the reports name what is missing
        _record(config, job, path, start, force=force, progress=progress)
    return Run.open(path)


def _record(
    config: TrainConfig, job: Job, path: Path, start: int | None, *, force: bool, progress: Progress | None
) -> None:
    """Run the training loop with a recorder."""
    recorder = Recorder(
        path,
        job.model,
        job.optimizer,
        job.objective,
        config.preset,
        minibatches=job.minibatch_pairs() if preset_of(config.preset).lags else None,
        train=job.training_loss(),
        test=job.test_loss(),
        steps=config.steps,
        evaluations=config.evaluations,
        evaluate_at=config.evaluate_at,
        measures=config.measures,
        checkpoints=config.checkpoints,
        weights_at_evaluations=config.weights_at_evaluations,
        overhead=1,  # so that no row depends on the time that anything took
        arm=config.arm_name,
        config=asdict(config),
        seeds=config.seeds,
        force=force,
        resume_at=start,
    )
    if start is not None:
        recorder.note(config=asdict(config))
    try:
        with recorder:
            measured = sum(len(labels) for _, labels in job.objective.data.batches)
            source: dict[str, Any] = {"workload_source": job.task.source} if job.task.source else {}
            if job.task.given is not None:
                source["data_files"] = job.task.given.files
            recorder.note(curvature_samples=measured, training_samples=len(job.split.train[1]), **source)
            _loop(job, recorder, start or 0, progress)
    except (OptimizerError, ProbeError) as error:
        raise TrainingError(f"{error}; the rows recorded until then are kept in {path}") from error
    if recorder.lost:
        raise RunError(recorder.lost)


def _resume_point(path: Path, config: TrainConfig, job: Job) -> int | None:
    """Load the last checkpoint into the job and return its step, after checking that the config is the same."""
    if not path.exists():
        raise RunError(f"run {path} does not exist, so it cannot be resumed; omit --resume to start it")
    before = recorded_config(path)
    free = {"steps", "evaluations", "evaluate_at", "measures", "checkpoints", "weights_at_evaluations"}
    free |= {"until_accuracy", "threads", "out", "name", "data", "device"}
    for key, old in asdict(before).items():
        new = asdict(config)[key]
        if key not in free and _plain(new) != _plain(old):
            raise ConfigError(
                f"run {path} was started with {key} = {old!r}, got {new!r}; resume it with the same value, "
                "or start a new run"
            )
    if job.task.given is not None and Run.open(path).manifest.get("data_files") != job.task.given.files:
        raise ConfigError(f"run {path} was started with other files than those in {config.data}: give it the same ones")
    saved = checkpoints(path, resumable=True)
    if not saved:
        raise RunError(f"run {path} has no checkpoint to resume from; restart it with --force")
    step, folder = list(saved.items())[-1]
    if config.steps is not None and step > config.steps:
        raise ConfigError(
            f"run {path} has {step} steps already, more than steps = {config.steps}; resume it with more steps"
        )
    load_checkpoint(folder, job.model, job.optimizer)
    return step


def recorded_config(path: Path) -> TrainConfig:
    """Return the config with which a run was started.

    Raises:
        RunError: There is no run, or it was not recorded by `train`.
    """
    recorded = Run.open(path).manifest.get("config")
    if not isinstance(recorded, dict) or "workload" not in recorded:
        raise RunError(f"run {path} was not recorded by `lossscope train`, so `lossscope train` cannot resume it")
    return TrainConfig.recorded(recorded)


def _plain(value: Any) -> Any:
    """Return a value with its tuples replaced by lists, as JSON reads them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _loop(job: Job, recorder: Recorder, start: int, progress: Progress | None) -> None:
    """Run the training loop from step `start` on."""
    config, steps = job.config, job.config.steps or 0
    if start == 0:
        torch.manual_seed(config.seeds["order"])
    for step in range(start, steps):
        _schedule(job, step)
        loss = _step(job, job.batch(step))
        value = float(loss)
        measured = _measured(job) if (step + 1) % (config.eval_every or 1) == 0 or step + 1 == steps else {}
        recorder.step(value, **measured)
        if not math.isfinite(value):
            _diverged(recorder, step + 1, value)
        if progress is not None:
            progress(step + 1, steps, value)
        if config.until_accuracy is not None and measured.get("test_accuracy", 0.0) >= config.until_accuracy:
            recorder.note(stopped_early=f"test accuracy {measured['test_accuracy']:.4f} at step {step + 1}")
            break


def _schedule(job: Job, step: int) -> None:
    """Set the learning rates of a step."""
    if job.config.schedule is not None:
        factor = (1 + math.cos(math.pi * step / (job.config.steps or 1))) / 2
        for group in job.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def _diverged(recorder: Recorder, step: int, value: float) -> None:
    """Close the run as failed and raise TrainingError for a loss that is not finite."""
    how = f"the loss became {value} at step {step}"
    recorder.close("failed", how, quiet=True)
    raise TrainingError(
        f"{how}; the rows until then are kept: `lossscope report sharpness {recorder.path}`. Try a smaller lr"
    )


def _step(job: Job, batch: Examples) -> Tensor:
    """Take one optimizer step and return the loss of its first pass."""
    inputs, labels = batch
    if isinstance(job.optimizer, TwoPassOptimizer):
        for p in job.optimizer.passes(job.model):
            logits = job.model(inputs)
            p.backward(_loss(logits, p.labels(logits, labels)))
        loss: Tensor = job.optimizer.step()
        return loss
    job.optimizer.zero_grad()
    loss = _loss(job.model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    try:
        job.optimizer.step()
    except RuntimeError as error:  # torch's optimizers reject some settings only in the first step
        raise OptimizerError(f"{job.config.optimizer} cannot step with {job.config.options}: {error}") from error
    return loss.detach()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits `(..., C)`."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


@torch.no_grad()
def _measured(job: Job) -> dict[str, float]:
    """Return test loss, test accuracy and train accuracy, in eval mode."""
    training = job.model.training
    job.model.eval()
    try:
        test_loss, test_accuracy = _scored(job, job.split.test)
        _, train_accuracy = _scored(job, job.split.train)
    finally:
        job.model.train(training)
    numbers = torch.stack([test_loss, test_accuracy, train_accuracy]).tolist()
    return dict(zip(("test_loss", "test_accuracy", "train_accuracy"), numbers, strict=True))


def _scored(job: Job, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return loss and accuracy on examples: the means over their pieces, weighted by their lengths."""
    found, counts = [], []
    for inputs, labels in chunks(examples, job.task.at_once):
        logits = job.model(inputs)
        hits = (logits.argmax(-1) == labels).double().mean()
        found.append(torch.stack([_loss(logits, labels).double(), hits]))
        counts.append(len(labels))
    weights = torch.tensor(counts, dtype=torch.float64, device=found[0].device) / sum(counts)
    loss, accuracy = torch.stack(found).T @ weights
    return loss, accuracy
