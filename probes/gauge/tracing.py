"""Symmetries of a network, found by following its features through a trace by torch.fx.

Each linear layer opens a `Space` of features. Functions that commute with positive factors hand it on, and the next
linear layer closes it: then the rows of the first layer may be multiplied by factors and the columns of the second
divided by them. A function that does not commute with them ends the symmetry; one that is not known makes it unknown.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from lossscope.probes.gauge.operations import Effect, effect_of_call, effect_of_module
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Slot, Symmetry
from lossscope.probes.objective.module_state import ModuleState

__all__ = ["Symmetries", "symmetries_of"]

# Place of the features in a tensor: axis 1, the last axis, or one axis together with positions, features or positions
# first.
Layout: TypeAlias = Literal["channels", "last", "channels flat", "last flat"]
_FLAT: Final[dict[Layout, Layout]] = {"channels": "channels flat", "last": "last flat"}
_CONVOLUTIONS: Final = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED: Final = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
_FUNCTIONAL: Final[dict[Any, int]] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


@dataclass(frozen=True)
class Symmetries:
    """The rescaling symmetries of a network.

    Attributes:
        known: The symmetries, in the order of the layers.
        unknown: Layers whose symmetries are not known, with the reason; empty if there are none.
    """

    known: tuple[Symmetry, ...]
    unknown: tuple[str, ...]


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


@dataclass(frozen=True)
class Value:
    """Tensor of the trace that holds the features of a space."""

    space: Space
    layout: Layout


@dataclass(frozen=True)
class Weight:
    """Tensor of the trace that is a parameter itself."""

    name: str


def symmetries_of(model: nn.Module) -> Symmetries:
    """Find the rescaling symmetries of a network in eval mode.

    Args:
        model: The network; it is traced, and its state is restored afterwards.

    Returns:
        The symmetries and the layers about which nothing is known.
    """
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        return Symmetries((), ("the network: its forward pass has hooks",))
    modules = list(model.modules())
    state, modes = ModuleState(modules), [module.training for module in modules]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about a forward pass without numbers
            model.eval()
            graph = fx.Tracer(param_shapes_constant=True).trace(model)
    except Exception as error:
        words = (str(error).strip() or "no reason given").splitlines()[0]
        return Symmetries((), (f"the network: torch.fx cannot trace it ({type(error).__name__}: {words})",))
    finally:
        state.restore()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return _Walk(model, graph).symmetries()


class _Walk:
    """Walk through the nodes of a trace, which collects spaces and reasons."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._model, self._graph = model, graph
        self._names: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            self._names[id(parameter)] = name
        self._parameters = dict(model.named_parameters())
        self._uses: Counter[str] = Counter()
        self._spaces: list[Space] = []
        self._unknown: list[str] = []
        self._values: dict[fx.Node, Value | Weight | None] = {}

    def symmetries(self) -> Symmetries:
        """Return what is found in the trace."""
        for node in self._graph.nodes:
            self._values[node] = self._visit(node)
        known = [found for space in self._spaces if (found := self._conclusion(space)) is not None]
        unused = self._parameters.keys() - self._uses.keys()
        if unused:
            self._unknown.append(f"{', '.join(sorted(unused))}: not used in the trace of the forward pass")
        return Symmetries(tuple(known), tuple(dict.fromkeys(self._unknown)))

    def _visit(self, node: fx.Node) -> Value | Weight | None:
        """Return what a node holds; None if it holds no features that a factor could multiply."""
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "call_module":
            return self._module(node, self._model.get_submodule(str(node.target)))
        if node.op in ("call_function", "call_method"):
            return self._call(node)
        if node.op == "output":
            for value in self._inputs(node):
                value.space.symmetric = False  # its scale is that of the outputs
        return None

    def _attribute(self, node: fx.Node) -> Weight | None:
        """Return the parameter that an attribute is, counting its uses."""
        found: Any = self._model
        for part in str(node.target).split("."):
            found = getattr(found, part)
        name = self._names.get(id(found))
        if name is None:
            return None
        self._uses[name] += len(node.users)
        return Weight(name)

    def _module(self, node: fx.Node, module: nn.Module) -> Value | None:
        """Return the output of a layer."""
        own = {key: self._names[id(p)] for key, p in module.named_parameters()}
        self._uses.update(own.values())
        kind, name, groups = type(module), str(node.target), getattr(module, "groups", 1)
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return self._opaque(node, f"{name}, which has hooks", own)
        if kind is nn.Linear and "weight" in own:
            return self._dense(node, name, own["weight"], own.get("bias"))
        if isinstance(module, nn.Embedding) and kind is nn.Embedding and module.max_norm is None:
            return self._embedding(name, own["weight"])
        if kind in _CONVOLUTIONS and "weight" in own:
            return self._convolution(node, name, own["weight"], own.get("bias"), _CONVOLUTIONS[kind], groups)
        if kind in _TRANSPOSED and "weight" in own:
            return self._transposed(node, name, own["weight"], own.get("bias"), _TRANSPOSED[kind], groups)
        effect = effect_of_module(module)
        if own and kind is not nn.PReLU:
            effect = Effect.UNKNOWN
        return self._after(node, effect, f"{name} ({kind.__name__})", own)

    def _call(self, node: fx.Node) -> Value | None:
        """Return the output of a function or a method."""
        target = node.target
        if target is F.linear or target in _FUNCTIONAL:
            return self._functional(node)
        words = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        weights = [self._values[one] for one in node.all_input_nodes]
        names = {one.name: one.name for one in weights if isinstance(one, Weight)}
        effect = Effect.UNKNOWN if names else effect_of_call(node)
        if effect is Effect.QUERY:
            return None
        return self._after(node, effect, words, names)

    def _functional(self, node: fx.Node) -> Value | None:
        """Return the output of a layer that is called as a function of its weights."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (self._values.get(given.get(key)) for key in ("weight", "bias"))  # type: ignore[arg-type]
        words = str(getattr(node.target, "__name__", node.target))
        if not isinstance(weight, Weight) or not (isinstance(bias, Weight) or given.get("bias") is None):
            weights = [self._values[one] for one in node.all_input_nodes]
            return self._opaque(node, words, {one.name: one.name for one in weights if isinstance(one, Weight)})
        bias_name = bias.name if isinstance(bias, Weight) else None
        if node.target is F.linear:
            return self._dense(node, weight.name, weight.name, bias_name)
        axes, groups = _FUNCTIONAL[node.target], given.get("groups", 1)
        return self._convolution(node, weight.name, weight.name, bias_name, axes, groups)

    def _dense(self, node: fx.Node, name: str, weight: str, bias: str | None) -> Value:
        """Return the output of a linear layer, which reads the last axis."""
        outputs, inputs = self._parameters[weight].shape
        for value in self._inputs(node):
            size, layout = value.space.size, value.layout
            repeats = inputs // size
            if layout == "channels" or inputs % size or (layout == "last" and repeats > 1):
                value.space.reasons.append(f"{name} does not read its {size} features along one axis")
            elif layout == "last flat":
                value.space.reads.append(Slot(weight, (outputs, repeats, size), (2, 0, 1)))
            else:
                value.space.reads.append(Slot(weight, (outputs, size, repeats), (1, 0, 2)))
        return self._opened(name, outputs, 0, [Slot(weight, (outputs, inputs), (0, 1)), *_bias(bias, outputs)])

    def _embedding(self, name: str, weight: str) -> Value:
        """Return the output of an embedding: a linear layer of indicators."""
        count, size = self._parameters[weight].shape
        return self._opened(name, size, 0, [Slot(weight, (count, size), (1, 0))])

    def _convolution(
        self, node: fx.Node, name: str, weight: str, bias: str | None, axes: int, groups: Any
    ) -> Value | None:
        """Return the output of a convolution, which reads axis 1."""
        outputs, inputs, *kernel = self._parameters[weight].shape
        if not isinstance(groups, int):
            return self._opaque(node, f"{name}, which has a traced number of groups", {weight: weight})
        rest = tuple(range(3, 3 + axes))
        read = Slot(weight, (groups, outputs // groups, inputs, *kernel), (0, 2, 1, *rest), lead=2)
        self._read_channels(node, name, read, inputs * groups, groups)
        write = Slot(weight, (outputs, inputs, *kernel), (0, 1, *(axis - 1 for axis in rest)))
        return self._opened(name, outputs, axes, [write, *_bias(bias, outputs)], linear=groups == 1)

    def _transposed(self, node: fx.Node, name: str, weight: str, bias: str | None, axes: int, groups: int) -> Value:
        """Return the output of a transposed convolution, which reads axis 1."""
        inputs, outputs, *kernel = self._parameters[weight].shape
        rest = tuple(range(3, 3 + axes))
        read = Slot(weight, (inputs, outputs, *kernel), (0, 1, *(axis - 1 for axis in rest)))
        self._read_channels(node, name, read, inputs, groups)
        write = Slot(weight, (groups, inputs // groups, outputs, *kernel), (0, 2, 1, *rest), lead=2)
        size = outputs * groups
        return self._opened(name, size, axes, [write, *_bias(bias, size)], linear=groups == 1)

    def _read_channels(self, node: fx.Node, name: str, read: Slot, size: int, groups: int) -> None:
        """Close the space that a convolution reads."""
        for value in self._inputs(node):
            space = value.space
            if value.layout != "channels" or space.size != size:
                space.reasons.append(f"{name} does not read its {space.size} features as channels")
            space.reads.append(read)
            space.linear &= groups == 1

    def _opened(self, name: str, size: int, positions: int, writes: list[Slot], *, linear: bool = True) -> Value:
        """Return the features of a new space."""
        space = Space(name, size, positions, writes, linear=linear)
        self._spaces.append(space)
        return Value(space, "channels" if positions else "last")

    def _after(self, node: fx.Node, effect: Effect, words: str, weights: dict[str, str]) -> Value | None:
        """Return the features behind a function of a known effect."""
        values = self._inputs(node)
        if not values and (effect is not Effect.UNKNOWN or not weights):
            return None  # a function of the data
        if len(values) != 1 or effect is Effect.UNKNOWN:
            return self._opaque(node, words, weights)
        (value,) = values
        space, layout = value.space, value.layout
        if effect is Effect.SMOOTH:
            space.symmetric = False
            return None
        if effect is Effect.FLATTEN and layout in _FLAT:
            return Value(space, _FLAT[layout])
        if effect is Effect.POOLED:
            return Value(space, "last") if _pools_all(node, value) else self._opaque(node, words, weights)
        if effect in (Effect.FLATTEN, Effect.QUERY):
            return value if effect is Effect.FLATTEN else None
        space.linear &= effect is Effect.LINEAR
        return value

    def _opaque(self, node: fx.Node, words: str, weights: dict[str, str]) -> Value | None:
        """Note that nothing is known about the features and parameters that a node uses; return no features."""
        for value in self._inputs(node):
            value.space.reasons.append(f"its features go into {words}")
        if weights:
            self._unknown.append(f"{', '.join(dict.fromkeys(weights.values()))}: used by {words}")
        return None

    def _inputs(self, node: fx.Node) -> list[Value]:
        """Return the features that a node uses."""
        values = [self._values[one] for one in node.all_input_nodes]
        return [value for value in values if isinstance(value, Value)]

    def _conclusion(self, space: Space) -> Symmetry | None:
        """Return the symmetry of a space; None if it has none, or if it is not known."""
        slots = (*space.writes, *space.reads)
        for slot in slots:
            if self._uses[slot.name] > 1:
                space.reasons.append(f"{slot.name} is used more than once")
        if space.reasons:
            self._unknown += [f"{space.name}: {reason}" for reason in dict.fromkeys(space.reasons)]
            return None
        if not space.symmetric or not space.reads or any(self._is_fixed(slot.name) for slot in slots):
            return None
        if space.linear:
            return Mixing(space.name, space.size, tuple(space.writes), tuple(space.reads))
        return Scaling(space.name, space.size, tuple(space.writes), tuple(space.reads))

    def _is_fixed(self, name: str) -> bool:
        """Return True for a frozen parameter that a factor would change."""
        parameter = self._parameters[name]
        return not parameter.requires_grad and bool(parameter.detach().count_nonzero())


def _bias(name: str | None, size: int) -> Iterator[Slot]:
    """Yield the slot of a bias if there is one."""
    if name is not None:
        yield Slot(name, (size,), (0,))


def _pools_all(node: fx.Node, value: Value) -> bool:
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
