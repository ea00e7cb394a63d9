"""Batches as trees: every tensor that can be reached in nested containers and objects, mapped, joined and cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CannotJoinError",
    "array_places",
    "cut",
    "joined",
    "leaves",
    "length",
    "mapped",
    "offset_joined",
    "sample_axes",
]

_PLAIN: Final = (Tensor, np.ndarray, np.generic, str, bytes, bytearray, int, float, complex, type(None), type)


class CannotJoinError(Exception):
    """Raised for two batches that do not fit together."""


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind != "O")


def _attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in slots included; empty for a plain value."""
    if isinstance(node, _PLAIN) or callable(node):
        return {}
    slots: dict[str, Any] = {}
    for kind in type(node).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(node, name):
                slots[name] = getattr(node, name)
    return slots | getattr(node, "__dict__", {})


def _children(node: Any) -> list[tuple[Any, Any, str]] | None:
    """Return key, child and kind (item, index or attribute) of each part of a container; None for a leaf."""
    if isinstance(node, Mapping):
        return [(key, value, "item") for key, value in node.items()]
    if isinstance(node, tuple | list) or (isinstance(node, np.ndarray) and node.dtype.kind == "O"):
        return [(index, value, "index") for index, value in enumerate(node)]
    attributes = _attributes(node)
    if attributes and any(_has_array(value, (id(node),)) for value in attributes.values()):
        return [(name, value, "attribute") for name, value in attributes.items()]
    return None


def _has_array(node: Any, above: tuple[int, ...]) -> bool:
    """Return True if a tensor or an array can be reached; `above` are the containers on the way, against circles."""
    if _is_array(node):
        return True
    if id(node) in above:
        return False
    if isinstance(node, Mapping):
        parts: Sequence[Any] = list(node.values())
    elif isinstance(node, tuple | list) or (isinstance(node, np.ndarray) and node.dtype.kind == "O"):
        parts = list(node)
    else:
        parts = list(_attributes(node).values())
    return any(_has_array(part, (*above, id(node))) for part in parts)


