"""Features on their way through a traced network: the layer that wrote them, and what is done to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from torch import fx

from lossscope.probes.gauge.folding import BatchNormFold
from lossscope.probes.gauge.symmetry import Slot

__all__ = ["FLAT", "Attended", "Layout", "Read", "Space", "Value", "Weight", "pools_all"]

# Place of the features in a tensor: axis 1, the last axis, or one axis together with positions, features or positions
# first.
Layout: TypeAlias = Literal["channels", "last", "channels flat", "last flat"]
FLAT: Final[dict[Layout, Layout]] = {"channels": "channels flat", "last": "last flat"}


@dataclass(frozen=True)
class Read:
    """Weights of a linear layer that read features.

    Attributes:
        slot: The weights.
        bias: Name of the bias of that layer; None if it has none, and for convolutions, whose padding a constant
            feature would not survive.
        constants: The biases, and embeddings with their means, that are a constant part of what is read.
        exact: False if a factor or padding came between, so that the constants are read at another scale.
    """

    slot: Slot
    bias: str | None
    constants: tuple[Slot, ...]
    exact: bool


@dataclass
class Space:
    """Features that a linear layer has written, or several whose outputs are added, and what is done to them."""

    name: str
    size: int
    positions: int  # number of axes of positions, such as 2 for an image; 0 where features are last
    writes: list[Slot]
    reads: list[Read] = field(default_factory=list)
    bends: list[tuple[Slot, ...]] = field(default_factory=list)  # constants at each function that is not linear
    linear: bool = True  # only linear functions lie between writes and reads, and no grouped convolution
    symmetric: bool = True
    reasons: list[str] = field(default_factory=list)
    origin: fx.Node | None = None  # the node that has written them
    folds: list[BatchNormFold] = field(default_factory=list)
    is_gain: bool = False  # gain and shift of a normalization, which scale each feature on its own
    joined: Space | None = None  # the space that has taken over all that is here

    @property
    def whole(self) -> Space:
        """The space that these features belong to."""
        return self if self.joined is None else self.joined.whole

    @property
    def is_sum(self) -> bool:
        """True if outputs of several layers are added in it."""
        return self.origin is None

    def join(self, other: Space) -> None:
        """Take over another space, whose features are added to those of this one."""
        if other is self:
            return
        self.name = f"{self.name} + {other.name}"
        self.writes += other.writes
        self.reads += other.reads
        self.bends += other.bends
        self.reasons += other.reasons
        self.folds += other.folds
        self.linear &= other.linear
        self.symmetric &= other.symmetric
        self.is_gain |= other.is_gain
        self.origin = None
        other.joined = self


@dataclass(frozen=True)
class Value:
    """Tensor of the trace that holds the features of a space, with its constant parts as in `Read`."""

    space: Space
    layout: Layout
    constants: tuple[Slot, ...] = ()
    exact: bool = True

    def read(self, slot: Slot, bias: str | None) -> None:
        """Note that weights of a layer read the features."""
        self.space.reads.append(Read(slot, bias, self.constants, self.exact))

    def bent(self) -> Value:
        """Return the features behind a function that is not linear, which has no constant part."""
        self.space.linear = False
        self.space.bends.append(self.constants)
        return Value(self.space, self.layout)


@dataclass(frozen=True)
class Weight:
    """Tensor of the trace that is a parameter itself."""

    name: str


@dataclass(frozen=True)
class Attended:
    """Pair of the output of an attention layer and its attention weights."""

    output: Value


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
