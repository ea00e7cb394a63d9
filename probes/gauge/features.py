"""Features on their way through a traced network: the layer that wrote them, and what is done to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from torch import fx

from lossscope.probes.gauge.folding import BatchNormFold
from lossscope.probes.gauge.symmetry import Slot

__all__ = ["FLAT", "Layout", "Space", "Value", "Weight", "pools_all"]

# Place of the features in a tensor: axis 1, the last axis, or one axis together with positions, features or positions
# first.
Layout: TypeAlias = Literal["channels", "last", "channels flat", "last flat"]
FLAT: Final[dict[Layout, Layout]] = {"channels": "channels flat", "last": "last flat"}


@dataclass
class Space:
    """Features that a linear layer has written, and what is done to them."""

    name: str
    size: int
    positions: int  # number of axes of positions, such as 2 for an image; 0 where features are last
    writes: list[Slot]
    reads: list[Slot] = field(default_factory=list)
    linear: bool = True  # only linear functions lie between writes and reads, and no grouped convolution
    symmetric: bool = True
    reasons: list[str] = field(default_factory=list)
    origin: fx.Node | None = None  # the node that has written them
    biases: list[str | None] = field(default_factory=list)  # of the layers that read them; None also for convolutions
    fold: BatchNormFold | None = None
    is_gain: bool = False  # gain and shift of a normalization, which scale each feature on its own


@dataclass(frozen=True)
class Value:
    """Tensor of the trace that holds the features of a space."""

    space: Space
    layout: Layout


@dataclass(frozen=True)
class Weight:
    """Tensor of the trace that is a parameter itself."""

    name: str


def pools_all(node: fx.Node, value: Value) -> bool:
    """Return True if a mean is over all axes of positions of channels and drops them."""
    axes = value.space.positions
    given: dict[str, Any] = {"dim": None, "keepdim": False}
    given |= dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    dims = given["dim"]
    if value.layout != "channels" or given["keepdim"] is not False or given.keys() != {"dim", "keepdim"}:
        return False
    wanted = dims if isinstance(dims, tuple | list) else (dims,)
    if not all(isinstance(one, int) for one in wanted):
        return False
    return sorted(one % (axes + 2) for one in wanted) == list(range(2, axes + 2))
