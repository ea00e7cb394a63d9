"""Rules about the loss, its spikes, the energy of the layers, and the cost of recording."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.diagnosis.rule import Level, Rule, Verdict
from lossscope.landscape.analysis.diagnosis.signals import first_outlier
from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.landscape.analysis.spikes import Spike, spikes_of

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["DIVERGENCE", "ENERGY_SPIKE", "LOSS_SPIKE", "OVERHEAD"]

_SPIKES_SINCE: Final = 6  # version of the schema
_POINTS_ABOVE: Final = 0.02  # of the wall time


def _divergence(run: Run) -> Verdict | None:
    """Judge the loss of a whole run."""
    if not (_has_losses(run) or (run.estimates["measure"] == "loss").any()):
        return None
    found = divergence_of(run)
    if found is None:
        return Verdict("fine", "the loss stayed finite and never rose far above its start")
    what = "rose far above its start" if found.finite else "stopped being finite"
    return Verdict("act", f"the loss {what} at step {found.step}", found.step)


def _has_losses(run: Run) -> bool:
    """Return True if a step recorded its loss."""
    (losses,) = run.numbers("steps", "loss")
    return not bool(np.isnan(losses).all())


def _loss_spike(run: Run) -> Verdict | None:
    """Judge the spikes of the loss."""
    if int(run.manifest.get("schema_version") or 0) < _SPIKES_SINCE or not _has_losses(run):
        return None
    found = spikes_of(run)
    if not found:
        return Verdict("fine", "no loss passed median + 8 MAD of the 32 before it")
    told = max(found, key=_weight)
    level: Level = "act" if told.cause != "loss" else ("look" if told.first else "fine")
    more = f" ({len(found)} spikes in all)" if len(found) > 1 else ""
    return Verdict(level, f"{_in_words(told)}{more}", told.step)


def _weight(spike: Spike) -> tuple[bool, bool, int]:
    """Return the order of spikes: lost losses first, then those that name a module, then the earliest."""
    return spike.cause != "loss", spike.first is not None, -spike.step


def _in_words(spike: Spike) -> str:
    """Return a spike and the module that left its past first as a clause."""
    loss = {"loss": f"the loss rose to {spike.loss:.3g} (level {spike.level:.3g})"}
    head = f"{loss.get(spike.cause, 'the ' + spike.cause.replace('not', 'was not', 1))} at step {spike.step}"
    one = spike.first
    if one is None:
        return f"{head}; {spike.why}"
    far = "was not finite" if math.isinf(one.mads) else f"was {one.mads:.0f} MAD above its median"
    whose = f"{one.module}, whose {one.norm.replace('_', ' ')} {far} at step {one.step}"
    return f"{head}; the first layer to leave the range of its earlier steps was {whose}"


def _energy_spike(run: Run) -> Verdict | None:
    """Judge the energy of the whitened momentum of each layer."""
    rows = run.columns("tensors", "step", "tensor", "energy_rms").dropna(subset=["energy_rms"])
    if not len(rows):
        return None
    found = []
    for tensor, some in rows.groupby("tensor", sort=False):
        one = first_outlier(some["energy_rms"].to_numpy(dtype=np.float64))
        if one is not None:
            found.append((int(some["step"].iloc[one[0]]), str(tensor), one[1]))
    if not found:
        return Verdict("fine", f"no energy of {rows['tensor'].nunique()} layers left its past by 8 MAD")
    step, tensor, mads = min(found)
    more = f" ({len(found)} layers in all)" if len(found) > 1 else ""
    return Verdict("look", f"E / √numel of {tensor} was {mads:.0f} MAD above its past at step {step}{more}", step)


def _overhead(run: Run) -> Verdict | None:
    """Judge the share of the wall time that recording took."""
    cap, summary = run.manifest.get("overhead_cap"), run.manifest.get("overhead")
    summary = summary if isinstance(summary, dict) else {}
    share = summary.get("share")
    if not isinstance(cap, float | int) or not isinstance(share, float | int) or cap >= 1:
        return None
    words = f"recording took {100 * share:.1f} % of the time, with a cap of {100 * cap:.0f} %"
    kinds = Counter({key.removesuffix("_share"): one for key, one in summary.items() if key.endswith("_share")})
    if share <= cap + _POINTS_ABOVE:
        return Verdict("fine", words)
    return Verdict("look", f"{words}; most of it {kinds.most_common(1)[0][0]}" if kinds else words)


DIVERGENCE: Final = Rule(
    "divergence",
    "Did the loss diverge?",
    _divergence,
    "losses that fall or stay, with log-normal noise of 30 %",
    0.01,
    "Lower the learning rate or clip gradients; the module that left its past first is in `report dynamics`.",
    ("sharpness", "entropy", "flatness", "dynamics"),
)
LOSS_SPIKE: Final = Rule(
    "loss_spike",
    "Did the loss spike, and which module left its past first?",
    _loss_spike,
    "losses that fall, with log-normal noise of minibatches whose neighbors are independent",
    0.1,
    "Look at the module's learning rate, its epsilon and its number format; if no module left first, at the batch.",
    ("dynamics",),
)
ENERGY_SPIKE: Final = Rule(
    "energy_spike",
    "Did the signal-to-noise ratio of a layer jump?",
    _energy_spike,
    "energies of ten layers at every tenth step, with autocorrelated log-normal noise of 10 %",
    0.2,
    "Its gradients agree all at once: look at the data of that step, and at the learning rate of the layer.",
    ("dynamics",),
)
OVERHEAD: Final = Rule(
    "overhead",
    "Did recording stay below its cap?",
    _overhead,
    "a cap that holds: measured times are no random numbers",
    0.0,
    "Pass fewer measures or evaluations; rows of steps alone exceed a small cap in a loop of milliseconds.",
)
