"""Features on their way through a traced network: the layer that wrote them, and what is done to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from torch import fx

from lossscope.probes.gauge.folding import BatchNormFold
from lossscope.probes.gauge.symmetry import Slot

__all__ = ["FLAT", "Attended", "Constant", "Layout", "Read", "Space", "Value", "Weight", "pools_all"]

# Place of the features in a tensor: axis 1, the last axis, or one axis together with positions, features or positions
# first.
Layout: TypeAlias = Literal["channels", "last", "channels flat", "last flat"]
FLAT: Final[dict[Layout, Layout]] = {"channels": "channels flat", "last": "last flat"}


@dataclass(eq=False)
class Read:
    """Weights of a linear layer that read features.

    Attributes:
        slot: The weights.
        bias: The bias of that layer; None if it has none, and if padding changes a constant feature.
        value: What is read.
        target: The space that the layer writes, where its constants hold what the weights make of those of `value`.
    """

    slot: Slot
    bias: Slot | None
    value: Value
    target: Space | None = None

    @property
    def is_grouped(self) -> bool:
        """True for a convolution whose groups read their own features alone."""
        return self.slot.lead > 1 and self.slot.shape[0] > 1


# A bias, an embedding with its mean, or what a layer without a bias makes of constants.
Constant: TypeAlias = Slot | Read


@dataclass
class Space:
    """Features that a linear layer has written, or several whose outputs are added, and what is done to them."""

    name: str
    size: int
    positions: int  # number of axes of positions, such as 2 for an image; 0 where features are last
    writes: list[Slot]
    reads: list[Read] = field(default_factory=list)
    bends: list[Value] = field(default_factory=list)  # what goes into the outputs or a function that is not linear
    linear: bool = True  # only linear functions lie between writes and reads
    block: int = 0  # features in a row that grouped convolutions leave together; all of them without groups
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

    @property
    def mixes(self) -> bool:
        """True if any basis of the features would do."""
        return self.linear and self.block == self.size and not self.is_gain

    @property
    def values(self) -> list[Value]:
        """The features wherever they are used, those that layers read first."""
        return [read.value for read in self.reads] + self.bends

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
        self.block = min(self.block, other.block)
        self.symmetric &= other.symmetric
        self.is_gain |= other.is_gain
        self.origin = None
        other.joined = self


@dataclass(frozen=True)
class Value:
    """Tensor of the trace that holds the features of a space.

    Attributes:
        space: The space.
        layout: Place of the features in the tensor.
        constants: The constant parts of the features, each as often as it is added.
        exact: False if a factor or padding came between, so that the constants are there at another scale.
        parts: Weights that write the features with only linear functions since.
        spans: False if nothing is in the features but what `parts` write.
    """

    space: Space
    layout: Layout
    constants: tuple[Constant, ...] = ()
    exact: bool = True
    parts: tuple[Slot, ...] = ()
    spans: bool = False

    def read(self, slot: Slot, bias: Slot | None) -> Read:
        """Note that weights of a layer read the features."""
        read = Read(slot, bias, self)
        self.space.reads.append(read)
        return read

    def bent(self, *, shifts: bool = False) -> Value:
        """Return the features behind a function that is not linear; constants stay if it only adds them."""
        self.space.linear = False
        self.space.bends.append(replace(self, constants=()) if shifts else self)
        kept = self.constants if shifts else ()
        return Value(self.space, self.layout, kept, self.exact or not shifts, spans=True)

    def plus(self, other: Value) -> Value:
        """Return the sum with features that are written to the same space."""
        self.space.join(other.space)
        return Value(
            self.space,
            self.layout,
            (*self.constants, *other.constants),
            self.exact and other.exact,
            (*self.parts, *other.parts),
            self.spans or other.spans,
        )


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
