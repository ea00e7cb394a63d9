"""What an optimizer is called where it has no name of its own, and whether it ascends."""

from __future__ import annotations

from torch.optim.optimizer import Optimizer

from lossscope.optimizer import Ascending, Relative

__all__ = ["ascends", "optimizer_name"]


def ascends(optimizer: Optimizer) -> bool:
    """Whether some of its steps take a second gradient, at ascended weights.

    Args:
        optimizer: Any.

    Returns:
        True where the mode is not `base` and some radius is above 0; False for an optimizer that is not of ours.
    """
    if not isinstance(optimizer, Ascending):
        return False
    groups = optimizer.param_groups
    return bool(groups[0]["mode"] != "base" and any(group["rho"] > 0 for group in groups))


def optimizer_name(optimizer: Optimizer) -> str:
    """The optimizer's class, or what it does where the class does not tell: `muon`, `sgd+sam`, `adamw+gsam`.

    A `Relative` is called after its rule, with the ascent behind a plus where there is one: runs of two rules are two
    arms, and a checkpoint's optimizer can be made again from this name and its state.

    Args:
        optimizer: Any.

    Returns:
        The name.
    """
    if type(optimizer) is not Relative:
        return type(optimizer).__name__
    if not ascends(optimizer):
        return optimizer.rule
    first = optimizer.param_groups[0]
    ascent = first["perturbation"] if first["surrogate"] == "adversarial" else first["surrogate"]
    return f"{optimizer.rule}+{ascent}"
