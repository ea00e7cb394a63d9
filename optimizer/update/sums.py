"""Norms and inner products of parameter-length tensors, summed in float64.

A float32 sum over one long vector loses digits: torch's norm on a CPU is 0.7 % off at 1e7 equal numbers, 7e-5 at 1e5
and 1e-5 at 16384, so there is no size below which it is taken. Chunks are converted and summed in float64, which holds
the squares of all narrower numbers; the memory of a chunk is all that is added. Two kinds of tensors are divided by
their largest element first: float64 ones, whose squares can leave their range, and those on a device without float64,
where float32 sums are compensated, that is, the rounding of each product and of each addition is carried along.

Results are 0-d tensors on the tensors' device, in float64 where it has that. Nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["arithmetic", "cosine", "norm", "plus", "ratio", "share", "slice_norms", "times"]

_CHUNK: Final = 1 << 16  # 512 KiB of float64, which stay in a core's cache
_CHUNK_OF_ACCELERATORS: Final = 1 << 22  # 32 MiB of float64 in one launch
_WITHOUT_FLOAT64: Final = frozenset({"mps"})
_SPLITTER: Final = 4097.0  # splits a float32 into two of 12 bits, whose products are exact (Dekker, 1971)

Size = Tensor | float  # what tensors are divided by; 1.0 if they need not be


def norm(*tensors: Tensor) -> Tensor:
    """Return the norm over all tensors together."""
    first = tensors[0] if tensors else None
    if len(tensors) == 1 and first is not None and _is_one_chunk(first):
        found: Tensor = torch.linalg.vector_norm(first, dtype=torch.float64)
        return found
    size = _size(tensors)
    if isinstance(size, Tensor):
        if _wide(tensors[0].device) == torch.float32:
            return _dot(tensors, tensors, size, size).sqrt() * size
        scaled = [torch.linalg.vector_norm(_converted(x, size)) for t in tensors for (x,) in _pieces(t)]
        return _joined(scaled, tensors) * size
    if all(t.device.type == "cuda" and t.numel() for t in tensors):
        parts = torch._foreach_norm(list(tensors), dtype=torch.float64)  # converts while it reads
    else:
        parts = tuple(torch.linalg.vector_norm(x, dtype=torch.float64) for t in tensors for (x,) in _pieces(t))
    return _joined(parts, tensors)


def slice_norms(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm of each matrix of a tensor `(..., m, n)`, as `(..., 1, 1)`."""
    if matrices.ndim == 2:
        return norm(matrices).view(1, 1)
    slices = matrices.reshape(-1, *matrices.shape[-2:])
    if len(slices) == 1:
        found = norm(matrices)
    elif isinstance(_size([matrices]), Tensor):
        found = torch.stack([norm(one) for one in slices])
    else:
        groups = torch.split(slices, max(1, _chunk(matrices) // slices[0].numel()))
        found = torch.cat([_norms_of(group) for group in groups])
    return found.reshape(*matrices.shape[:-2], 1, 1)


def share(left: Sequence[Tensor], right: Sequence[Tensor], floor: float) -> Tensor:
    """Return `<left, right> / (<right, right> + floor)` over all tensors together."""
    size, unit = _size(left), _size(right)
    overlap, square = _dot(left, right, size, unit), _dot(right, right, unit, unit)
    return overlap / (square + floor / unit / unit) * size / unit


def cosine(left: Sequence[Tensor], right: Sequence[Tensor], floor: float) -> Tensor:
    """Return `<left, right> / (|left| |right| + floor)` over all tensors together."""
    size, unit = _size(left), _size(right)
    sizes = _dot(left, left, size, size).sqrt() * _dot(right, right, unit, unit).sqrt()
    return _dot(left, right, size, unit) / (sizes + floor / size / unit)


def times(tensor: Tensor, factor: Tensor) -> Tensor:
    """Return a tensor times a 0-d factor, in the tensor's dtype.

    A factor beyond the range of the arithmetic counts as its largest number, so that zeros stay zeros. Half precision
    is multiplied in float32, since the factor is often beyond its range.
    """
    dtype = arithmetic(tensor)
    return (tensor.to(dtype) * _within(factor, dtype)).to(tensor.dtype)


def plus(tensor: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return `tensor + factor other` for a 0-d factor, multiplied as in `times`."""
    dtype = arithmetic(tensor)
    return torch.addcmul(tensor.to(dtype), other.to(dtype), _within(factor, dtype)).to(tensor.dtype)


def ratio(numerator: Tensor, denominator: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the ratio of two norms, within the range of a dtype; 0 if the denominator is 0."""
    return _within(torch.where(denominator > 0, numerator / denominator, 0.0), dtype)


def arithmetic(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is multiplied by factors: float32 for half precision, else its own."""
    return torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype


def _within(factor: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return factor.clamp(-largest, largest).to(dtype)


def _joined(parts: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm over parts of tensors whose norms are given."""
    if len(parts) < 2:
        return parts[0] if parts else _zero(tensors)
    whole: Tensor = torch.linalg.vector_norm(torch.stack(list(parts)))
    return whole


def _norms_of(group: Tensor) -> Tensor:
    """Return the norm of each of some small matrices, or of one large one."""
    if len(group) == 1:
        return norm(group)[None]
    found: Tensor = torch.linalg.vector_norm(group, dim=(1, 2), dtype=torch.float64)
    return found


def _dot(left: Sequence[Tensor], right: Sequence[Tensor], size: Size, unit: Size) -> Tensor:
    """Return `<left / size, right / unit>` over all tensors together."""
    sums, errors = [], []
    for a, b in zip(left, right, strict=True):
        for x, y in _pieces(a, b):
            first = _converted(x, size)
            second = first if a is b else _converted(y, unit)
            if first.dtype == torch.float64:
                sums.append(torch.dot(first, second))
            else:
                value, error = _compensated(*_product(first, second))
                sums.append(value)
                errors.append(error)
    if errors:
        return torch.add(*_compensated(torch.stack(sums), torch.stack(errors)))
    if len(sums) < 2:
        return sums[0] if sums else _zero(left)
    return torch.stack(sums).sum()


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


def _size(tensors: Sequence[Tensor]) -> Size:
    """Return what the tensors are divided by: a power of 2 near their largest element, or 1 if none is needed."""
    kept = [t for t in tensors if t.numel()]
    if all(t.dtype != torch.float64 and t.device.type not in _WITHOUT_FLOAT64 for t in kept):
        return 1.0
    largest = torch.stack([torch.linalg.vector_norm(t, torch.inf) for t in kept]).amax()
    limit = -math.log2(torch.finfo(largest.dtype).tiny)
    power = torch.exp2(largest.log2().floor().clamp(-limit, limit))  # dividing by it rounds nothing
    return torch.where(largest == 0, 1.0, power)


def _converted(vector: Tensor, size: Size) -> Tensor:
    wide = vector.to(_wide(vector.device))
    return wide / size if isinstance(size, Tensor) else wide


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
