"""Pairs of independent minibatches: autocorrelation of gradient and shear over steps, and gradient noise.

A window is a range of steps in which gradient and shear are computed on the same two minibatches, at its start and at
some lags. A cosine is never taken between two vectors of the same minibatch, as its noise would count as correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.measures.host_transfer import Row
from lossscope.optimizer import TwoPassOptimizer
from lossscope.optimizer.ascent.perturbation import RANDOM
from lossscope.optimizer.ascent.shear import residual
from lossscope.optimizer.update.matrix_view import matrix_view, track_of
from lossscope.probes.objective.objective import Objective
from lossscope.probes.step_tensors.norms import norm
from lossscope.probes.step_tensors.shear_geometry import cosine
from lossscope.probes.step_tensors.singular_values import gram_spectra

__all__ = ["MinibatchPairs"]

_Pair = tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]  # vectors by object, for both minibatches


@dataclass(frozen=True)
class _Window:
    """A window and the vectors at its start."""

    number: int
    pair: _Pair


class MinibatchPairs:
    """Sampler of pairs of minibatches, window after window; each window uses the next pair.

    A window keeps the vectors at its start: two copies of the parameters, four if the optimizer has an ascent step. A
    sample costs two gradients of a minibatch, or four.

    Args:
        minibatches: The training loss on minibatches of the training's batch size. The first and the second are a pair,
            the third and the fourth, and so on; an odd one at the end is not used. The two of a pair must be drawn
            independently: with replacement, if the training set is small.
        optimizer: Its ascent step gives the shear. There is none without an ascent, and none for a random ascent, whose
            direction has no correlation between steps.
        last: The last lag of a window, after which its vectors are released.

    Raises:
        LandscapeError: There are fewer than two minibatches.
    """

    def __init__(self, minibatches: Objective, optimizer: Optimizer, last: int) -> None:
        count = len(minibatches.data.batches)
        if count < 2:
            raise LandscapeError(f"minibatches must hold at least 2 batches, drawn independently, got {count}")
        self._minibatches = minibatches
        self._last = last
        self._ascending = optimizer if _has_shear(optimizer) else None
        self._parts: dict[int, Objective] = {}
        self._window: _Window | None = None
        self._place = 0  # index of the first minibatch of the current pair
        parameters = dict(minibatches.model.named_parameters())
        self._parameters = [parameters[name] for name in minibatches.names]
        self._shapes = _matrix_shapes(optimizer, self._parameters)

    def rows(self, step: int, window: int, lag: int) -> tuple[list[Row], list[Row]]:
        """Return rows of the tables `pairs` and `spectra` at the current parameters, with numbers on the device.

        Args:
            step: Number of steps taken so far.
            window: Number of the current window.
            lag: Steps since the start of the window; 0 starts it.

        Returns:
            The rows; none if the start of the window was not sampled.

        Raises:
            ProbeError: A loss or a gradient is not finite.
        """
        if lag == 0:
            self._place = 2 * (window % (len(self._minibatches.data.batches) // 2))
            pair = self._pair()
            self._window = _Window(window, pair)
            return self._first_rows(step, pair), self._spectra(pair)
        if self._window is None or self._window.number != window:
            return [], []
        (one, two), (first, second) = self._pair(), self._window.pair
        rows = [
            self._row(step, name, lag, (cosine(first[name], two[name]) + cosine(second[name], one[name])) / 2)
            for name in one
        ]
        if lag == self._last:
            self._window = None
        return rows, []

    def _pair(self) -> _Pair:
        """Return the vectors of both minibatches of the current window at the current parameters."""
        return self._vectors(self._place), self._vectors(self._place + 1)

    def _vectors(self, index: int) -> dict[str, list[Tensor]]:
        """Return the gradient of one minibatch, and its shear if the optimizer has one."""
        if index not in self._parts:
            self._parts[index] = self._minibatches.batch(index)
        loss = self._parts[index]
        vector = loss.vector
        with loss.evaluating():
            gradient = vector.split(loss.gradient())
            if self._ascending is None:
                return {"gradient": gradient}
            moves = self._ascending.ascent(dict(zip(self._parameters, gradient, strict=True)))
            ascent = [moves.get(p, torch.zeros_like(p)) for p in self._parameters]
            with loss.at(loss.parameters() + vector.joined(ascent)):
                raised = vector.split(loss.gradient())
        triples = zip(self._parameters, raised, gradient, strict=True)
        return {"gradient": gradient, "shear": [residual(a, g) for p, a, g in triples if p in moves]}

    def _first_rows(self, step: int, pair: _Pair) -> list[Row]:
        """Return the rows at lag 0, with squared norms."""
        first, second = pair
        rows = []
        for name in first:
            both = [(one + two) / 2 for one, two in zip(first[name], second[name], strict=True)]
            squares = [norm(one).square() for one in (first[name], second[name], both)]
            row = self._row(step, name, 0, cosine(first[name], second[name]))
            rows.append({**row, "square": (squares[0] + squares[1]) / 2, "pair_square": squares[2]})
        return rows

    def _row(self, step: int, name: str, lag: int, found: Tensor) -> Row:
        """Return one row of `pairs`."""
        counts = self._minibatches.data.counts[self._place : self._place + 2]
        return {
            "step": step,
            "object": name,
            "lag": lag,
            "cosine": found,
            # harmonic mean: the number of samples for which the mean of the two squares is the expected square
            "samples": 2 / sum(1 / count for count in counts),
            "size": self._minibatches.size,
            "mode": self._minibatches.mode,
            "loss_kind": self._minibatches.loss_kind,
            "dtype": str(self._parameters[0].dtype).removeprefix("torch."),
            "data_hash": self._minibatches.data_hash,
            "additivity": self._parts[self._place].additivity,
        }

    def _spectra(self, pair: _Pair) -> list[Row]:
        """Return the spectra of the gradient of one minibatch and of the mean of both, in one batched decomposition."""
        first, second = (one["gradient"] for one in pair)
        objects = [
            (name, kind, matrix.reshape(shape))
            for name, shape, g, h in zip(self._minibatches.names, self._shapes, first, second, strict=True)
            if shape is not None
            for kind, matrix in (("batch_gradient", g), ("pair_gradient", (g + h) / 2))
        ]
        found = gram_spectra([matrix for _, _, matrix in objects])
        return [
            {"tensor": name, "object": kind, "values": values, "method": "gram", "shape": tuple(matrix.shape[-2:])}
            for (name, kind, matrix), values in zip(objects, found, strict=True)
        ]


def _has_shear(optimizer: Optimizer) -> TypeGuard[TwoPassOptimizer]:
    """Return True if an optimizer has an ascent step that depends on the loss."""
    if not (isinstance(optimizer, TwoPassOptimizer) and optimizer.takes_second_gradient):
        return False
    return optimizer.param_groups[0]["perturbation"] not in RANDOM


def _matrix_shapes(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[tuple[int, ...] | None]:
    """Return the shape of each parameter's matrix view, the same as in the rows of steps; None for a vector."""
    groups: dict[Tensor, dict[str, Any]] = {p: group for group in optimizer.param_groups for p in group["params"]}

    def shape(parameter: Tensor) -> tuple[int, ...] | None:
        """Return the shape of one parameter's matrix view, or None."""
        group = groups.get(parameter, {}) if isinstance(optimizer, TwoPassOptimizer) else {}
        if track_of({"track": group.get("track")}, parameter) == "vector":
            return None
        flatten, convolution = group.get("flatten", False), group.get("convolution", False)
        return tuple(matrix_view(parameter, flatten=flatten, convolution=convolution).shape)

    return [shape(p) for p in parameters]
