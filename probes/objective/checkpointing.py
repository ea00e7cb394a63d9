"""Activation checkpoints of torch's older kind, through which no derivative can be asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lossscope.probes.errors import ProbeError

__all__ = ["no_reentrant_checkpoint"]


@contextmanager
def no_reentrant_checkpoint() -> Iterator[None]:
    """A context that refuses `torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`.

    Such a checkpoint raises under `torch.autograd.grad`. Where its inputs require no gradient it has no derivative
    by the parameters within, and torch only warns.

    Yields:
        Nothing.

    Raises:
        ProbeError: there was one.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="None of the inputs have requires_grad=True")
            yield
    except (RuntimeError, UserWarning) as error:
        if "use_reentrant" in str(error) or "None of the inputs have requires_grad" in str(error):
            raise ProbeError(
                "the model goes through checkpoint(..., use_reentrant=True), which has no derivative here: pass "
                "use_reentrant=False"
            ) from error
        raise
