"""Reason that a bound cannot be met: the rounding of products, by what causes it."""

from __future__ import annotations

from typing import Final

import torch

from lossscope.probes.operators.base import ASSUMED, SymmetricOperator

__all__ = ["rounding_cause", "rounding_remedy"]

_COARSE: Final = {torch.finfo(getattr(torch, name)).eps: name for name in ("float16", "bfloat16")}


def rounding_cause(
    operator: SymmetricOperator, rounding: float, scale: float, rel: float, what: str = "the largest eigenvalue"
) -> str:
    """Return the reason that a bound cannot be met where it is the rounding of products; empty if it is not.

    Args:
        operator: The operator.
        rounding: Bound of the error that rounding causes, absolute.
        scale: Number to which the bound is relative.
        rel: The requested bound.
        what: Name of that number.

    Returns:
        A clause without a remedy.
    """
    if not rounding > rel * scale:
        return ""
    off = f"up to {rounding / scale:.2g} of {what}" if scale else "more than any bound"
    why = "; large terms cancel in them, as p (1 - p) of fitted samples or the slopes of saturated units do"
    cancelled = rounding > ASSUMED * operator.unit * scale
    return f"products in {_arithmetic(operator)} are off by {off}, where {rel:g} was asked{why if cancelled else ''}"


def rounding_remedy(operator: SymmetricOperator, share: float) -> str:
    """Return what meets the bound where rounding is the cause that it is not met.

    Args:
        operator: The operator.
        share: Error that rounding causes, relative to the number measured.

    Returns:
        A clause in the imperative.
    """
    ways = [] if operator.dtype == torch.float64 else ["measure objective.in_double()"]
    ways += ["raise rel"] if share < 1 else []
    return ", or ".join(ways) or "no digit is left: measure where the loss is larger"


def _arithmetic(operator: SymmetricOperator) -> str:
    """Return the dtype of the products, and a coarser one that their factors have."""
    kind = str(operator.dtype).removeprefix("torch.")
    if operator.unit in _COARSE:
        return f"{kind} with factors in {_COARSE[operator.unit]} (autocast, or the model's own dtype)"
    coarse = torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32
    if operator.device.type == "cuda" and operator.dtype == torch.float32 and coarse:
        return f"{kind} with factors in TF32 (torch.backends.cuda.matmul)"
    return kind
