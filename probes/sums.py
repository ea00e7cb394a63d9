r"""Inner products and norms of long vectors, accumulated in float64.

A float32 inner product of torch is short by 0.8 % at ten million equal numbers and off by 6 % at a hundred million, a
matrix product or a norm by more. Here chunks of the vectors are converted to float64, in which products of float32
numbers are exact, and summed in it; beside the vectors only one chunk exists. On a device without float64 the sums are
compensated: the rounding error of every product and sum is computed and summed too, so the result is as accurate as
if it were accumulated with twice the digits of float32. Matrices of inner products of float32 vectors are taken in
blocks of a thousand entries, whose sums are added in float64: ten times as fast, and off by 1e-8 of the lengths where
errors are random, by a few rounding units of float32 where all numbers are equal.

Source:
    T. Ogita, S. Rump, S. Oishi (2005), Accurate sum and dot product, SIAM J. Sci. Comput. 26(6), 1955-1988, for the
    compensated sums; T. Dekker (1971), A floating-point technique for extending the available precision, for the
    error of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor

__all__ = [
    "all_finite",
    "dot",
    "gram",
    "norm",
    "norms",
    "of_parts",
    "rough_dot",
    "row_dots",
    "row_norms",
    "sketch",
    "without",
]

_NARROW: Final = {"mps"}  # types of devices without float64
_CHUNK: Final = {"cpu": 2**17}  # entries of a chunk: 1 MiB in float64, which stays in the cache
_SHORT: Final = 2**16  # entries up to which a tensor is one chunk everywhere
_CHUNK_ELSEWHERE: Final = 2**24  # entries of a chunk on an accelerator, where each launch costs
_BLOCK: Final = 2**10  # entries that are summed in float32 in a matrix of inner products
_SAFE: Final = (1e-20, 1e30)  # inner products outside may have under- or overflowed in float32
_SPLIT: Final = 4097.0  # 2^12 + 1, cuts a float32 number into two of 12 bits each

_REDUCE: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("reduce", default=None)


@contextmanager
def of_parts(reduce: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Sum over vectors of which this process has a part, inside this context.

    Every process must take the same sums in the same order, of parts of the same length.

    Args:
        reduce: Returns the sum of a float64 tensor over all processes.

    Yields:
        Nothing.
    """
    token = _REDUCE.set(reduce)
    try:
        yield
    finally:
        _REDUCE.reset(token)


def all_finite(values: Tensor) -> bool:
    """Return True if all values are finite; their sum is tested first, which is one reduction and no mask."""
    return math.isfinite(float(values.detach().sum())) or bool(torch.isfinite(values).all())


def dot(a: Tensor, b: Tensor) -> Tensor:
    r"""Compute the inner product :math:`\langle a, b\rangle` of two tensors as long vectors.

    Args:
        a: Floating-point tensor of any shape.
        b: Tensor of the same number of entries, on the same device.

    Returns:
        A 0-d float64 tensor, on the device of the input, or on the CPU if that device has no float64.

    Example:
        >>> dot(torch.ones(3), torch.full((3,), 2.0))
        tensor(6., dtype=torch.float64)
    """
    if _is_short(a):
        return _whole(torch.dot(a.detach().reshape(-1).double(), b.detach().reshape(-1).double()))
    return row_dots(a.reshape(1, -1), b.reshape(1, -1))[0]


def rough_dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute the inner product of two vectors `(n,)` in their own dtype, for a number that `dot` corrects later.

    Args:
        a: Floating-point vector.
        b: Vector of the same length and dtype.

    Returns:
        A 0-d float64 tensor, on the device as for `dot`.
    """
    found = torch.dot(a.detach(), b.detach())
    return _whole(found.cpu().double() if _narrow(found) else found.double())


def norm(a: Tensor) -> Tensor:
    """Compute the Euclidean norm of a tensor as one long vector.

    Args:
        a: Floating-point tensor of any shape.

    Returns:
        A 0-d float64 tensor, on the device as for `dot`.
    """
    return dot(a, a).sqrt()


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Compute the Euclidean norm of each of several tensors, short ones together.

    Args:
        tensors: Floating-point tensors of any shape.

    Returns:
        One 0-d float64 tensor for each, on the device as for `dot`.
    """
    if _REDUCE.get() is not None:
        return [norm(tensor) for tensor in tensors]
    # on the CPU the conversion of a whole long tensor is slower than that of its chunks
    together = [i for i, t in enumerate(tensors) if _is_short(t) or not (t.device.type == "cpu" or _narrow(t))]
    found: dict[int, Tensor] = {}
    if together:
        values = torch._foreach_norm([tensors[i].detach() for i in together], 2, torch.float64)
        found = dict(zip(together, values, strict=True))
    return [found[i] if i in found else norm(tensor) for i, tensor in enumerate(tensors)]


