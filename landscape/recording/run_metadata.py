"""What a run's manifest knows when recording begins: the birth certificate of all its numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.curvature.optimizer_metric import optimizer_name
from lossscope.optimizer import TwoPassOptimizer

__all__ = ["code_version", "environment", "run_metadata"]


def code_version() -> str:
    """The version of lossscope that is running."""
    try:
        return version("lossscope")
    except PackageNotFoundError:
        return "unknown"


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a number."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "lossscope": code_version(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def run_metadata(names: Mapping[Tensor, str], optimizer: Optimizer, data_hash: str | None) -> dict[str, Any]:
    """Facts of the model, the optimizer, the data and the machine, as the manifest keeps them.

    Args:
        names: All trainable parameters, at least one.
        optimizer: Any.
        data_hash: Of the fixed data on which curvature is measured.
    """
    tensors = [
        {"name": name, "shape": list(p.shape), "track": "matrix" if p.ndim >= 2 else "vector"}
        for p, name in names.items()
    ]
    return {
        "optimizer": optimizer_name(optimizer),
        "trigger": _trigger(optimizer),
        "model": {"parameters": sum(p.numel() for p in names), "tensors": tensors},
        "data_hash": data_hash,
        "environment": environment(),
        "code_version": code_version(),
        "dtype": str(next(iter(names)).dtype).removeprefix("torch."),
    }


def _trigger(optimizer: Optimizer) -> dict[str, Any] | None:
    """What decides when an optimizer takes a second gradient, where that is not a plain period."""
    first = optimizer.param_groups[0]
    if not (
        isinstance(optimizer, TwoPassOptimizer)
        and optimizer.takes_second_gradient
        and first["mode"] in ("aga", "timer")
    ):
        return None
    return {"mode": first["mode"], "lambda": float(first["aga_lambda"]), "k": int(first["k"])}
