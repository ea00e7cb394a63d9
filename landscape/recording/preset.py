"""How much a recorder looks at: three presets."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from lossscope.landscape.errors import ConfigError

__all__ = ["PRESETS", "Preset", "preset_of"]


@dataclass(frozen=True)
class Preset:
    """A cadence for each instrument. Every step has its row in `steps` whatever the preset."""

    name: str
    tensors_every: int  # steps between two looks at norms, energies and shear; curvature visits look too
    spectra_every: int | None  # the same for singular values; None: never
    visits: int  # log-spaced curvature visits, where the number of steps is known
    growth: float  # the next visit at this many times the step, where it is not
    cap: float  # share of the wall time that curvature may take, where the number of steps is not known
    checkpoints: int  # log-spaced checkpoints, where the number of steps is known
    products: int  # Hessian products that a visit may spend on the spectrum, and on each measure besides
    rel: float  # relative bound asked of eigenvalues
    trace_rel: float  # relative standard error asked of traces and of the norm
    top: int  # eigenvalues at the upper end
    tracked: bool  # whether the largest is followed from visit to visit, for a few products each
    long_every: int  # every so many visits, and at the last one, the whole panel is measured; the others are short
    counterfactual_every: int | None  # steps between two looks at the update without the injected shear
    layers_every: int | None  # steps between two looks at the layers' own Taylor remainders
    windows_every: int | None  # steps between two windows in which pairs of minibatches are looked at
    lags: tuple[int, ...]  # steps from a window's begin to its other looks; all shorter than `windows_every`


PRESETS: Final[dict[str, Preset]] = {
    "economy": Preset("economy", 100, None, 8, 2.0, 0.02, 3, 32, 0.03, 0.15, 1, True, 3, None, None, None, ()),
    "standard": Preset("standard", 10, 100, 20, 1.5, 0.10, 8, 64, 0.02, 0.05, 1, False, 1, 100, 600, 600, (1, 5, 20)),
    "full": Preset("full", 1, 10, 40, 1.2, 0.50, 20, 256, 0.01, 0.02, 5, False, 1, 10, 10, 40, (1, 2, 5, 10, 20)),
}


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: There is none; the nearest is told.
    """
    if name not in PRESETS:
        close = get_close_matches(name, list(PRESETS), n=1, cutoff=0.4) or list(PRESETS)
        raise ConfigError(f"there is no preset {name!r}; did you mean {' or '.join(close)}?")
    return PRESETS[name]
