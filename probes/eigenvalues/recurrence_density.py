"""Spectral density from Lanczos recurrences without a basis, in which an eigenvalue has several nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lossscope.probes.eigenvalues.density import SpectralDensity, are_single
from lossscope.probes.eigenvalues.orthonormal_rows import Array
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.eigenvalues.start_block import StartBlock
from lossscope.probes.eigenvalues.three_vectors import ThreeVectors

__all__ = ["recurrence_density"]

_NEAR: Final = 2.0  # sums of residuals within which two settled nodes are the same eigenvalue


def recurrence_density(starts: list[StartBlock[ThreeVectors]]) -> SpectralDensity:
    r"""Return the spectral density estimated from the recurrences of independent random vectors.

    The nodes and weights of each T integrate against the spectral measure of its start, ghosts included: a ghost and
    its eigenvalue share the weight of one. So nodes near each other are merged before any is counted as a single
    eigenvalue, and one counts as settled only where every recurrence has settled on it; all the others stay sampled.

    Args:
        starts: The recurrences, each with the vector it began from.

    Returns:
        The density; row i of its weights is zero at the nodes of the other recurrences.
    """
    now = [ritz(one.space, one.random) for one in starts]
    half = None
    if min(len(one.values) for one in now) > 1:
        before = [ritz(one.space, one.random, dimensions=-(-one.space.dimension // 2)) for one in starts]
        half = _density(before, starts[0].space.size)
    return replace(_density(now, starts[0].space.size), half=half)


@dataclass(frozen=True)
class _Nodes:
    """Nodes of one recurrence, ascending, after merging."""

    values: Array  # (k,)
    weights: Array  # (k,), they sum to 1
    residuals: Array  # (k,)
    settled: Array  # (k,) bool


def _density(found: list[Ritz], size: int) -> SpectralDensity:
    """Return the density of Ritz pairs of several recurrences."""
    parts = [_merged(one, size) for one in found]
    shared = _shared(parts)
    count = len(parts)
    values = [np.mean([part.values[i] for part, i in zip(parts, match, strict=True)]) for match in shared]
    weights = [[part.weights[i] for part, i in zip(parts, match, strict=True)] for match in shared]
    singles = np.array(values), np.array(weights).reshape(len(shared), count)
    nodes, rows, single = [singles[0]], [singles[1]], [np.ones(len(shared), dtype=bool)]
    for place, part in enumerate(parts):
        rest = np.setdiff1d(np.arange(len(part.values)), [match[place] for match in shared])
        own = np.zeros((len(rest), count))
        own[:, place] = part.weights[rest]
        nodes.append(part.values[rest])
        rows.append(own)
        single.append(np.zeros(len(rest), dtype=bool))
    order = np.argsort(np.concatenate(nodes), kind="stable")
    return SpectralDensity(
        np.concatenate(nodes)[order],
        np.concatenate(rows)[order].T,
        np.concatenate(single)[order],
        size,
        min(float(part.residuals.min()) for part in parts),
        min(float(one.values[0]) - one.reach(largest=False) for one in found),
        separate=True,
    )


def _merged(found: Ritz, size: int) -> _Nodes:
    """Return the nodes of one recurrence, those of one eigenvalue as one with the sum of their weights."""
    groups = found.groups
    best = np.array([group[np.argmin(found.residuals[group])] for group in groups])
    weights = np.array([found.weights[0, group].sum() for group in groups])
    values, residuals = found.values[best], found.residuals[best]
    return _Nodes(values, weights, residuals, are_single(size * weights, residuals, found.gaps_between(values)))


def _shared(parts: list[_Nodes]) -> list[tuple[int, ...]]:
    """Return the settled nodes that all recurrences have in common, as their indices in each."""
    found = []
    for i in np.flatnonzero(parts[0].settled):
        match = [int(i)]
        for other in parts[1:]:
            apart = np.abs(other.values - parts[0].values[i])
            near = other.settled & (apart <= _NEAR * (other.residuals + parts[0].residuals[i]))
            if near.sum() != 1:
                break
            match.append(int(np.flatnonzero(near)[0]))
        if len(match) == len(parts):
            found.append(tuple(match))
    return found
