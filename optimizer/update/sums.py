"""Norms and inner products of parameter-length tensors, summed in float64.

A float32 sum over one long vector loses digits: torch's norm on a CPU is 0.7 % off at 1e7 equal numbers, 7e-5 at 1e5
and 1e-5 at 16384, so there is no size below which it is taken. Chunks are converted and summed in float64, which holds
the squares of all narrower numbers; the memory of a chunk is all that is added. Two kinds of tensors are divided by
their largest element first: float64 ones, whose squares can leave their range, and those on a device without float64,
where float32 sums are compensated, that is, the rounding of each product and of each addition is carried along.

Results are floats for tensors on the CPU, where nothing has to be waited for and a float costs a tenth of a 0-d tensor,
and 0-d tensors on other devices, in float64 where they have that: nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, overload

import torch
from torch import Tensor

__all__ = [
    "Number",
    "arithmetic",
    "combined",
    "cosine",
    "dot",
    "norm",
    "norms_of_norms",
    "plus",
    "ratio",
    "read_at_once",
    "root",
    "row_norms",
    "share",
    "share_and_norm",
    "slice_norms",
    "times",
    "within",
]

_CHUNK: Final = 1 << 16  # 512 KiB of float64, which stay in a core's cache
_CHUNK_OF_ACCELERATORS: Final = 1 << 22  # 32 MiB of float64 in one launch
_WITHOUT_FLOAT64: Final = frozenset({"mps"})
_READ_AT_ONCE: Final = frozenset({"cpu"})  # devices whose numbers are ready when a call returns
_SPLITTER: Final = 4097.0  # splits a float32 into two of 12 bits, whose products are exact (Dekker, 1971)

Number = Tensor | float  # a float on the CPU, else a 0-d tensor


def norm(*tensors: Tensor) -> Number:
    """Return the norm over all tensors together."""
    if len(tensors) == 1 and _is_one_chunk(tensors[0]):
        return _number(torch.linalg.vector_norm(tensors[0], dtype=torch.float64))
    size = _size(tensors)
    if tensors and _wide(tensors[0].device) == torch.float32:
        return root(_square(tensors, size)) * size
    if not _is_one(size):
        scaled = [torch.linalg.vector_norm(_converted(x, size)) for t in tensors for (x,) in _pieces(t)]
        return _joined(scaled, tensors) * size
    if all(t.device.type == "cuda" and t.numel() for t in tensors):
        parts = torch._foreach_norm(list(tensors), dtype=torch.float64)  # converts while it reads
    else:
        pieces = [x for t in tensors for x in ([t] if _is_one_chunk(t) else [piece for (piece,) in _pieces(t)])]
        parts = tuple(torch.linalg.vector_norm(x, dtype=torch.float64) for x in pieces)
    return _joined(parts, tensors)


def slice_norms(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm of each matrix of a tensor `(..., m, n)`, as `(..., 1, 1)`."""
    slices = matrices.reshape(-1, *matrices.shape[-2:])
    if len(slices) == 1:
        found = _tensor(norm(matrices), matrices)
    elif not _is_one(_size([matrices])):
        found = torch.stack([_tensor(norm(one), matrices) for one in slices])
    else:
        groups = torch.split(slices, max(1, _chunk(matrices) // slices[0].numel()))
        found = torch.cat([_norms_of(group) for group in groups]) if len(groups) > 1 else _norms_of(slices)
    return found.view(*matrices.shape[:-2], 1, 1)


def row_norms(matrices: Tensor) -> Tensor:
    """Return the norm of each row of a tensor `(..., m, n)`, as `(..., m, 1)`."""
    rows, dtype = matrices.reshape(-1, matrices.shape[-1]), _wide(matrices.device)
    longest = _chunk(matrices) // max(1, rows.shape[1])
    if longest == 0:
        found = torch.stack([_tensor(norm(row), row) for row in rows])
    else:
        groups = torch.split(rows, longest)
        parts = [torch.linalg.vector_norm(group, dim=1, dtype=dtype) for group in groups]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found.view(*matrices.shape[:-1], 1)


def norms_of_norms(lengths: Tensor) -> Tensor:
    """Return the norm of each matrix `(..., m, n)`, as `(..., 1, 1)`, from `row_norms`."""
    found: Tensor = torch.linalg.vector_norm(lengths, dim=(-2, -1), keepdim=True)
    return found


def dot(left: Tensor, right: Tensor) -> Number:
    """Return `<left, right>`."""
    size, unit = _size([left]), _size([right])
    return _dots([left], [right], size, unit)[0] * size * unit


def share(left: Sequence[Tensor], right: Sequence[Tensor], floor: float) -> Number:
    """Return `<left, right> / (<right, right> + floor)` over all tensors together."""
    return share_and_norm(left, right, floor)[0]


def share_and_norm(left: Sequence[Tensor], right: Sequence[Tensor], floor: float) -> tuple[Number, Number]:
    """Return `share(left, right, floor)` and `norm(*right)`."""
    size, unit = _size(left), _size(right)
    overlap, square, _ = _dots(left, right, size, unit)
    return overlap / (square + floor / unit / unit) * size / unit, root(square) * unit


def cosine(left: Sequence[Tensor], right: Sequence[Tensor], floor: float) -> Number:
    """Return `<left, right> / (|left| |right| + floor)` over all tensors together."""
    size, unit = _size(left), _size(right)
    overlap, right_square, left_square = _dots(left, right, size, unit, left_square=True)
    return overlap / (root(left_square) * root(right_square) + floor / size / unit)


def times(tensor: Tensor, factor: Number) -> Tensor:
    """Return a tensor times a factor, in the tensor's dtype.

    A factor beyond the range of the arithmetic counts as its largest number, so that zeros stay zeros. Half precision
    is multiplied in float32, since the factor is often beyond its range.
    """
    dtype = arithmetic(tensor)
    if tensor.dtype == dtype:
        return tensor * within(factor, dtype)
    return (tensor.to(dtype) * within(factor, dtype)).to(tensor.dtype)


def plus(tensor: Tensor, other: Tensor, factor: Number) -> Tensor:
    """Return `tensor + factor other`, multiplied as in `times`."""
    dtype = arithmetic(tensor)
    kept = within(factor, dtype)
    if isinstance(kept, float):
        return torch.add(tensor.to(dtype), other.to(dtype), alpha=kept).to(tensor.dtype)
    return torch.addcmul(tensor.to(dtype), other.to(dtype), kept).to(tensor.dtype)


def combined(left: Tensor, first: Number, right: Tensor, second: Number) -> Tensor:
    """Return `first left + second right`, multiplied as in `times`."""
    dtype = arithmetic(left)
    return plus(times(left.to(dtype), first), right.to(dtype), second).to(left.dtype)


def ratio(numerator: Number, denominator: Number, dtype: torch.dtype) -> Number:
    """Return the ratio of two norms, within the range of a dtype; 0 if the denominator is 0."""
    if isinstance(numerator, Tensor) or isinstance(denominator, Tensor):
        positive = torch.as_tensor(denominator > 0)
        return within(torch.where(positive, numerator / denominator, 0.0), dtype)
    return within(numerator / denominator, dtype) if denominator > 0 else 0.0


def root(number: Number) -> Number:
    """Return a square root."""
    return number.sqrt() if isinstance(number, Tensor) else math.sqrt(number)


def read_at_once(tensor: Tensor) -> bool:
    """Return True if results for a tensor are floats: its device has nothing to be waited for."""
    return tensor.device.type in _READ_AT_ONCE


def arithmetic(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is multiplied by factors: float32 for half precision, else its own."""
    return torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype


@overload
def within(factor: float, dtype: torch.dtype) -> float: ...
@overload
def within(factor: Number, dtype: torch.dtype) -> Number: ...
def within(factor: Number, dtype: torch.dtype) -> Number:
    """Return a factor in the range of a dtype."""
    largest = torch.finfo(dtype).max
    if isinstance(factor, Tensor):
        return factor.clamp(-largest, largest).to(dtype)
    return largest if factor > largest else -largest if factor < -largest else factor  # NaN stays


def _joined(parts: Sequence[Tensor], tensors: Sequence[Tensor]) -> Number:
    """Return the norm over parts of tensors whose norms are given."""
    if not parts:
        return _number(_zero(tensors))
    if read_at_once(parts[0]):
        numbers = [part.item() for part in parts]
        return numbers[0] if len(numbers) == 1 else math.sqrt(sum(x * x for x in numbers))
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(list(parts)))


def _norms_of(group: Tensor) -> Tensor:
    """Return the norm of each of some small matrices, or of one large one."""
    if len(group) == 1:
        return _tensor(norm(group), group)[None]
    found: Tensor = torch.linalg.vector_norm(group, dim=(1, 2), dtype=torch.float64)
    return found


def _square(tensors: Sequence[Tensor], size: Number) -> Number:
    """Return the square of the norm over all tensors together, each divided by `size`."""
    square = _Dot(tensors)
    for one in tensors:
        for (x,) in _pieces(one):
            converted = _converted(x, size)
            square.add(converted, converted)
    return square.value()


def _dots(
    left: Sequence[Tensor], right: Sequence[Tensor], size: Number, unit: Number, *, left_square: bool = False
) -> tuple[Number, Number, Number]:
    """Return sums over all tensors together, of `x = left / size` and `y = right / unit`, each converted once.

    They are `<x, y>`, `<y, y>` and, if it is asked for, `<x, x>`, else 0.
    """
    overlap, square, other = _Dot(left), _Dot(left), _Dot(left)
    for a, b in zip(left, right, strict=True):
        for x, y in _pieces(a, b):
            first, second = _converted(x, size), _converted(y, unit)
            overlap.add(first, second)
            square.add(second, second)
            if left_square:
                other.add(first, first)
    return overlap.value(), square.value(), other.value()


class _Dot:
    """Inner product of vectors that come in pieces, of float64, or of float32 whose sums are compensated."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._sums: list[Tensor] = []
        self._errors: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the inner product of two pieces."""
        if x.dtype == torch.float64:
            self._sums.append(torch.dot(x, y))
        else:
            value, error = _compensated(*_product(x, y))
            self._sums.append(value)
            self._errors.append(error)

    def value(self) -> Number:
        """Return the sum over all pieces."""
        if not self._sums:
            return _number(_zero(self._tensors))
        if self._errors:
            return _number(torch.add(*_compensated(torch.stack(self._sums), torch.stack(self._errors))))
        if read_at_once(self._sums[0]):
            return float(sum(one.item() for one in self._sums))
        return self._sums[0] if len(self._sums) == 1 else torch.stack(self._sums).sum()


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield vectors of corresponding elements of tensors of one shape, a chunk at a time, in the order of memory."""
    first = tensors[0]
    chunk = _chunk(first)
    if all(t.is_contiguous() for t in tensors):
        if first.numel() <= chunk:
            if first.numel():
                yield tuple(t.view(-1) for t in tensors)
        else:
            yield from zip(*(torch.split(t.view(-1), chunk) for t in tensors), strict=True)
        return
    axes = sorted(range(first.ndim), key=lambda axis: -first.stride()[axis])
    if axes != list(range(first.ndim)):
        yield from _pieces(*(t.permute(axes) for t in tensors))
    elif first.numel() <= chunk:
        yield tuple(t.reshape(-1) for t in tensors)
    else:
        longest = max(range(first.ndim), key=first.size)
        for parts in zip(*(t.tensor_split(2, longest) for t in tensors), strict=True):
            yield from _pieces(*parts)


def _is_one_chunk(tensor: Tensor) -> bool:
    """Return True for a tensor that needs no care: the short way for it is several times faster than the long one."""
    narrow = tensor.dtype != torch.float64 and tensor.device.type == "cpu" and "cpu" not in _WITHOUT_FLOAT64
    return narrow and 0 < tensor.numel() <= _CHUNK and tensor.is_contiguous()


def _chunk(tensor: Tensor) -> int:
    return _CHUNK if tensor.device.type == "cpu" else _CHUNK_OF_ACCELERATORS


def _size(tensors: Sequence[Tensor]) -> Number:
    """Return what the tensors are divided by: a power of 2 near their largest element, or 1 if none is needed."""
    if all(t.dtype != torch.float64 and t.device.type not in _WITHOUT_FLOAT64 for t in tensors):
        return 1.0
    kept = [t for t in tensors if t.numel()]
    if not kept:
        return 1.0
    largest = torch.stack([torch.linalg.vector_norm(t, torch.inf) for t in kept]).amax()
    limit = -math.log2(torch.finfo(largest.dtype).tiny)
    power = torch.exp2(largest.log2().floor().clamp(-limit, limit))  # dividing by it rounds nothing
    return _number(torch.where(largest == 0, 1.0, power))


def _converted(vector: Tensor, size: Number) -> Tensor:
    wide = vector.to(_wide(vector.device))
    return wide if _is_one(size) else wide / size


def _is_one(size: Number) -> bool:
    return isinstance(size, float) and size == 1


def _number(value: Tensor) -> Number:
    return value.item() if read_at_once(value) else value


def _tensor(value: Number, like: Tensor) -> Tensor:
    """Return a norm as a 0-d tensor on the device of a tensor."""
    return torch.as_tensor(value, dtype=_wide(like.device), device=like.device)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def _zero(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.zeros((), dtype=_wide(device), device=device)


def _product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products of float32 numbers up to 1 in size, and their rounding errors (Dekker, 1971)."""
    product = x * y
    (x1, x2), (y1, y2) = _halves(x), _halves(y)
    return product, ((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    scaled = _SPLITTER * x
    high = scaled - (scaled - x)
    return high, x - high


def _compensated(sums: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of all numbers, added in pairs, and the sum of all rounding errors (Knuth's two-sum)."""
    while len(sums) > 1:
        half = len(sums) // 2
        a, b, rest = torch.split(sums, [half, half, len(sums) - 2 * half])
        total = a + b
        part = total - a
        error = (a - (total - part)) + (b - part)
        old, older, last = torch.split(errors, [half, half, len(sums) - 2 * half])
        sums, errors = torch.cat([total, rest]), torch.cat([error + old + older, last])
    return sums[0], errors[0]
