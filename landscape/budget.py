"""The fewest products that the measures asked for can be had from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measure import EIGENVALUES, MEASURES
from lossscope.landscape.subject import Effort

__all__ = ["check_budget", "least_products"]

_SPACE: Final = 4  # products of the smallest Krylov space
_PROBES: Final = 2  # random vectors that give a standard error
_FROM_DENSITY: Final = frozenset({"density", "negative_mass", "effective_rank", "participation_ratio"})


def check_budget(chosen: Mapping[str, Collection[str]], effort: Effort, size: int) -> None:
    """Refuse a budget that one of the calls cannot be made with.

    Args:
        chosen: Measures by call, from `chosen_measures`.
        effort: With the budget of each call.
        size: `n`, parameters of the model.

    Raises:
        ConfigError: It is too small; the error names the most demanding call and what all of them need.
    """
    needed = {call: least_products(call, names, size) for call, names in chosen.items()}
    call, least = max(needed.items(), key=lambda one: one[1])
    if effort.max_products < least:
        every = {measure.name for measure in MEASURES if measure.call == call}
        words = call if len(every) > 2 and every == set(chosen[call]) else ", ".join(chosen[call])
        raise ConfigError(f"--max-products {effort.max_products} is too few for {words}: need at least {least}")


def least_products(call: str, names: Collection[str], size: int) -> int:
    """The fewest products that a call can be made with; 0 where the budget is not asked.

    Args:
        call: A value of `Measure.call`.
        names: Measures of this call.
        size: `n`.

    Returns:
        What the functions of `lossscope.probes` behind the call accept at least.
    """
    rules: dict[str, Callable[[], int]] = {
        "spectrum": partial(_spectrum, frozenset(names), size),
        "metric": partial(_least, size, pairs=1),
        "adaptive_trace": partial(_least, size, space=False, probes=True),
        "per_module": partial(_least, size, pairs=2, probes=True),
        "sampling_error": partial(_least, size, pairs=1),
    }
    return rules[call]() if call in rules else 0


def _spectrum(names: frozenset[str], size: int) -> int:
    """The same for some measures of the spectrum."""
    top = max((1 + i for i, name in enumerate(EIGENVALUES) if name in names), default=0)
    pairs = max(top, int("sharpness_edge_ratio" in names)) + ("lambda_min" in names)
    space = bool(pairs or names & _FROM_DENSITY)
    return _least(size, pairs=pairs, space=space, probes=bool(names & {"trace", "frobenius"}))


def _least(size: int, *, pairs: int = 0, space: bool = True, probes: bool = False) -> int:
    """The rule of `measure_spectrum`: a space that holds the pairs and one more, and two probes of the rest."""
    least = min(size, max(pairs + 1, _SPACE)) if space else 0
    return least + (_PROBES if probes and size > least else 0)