def row_norms(rows: Tensor) -> Tensor:
    """Compute the Euclidean norm of each row.

    Args:
        rows: `(k, n)`, floating-point; also the transpose of a matrix of columns.

    Returns:
        `(k,)`, float64, on the device as for `dot`. The squares must be within the range of float64.
    """
    return row_dots(rows, rows).sqrt()


def row_dots(rows: Tensor, others: Tensor) -> Tensor:
    """Compute the inner product of each row of one matrix with the same row of another.

    Args:
        rows: `(k, n)`, floating-point.
        others: `(k, n)`.

    Returns:
        `(k,)`, float64, on the device as for `dot`.
    """
    if _is_short(rows):
        a = rows.detach().double()
        found: Tensor = torch.linalg.vecdot(a, a if rows is others else others.detach().double())
        return _whole(found)
    total = _zeros(rows, (len(rows),))
    for a, b in _chunks(rows, others):
        total += _compensated(a, b) if _narrow(rows) else torch.linalg.vecdot(a, b)
    return _whole(total)


def gram(rows: Tensor, others: Tensor) -> Tensor:
    r"""Compute the inner products of all rows of one matrix with all rows of another, :math:`A B^\top`.

    Args:
        rows: A, `(j, n)`, floating-point.
        others: B, `(k, n)`.

    Returns:
        `(j, k)`, float64, on the device as for `dot`.
    """
    if _is_short(rows) and _is_short(others):
        return _whole(rows.detach().double() @ others.detach().double().mT)
    if (found := _by_blocks(rows.detach(), others.detach())) is not None:
        return _whole(found)
    total = _zeros(rows, (len(rows), len(others)))
    for a, b in _chunks(rows, others):
        if _narrow(rows):
            for index, one in enumerate(a):
                total[index] += _compensated(b, one.expand_as(b))
        else:
            total += a @ b.mT
    return _whole(total)


def _by_blocks(rows: Tensor, others: Tensor) -> Tensor | None:
    """Return the inner products in blocks, as float64; None for other dtypes, devices and sizes of numbers.

    torch may multiply float32 matrices with fewer digits on an accelerator, and elsewhere if it is told to.
    """
    exact = rows.device.type == "cpu" and not _narrow(rows) and torch.get_float32_matmul_precision() == "highest"
    if not exact or rows.dtype != torch.float32 or others.dtype != torch.float32 or not (len(rows) and len(others)):
        return None
    count = rows.shape[1] // _BLOCK
    left, right = (one[:, : count * _BLOCK].view(len(one), count, _BLOCK) for one in (rows, others))
    found = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0)).sum(0, dtype=torch.float64)
    found += rows[:, count * _BLOCK :].double() @ others[:, count * _BLOCK :].double().mT
    sizes = torch.cat([found.abs().amax(0), found.abs().amax(1)])
    return found if bool(((sizes > _SAFE[0]) & (sizes < _SAFE[1])).all()) else None


