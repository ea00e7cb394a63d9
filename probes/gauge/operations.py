"""Effect of layers and functions on the scale of the features that they are given."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["Effect", "effect_of_call", "effect_of_module", "has_padding", "is_query", "keeps_batch", "pooled_axes"]


class Effect(Enum):
    """Relation of a function f of features x to positive factors s, one for each feature."""

    LINEAR = "f(s x) = s f(x), and f is linear and the same for each feature"
    AVERAGE = "and f(x + c) = f(x) + c for a constant c: the identity, and averages over positions"
    POSITIVE = "f(s x) = s f(x) for positive s only"
    MAXIMUM = "and f(x + c) = f(x) + c for a constant c: the largest over positions"
    SMOOTH = "f(s x) is no multiple of f(x): the features have no rescaling symmetry"
    FLATTEN = "puts features and positions onto one axis"
    POOLED = "mean over all positions"
    UNKNOWN = "not known"


_AVERAGE_MODULES: Final = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_LINEAR_MODULES: Final = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POSITIVE_MODULES: Final = (*(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU),)
_MAXIMUM_MODULES: Final = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_SMOOTH_MODULES: Final = (
    *(nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.ELU, nn.SELU, nn.CELU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Softmax, nn.LogSoftmax),
)
_AVERAGE: Final[set[Any]] = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *("contiguous", "clone", "float", "double"),
}
_LINEAR: Final[set[Any]] = {operator.neg, torch.neg, "neg", F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
_POSITIVE: Final[set[Any]] = {
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.leaky_relu, F.leaky_relu_, torch.abs, abs, operator.abs),
    *("relu", "relu_", "abs"),
}
_MAXIMUM: Final[set[Any]] = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
}
_SMOOTH: Final[set[Any]] = {
    *(F.tanh, torch.tanh, F.sigmoid, torch.sigmoid, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.logsigmoid),
    *(F.elu, F.selu, F.celu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.tanhshrink),
    *(F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    *("tanh", "tanh_", "sigmoid", "sigmoid_", "softmax", "log_softmax"),
}
_QUERIES: Final[set[Any]] = {"size", "dim", "ndimension", "numel", "is_floating_point"}
_QUERIED: Final = {"shape", "ndim", "dtype", "device", "requires_grad"}
# axes that each pooling reduces, which have to be all positions of channels: it takes other axes for positions, too
_POOLED: Final[dict[Any, int]] = {
    **{nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3, F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3},
    **{nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3},
    **{torch.max_pool1d: 1, torch.max_pool2d: 2, torch.max_pool3d: 3},
    **{nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3},
    **{F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3},
    **{nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3},
}
_KEEPING: Final[set[Any]] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *("add", "sub", "mul", "div", "float", "double", "contiguous"),
}
_PRODUCTS: Final[set[Any]] = {operator.mul, torch.mul, "mul"}
_QUOTIENTS: Final[set[Any]] = {operator.truediv, torch.div, "div"}


def effect_of_module(module: nn.Module) -> Effect:
    """Return the effect of a layer without weights, by its exact class, as a subclass may do anything.

    Args:
        module: The layer.

    Returns:
        The effect; unknown for any other layer.
    """
    kind = type(module)
    if isinstance(module, nn.Flatten) and kind is nn.Flatten:
        return Effect.FLATTEN if (module.start_dim, module.end_dim) == (1, -1) else Effect.UNKNOWN
    if isinstance(module, nn.LeakyReLU) and not _bends(module.negative_slope):
        return Effect.UNKNOWN
    known = (
        *((_AVERAGE_MODULES, Effect.AVERAGE), (_LINEAR_MODULES, Effect.LINEAR)),
        *((_POSITIVE_MODULES, Effect.POSITIVE), (_MAXIMUM_MODULES, Effect.MAXIMUM)),
        (_SMOOTH_MODULES, Effect.SMOOTH),
    )
    if getattr(module, "return_indices", False):
        return Effect.UNKNOWN
    if kind in _LINEAR_MODULES and module.padding in (0, (0,), (0, 0), (0, 0, 0)):
        return Effect.AVERAGE if getattr(module, "divisor_override", None) is None else Effect.LINEAR
    return next((effect for kinds, effect in known if kind in kinds), Effect.UNKNOWN)


def effect_of_call(node: fx.Node) -> Effect:
    """Return the effect of a function or method of a traced graph.

    Args:
        node: A node that calls a function or a method on features.

    Returns:
        The effect; unknown for any other function.
    """
    target, args, kwargs = node.target, node.args, node.kwargs
    if target in (torch.flatten, "flatten"):
        return Effect.FLATTEN if _arguments(args, kwargs, "start_dim", "end_dim") in ((1,), (1, -1)) else Effect.UNKNOWN
    if target in ("view", "reshape", torch.reshape):
        shape = _shape(node)
        return Effect.FLATTEN if shape[1:] == (-1,) and _sized(shape) is not None else Effect.UNKNOWN
    if target in (torch.mean, "mean"):
        return Effect.POOLED
    if target in _PRODUCTS:
        return Effect.LINEAR if any(_is_nonzero_number(one) for one in args) else Effect.UNKNOWN
    if target in _QUOTIENTS:
        return Effect.LINEAR if len(args) == 2 and not kwargs and _is_nonzero_number(args[1]) else Effect.UNKNOWN
    if target in (F.leaky_relu, F.leaky_relu_) and not _bends((*_arguments(args, kwargs, "negative_slope"), 0.01)[0]):
        return Effect.UNKNOWN
    if kwargs.get("return_indices"):
        return Effect.UNKNOWN
    known: tuple[tuple[set[Callable[..., Any] | str], Effect], ...]
    known = (
        *((_AVERAGE, Effect.AVERAGE), (_LINEAR, Effect.LINEAR)),
        *((_POSITIVE, Effect.POSITIVE), (_MAXIMUM, Effect.MAXIMUM), (_SMOOTH, Effect.SMOOTH)),
    )
    return next((effect for targets, effect in known if target in targets), Effect.UNKNOWN)


def is_query(node: fx.Node) -> bool:
    """Return True for a node that reads the shape, dtype or device of a tensor."""
    return node.target in _QUERIES or (node.target is getattr and node.args[1] in _QUERIED)


def pooled_axes(model: nn.Module, node: fx.Node) -> int | None:
    """Return the number of axes that a node of a network's trace pools; None if it is no pooling."""
    return _POOLED.get(type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target)


