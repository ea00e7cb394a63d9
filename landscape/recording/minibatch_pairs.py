"""What two independent minibatches say of one point, and of points some steps apart: memory of directions, and noise.

In a window of steps, gradient and shear are taken on the same two minibatches at the window's begin and some steps
later. A cosine never joins two vectors of one minibatch, so the noise of a minibatch is not taken for memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.curvature.host_transfer import Row
from lossscope.landscape.errors import LandscapeError
from lossscope.optimizer import TwoPassOptimizer
from lossscope.optimizer.ascent.perturbation import RANDOM
from lossscope.optimizer.ascent.shear import residual
from lossscope.optimizer.update.matrix_view import matrix_view, track_of
from lossscope.probes.objective.objective import Objective
from lossscope.probes.steps.norms import norm
from lossscope.probes.steps.shear_geometry import cosine
from lossscope.probes.steps.singular_values import gram_spectra

__all__ = ["MinibatchPairs"]

_Pair = tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]  # by object, of the first and the second minibatch


@dataclass(frozen=True)
class _Window:
    """A window, and the vectors that it began with."""

    number: int
    pair: _Pair


class MinibatchPairs:
    """Looks at pairs of minibatches, window after window; each window has the next pair.

    A window holds the vectors it began with: two copies of the parameters, four where the optimizer ascends. A look
    costs two gradients of a minibatch, or four.

    Args:
        minibatches: The training loss on minibatches of the training's size: the first and the second are a pair, the
            third and the fourth, and so on; an odd one is not used. Those of a pair must be drawn independently of one
            another: with replacement, where the training set is small.
        optimizer: For its ascent; one that takes none has no shear, nor one whose ascent is random: that has no memory.
        last: The last lag of a window, after which its vectors are let go.

    Raises:
        LandscapeError: There are fewer than two minibatches.
    """

    def __init__(self, minibatches: Objective, optimizer: Optimizer, last: int) -> None:
        count = len(minibatches.data.batches)
        if count < 2:
            raise LandscapeError(f"{count} minibatch makes no pair, need at least 2, drawn independently")
        self._minibatches = minibatches
        self._last = last
        self._ascending = optimizer if _has_shear(optimizer) else None
        self._parts: dict[int, Objective] = {}
        self._window: _Window | None = None
        self._place = 0  # of the present pair's first minibatch
        parameters = dict(minibatches.model.named_parameters())
        self._parameters = [parameters[name] for name in minibatches.names]
        self._shapes = _matrix_shapes(optimizer, self._parameters)

    def rows(self, step: int, window: int, lag: int) -> tuple[list[Row], list[Row]]:
        """Rows of the tables `pairs` and `spectra` at the present parameters, numbers still on the device.

        Args:
            step: Steps taken so far.
            window: The number of the present window.
            lag: Steps since its begin; 0 begins it.

        Returns:
            The rows; none in a window whose begin was not seen.

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
        """The vectors of both minibatches of the present window at the present parameters."""
        return self._vectors(self._place), self._vectors(self._place + 1)

    def _vectors(self, index: int) -> dict[str, list[Tensor]]:
        """The gradient, and the shear where there is one, of one minibatch."""
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
        first, second = pair
        rows = []
        for name in first:
            both = [(one + two) / 2 for one, two in zip(first[name], second[name], strict=True)]
            squares = [norm(one).square() for one in (first[name], second[name], both)]
            row = self._row(step, name, 0, cosine(first[name], second[name]))
            rows.append({**row, "square": (squares[0] + squares[1]) / 2, "pair_square": squares[2]})
        return rows

    def _row(self, step: int, name: str, lag: int, found: Tensor) -> Row:
        counts = self._minibatches.data.counts[self._place : self._place + 2]
        return {
            "step": step,
            "object": name,
            "lag": lag,
            "cosine": found,
            "samples": 2 / sum(1 / count for count in counts),  # so that the mean square is that of so many
            "size": self._minibatches.size,
            "mode": self._minibatches.mode,
            "loss_kind": self._minibatches.loss_kind,
            "dtype": str(self._parameters[0].dtype).removeprefix("torch."),
            "data_hash": self._minibatches.data_hash,
        }

    def _spectra(self, pair: _Pair) -> list[Row]:
        """The spectra of the gradient of one minibatch and of both together, all decomposed at once."""
        first, second = (one["gradient"] for one in pair)
        asked = [
            (name, kind, matrix.reshape(shape))
            for name, shape, g, h in zip(self._minibatches.names, self._shapes, first, second, strict=True)
            if shape is not None
            for kind, matrix in (("batch_gradient", g), ("pair_gradient", (g + h) / 2))
        ]
        found = gram_spectra([matrix for _, _, matrix in asked])
        return [
            {"tensor": name, "object": kind, "values": values, "method": "gram", "shape": tuple(matrix.shape[-2:])}
            for (name, kind, matrix), values in zip(asked, found, strict=True)
        ]


def _has_shear(optimizer: Optimizer) -> TypeGuard[TwoPassOptimizer]:
    """Whether an optimizer ascends along something of the loss."""
    if not (isinstance(optimizer, TwoPassOptimizer) and optimizer.takes_second_gradient):
        return False
    return optimizer.param_groups[0]["perturbation"] not in RANDOM


def _matrix_shapes(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[tuple[int, ...] | None]:
    """How each parameter is cut into matrices, as the rows of steps have it; None for a vector."""
    groups: dict[Tensor, dict[str, Any]] = {p: group for group in optimizer.param_groups for p in group["params"]}

    def shape(parameter: Tensor) -> tuple[int, ...] | None:
        group = groups.get(parameter, {}) if isinstance(optimizer, TwoPassOptimizer) else {}
        if track_of({"track": group.get("track")}, parameter) == "vector":
            return None
        flatten, convolution = group.get("flatten", False), group.get("convolution", False)
        return tuple(matrix_view(parameter, flatten=flatten, convolution=convolution).shape)

    return [shape(p) for p in parameters]
