"""Newton-Schulz iteration: an approximate polar factor from a few odd polynomials.

With `A = U S V'` an odd polynomial acts on the singular values alone, `p(A) = U p(S) V'`, so a suitable
sequence of quintics `a x + b x^3 + c x^5` moves all of them towards one without a decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import sums

__all__ = ["NORMS", "PRESETS", "Triple", "coefficients", "orthogonal_factor"]

NORMS: Final = ("frobenius", "schatten4")
Triple = tuple[float, float, float]

# Added to the Frobenius norm before dividing, as the published step does.
_NORM_FLOOR: Final = 1e-7
_MOST_STEPS: Final = 100


def _with_safety(triples: Sequence[Triple], factor: float) -> tuple[Triple, ...]:
    # p(x / s) in place of p(x): rounding may push a singular value past one, where p would blow it up.
    return tuple((a / factor, b / factor**3, c / factor**5) for a, b, c in triples)


_KELLER: Final = (3.4445, -4.7750, 2.0315)
_CLASSICAL: Final = (15 / 8, -10 / 8, 3 / 8)
_POLAR_EXPRESS: Final = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

# Presets whose last polynomials differ from the others, with the number of steps that includes them.
_WHOLE: Final = {"keller_finished": 8, "deepseek_v4": 10}

# Sources: keller: K. Jordan's Muon (2024). you: the five-step set known by its author's name, You (2025).
# polar_express: Amsel et al. (2025), with their safety factor 1.01; polar_express_gram: with 1.05, as
# Gram-Newton-Schulz takes it; polar_express_safer: the set for 1.02 that the dion project uses. cans: Grishina et al.
# (2025), to the digits in print. keller_finished: five of keller and three of classical. deepseek_v4: eight of keller
# and two that end at one. cubic5: arXiv 2606.00371, without the fifth power. classical and classical_cubic: the Taylor
# polynomials of the sign function.
PRESETS: Final[dict[str, tuple[Triple, ...]]] = {
    "keller": (_KELLER,),
    "you": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (*_with_safety(_POLAR_EXPRESS, 1.01), _CLASSICAL),
    "polar_express_gram": (*_with_safety(_POLAR_EXPRESS, 1.05), _CLASSICAL),
    "polar_express_safer": (
        (8.1566, -22.4833, 15.8788),
        (4.0429, -2.8089, 0.5000),
        (3.8917, -2.7725, 0.5061),
        (3.2858, -2.3681, 0.4645),
        (2.3465, -1.7098, 0.4232),
    ),
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    "keller_finished": (*(_KELLER,) * 5, *(_CLASSICAL,) * 3),
    "deepseek_v4": (*(_KELLER,) * 8, (2.0, -1.5, 0.5), (2.0, -1.5, 0.5)),
    "cubic5": (
        (3.3657, -3.3421, 0.0),
        (2.5744, -1.4957, 0.0),
        (2.5369, -1.4313, 0.0),
        (2.4419, -1.2764, 0.0),
        (2.2230, -0.9631, 0.0),
    ),
    "classical": (_CLASSICAL,),
    "classical_cubic": ((3 / 2, -1 / 2, 0.0),),
}


def coefficients(preset: str, steps: int) -> tuple[Triple, ...]:
    """Return the triples `(a, b, c)` of the first `steps` polynomials of a preset; its last one repeats.

    `deepseek_v4` consists of eight polynomials of `keller` and two that map the result to one: it needs all ten.
    `keller_finished` consists of five and three, and needs all eight.

    Raises:
        OptimizerError: The preset is unknown, or `steps` is not an integer >= 1, or is too small to include the last
            polynomials of a preset that needs them.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise OptimizerError(f"newton_schulz={preset!r} must be one of {', '.join(PRESETS)}")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_STEPS:
        raise OptimizerError(f"ns_steps={steps} must be an integer >= 1, at most {_MOST_STEPS}; 5 is usual")
    if steps < _WHOLE.get(preset, 1):
        raise OptimizerError(
            f"ns_steps={steps} omits the last polynomials of newton_schulz={preset!r}: set ns_steps={_WHOLE[preset]}"
        )
    return _extended(preset, steps)


@cache
def _extended(preset: str, steps: int) -> tuple[Triple, ...]:
    triples = PRESETS[preset]
    return tuple(triples[min(i, len(triples) - 1)] for i in range(steps))