def has_padding(padding: Any) -> bool:
    """Return True unless a convolution is known to have no padding."""
    sizes = padding if isinstance(padding, tuple | list) else (padding,)
    return padding != "valid" and any(not isinstance(size, int) or size for size in sizes)


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    """Return the arguments after the first one, those given by name after those given by position."""
    return (*args[1:], *(kwargs[name] for name in names if name in kwargs))


def _is_nonzero_number(value: Any) -> bool:
    return isinstance(value, int | float) and value != 0


def _bends(slope: Any) -> bool:
    """Return True if a leaky ReLU with that slope is neither linear nor the absolute value."""
    return isinstance(slope, int | float) and abs(slope) != 1


def keeps_batch(node: fx.Node, holds_features: Callable[[fx.Node], bool]) -> bool:
    """Return False for a view whose first axis is that of a tensor which may be of another size than its input's.

    Args:
        node: A node that puts features and positions onto one axis.
        holds_features: Returns True for nodes with the first axis of what they are given.
    """
    sized, source = _sized(_shape(node)), node.all_input_nodes[0]
    if sized is None:
        return True
    while source is not sized:
        if not source.all_input_nodes or not (holds_features(source) or _keeps_rows(source)):
            return False
        source = source.all_input_nodes[0]
    return True


def _keeps_rows(node: fx.Node) -> bool:
    """Return True for a function of data that keeps the first axis: arithmetic with one tensor, a new last axis."""
    if node.target in ("unsqueeze", torch.unsqueeze):
        return _arguments(node.args, node.kwargs, "dim")[0] not in (0, None)
    return len(node.all_input_nodes) == 1 and node.target in _KEEPING


def _shape(node: fx.Node) -> tuple[Any, ...]:
    """Return the shape that a view asks for; empty for other functions."""
    shape = node.args[1:] if node.target in ("view", "reshape", torch.reshape) else ()
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else tuple(shape)


def _sized(shape: tuple[Any, ...]) -> fx.Node | None:
    """Return the tensor x of a shape that starts with `x.size(0)` or `x.shape[0]`."""
    size = shape[0] if shape else None
    if not isinstance(size, fx.Node):
        return None
    if size.target == "size":
        found = size.args[0] if size.args[1:] == (0,) or size.kwargs.get("dim") == 0 else None
        return found if isinstance(found, fx.Node) else None
    whole = size.args[0] if size.target is operator.getitem and size.args[1:] == (0,) else None
    if isinstance(whole, fx.Node) and (
        whole.target == "size" or (whole.target is getattr and whole.args[1] == "shape")
    ):
        return whole.args[0] if isinstance(whole.args[0], fx.Node) else None
    return None
