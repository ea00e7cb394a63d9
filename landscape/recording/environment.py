"""Where a run was made: versions, platform, threads."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = ["code_version", "environment"]


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