def without(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Project rows onto the orthogonal complement of a basis.

    Args:
        rows: `(j, n)`, floating-point.
        basis: `(k, n)`, orthonormal rows, in the dtype of `rows`.

    Returns:
        The projected rows in their own dtype, and their coordinates in the basis, `(j, k)` float64 as for `gram`.
    """
    coordinates = gram(rows, basis)
    return torch.addmm(rows, coordinates.to(rows), basis, alpha=-1), coordinates


def _whole(total: Tensor) -> Tensor:
    """Return a sum over all parts of the vectors."""
    reduce = _REDUCE.get()
    return total if reduce is None or not total.numel() else reduce(total)


def sketch(vector: Tensor, signs: Tensor, buckets: int) -> Tensor:
    r"""Sum the entries of a vector with random signs into buckets, which keeps lengths and angles in the mean.

    Args:
        vector: `(n,)`, floating-point.
        signs: `(n,)`, random entries of 1 and -1, the same for all vectors that are compared.
        buckets: Number of sums, m; entry i of the vector belongs to sum i modulo m. The squared length has the relative
            standard error :math:`\sqrt{2 / m}` or less.

    Returns:
        `(m,)`, float64, on the device as for `dot`; `(n,)`, the vector itself, if n is at most m.
    """
    vector, n = vector.detach(), len(vector)
    narrow = _narrow(vector)
    if n <= buckets:
        return (vector.cpu() if narrow else vector).double()
    total = _zeros(vector, (buckets,))
    width = max(1, _CHUNK.get(vector.device.type, _CHUNK_ELSEWHERE) // buckets) * buckets
    for begin in range(0, n, width):
        part = vector[begin : begin + width] * signs[begin : begin + width]
        part = torch.nn.functional.pad(part, (0, -len(part) % buckets)).view(-1, buckets)
        total += part.sum(0).cpu().double() if narrow else part.sum(0, dtype=torch.float64)
    return total


def _is_short(tensor: Tensor) -> bool:
    """Return True if a tensor is one chunk and its device has float64."""
    return tensor.numel() <= _SHORT and not _narrow(tensor)


def _narrow(tensor: Tensor) -> bool:
    """Return True if the device of a tensor has no float64."""
    return tensor.device.type in _NARROW


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return float64 zeros on the device of a tensor, or on the CPU if it has no float64."""
    return torch.zeros(shape, dtype=torch.float64, device="cpu" if _narrow(like) else like.device)


def _chunks(rows: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same columns of both matrices, detached, so many at a time that the larger one fits into a chunk.

    They are in float64 where the device has it, and overwritten by the next.
    """
    entries = _CHUNK.get(rows.device.type, _CHUNK_ELSEWHERE)
    width = max(1, entries // max(len(rows), len(others), 1))
    first = _widened(rows.detach(), width)
    if rows is others:
        yield from ((part, part) for part in first)
    else:
        yield from zip(first, _widened(others.detach(), width), strict=True)


def _widened(rows: Tensor, width: int) -> Iterator[Tensor]:
    """Yield successive columns of a matrix, converted to float64 in one buffer where the device has it."""
    parts = torch.split(rows, width, 1) if rows.shape[1] else ()
    if rows.dtype == torch.float64 or _narrow(rows):
        yield from parts
        return
    buffer = rows.new_empty(len(rows), width, dtype=torch.float64)  # malloc would map one for each part anew
    for part in parts:
        yield buffer[:, : part.shape[1]].copy_(part)


def _compensated(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of rows in float64 on the CPU, computed in float32 with all rounding errors."""
    (a, size_a), (b, size_b) = _scaled(a.float()), _scaled(b.float())
    total = a * b
    (high_a, low_a), (high_b, low_b) = _halves(a), _halves(b)
    error = ((high_a * high_b - total) + high_a * low_b + low_a * high_b) + low_a * low_b
    while total.shape[1] > 1:
        if total.shape[1] % 2:
            total, error = (torch.nn.functional.pad(part, (0, 1)) for part in (total, error))
        first, second = total[:, ::2], total[:, 1::2]
        total = first + second
        part = total - first
        error = error[:, ::2] + error[:, 1::2] + ((first - (total - part)) + (second - part))
    return (total[:, 0].cpu().double() + error[:, 0].cpu().double()) * size_a * size_b


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 rows with entries up to 1, whose products do not overflow, and the powers of two divided out."""
    largest = rows.abs().amax(1).cpu().double()
    exponents = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent.clamp(-126, 126)
    sizes = torch.ldexp(torch.ones_like(largest), exponents)
    return rows / sizes.float().to(rows.device)[:, None], sizes


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float32 tensors of 12 significant bits whose sum is the given one."""
    large = _SPLIT * a
    high = large - (large - a)
    return high, a - high
