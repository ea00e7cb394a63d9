"""Networks of the curvature benchmark, briefly trained so that their landscapes are those of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.training.workloads import Workload, batch_at, built, workload
from lossscope.probes import CrossEntropy, Objective


@dataclass(frozen=True)
class Problem:
    """A network at some parameters, and the batch whose mean cross-entropy is measured."""

    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    relu_only: bool  # linear layers and ReLU: the Hessian has the trace of the Gauss-Newton matrix

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, which are all trainable."""
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        """Total number of entries of the parameters."""
        return sum(p.numel() for p in self.parameters)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.parameters[0].device

    def loss(self) -> Tensor:
        """Return the mean cross-entropy with its graph."""
        return F.cross_entropy(self.model(self.batch[0]), self.batch[1])

    def gradient(self) -> tuple[Tensor, ...]:
        """Return the gradient of the loss, the unit of cost."""
        return torch.autograd.grad(self.loss(), self.parameters)

    def objective(self) -> Objective:
        """Return the loss as an `Objective`."""
        return Objective(self.model, CrossEntropy(), [self.batch])

    def to(self, where: torch.device | torch.dtype) -> Problem:
        """Return a copy on another device, or in another precision; labels and tokens stay integers."""
        dtype = torch.float32 if isinstance(where, torch.device) else where
        device = where if isinstance(where, torch.device) else self.device
        x, y = (t.to(device, dtype if t.is_floating_point() else t.dtype) for t in self.batch)
        return replace(self, model=deepcopy(self.model).to(device, dtype), batch=(x, y))

    def elementary(self) -> Problem:
        """Return a copy with group norms in elementary operations, for libraries that cannot differentiate torch's."""
        model = deepcopy(self.model)
        for name, module in list(model.named_children()):
            if isinstance(module, nn.GroupNorm):
                setattr(model, name, _GroupNorm(module))
        return replace(self, model=model)


class _GroupNorm(nn.Module):
    """Group norm in elementary operations, with the parameters of another one."""

    def __init__(self, of: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.weight, self.bias = of.num_groups, of.eps, of.weight, of.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized input, scaled and shifted per channel."""
        grouped = x.reshape(len(x), self.groups, -1)
        centered = grouped - grouped.mean(-1, keepdim=True)
        normal = centered * (centered.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        by_channel = (1, -1) + (1,) * (x.ndim - 2)
        return normal.reshape(x.shape) * self.weight.view(by_channel) + self.bias.view(by_channel)


def wide_mlp() -> nn.Module:
    """Return a 64-256-256-10 ReLU network with 85 002 parameters."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


@dataclass(frozen=True)
class Recipe:
    """Recipe for a problem."""

    name: str
    workload: str
    samples: int  # samples of the batch
    network: Callable[[], nn.Module] | None = None  # replaces the workload's network
    relu_only: bool = False

    @property
    def work(self) -> Workload:
        """Workload with this network."""
        work = workload(self.workload)
        return replace(work, network=self.network) if self.network else work

    def problem(self, steps: int, samples: int) -> Problem:
        """Return the problem after a number of AdamW steps, over the first `samples` training examples."""
        work = self.work
        model, _ = trained(work, torch.optim.AdamW, steps, lr=1e-3, **work.options)
        x, y = work.split(0).train
        return Problem(f"{self.name}, step {steps}", model, (x[:samples], y[:samples]), self.relu_only)


RECIPES = {
    "mlp": Recipe("digits MLP", "digits-mlp", 1024, relu_only=True),
    "conv": Recipe("digits conv", "digits-conv", 512),
    "modadd": Recipe("modadd-113", "modadd-113", 512),
    "wide": Recipe("wide MLP", "digits-mlp", 1024, wide_mlp, relu_only=True),
}


def trained(
    work: Workload, optimizer: type[torch.optim.Optimizer], steps: int, **options: object
) -> tuple[nn.Module, list[Tensor]]:
    """Train the network with fixed seeds; return it, and its parameters as flat vectors after every fifth step."""
    model, examples = built(work.network, 0), work.split(0).train
    stepping = optimizer(model.parameters(), **options)
    evaluations = []
    for step in range(steps):
        x, y = batch_at(examples, work.batch_size, step, 0)
        stepping.zero_grad()
        F.cross_entropy(model(x), y).backward()
        stepping.step()
        if step % 5 == 4:
            evaluations.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    stepping.zero_grad()
    return model, evaluations


def evaluated(problem: Problem, evaluations: list[Tensor]) -> Iterator[int]:
    """Set the parameters of each evaluation in turn and yield its index."""
    for number, vector in enumerate(evaluations):
        with torch.no_grad():
            nn.utils.vector_to_parameters(vector.to(problem.device), problem.model.parameters())
        yield number
