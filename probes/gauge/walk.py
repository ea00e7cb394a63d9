"""Features followed through the nodes of a network traced by torch.fx.

Each linear layer opens a `Space` of features. Functions that commute with positive factors hand it on, and the next
linear layer closes it: then the rows of the first layer may be multiplied by factors and the columns of the second
divided by them. A function that does not commute with them ends the symmetry; one that is not known makes it unknown.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

from lossscope.probes.gauge.attention import MASKS, inner_symmetries, input_slots, is_plain
from lossscope.probes.gauge.conclusion import Conclusion, Symmetries
from lossscope.probes.gauge.features import FLAT, Attended, Constant, Read, Space, Value, Weight, pools_all
from lossscope.probes.gauge.folding import BatchNormFold, ConstantFold, is_folded
from lossscope.probes.gauge.operations import (
    Effect,
    effect_of_call,
    effect_of_module,
    has_padding,
    is_query,
    keeps_batch,
    pooled_axes,
)
from lossscope.probes.gauge.symmetry import Mixing, Slot

__all__ = ["Walk"]

_CONVOLUTIONS: Final = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED: Final = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FUNCTIONAL: Final[dict[Any, int]] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_ADDITIONS: Final[set[Any]] = {operator.add, operator.iadd, torch.add, "add", "add_"}

_IN_PLACE: Final[set[Any]] = {operator.iadd, "add_"}


class Walk:
    """Walk through the nodes of a trace, which collects spaces and reasons.

    Args:
        model: The network.
        graph: Its trace in eval mode.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._model, self._graph = model, graph
        self._names: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            self._names[id(parameter)] = name
        self._parameters = dict(model.named_parameters())
        self._uses: Counter[str] = Counter()
        self._spaces: list[Space] = []
        self._inner: list[tuple[list[Mixing], list[ConstantFold]]] = []  # of attention layers
        self._unknown: list[str] = []
        self._values: dict[fx.Node, Value | Weight | Attended | None] = {}

    def symmetries(self) -> Symmetries:
        """Return what is found in the trace."""
        for node in self._graph.nodes:
            self._values[node] = self._visit(node)
        conclusion = Conclusion(self._parameters, self._uses)
        for pairs, folds in self._inner:
            conclusion.add_pairs(pairs, folds)
        for space in self._spaces:
            if space.joined is None:
                conclusion.add(space)
        unknown = self._unknown + conclusion.unknown
        unused = {name for name, one in self._parameters.items() if one.requires_grad} - self._uses.keys()
        if unused:
            unknown.append(f"{', '.join(sorted(unused))}: not used in the trace of the forward pass")
        return Symmetries(tuple(conclusion.known), conclusion.folds, tuple(dict.fromkeys(unknown)))

    def _visit(self, node: fx.Node) -> Value | Weight | Attended | None:
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
                value.space.bends.append(value)
        return None

    def _attribute(self, node: fx.Node) -> Weight | None:
        """Return the parameter that an attribute is, counting its uses."""
        found: Any = self._model
        for part in str(node.target).split("."):
            found = getattr(found, part)
        name = self._names.get(id(found))
        if name is None:
            return None
        self._uses[name] += sum(not is_query(user) for user in node.users)
        return Weight(name)

    def _module(self, node: fx.Node, module: nn.Module) -> Value | Attended | None:
        """Return the output of a layer."""
        own = {key: self._names[id(p)] for key, p in module.named_parameters()}
        self._uses.update(own.values())
        kind, name, groups = type(module), str(node.target), getattr(module, "groups", 1)
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return self._opaque(node, f"{name}, which has hooks", own)
        if module._buffers and kind not in _BATCH_NORMS:
            return self._opaque(node, f"{name}, which has buffers", own)
        masks = MASKS if kind is nn.MultiheadAttention else ()
        given = (*node.args[:3], *(one for key, one in node.kwargs.items() if key not in masks))
        found = [self._values.get(one) for one in given if isinstance(one, fx.Node)]
        if weights := {one.name: one.name for one in found if isinstance(one, Weight)}:
            return self._opaque(node, name, own | weights)
        if kind is nn.Linear and "weight" in own:
            return self._dense(node, name, own["weight"], own.get("bias"))
        if isinstance(module, nn.Embedding) and kind is nn.Embedding and module.max_norm is None:
            return self._embedding(node, name, own["weight"])
        if kind in _CONVOLUTIONS and "weight" in own:
            padded = module.padding_mode == "zeros" and has_padding(module.padding)
            axes = _CONVOLUTIONS[kind]
            return self._convolution(node, name, own["weight"], own.get("bias"), axes, groups, padded=padded)
        if kind in _TRANSPOSED and "weight" in own:
            return self._transposed(node, name, own["weight"], own.get("bias"), _TRANSPOSED[kind], groups)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and kind in _BATCH_NORMS:
            return self._batch_norm(node, name, module, own)
        if isinstance(module, nn.MultiheadAttention) and kind is nn.MultiheadAttention:
            return self._attention(node, name, module, own)
        if kind in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm):
            return self._normalized(node, f"{name} ({kind.__name__})", module, own)
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
        pair = self._values[node.all_input_nodes[0]] if target is operator.getitem else None
        if isinstance(pair, Attended) and node.args[1] in (0, 1, -1, -2):
            return pair.output if node.args[1] in (0, -2) else None
        if target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
            found = self._added(*node.args)
            if found is not None:
                if target in _IN_PLACE:
                    self._values[node.all_input_nodes[0]] = found
                return found
        if is_query(node):
            return None
        weights = [self._values[one] for one in node.all_input_nodes]
        names = {one.name: one.name for one in weights if isinstance(one, Weight)}
        effect = Effect.UNKNOWN if names else effect_of_call(node)
        return self._after(node, effect, words, names)

    def _functional(self, node: fx.Node) -> Value | None:
        """Return the output of a layer that is called as a function of its weights."""
        order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(order, node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (self._values.get(given.get(key)) for key in ("weight", "bias"))  # type: ignore[arg-type]
        words = str(getattr(node.target, "__name__", node.target))
        weights = [self._values[one] for one in node.all_input_nodes]
        names = {one.name: one.name for one in weights if isinstance(one, Weight)}
        plain = isinstance(weight, Weight) and (isinstance(bias, Weight) or given.get("bias") is None)
        if not isinstance(weight, Weight) or not plain or isinstance(weights[0], Weight):
            return self._opaque(node, words, names)
        bias_name = bias.name if isinstance(bias, Weight) else None
        if node.target is F.linear:
            return self._dense(node, weight.name, weight.name, bias_name)
        axes, groups = _FUNCTIONAL[node.target], given.get("groups", 1)
        padded = has_padding(given.get("padding", 0))
        return self._convolution(node, weight.name, weight.name, bias_name, axes, groups, padded=padded)

    def _dense(self, node: fx.Node, name: str, weight: str, bias: str | None) -> Value:
        """Return the output of a linear layer, which reads the last axis."""
        outputs, inputs = self._parameters[weight].shape
        own_bias, reads = next(_bias(bias, outputs), None), []
        for value in self._inputs(node):
            size, layout = value.space.size, value.layout
            repeats = inputs // max(size, 1)
            if layout == "channels" or inputs != repeats * size or (layout == "last" and repeats > 1):
                value.space.reasons.append(f"{name} does not read its {size} features along one axis")
            elif layout == "last flat":
                reads.append(value.read(Slot(weight, (outputs, repeats, size), (2, 0, 1)), own_bias))
            else:
                reads.append(value.read(Slot(weight, (outputs, size, repeats), (1, 0, 2)), own_bias))
        write = Slot(weight, (outputs, inputs), (0, 1))
        return self._opened(node, name, outputs, 0, [write], _bias(bias, outputs), passed=reads)

    def _embedding(self, node: fx.Node, name: str, weight: str) -> Value:
        """Return the output of an embedding: a linear layer of indicators."""
        count, size = self._parameters[weight].shape
        write = Slot(weight, (count, size), (1, 0))
        return self._opened(node, name, size, 0, [write], embedded=True)

    def _convolution(
        self, node: fx.Node, name: str, weight: str, bias: str | None, axes: int, groups: Any, *, padded: bool
    ) -> Value | None:
        """Return the output of a convolution, which reads axis 1."""
        outputs, inputs, *kernel = self._parameters[weight].shape
        if not isinstance(groups, int):
            return self._opaque(node, f"{name}, which has a traced number of groups", {weight: weight})
        rest = tuple(range(3, 3 + axes))
        read = Slot(weight, (groups, outputs // groups, inputs, *kernel), (0, 2, 1, *rest), lead=2)
        own_bias = None if padded else next(_bias(bias, outputs), None)
        reads = self._read_channels(node, name, read, inputs * groups, groups, own_bias)
        write = Slot(weight, (outputs, inputs, *kernel), (0, 1, *(axis - 1 for axis in rest)))
        passed = [] if padded else reads
        return self._opened(node, name, outputs, axes, [write], _bias(bias, outputs), passed=passed, groups=groups)

    def _transposed(self, node: fx.Node, name: str, weight: str, bias: str | None, axes: int, groups: int) -> Value:
        """Return the output of a transposed convolution, which reads axis 1."""
        inputs, outputs, *kernel = self._parameters[weight].shape
        rest = tuple(range(3, 3 + axes))
        read = Slot(weight, (inputs, outputs, *kernel), (0, 1, *(axis - 1 for axis in rest)))
        self._read_channels(node, name, read, inputs, groups, None)
        write = Slot(weight, (groups, inputs // groups, outputs, *kernel), (0, 2, 1, *rest), lead=2)
        size = outputs * groups
        return self._opened(node, name, size, axes, [write], _bias(bias, size), groups=groups)

    def _read_channels(
        self, node: fx.Node, name: str, read: Slot, size: int, groups: int, bias: Slot | None
    ) -> list[Read]:
        """Close the space that a convolution reads."""
        reads = []
        for value in self._inputs(node):
            space = value.space
            if value.layout != "channels" or space.size != size:
                space.reasons.append(f"{name} does not read its {space.size} features as channels")
            else:
                reads.append(value.read(read, bias))
                space.block = min(space.block, size // groups)
        return reads

    def _opened(
        self,
        node: fx.Node,
        name: str,
        size: int,
        positions: int,
        weights: list[Slot],
        biases: Iterable[Slot] = (),
        *,
        passed: Sequence[Read] = (),
        groups: int = 1,
        embedded: bool = False,
    ) -> Value:
        """Return the features of a new space, whose constants are biases, or what its layer makes of those it reads."""
        own = tuple(biases)
        space = Space(name, size, positions, [*weights, *own], origin=node, block=size // groups)
        self._spaces.append(space)
        constants: tuple[Constant, ...] = own or tuple(weights if embedded else ())
        for read in passed if not own else ():
            if read.value.constants:
                read.target = space
                constants = (*constants, read)
        parts = own if groups > 1 else (*weights, *own)
        return Value(space, "channels" if positions else "last", constants, parts=parts, spans=groups > 1)

    def _batch_norm(self, node: fx.Node, name: str, module: nn.Module, own: dict[str, str]) -> Value | None:
        """Return the output of a batch norm, which in eval mode is one affine map with the layer right before it."""
        words, values = f"{name} ({type(module).__name__})", self._inputs(node)
        if not values or module.running_mean is None or own.keys() != {"weight", "bias"}:
            return self._opaque(node, words, own)
        space = values[0].space
        names = [slot.name for slot in space.writes] + list(own.values())
        alone = space.origin is node.all_input_nodes[0] and len(space.origin.users) == 1 and not space.folds
        free = all(self._parameters[one].requires_grad for one in names)
        bias = space.writes[1].name if len(space.writes) > 1 else None
        folded = is_folded(module, own_bias=bias is None)
        if not alone or not (free or folded) or self._parameters[own["weight"]].shape != (space.size,):
            return self._opaque(node, words, own)
        if not folded:
            space.folds = [BatchNormFold(name, space.writes[0], bias)]
        space.origin = node
        if bias is None:
            space.writes += _bias(own["bias"], space.size)
        passed = [one for one in values[0].constants if isinstance(one, Read)]
        return replace(values[0], constants=(space.writes[1], *passed), parts=(*values[0].parts, *space.writes[1:]))

    def _normalized(self, node: fx.Node, words: str, module: nn.Module, own: dict[str, str]) -> Value | None:
        """Return the output of a normalization: its gain and shift write it."""
        values = self._inputs(node)
        for value in values:
            value.space.reasons.append(f"{words} ignores its scale but for eps, so that no point has the least norm")
        if not own:
            return None
        size = self._parameters[own["weight"]].shape
        positions = values[0].space.positions if values else 0
        wanted = "channels" if isinstance(module, nn.GroupNorm) else "last"
        if (
            len(size) != 1
            or any(value.layout != wanted for value in values)
            or (wanted == "channels") != (positions > 0)
        ):
            return self._opaque(node, words, own)
        gain, shift = (list(_bias(own.get(key), size[0])) for key in ("weight", "bias"))
        value = self._opened(node, words, size[0], positions, gain, shift)
        value.space.is_gain = True
        return replace(value, parts=tuple(shift), spans=True)

    def _after(self, node: fx.Node, effect: Effect, words: str, weights: dict[str, str]) -> Value | None:
        """Return the features behind a function of a known effect."""
        values = self._inputs(node)
        if not values and (effect is not Effect.UNKNOWN or not weights):
            return None  # a function of the data
        if len(values) != 1 or effect is Effect.UNKNOWN:
            return self._opaque(node, words, weights)
        (value,) = values
        space, layout = value.space, value.layout
        axes = pooled_axes(self._model, node)
        if axes is not None and (layout != "channels" or axes != space.positions):
            return self._opaque(node, words, weights)
        if effect is Effect.SMOOTH:
            space.symmetric = False
            space.bends.append(value)
            return None
        if effect is Effect.FLATTEN and layout == "channels" and not keeps_batch(node, self._holds_features):
            return self._opaque(node, words, weights)
        if effect is Effect.FLATTEN and layout in FLAT:
            return replace(value, layout=FLAT[layout])
        if effect is Effect.POOLED:
            return replace(value, layout="last") if pools_all(node, value) else self._opaque(node, words, weights)
        if effect in (Effect.FLATTEN, Effect.AVERAGE):
            return value
        if effect is Effect.LINEAR:
            return replace(value, exact=False)
        return value.bent(shifts=effect is Effect.MAXIMUM)

    def _holds_features(self, node: fx.Node) -> bool:
        """Return True for a node whose features are followed, so that its first axis is that of its input."""
        return isinstance(self._values.get(node), Value)

    def _added(self, first: Any, second: Any) -> Value | None:
        """Return the sum of two features of one size, or of features and a parameter; None for other sums."""
        one, other = (self._values.get(term) if isinstance(term, fx.Node) else None for term in (first, second))
        if isinstance(one, Weight):
            one, other = other, one
        if not isinstance(one, Value):
            return None
        one = replace(one, space=one.space.whole)
        if isinstance(other, Weight):
            shape = self._parameters[other.name].shape
            if one.layout != "last" or not shape or shape[-1] != one.space.size:
                return None
            slot = Slot(other.name, (shape.numel() // shape[-1], shape[-1]), (1, 0))
            one.space.writes.append(slot)
            one.space.origin = None
            return replace(one, constants=(*one.constants, slot), parts=(*one.parts, slot))
        if not isinstance(other, Value):
            return None
        same = other.space.whole.size == one.space.size and other.space.whole.positions == one.space.positions
        if other.layout != one.layout or not same:
            return None
        return one.plus(replace(other, space=other.space.whole))

    def _attention(
        self, node: fx.Node, name: str, module: nn.MultiheadAttention, own: dict[str, str]
    ) -> Value | Attended | None:
        """Return the output of an attention layer, and note what may change between its own weights."""
        given: dict[str, Any] = dict(zip(("query", "key", "value"), node.args, strict=False)) | dict(node.kwargs)
        masks = [given[key] for key in MASKS if isinstance(given.get(key), fx.Node)]
        if not is_plain(module, own) or any(isinstance(self._values[mask], Value) for mask in masks):
            words = f"{name}, an attention layer with a mask of features, or with keys or weights of its own"
            return self._opaque(node, words, own)
        size, sources = module.embed_dim, [given[key] for key in ("query", "key", "value")]
        for source, (slot, own_bias) in input_slots(own, size, sources):
            value = self._values.get(source)
            if isinstance(value, Value):
                value = replace(value, space=value.space.whole)
                if value.layout != "last" or value.space.size != size:
                    value.space.reasons.append(f"{name} does not read its {value.space.size} features along one axis")
                value.read(slot, own_bias)
        self._inner.append(inner_symmetries(name, module, own))
        out, out_bias = own["out_proj.weight"], own.get("out_proj.bias")
        write = Slot(out, (size, size), (0, 1))
        return Attended(self._opened(node, name, size, 0, [write], _bias(out_bias, size)))

    def _opaque(self, node: fx.Node, words: str, weights: dict[str, str]) -> Value | None:
        """Note that nothing is known about the features and parameters that a node uses; return no features."""
        for value in self._inputs(node):
            value.space.reasons.append(f"its features go into {words}")
        if names := [name for name in dict.fromkeys(weights.values()) if self._parameters[name].requires_grad]:
            self._unknown.append(f"{', '.join(names)}: used by {words}")
        return None

    def _inputs(self, node: fx.Node) -> list[Value]:
        """Return the features that a node uses."""
        values = [self._values[one] for one in node.all_input_nodes]
        values = [one.output if isinstance(one, Attended) else one for one in values]
        return [replace(value, space=value.space.whole) for value in values if isinstance(value, Value)]


def _bias(name: str | None, size: int) -> Iterator[Slot]:
    """Yield the slot of a bias if there is one."""
    if name is not None:
        yield Slot(name, (size,), (0,))
