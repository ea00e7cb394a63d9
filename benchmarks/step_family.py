"""What a step of every registered optimizer costs beside AdamW: time, passes, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from step_timing import Arm, medians
from step_training import Training, optimizer_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

ADAMW = "torch AdamW"
PERIOD = 11  # steps that hold every kind of step: the longest interval between two ascents is 10


def random_weights(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    """Normal tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@dataclass
class Bare:
    """Weights with random gradients, a few in turn: handed out as they are, which costs nothing, or as copies."""

    weights: nn.Module
    optimizer: torch.optim.Optimizer
    gradients: Sequence[Sequence[Tensor]]
    copies: bool
    turn: Iterator[int] = field(default_factory=count)

    @classmethod
    def of(cls, name: str, gradients: Sequence[Sequence[Tensor]], *, copies: bool = False) -> Bare:
        """Weights of the gradients' shapes, with a registered optimizer or torch's AdamW."""
        weights = nn.ParameterList(nn.Parameter(w) for w in random_weights([g.shape for g in gradients[0]], 0))
        return cls(weights, made(name, weights), gradients, copies)

    def step(self) -> None:
        """One step; a second pass, where there is one, is made in the same way."""
        self.optimizer.step(self._closure)

    def _closure(self) -> Tensor:
        self.optimizer.zero_grad()
        gradients = self.gradients[next(self.turn) % len(self.gradients)]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.clone() if self.copies else gradient
        return torch.zeros(())


def random_gradients(shapes: Sequence[tuple[int, ...]]) -> list[list[Tensor]]:
    """A few of them for each step to take another."""
    return [random_weights(shapes, seed) for seed in range(1, 8)]


def made(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """A registered optimizer or torch's AdamW."""
    return torch.optim.AdamW(model.parameters()) if name == ADAMW else optimizer_of(name, model)


def peak_copies(name: str, shapes: Sequence[tuple[int, ...]]) -> float:
    """Weights, gradients, state and what a step holds besides, at their most, in copies of the weights.

    Activations are no part of it. Two periods of steps are watched from before the weights were made, through the
    allocator's own account, which leaves out what it did not see come.
    """
    gradients = random_gradients(shapes)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        bare = Bare.of(name, gradients, copies=True)
        for _ in range(2 * PERIOD):
            bare.step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / sum(w.nbytes for w in bare.weights)


def passes(name: str, steps: int) -> float:
    """Forward and backward passes a step, over the first steps of training."""
    training = Training.by(lambda model: made(name, model))
    for _ in range(steps):
        training.step()
    return training.passes / training.steps


def family_table(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], *, rounds: int, repeats: int, steps: int = 50
) -> str:
    """A markdown table, one row an optimizer, torch's AdamW first.

    Args:
        names: Registered optimizers.
        shapes: Of the weights that the step alone and its memory are measured on.
        rounds: Evaluations of each.
        repeats: Steps an evaluation; a whole number of the periods of those that ascend now and then.
        steps: Of the training that passes are counted in.
    """
    everyone = [ADAMW, *names]
    gradients = random_gradients(shapes)
    alone = _times([Bare.of(name, gradients).step for name in everyone], rounds, repeats)
    trainings = [Training.by(lambda model, name=name: made(name, model)) for name in everyone]
    whole = _times([training.step for training in trainings], rounds, repeats)
    lines = [
        "| optimizer | step alone, ms | / AdamW | with its passes, ms | / AdamW | passes a step | peak memory, copies |"
    ]
    lines.append("|---" * 7 + "|")
    for i, name in enumerate(everyone):
        times = f"{1e3 * alone[i]:.3f} | {alone[i] / alone[0]:.2f} | {1e3 * whole[i]:.2f} | {whole[i] / whole[0]:.2f}"
        lines.append(f"| {name} | {times} | {passes(name, steps):.2f} | {peak_copies(name, shapes):.2f} |")
    return "\n".join(lines)


def _times(steps: Sequence[Callable[[], object]], rounds: int, repeats: int) -> list[float]:
    return medians([Arm("", step) for step in steps], rounds, repeats)
