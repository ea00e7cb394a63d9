"""Step cost of every registered optimizer relative to AdamW: time, passes, memory."""

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
PERIOD = 11  # number of steps that includes every kind of step: the longest interval between two ascents is 10


def random_weights(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    """Return normal tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@dataclass
class Bare:
    """Weights with random gradients, used in turn: the tensors themselves, at no cost, or copies of them."""

    weights: nn.Module
    optimizer: torch.optim.Optimizer
    gradients: Sequence[Sequence[Tensor]]
    copies: bool
    turn: Iterator[int] = field(default_factory=count)

    @classmethod
    def of(cls, name: str, gradients: Sequence[Sequence[Tensor]], *, copies: bool = False) -> Bare:
        """Return weights with the gradients' shapes, and a registered optimizer or torch's AdamW."""
        weights = nn.ParameterList(nn.Parameter(w) for w in random_weights([g.shape for g in gradients[0]], 0))
        return cls(weights, made(name, weights), gradients, copies)

    def step(self) -> None:
        """Take one step; a second pass, if there is one, gets its gradients in the same way."""
        self.optimizer.step(self._closure)

    def _closure(self) -> Tensor:
        self.optimizer.zero_grad()
        gradients = self.gradients[next(self.turn) % len(self.gradients)]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.clone() if self.copies else gradient
        return torch.zeros(())


def random_gradients(shapes: Sequence[tuple[int, ...]]) -> list[list[Tensor]]:
    """Return several sets of gradients, so that each step uses another one."""
    return [random_weights(shapes, seed) for seed in range(1, 8)]


def made(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Return a registered optimizer or torch's AdamW."""
    return torch.optim.AdamW(model.parameters()) if name == ADAMW else optimizer_of(name, model)


def peak_copies(name: str, shapes: Sequence[tuple[int, ...]]) -> float:
    """Return the peak memory of weights, gradients, state and temporaries of a step, in copies of the weights.

    Activations are not included. Two periods of steps are profiled through the allocator's events, starting before the
    weights are created, since the allocator does not count tensors that it did not see being allocated.
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
    """Return the number of forward and backward passes per step, over the first steps of training."""
    training = Training.by(lambda model: made(name, model))
    for _ in range(steps):
        training.step()
    return training.passes / training.steps


def family_table(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], *, rounds: int, repeats: int, steps: int = 50
) -> str:
    """Return a markdown table with one row per optimizer, torch's AdamW first.

    Args:
        names: Registered optimizers.
        shapes: Shapes of the weights for the step alone and for its memory.
        rounds: Number of timed rounds.
        repeats: Steps per round; a multiple of the periods of optimizers that ascend periodically.
        steps: Steps of the training in which passes are counted.
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
