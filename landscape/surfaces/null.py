"""Barriers that chance alone makes: to a copy with permuted neurons, and between two seeds of one optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import torch
from torch import Tensor, nn

from lossscope.landscape.analysis.arms import by_arm, has_seeds
from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.recording.checkpoints import checkpoints
from lossscope.landscape.run import Run, run_folders
from lossscope.landscape.surfaces.pictures import Path
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.copying import copied
from lossscope.probes.gauge.symmetry import Scaling, Slot
from lossscope.probes.gauge.tracing import symmetries_of
from lossscope.probes.objective.objective import Objective

__all__ = ["are_seeds", "is_one_function", "permuted", "sibling"]

_ELEMENTWISE: Final = (
    *(nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ReLU, nn.ELU, nn.SELU, nn.Softplus, nn.Mish, nn.LeakyReLU),
    *(nn.Hardtanh, nn.Hardswish, nn.Identity, nn.Dropout),
)
_SAME: Final = 1e-4  # difference of the losses of one function with permuted neurons, relative to the loss or to 1


def permuted(objective: Objective, seed: int) -> Tensor:
    """Return the parameters of the same network with the neurons of its hidden layers in another order.

    Args:
        objective: The loss, at the parameters; it is unchanged.
        seed: Seed of the orders.

    Returns:
        `(n,)`. Whether the function is the same is not checked here: see `is_one_function`.

    Raises:
        ProbeError: No layer is known whose neurons can be permuted, or the network cannot be copied.
    """
    other = copied(objective.model)
    found = _hidden_layers(other)
    if not found:
        raise ProbeError("no hidden layer is known whose neurons can be permuted without changing the function")
    generator = torch.Generator().manual_seed(seed)
    names = {slot.name for one in found for slot in (*one.writes, *one.reads, *one.gains)}
    weights = {name: p.detach().clone().contiguous() for name, p in other.named_parameters() if name in names}
    for one in found:
        order = torch.randperm(one.size, generator=generator)
        for slot in (*one.writes, *one.reads, *one.gains):
            rows = slot.rows(weights)
            slot.assign(weights, rows[order.to(rows.device)])
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return objective.with_model(other).parameters()


def is_one_function(path: Path) -> bool:
    """Return True if both ends of a path have one loss, up to rounding.

    Args:
        path: The path to a permuted copy; with statistics of BatchNorm measured anew, if there are any.
    """
    first, last = float(path.drawn[0]), float(path.drawn[-1])
    return abs(first - last) <= _SAME * max(1.0, abs(first))


def sibling(run: Run) -> Run | None:
    """Return a run beside this one that differs in its seeds alone, one on the same data if there is one; or None.

    Args:
        run: A run.
    """
    data = run.manifest.get("data_hash")
    others = [one for one in _beside(run) if are_seeds(run, one) and checkpoints(one.path)]
    return min(others, key=lambda one: (one.manifest.get("data_hash") != data, one.name), default=None)


def are_seeds(run: Run, other: Run) -> bool:
    """Return True if two runs are of one arm, have other seeds, and are equal in all that they recorded.

    Args:
        run: A run.
        other: Another one.
    """
    arms = {one.manifest.get("arm") for one in (run, other)}
    apart = has_seeds(run) and has_seeds(other) and run.manifest["seeds"] != other.manifest["seeds"]
    return apart and arms != {None} and len(arms) == 1 and len(by_arm([run, other])) == 1


def _beside(run: Run) -> Iterator[Run]:
    """Yield the other runs in the folder of a run that can be opened."""
    for folder in run_folders(run.path.resolve().parent):
        with suppress(LandscapeError):  # a damaged neighbor is no reason to fail
            other = Run.open(folder)
            if other.manifest.get("id") != run.manifest.get("id"):
                yield other


def _hidden_layers(model: nn.Module) -> list[Scaling]:
    """Return layers whose neurons can be permuted: those that `balance` can rescale, and others in plain sequences."""
    there = {name for name, _ in model.named_parameters()}
    found = [one for one in symmetries_of(model).known if isinstance(one, Scaling) and _is_plain(one)]
    written = {slot.name for one in found for slot in one.writes}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            found += [one for one in _in_sequence(name, module) if one.writes[0].name not in written]
    return [one for one in found if all(slot.name in there for slot in (*one.writes, *one.reads, *one.gains))]


def _in_sequence(name: str, layers: nn.Sequential) -> Iterator[Scaling]:
    """Yield the layers of a sequence behind which each neuron goes through a function of its own to the next layer."""
    last: tuple[str, nn.Linear] | None = None
    for key, layer in layers.named_children():
        place = f"{name}.{key}" if name else key
        if type(layer) is nn.Linear:
            if last is not None:
                yield _between(*last, place, layer)
            last = (place, layer)
        elif not isinstance(layer, _ELEMENTWISE):
            last = None


def _between(name: str, first: nn.Linear, following: str, second: nn.Linear) -> Scaling:
    """Return the neurons between two linear layers."""
    writes = [Slot(f"{name}.weight", tuple(first.weight.shape), (0, 1))]
    writes += [] if first.bias is None else [Slot(f"{name}.bias", tuple(first.bias.shape), (0,))]
    reads = (Slot(f"{following}.weight", tuple(second.weight.shape), (1, 0)),)
    return Scaling(name, first.out_features, tuple(writes), reads)


def _is_plain(one: Scaling) -> bool:
    """Return True if each neuron is a row of every slot, and not one of several groups."""
    return one.size > 1 and all(slot.lead == 1 for slot in (*one.writes, *one.reads, *one.gains))
