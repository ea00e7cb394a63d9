"""Which measures a checkpoint is probed for: names of measures, or of calls that give several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Final

from lossscope.landscape.curvature.catalogue import CALLS, EIGENVALUES, MEASURES
from lossscope.landscape.curvature.options import SolverOptions
from lossscope.landscape.errors import ConfigError
from lossscope.probes.spectrum.measure import least_products as of_spectrum

__all__ = ["check_budget", "least_products", "select_measures"]

_USUAL: Final = ("loss", "spectrum", "metric", "adaptive_trace", "log_fisher_rao", "logits", "radial")
_RECORDED_ONLY: Final = "direction"
_ALSO_CALLED: Final = {"r_dir": "directional_edge_ratio"}  # by reports
_BY_PYHESSIAN: Final = ("lambda_max", "lambda_2", "lambda_3", "lambda_4", "lambda_5", "trace")
_USUAL_PYHESSIAN: Final = ("lambda_max", "trace")
_OURS_BESIDE: Final = ("density", "negative_mass", "effective_rank", "participation_ratio")


def select_measures(names: Sequence[str] | None, engine: str) -> Mapping[str, tuple[str, ...]]:
    """The measures by the call that gives them, calls in their usual order.

    Args:
        names: Measures (`lambda_max`) or calls (`spectrum`, `per_module`); None for what is usual.
        engine: `lossscope` or `pyhessian`, which has few of them.

    Raises:
        ConfigError: A name is unknown (the nearest are told), or cannot be had from a checkpoint or by this engine.
    """
    if names is None:
        names = _USUAL_PYHESSIAN if engine == "pyhessian" else _USUAL
    asked = dict.fromkeys(measure for name in names for measure in _measures(name))
    if engine == "pyhessian":
        offered = (*_BY_PYHESSIAN, *_OURS_BESIDE)
        other = [name for name in asked if name not in offered]
        if other:
            raise ConfigError(
                f"pyhessian has no {other[0]}: ask for {', '.join(offered)} (the last four by lossscope), or leave "
                "--engine out"
            )
    found = {call: tuple(m.name for m in MEASURES if m.call == call and m.name in asked) for call in CALLS}
    return {call: measures for call, measures in found.items() if measures}


def _measures(name: str) -> tuple[str, ...]:
    """The measures that a name stands for: those of a call, or itself."""
    called = _ALSO_CALLED.get(name.lower(), name)
    inside = tuple(m.name for m in MEASURES if called in (m.call, m.name))
    if not inside:
        known = dict.fromkeys([*CALLS, *(m.name for m in MEASURES)])
        close = get_close_matches(name, list(known), n=3, cutoff=0.6)
        if close and close[0] in _recorded_only():
            raise ConfigError(f"there is no measure {name!r}, and {_needs_the_step(close[0])}")
        close = [one for one in close if one not in _recorded_only()]
        hint = f"did you mean {' or '.join(close)}?" if close else "see `lossscope list measures`"
        raise ConfigError(f"there is no measure {name!r}; {hint}")
    if called in _recorded_only():
        raise ConfigError(_needs_the_step(name if called == name else f"{name} ({called})"))
    return inside


def _recorded_only() -> tuple[str, ...]:
    """The names of measures that no checkpoint can be probed for, and of their call."""
    return (_RECORDED_ONLY, *(m.name for m in MEASURES if m.call == _RECORDED_ONLY))


def _needs_the_step(name: str) -> str:
    """Why a measure along the step is not to be had."""
    return (
        f"{name} needs the step that was taken, which no checkpoint holds: it is recorded during training only, see "
        "`lossscope report dynamics RUN`"
    )


_FROM_DENSITY: Final = frozenset({"density", "negative_mass", "effective_rank", "participation_ratio"})


def check_budget(chosen: Mapping[str, Collection[str]], effort: SolverOptions, size: int) -> None:
    """Refuse a budget that one of the calls cannot be made with.

    Args:
        chosen: Measures by call, from `select_measures`.
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
