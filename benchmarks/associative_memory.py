"""Items that a linear associative memory holds after one step of Muon and of SGD, against its width.

Run it with `python benchmarks/associative_memory.py [--seeds 5]`; about a minute on two cores. Two markdown tables.

N items have Gaussian keys v_i and values u_i of width d, and item i is seen with a frequency of i^-a. From W = 0 one
step is taken on L(W) = -sum_i q_i log softmax_j(u_j' W v_i)_i, with q the frequencies themselves or those of a batch of
random items. Item i is recovered if u_i' W v_i is the largest of u_j' W v_i, which no learning rate changes. The slope
is that of the logarithm of the number of recovered items over that of d.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from datetime import date

import numpy as np
import torch
from torch import Tensor

ITEMS = 4096
WIDTHS = (32, 48, 64, 96, 128)
POWERS = (1.0, 1.5)
BATCHES = (None, 4096)
BLOCK = 1024


def memory(items: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return values and keys, `(items, width)` each, of length near 1."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, items, width, generator=generator, dtype=torch.float32) / math.sqrt(width)
    return both[0], both[1]


def frequencies(items: int, power: float, batch: int | None, seed: int) -> Tensor:
    """Return the share of each item in all data, or in a random batch of them."""
    q = torch.arange(1, items + 1, dtype=torch.float64) ** -power
    q /= q.sum()
    if batch is None:
        return q.float()
    drawn = torch.multinomial(q, batch, replacement=True, generator=torch.Generator().manual_seed(seed))
    return torch.bincount(drawn, minlength=items).float() / batch


def downhill(values: Tensor, keys: Tensor, q: Tensor) -> Tensor:
    """Return minus the gradient of the loss at W = 0, where every softmax is uniform."""
    return ((values - values.mean(0)) * q[:, None]).mT @ keys


def sgd(direction: Tensor) -> Tensor:
    """Return W after a step of gradient descent."""
    return direction


def polar(direction: Tensor) -> Tensor:
    """Return W after a step of Muon with the exact polar factor."""
    U, _, V = torch.linalg.svd(direction.double(), full_matrices=False)
    return (U @ V).float()


def muon(direction: Tensor) -> Tensor:
    """Return W after a step of torch's Muon: five Newton-Schulz steps in bfloat16."""
    W = torch.nn.Parameter(torch.zeros_like(direction))
    W.grad = -direction
    torch.optim.Muon([W], lr=1.0, weight_decay=0.0).step()
    return W.detach()


RULES: dict[str, Callable[[Tensor], Tensor]] = {"SGD": sgd, "Muon, exact": polar, "Muon, torch": muon}


def recovered(W: Tensor, values: Tensor, keys: Tensor) -> int:
    """Return the number of items whose own value has the largest score."""
    found = 0
    for start in range(0, len(keys), BLOCK):
        best = (keys[start : start + BLOCK] @ W.mT @ values.mT).argmax(1)
        found += int((best == torch.arange(start, start + len(best))).sum())
    return found


def slope(widths: list[int], counts: list[float]) -> float:
    """Return the slope of a line through the logarithms; nan if nothing is recovered at some width."""
    if not all(counts):
        return math.nan
    return float(np.polyfit(np.log(widths), np.log(counts), 1)[0])


def interval(values: list[float]) -> str:
    """Return the mean over seeds with its 95 % t-interval."""
    from lossscope.probes.statistics.estimate import mean_estimate

    found = mean_estimate(values)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def counts_of(power: float, batch: int | None, seeds: int, items: int, widths: list[int]) -> dict[str, list[list[int]]]:
    """Return the recovered items of each rule, by seed and width."""
    found: dict[str, list[list[int]]] = {name: [] for name in RULES}
    for seed in range(seeds):
        rows: dict[str, list[int]] = {name: [] for name in RULES}
        q = frequencies(items, power, batch, seed)
        for width in widths:
            values, keys = memory(items, width, seed)
            direction = downhill(values, keys, q)
            for name, rule in RULES.items():
                rows[name].append(recovered(rule(direction), values, keys))
        for name, row in rows.items():
            found[name].append(row)
    return found


def table(seeds: int, items: int = ITEMS, widths: tuple[int, ...] = WIDTHS) -> list[str]:
    """Return the rows of the table of medians and slopes."""
    head = " | ".join(f"d = {width}" for width in widths)
    lines = [f"| a | q of | rule | {head} | slope |", "|---|---|---|" + "---|" * (len(widths) + 1)]
    for power in POWERS:
        for batch in BATCHES:
            of = "all data" if batch is None else f"a batch of {batch}"
            for name, rows in counts_of(power, batch, seeds, items, list(widths)).items():
                medians = " | ".join(f"{np.median([row[i] for row in rows]):.0f}" for i in range(len(widths)))
                slopes = interval([slope(list(widths), row) for row in rows])
                lines.append(f"| {power:g} | {of} | {name} | {medians} | {slopes} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print(f"## Associative memory, {date.today().isoformat()}\n")
    print(f"torch {torch.__version__}; {ITEMS} items, medians of {seeds} seeds, mean slopes with 95 % intervals\n")
    print("\n".join(table(seeds)))


if __name__ == "__main__":
    main()
