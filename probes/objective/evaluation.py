"""Evaluation of an objective on one batch or on small parts of its data, and validation of its loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.isolation import random_modules

__all__ = ["ULPS", "BatchEvaluation", "BatchGradient", "check_deterministic", "on_parts", "validated_loss"]

ULPS: Final = 100  # two evaluations of one loss may differ by this many units in the last place


@dataclass(frozen=True)
class BatchEvaluation:
    """One batch as it is evaluated."""

    index: int  # index of the batch
    weight: float  # share of the batch in the mean
    where: str  # the batch in words, for messages
    buffers: dict[str, Tensor]  # the model's buffers in train mode; the evaluation updates them
    before: float | None  # loss of an earlier evaluation to compare with; None if there is none
    slack: float  # largest difference allowed between the two


@dataclass(frozen=True)
class BatchGradient:
    """Gradient of one batch's loss, with its graph if requested."""

    weight: float  # share of the batch in the mean
    leaves: Sequence[Tensor]  # of the graph: the parameters, in their own shapes
    parts: Sequence[Tensor]  # derivative by each leaf, zero where the loss does not contain it

    @property
    def gradient(self) -> Tensor:
        """The gradient as a flat vector `(n,)`, without its graph: a copy."""
        return torch.cat([part.detach().reshape(-1) for part in self.parts])


def validated_loss(loss: Any, at: BatchEvaluation, model: nn.Module) -> Tensor:
    """Return the loss of a batch as a 0-d tensor after checking that it is finite and reproducible.

    Args:
        loss: Value returned by the loss function.
        at: The batch.
        model: The model; its modules that draw random numbers are named in the error.

    Returns:
        The loss.

    Raises:
        ProbeError: it is not a real scalar, not finite, or differs from the earlier evaluation.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        got = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ProbeError(f"loss_fn must return one real number, got {got} {at.where}: return the mean over the batch")
    if not math.isfinite(number := float(loss.detach())):
        raise ProbeError(f"the loss is {number} {at.where}: nothing can be measured at these parameters")
    check_deterministic(number, at, model)
    return loss.reshape(())


def check_deterministic(number: float, at: BatchEvaluation, model: nn.Module) -> None:
    """Raise if a loss differs from that of the earlier evaluation.

    Args:
        number: The loss.
        at: The batch.
        model: The model; its modules that draw random numbers are named in the error.

    Raises:
        ProbeError: the difference is larger than the slack.
    """
    if at.before is None or abs(number - at.before) <= at.slack:
        return
    active = random_modules(model)
    cause = f"{', '.join(active[:3])} is active" if active else "loss_fn or the model draws random numbers"
    raise ProbeError(
        f"two evaluations of one loss gave {at.before:.9g} and {number:.9g} {at.where}, more than {ULPS} units in "
        f"the last place apart: {cause}; use mode='eval', or take the randomness out"
    )


@contextmanager
def on_parts(samples: Iterable[float]) -> Iterator[None]:
    """Explain an exception inside this context, in which a loss is evaluated on parts of its data.

    Args:
        samples: Number of samples of each part.

    Yields:
        Nothing.

    Raises:
        ProbeError: the model rejected a part.
    """
    try:
        yield
    except ProbeError:
        raise
    except Exception as error:  # the model itself may reject a small batch, with any exception
        raise ProbeError(
            f"the loss fails on a part of {min(samples):g} samples ({type(error).__name__}: {error}): use fewer parts, "
            "or mode='eval'"
        ) from error
