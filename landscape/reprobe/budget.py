"""The fewest products that the measures asked for can be had from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

from lossscope.landscape.curvature.catalogue import EIGENVALUES, MEASURES
from lossscope.landscape.curvature.options import Effort
from lossscope.landscape.errors import ConfigError
from lossscope.probes.spectrum.measure import least_products as of_spectrum

__all__ = ["check_budget", "least_products"]

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
        "metric": partial(of_spectrum, size, pairs=1, space=True, probes=False),
        "adaptive_trace": partial(of_spectrum, size, pairs=0, space=False, probes=True),
        "alignment": partial(of_spectrum, size, pairs=5 if "top5_share" in names else 1, space=True, probes=False),
        "per_module": partial(of_spectrum, size, pairs=2, space=True, probes=True),
        "sampling_error": partial(of_spectrum, size, pairs=1, space=True, probes=False),
    }
    return rules[call]() if call in rules else 0


def _spectrum(names: frozenset[str], size: int) -> int:
    """The same for some measures of the spectrum."""
    top = max((1 + i for i, name in enumerate(EIGENVALUES) if name in names), default=0)
    pairs = max(top, int("sharpness_edge_ratio" in names)) + ("lambda_min" in names)
    space = bool(pairs or names & _FROM_DENSITY)
    return of_spectrum(size, pairs=pairs, space=space, probes=bool(names & {"trace", "frobenius"}))