def orthogonal_factor(
    matrix: Tensor,
    triples: Sequence[Triple],
    dtype: torch.dtype,
    *,
    norm: str = "frobenius",
    sizes: Tensor | float | None = None,
) -> Tensor:
    """Return an approximation of `U V'`, where `matrix = U S V'`.

    The matrix is divided by its Frobenius norm, which bounds every singular value by one, and each triple
    is applied once. Singular vectors are preserved; each singular value `s / |A|_F` is mapped by the composed
    polynomial. Five `keller` steps map singular values from 1.5e-3 upwards into [0.68, 1.20], not to one.

    Args:
        matrix: `(m, n)`, or `(batch, m, n)`, in which case each slice is processed separately.
        triples: One `(a, b, c)` per step.
        dtype: Dtype of the products; the result has the dtype of `matrix`.
        norm: Norm by which the matrix is divided first: `frobenius`, or `schatten4`, the fourth root of the sum of the
            fourth powers of the singular values. It also bounds them by one and is smaller, so fewer remain small.
        sizes: Frobenius norm of the matrix, `sums.norm(matrix)`, or of the slices, `sums.slice_norms(matrix)`, if
            known.

    Source:
        K. Jordan et al., "Muon" (2024).
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    X = matrix.mT if tall else matrix
    size = _sizes(matrix) if sizes is None else sizes
    if norm == "frobenius":
        X = _over(X, size + _NORM_FLOOR, dtype)
    else:
        X = _over(X, torch.where(size == 0, 1.0, size) if isinstance(size, Tensor) else size or 1.0, dtype)
        # of a matrix of norm 1 it is at least the fourth root of 1 / rank; only that of a zero matrix is below
        X = _over(X, sums.slice_norms(X @ X.mT).sqrt().clamp_min(X.shape[-2] ** -0.25 / 2), dtype)
    small = X.shape[-1] >= 2 * X.shape[-2] and _gram_is_stable(tuple(triples), dtype)
    X = _on_gram_matrix(X, triples) if small else _on_matrix(X, triples)
    return (X.mT if tall else X).to(matrix.dtype)


def _sizes(matrix: Tensor) -> sums.Number:
    return sums.norm(matrix) if matrix.ndim == 2 else sums.slice_norms(matrix)


def _over(X: Tensor, size: sums.Number, dtype: torch.dtype) -> Tensor:
    """Return `X / size` in a dtype, divided before it is cast: float16 would lose what is small or large."""
    wide = sums.arithmetic(X)
    size = size.to(wide) if isinstance(size, Tensor) else sums.within(size, wide)
    return (X.to(wide) / size).to(dtype)


def _on_matrix(X: Tensor, triples: Sequence[Triple]) -> Tensor:
    multiply_add = torch.addmm if X.ndim == 2 else torch.baddbmm
    for a, b, c in triples:
        S = X @ X.mT
        S = multiply_add(S, S, S, beta=b, alpha=c)
        X = multiply_add(X, S, X, beta=a)
    return X


def _on_gram_matrix(X: Tensor, triples: Sequence[Triple]) -> Tensor:
    # Every step multiplies X from the left by a polynomial Q of S = X X', and S becomes Q S Q. So m x m products
    # suffice, and X is used twice: 4 m^2 n + 36 m^3 instead of 5 (4 m^2 n + 2 m^3) for five steps.
    multiply_add = torch.addmm if X.ndim == 2 else torch.baddbmm
    S = X @ X.mT
    product: Tensor | None = None
    for i, (a, b, c) in enumerate(triples):
        Q = multiply_add(S, S, S, beta=b, alpha=c)
        Q.diagonal(dim1=-2, dim2=-1).add_(a)
        product = Q if product is None else Q @ product
        if i + 1 < len(triples):
            S = Q @ (S @ Q)
    return X if product is None else product @ X


@cache
def _gram_is_stable(triples: tuple[Triple, ...], dtype: torch.dtype) -> bool:
    # Rounding changes the small eigenvalues of S by one unit; each step but the last multiplies that error by a^2.
    growth = math.prod(a * a for a, _, _ in triples[:-1])
    return torch.finfo(dtype).eps * growth < 0.02
