"""Difference of two runs or files of weights: how far apart, where, and the loss between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from lossscope.landscape.analysis.diff import WeightDifference, weight_difference
from lossscope.landscape.errors import ConfigError, LandscapeError, RunError
from lossscope.landscape.surfaces.difference import Difference, SeedPair
from lossscope.landscape.surfaces.sides import Side, began_together, found_pairs, given_pairs, side_at, weights_of

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.between import LossBetween
    from lossscope.probes.objective.objective import Objective

__all__ = ["diff"]

Progress: TypeAlias = Callable[[int, int, str], None]

_POINTS: Final = 21


def diff(
    a: str | Path,
    b: str | Path,
    *,
    objective: str | Objective | None = None,
    null: Sequence[str | Path] | None = None,
    weights_only: bool = False,
    top: int = 8,
    points: int = _POINTS,
    progress: Progress | None = None,
) -> Difference:
    """Compare two sets of weights, and the loss between them where there is one.

    Without a loss nothing here needs torch, unless a file is one of torch.

    Args:
        a: A run (its last checkpoint), `RUN@STEP`, or a file of weights (.safetensors, .pt).
        b: The other.
        objective: The loss (its model has its weights and buffers again afterwards), or `FILE.py:NAME` of a function
            that returns it. Default: the loss that a run of `lossscope train` was trained on, if A or B is one.
        null: Runs of one arm with different seeds, or files of such weights, whose pairs are compared as A and B are.
            Default: the seeds of the arms of A and B that lie beside them, three pairs of each at most.
        weights_only: True to evaluate no loss.
        top: Number of singular directions of the subspaces that are compared.
        points: Number of losses on each straight path.
        progress: Called with the number of tensors or pairs done, their number, and what they are.

    Returns:
        The difference.

    Raises:
        ConfigError: A and B are the same, of other architectures, not finite, or cannot be read; or the loss does not
            fit.
        RunError: A run cannot be read, or has no such checkpoint.

    Example:
        >>> from lossscope.landscape import diff
        >>> diff("runs/a", "runs/b").weights.whole.relative  # doctest: +SKIP
        1.36
    """
    begun = time.perf_counter()
    tell = progress or _silent
    if weights_only and objective is not None:
        raise ConfigError("weights alone need no objective: give one of --weights-only and --objective")
    first, second = side_at(a), side_at(b)
    if os.path.samefile(first.source, second.source):
        raise ConfigError(
            f"A and B are the same, {first.source}: name another file, or RUN@STEP for another checkpoint"
        )
    weights = weight_difference(
        weights_of(first), weights_of(second), top=top, progress=lambda done, count: tell(done, count, "tensors")
    )
    between, missing = None, dict[str, str]()
    if not weights_only:
        between, reason = _loss_between(first, second, objective, points, weights)
        missing |= {"loss": reason} if reason else {}
    pairs = found_pairs(first, second) if null is None else given_pairs(null)
    with nullcontext() if between is None else between.weights_kept():
        seeds, lost = _seed_pairs(pairs, between, named=null is not None, tell=tell)
        tell(0, 1, "loss between A and B")
        measured = Difference(weights) if between is None else between.difference(weights, first, second)
    return replace(
        measured,
        seeds=seeds,
        same_start=began_together(first, second),
        missing={**missing, **lost, **measured.missing},
        notes=(*([weights.matched.prefix] if weights.matched.prefix else []), *measured.notes),
        seconds=time.perf_counter() - begun,
    )


def _seed_pairs(
    pairs: Sequence[tuple[str, Side, Side]], between: LossBetween | None, *, named: bool, tell: Progress
) -> tuple[tuple[SeedPair, ...], dict[str, str]]:
    """Return the pairs of seeds as they were compared, and those that could not be, with the reason.

    Raises:
        LandscapeError: A pair that the user named cannot be compared.
    """
    seeds, missing = [], dict[str, str]()
    for place, (arm, one, other) in enumerate(pairs):
        tell(place, len(pairs), "pairs of seeds")
        name = _names(one, other)
        try:
            apart = weight_difference(weights_of(one), weights_of(other), subspaces=False)
            line = None if between is None else between.path_of(one, other)
        except LandscapeError as error:
            if named:
                raise
            missing[f"two seeds: {name}"] = str(error)  # found, not named: no reason to refuse A and B
            continue
        seeds.append(SeedPair(name, arm, apart, line))
    if not pairs:
        missing["two seeds"] = "no two runs of one arm with other seeds lie beside A or B: name some by --null RUN"
    return tuple(seeds), missing


def _loss_between(
    first: Side, second: Side, objective: str | Objective | None, points: int, weights: WeightDifference
) -> tuple[LossBetween | None, str]:
    """Return what evaluates the loss; None with the reason if there is none.

    Raises:
        ConfigError: The loss that was asked for does not exist.
    """
    if weights.whole.distance == 0 and weights.matched.complete:
        return None, "A and B hold the same weights: there is no path between them"
    trained = [side.run for side in (first, second) if side.run is not None and _has_workload(side.run.manifest)]
    if objective is None and not trained:
        return None, "weights alone have no loss: give one by --objective FILE.py:NAME"
    if objective is None and not weights.matched.complete:
        return None, "A and B are of different architectures: no loss is one of both"
    from lossscope.landscape.surfaces.between import LossBetween

    if objective is not None:
        return LossBetween.of(objective, points), ""
    try:
        return LossBetween.of_run(trained[0], points), ""
    except RunError as error:
        return None, str(error)


def _has_workload(manifest: dict[str, object]) -> bool:
    """Return True for a run of `lossscope train`, whose loss can be built again."""
    config = manifest.get("config")
    return isinstance(config, dict) and "workload" in config


def _names(one: Side, other: Side) -> str:
    """Return the names of two sides, with their step once."""
    if one.run is None or other.run is None or one.step != other.step:
        return f"{one.name}, {other.name}"
    return f"{one.run.name}, {other.run.name} at step {one.step}"


def _silent(done: int, count: int, what: str) -> None:
    """Tell nothing."""