def leaves(batch: Any, path: str = "", _above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a batch with its path.

    Args:
        batch: Any value: mappings, tuples, lists and arrays of objects are entered, and so are objects (dataclasses,
            graphs) whose attributes hold a tensor or an array.
        path: Path of the batch.

    Yields:
        Path and leaf, in the order of the containers.
    """
    children = None if id(batch) in _above else _children(batch)
    if children is None:
        if id(batch) not in _above:
            yield path, batch
        return
    for key, child, _ in children:
        yield from leaves(child, f"{path}.{key}", (*_above, id(batch)))


def array_places(batch: Any, place: str = "batch", _above: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors and arrays of a batch, each with the Python expression that reads it.

    Args:
        batch: Any batch.
        place: Expression of the batch itself.

    Yields:
        Expression and tensor; an array of numpy comes as a tensor that shares its memory.
    """
    if _is_array(batch):
        yield place, batch if isinstance(batch, Tensor) else torch.as_tensor(batch)
        return
    for key, child, kind in (None if id(batch) in _above else _children(batch)) or []:
        inner = f"{place}.{key}" if kind == "attribute" else f"{place}[{key!r}]"
        yield from array_places(child, inner, (*_above, id(batch)))


def mapped(batch: Any, function: Callable[[Any], Any], _seen: dict[int, Any] | None = None) -> Any:
    """Apply a function to each leaf of a batch, keeping its structure.

    Args:
        batch: Any batch.
        function: Function of a leaf; a leaf that stands in several places is passed once.

    Returns:
        The new batch; containers and objects are copies, the old ones are not modified.
    """
    seen = {} if _seen is None else _seen
    if id(batch) in seen:
        return seen[id(batch)]
    children = _children(batch)
    if children is None:
        result = function(batch)
    else:
        made = seen[id(batch)] = _shell(batch)  # before its parts, which may lead back to it
        result = _rebuilt(batch, [mapped(child, function, seen) for _, child, _ in children], made)
    seen[id(batch)] = result
    return result


def _shell(node: Any) -> Any:
    """Return the copy of a container or object into which its new parts are written; itself if that is impossible."""
    fixed = isinstance(node, tuple) or (isinstance(node, Mapping) and not isinstance(node, MutableMapping))
    return node if fixed else copy.copy(node)


def _rebuilt(node: Any, parts: Sequence[Any], made: Any = None) -> Any:
    """Return a container like another with other parts, in the order of `_children`; `made` is its shell."""
    made = _shell(node) if made is None else made
    if isinstance(node, Mapping):
        if not isinstance(node, MutableMapping):
            return dict(zip(node, parts, strict=True))
        for key, value in zip(list(node), parts, strict=True):
            made[key] = value
        return made
    if isinstance(node, tuple):
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    if isinstance(node, list | np.ndarray):
        made[:] = parts
        return made
    for name, value in zip(_attributes(node), parts, strict=True):
        if name in getattr(made, "__dict__", {}):
            vars(made)[name] = value  # past properties and frozen dataclasses
        else:
            object.__setattr__(made, name, value)
    return made


def length(batch: Any) -> int | None:
    """Return the length of the first tensor of a batch that has one; None if there is none."""
    return next((len(leaf) for _, leaf in leaves(batch) if _is_array(leaf) and leaf.ndim), None)


def sample_axes(batch: Any) -> list[int] | None:
    """Return the axis of samples of each tensor of a batch.

    Args:
        batch: Any batch.

    Returns:
        Zeros if all first axes have one length; else, if exactly one length of 2 or more is among the first two axes of
        every tensor, its place in each (1 for sequences with time first); None if there is neither.
    """
    shapes = [tuple(leaf.shape) for _, leaf in leaves(batch) if _is_array(leaf)]
    if not shapes or not all(shapes):
        return None
    if len({shape[0] for shape in shapes}) == 1:
        return [0] * len(shapes)
    common = set.intersection(*(set(shape[:2]) for shape in shapes)) - {0, 1}
    return [shape.index(*common) for shape in shapes] if len(common) == 1 else None


def cut(batch: Any, axes: Sequence[int], start: int, stop: int) -> Any:
    """Return some samples of a batch.

    Args:
        batch: Any batch.
        axes: Axis of samples of each tensor, as `sample_axes` returns them.
        start: First sample.
        stop: End of the samples.
    """
    count = next(leaf.shape[axis] for (_, leaf), axis in zip(_arrays(batch), axes, strict=True))
    places = dict(zip((id(leaf) for _, leaf in _arrays(batch)), axes, strict=True))

    def part(node: Any) -> Any:
        """Return the samples of a tensor; any other leaf as it is."""
        if not _is_array(node):
            return node
        chosen = (slice(None),) * places[id(node)] + (slice(start, stop),)
        return _leaf_like(node, node.detach()[chosen]) if isinstance(node, Tensor) else node[chosen]

    return mapped(_lists_cut(batch, count, start, stop), part)


def _arrays(batch: Any) -> list[tuple[str, Any]]:
    return [(path, leaf) for path, leaf in leaves(batch) if _is_array(leaf)]


def _lists_cut(node: Any, count: int, start: int, stop: int) -> Any:
    """Cut the lists of plain values that have one entry per sample."""
    is_list = isinstance(node, tuple | list) and not hasattr(node, "_fields")
    if is_list and len(node) == count and not _has_array(node, ()):
        return node[start:stop]
    children = _children(node)
    if children is None or not any(isinstance(child, tuple | list | Mapping) for _, child, _ in children):
        return node
    return _rebuilt(node, [_lists_cut(child, count, start, stop) for _, child, _ in children])


def joined(first: Any, second: Any, axes: Sequence[int]) -> tuple[Any, bool]:
    """Join two batches along their samples.

    Args:
        first: A batch.
        second: Another of the same structure.
        axes: Axis of samples of each tensor.

    Returns:
        The joined batch, and True if nothing in it can depend on the number of samples but the tensors: no number and
        no tensor without axes is left as it was.

    Raises:
        CannotJoinError: a tensor has another shape or dtype beside the axis, or something else differs.
    """
    order = iter(axes)

    def along(left: Any, right: Any) -> Any:
        """Join two tensors along the next axis."""
        return _concatenated(left, right, next(order))

    one, two = length(first), length(second)
    clean = [True]
    return _zipped(first, second, along, (one, two), clean), clean[0]


def _zipped(
    left: Any,
    right: Any,
    arrays: Callable[[Any, Any], Any],
    lengths: tuple[int | None, int | None],
    clean: list[bool],
) -> Any:
    """Return the combination of two trees of one structure; set `clean` to False if a number was kept."""
    if _is_array(left):
        if not (_is_array(right) and type(left) is type(right)):
            raise CannotJoinError
        return arrays(left, right)
    if isinstance(left, tuple | list) and isinstance(right, tuple | list) and not hasattr(left, "_fields"):
        plain = len(left) > 0 and not _has_array(left, ()) and not _has_array(right, ())
        if plain and (len(left), len(right)) == lengths and all(isinstance(x, str | int | float) for x in left):
            return [*left, *right] if isinstance(left, list) else (*left, *right)
    children, others = _children(left), _children(right)
    if children is None or others is None:
        return _same(left, right, clean)
    if type(left) is not type(right) or [c[0] for c in children] != [c[0] for c in others]:
        raise CannotJoinError
    pairs = zip(children, others, strict=True)
    return _rebuilt(left, [_zipped(a, b, arrays, lengths, clean) for (_, a, _), (_, b, _) in pairs])


def _same(left: Any, right: Any, clean: list[bool]) -> Any:
    """Return a leaf that both batches share."""
    if left is not right:
        try:
            if type(left) is not type(right) or not bool(left == right):
                raise CannotJoinError
        except CannotJoinError:
            raise
        except Exception as error:  # a comparison of the user's own type
            raise CannotJoinError from error
    if not isinstance(left, str | bytes | bool | torch.dtype | torch.device | type(None)):
        clean[0] = False
    return left


def _concatenated(left: Any, right: Any, axis: int) -> Any:
    """Concatenate two tensors, or two arrays, that agree beside the axis."""
    shapes = [[*leaf.shape[:axis], *leaf.shape[axis + 1 :]] for leaf in (left, right)]
    if left.ndim <= axis or left.ndim != right.ndim or shapes[0] != shapes[1] or left.dtype != right.dtype:
        raise CannotJoinError
    if isinstance(left, Tensor):
        if left.device != right.device or left.layout != torch.strided or right.layout != torch.strided:
            raise CannotJoinError
        return _leaf_like(left, torch.cat([left.detach(), right.detach()], axis))
    return np.concatenate([left, right], axis)


def _leaf_like(old: Tensor, new: Tensor) -> Tensor:
    """Return a new tensor that requires grad if the old one does: losses may differentiate by their inputs."""
    return new.requires_grad_() if old.requires_grad else new


def offset_joined(first: Any, second: Any) -> Any:
    """Join two batches of graphs, or of other sets of unequal size, as one batch would hold them.

    An integer tensor `(n,)` whose largest entry is one less than the length of another tensor, which is not n, numbers
    the sets: those of the second batch are counted on. An integer tensor `(2, e)` numbers nodes and is joined along its
    second axis. Everything else is joined along the first axis. The result is a guess: it may confirm a weighting, and
    refutes none.

    Args:
        first: A batch.
        second: Another.

    Returns:
        The joined batch.

    Raises:
        CannotJoinError: the batches do not fit together.
    """
    sizes = [leaf.shape[0] for _, leaf in _arrays(first) if leaf.ndim]
    nodes = next((leaf.shape[0] for _, leaf in _arrays(first) if leaf.ndim > 1 and not _whole_numbers(leaf)), 0)

    def along(left: Any, right: Any) -> Any:
        """Join two tensors along the axis that fits, the numbers of nodes and sets counted on."""
        if _whole_numbers(left) and left.ndim == 2 and len(left) == 2 and left.shape != right.shape:
            return _concatenated(left, right + nodes, 1)
        if _whole_numbers(left) and left.ndim == 1 and len(left):
            sets = int(left.max()) + 1
            if sets != len(left) and sets in sizes and int(left.min()) >= 0:
                return _concatenated(left, right + sets, 0)
        return _concatenated(left, right, 0)

    return _zipped(first, second, along, (length(first), length(second)), [True])


def _whole_numbers(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return not leaf.is_floating_point() and not leaf.is_complex() and leaf.dtype != torch.bool
    return bool(leaf.dtype.kind in "iu")
