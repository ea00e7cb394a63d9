"""Metadata of a run, written to its manifest when recording begins: the provenance of all its numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.recording.recorded_optimizer import joint_name
from lossscope.optimizer import TwoPassOptimizer
from lossscope.optimizer.hyperparameters import user_settings

if TYPE_CHECKING:
    from lossscope.probes.objective.objective import Objective

__all__ = ["class_name", "code_version", "environment", "new_manifest", "run_metadata"]


def code_version() -> str:
    """Return the version of lossscope that is running."""
    try:
        return version("lossscope")
    except PackageNotFoundError:
        return "unknown"


def environment() -> dict[str, Any]:
    """Return the versions and the machine properties that can change a number."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "lossscope": code_version(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def run_metadata(model: nn.Module, optimizers: Sequence[Optimizer], objective: Objective | None) -> dict[str, Any]:
    """Return the facts of the model, the optimizer, the data and the machine for the manifest.

    Args:
        model: The model, with at least one trainable parameter.
        optimizers: The optimizers that step the model.
        objective: The loss on fixed data on which curvature is measured.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors = [
        {"name": name, "shape": list(p.shape), "track": "matrix" if p.ndim >= 2 else "vector"}
        for name, p in trainable.items()
    ]
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    facts = [_optimizer_facts(optimizer, names) for optimizer in optimizers]
    return {
        "optimizer": joint_name(optimizers),
        # several optimizers cannot be rebuilt as one
        "optimizer_facts": facts[0] if len(facts) == 1 else {"class": None, "optimizers": facts},
        "trigger": _trigger(optimizers[0]),
        "model": {"parameters": sum(p.numel() for p in trainable.values()), "tensors": tensors},
        "data_hash": None if objective is None else objective.data_hash,
        # of how many coordinates the curvature is: parameters thawed later are not among them
        "curvature_of": None if objective is None else {"tensors": len(objective.names), "parameters": objective.size},
        "torch_seed": torch.initial_seed(),  # of the last torch.manual_seed; a random number without one
        "environment": environment(),
        "code_version": code_version(),
        "dtype": str(next(iter(trainable.values())).dtype).removeprefix("torch."),
    }


def new_manifest(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    objective: Objective | None,
    minibatches: Objective | None,
    *,
    arm: str | None,
    config: Mapping[str, Any] | None,
    seeds: Mapping[str, int] | None,
    preset: str,
) -> dict[str, Any]:
    """Return the manifest of a new run.

    Args:
        model: The model, with at least one trainable parameter.
        optimizers: The optimizers that step the model.
        objective: The loss on fixed data on which curvature is measured.
        minibatches: The training loss on minibatches; its unit is recorded if there is no objective.
        arm: Name of the arm. Default: that of the optimizers.
        config: Settings of the run.
        seeds: The init, split and order seeds.
        preset: Name of the preset.
    """
    metadata = run_metadata(model, optimizers, objective)
    return {
        **metadata,
        "arm": arm or metadata["optimizer"],
        "config": config or {},
        "seeds": seeds or {},
        "loss_unit": _loss_unit(objective or minibatches),
        "preset": preset,
    }


def class_name(kind: type) -> str:
    """Return the full name of a class, `torch.optim.sgd.SGD` for example."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _optimizer_facts(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Any]:
    """Return the class, the rule, the defaults and the groups of an optimizer, from which a probe rebuilds it."""
    return {
        "class": class_name(type(optimizer)),
        "rule": optimizer.rule if isinstance(optimizer, TwoPassOptimizer) else None,
        "defaults": _settings(optimizer.defaults),
        "groups": [
            {"parameters": [names.get(p) for p in group["params"]], "settings": _settings(group)}
            for group in optimizer.param_groups
        ],
    }


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have a JSON form; dtypes are written by name and tensors as numbers."""
    plain = {key: _plain(group[key]) for key in user_settings(group) if key not in ("params", "param_names")}
    return {key: value for key, value in plain.items() if value is not NotImplemented}


def _plain(value: Any) -> Any:
    """Return the JSON form of a setting, NotImplemented if it has none."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple | list):
        items = [_plain(item) for item in value]
        return NotImplemented if NotImplemented in items else items
    return value if value is None or isinstance(value, bool | int | float | str) else NotImplemented


def _trigger(optimizer: Optimizer) -> dict[str, Any] | None:
    """Return the settings of the trigger of second gradients, unless the period is fixed."""
    first = optimizer.param_groups[0]
    if not (
        isinstance(optimizer, TwoPassOptimizer)
        and optimizer.takes_second_gradient
        and first["mode"] in ("aga", "timer")
    ):
        return None
    return {"mode": first["mode"], "lambda": float(first["aga_lambda"]), "k": int(first["k"])}


def _loss_unit(objective: Objective | None) -> str | None:
    """Return the unit that the loss function declares in its attribute `unit`; None if it declares none."""
    if objective is None:
        return None
    unit = getattr(getattr(objective.loss_fn, "func", objective.loss_fn), "unit", None)  # func: a functools.partial
    return unit if isinstance(unit, str) and unit else None
