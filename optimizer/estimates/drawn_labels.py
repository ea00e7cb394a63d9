"""Gradients with labels drawn from the model, which measure its Fisher information."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.two_pass import Pass, RandomState, refuse_sparse
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.estimates.estimated_step import EstimatedStep
from lossscope.optimizer.update import sums

__all__ = ["DrawnLabels", "sampled_gradient", "with_drawn_labels"]


@dataclass
class DrawnLabels(Pass):
    """A pass whose `labels` are drawn from the model.

    Attributes:
        rule: Name of the rule, for messages.
        noise: Random draw of the step; micro-batches go on with its numbers.
        samples: 0-d: number of labels drawn so far, without those that the loss leaves out.
    """

    rule: str = ""
    noise: SeededNoise | None = None
    samples: Tensor | None = None
    _generator: torch.Generator | None = None

    @torch.no_grad()
    def labels(self, logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
        """Return one label per row of logits, drawn with the probabilities of their softmax."""
        rows = self._classes_last(logits, labels)
        chances = torch.nan_to_num(rows.detach().flatten(0, -2).softmax(-1, dtype=torch.float32), nan=1.0)
        if self._generator is None and self.noise is not None:
            self._generator = self.noise.generator(logits.device)
        drawn = torch.multinomial(chances, 1, generator=self._generator).reshape(labels.shape).to(labels.dtype)
        left_out = labels == ignore_index
        count = (~left_out).sum()
        self.samples = count if self.samples is None else self.samples + count
        return torch.where(left_out, labels, drawn)

    def check(self) -> Tensor:
        """Return the number of samples.

        Raises:
            OptimizerError: The pass was run with the labels of the data.
        """
        if self.samples is None:
            raise OptimizerError(
                f"pass {self.index} of {self.rule} needs labels drawn from the model: compute its loss as "
                "p.backward(cross_entropy(logits, p.labels(logits, labels)))"
            )
        return self.samples

    def _classes_last(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits with the axis of classes last."""
        last = logits.shape[:-1] == labels.shape
        second = logits.ndim > 2 and (logits.shape[0], *logits.shape[2:]) == tuple(labels.shape)
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        if labels.is_floating_point() or not (last or second):
            raise OptimizerError(
                f"{self.rule} needs a cross-entropy of classes, with logits (..., C) and class numbers (...); "
                f"p.labels() was given {shapes} of {labels.dtype}"
            )
        if last and second:
            raise OptimizerError(
                f"p.labels() cannot tell which axis of {shapes} has the classes: flatten them to (N, C) and (N,)"
            )
        return logits if last else logits.movedim(1, -1)


def with_drawn_labels(step: EstimatedStep, start: RandomState) -> Iterator[DrawnLabels]:
    """Yield a second pass with drawn labels, and put the gradients of the first one back afterwards."""
    kept = {p: p.grad for p in step.parameters}
    drawn = DrawnLabels(1, rule=step.rule, noise=step.noise("labels", 0))
    with step.repeated(start):
        yield drawn
    drawn.check()
    step.estimates = {p: {"gradient": p.grad} for p in step.parameters if p.grad is not None}
    for p, gradient in kept.items():
        p.grad = gradient


def sampled_gradient(step: EstimatedStep) -> Iterator[Pass]:
    """Yield a pass, and one with drawn labels where it is due; estimate `sqrt(N)` times the gradient of the second.

    The gradient is that of a mean over N samples, so the square of the estimate has the mean of the diagonal of the
    Fisher matrix over draws (the estimator of Gauss, Newton and Bartlett).
    """
    start = RandomState(step.parameters)
    first = Pass(0)
    yield first
    refuse_sparse(step.parameters)
    step.loss = first.loss
    if not step.due:
        return
    for drawn in with_drawn_labels(step, start):
        yield drawn
        samples = drawn.check()
    for p, found in step.estimates.items():
        gradient = found["gradient"]
        step.estimates[p] = {"gradient": gradient * samples.to(sums.arithmetic(gradient)).sqrt()}
