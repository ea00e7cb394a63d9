"""Rules about parts of an optimizer: spectra, shear, trigger and ascent. A run without the part has no verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.diagnosis.rule import Rule, Verdict
from lossscope.landscape.analysis.diagnosis.signals import collapsed, does_not_ascend, looks_random
from lossscope.landscape.analysis.series import step_series

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["ASCENT", "COLLAPSE", "ENTROPY", "SHEAR", "TRIGGER"]

_MARGIN: Final = 0.05  # nats below white noise
_WIDEST: Final = 0.3  # interval of a share that decides something


def _collapse(run: Run) -> Verdict | None:
    """Judge the effective rank of each weight matrix over the run."""
    rows = run.columns("spectra", "tensor", "object", "effective_rank")
    rows = rows[rows["object"] == "weight"].dropna(subset=["effective_rank"])
    series = {str(name): some["effective_rank"].tolist() for name, some in rows.groupby("tensor", sort=False)}
    series = {name: ranks for name, ranks in series.items() if len(ranks) > 2}
    if not series:
        return None
    name = min(series, key=lambda one: series[one][-1] / series[one][0])
    words = f"effective rank of {name} {series[name][0]:.3g} at first, {series[name][-1]:.3g} at last"
    lost = sum(collapsed(ranks) for ranks in series.values())
    more = f" ({lost} of {len(series)} matrices below half)" if lost else " (the largest fall)"
    return Verdict("look" if lost else "fine", words + more)


def _entropy(run: Run) -> Verdict | None:
    """Judge the entropy of orthogonalized updates against that of white noise."""
    rows = run.columns("spectra", "step", "object", "excess_order")
    rows = rows[rows["object"] == "orthogonal"].dropna(subset=["excess_order"])
    if not len(rows):
        return None
    last = rows[rows["step"] == rows["step"].max()]
    order = float(last["excess_order"].mean())
    side = f"{abs(order):.2g} nats {'below' if order > 0 else 'above'} white noise"
    words = f"entropy of {len(last)} orthogonalized updates {side} at step {last['step'].iloc[0]}"
    return Verdict("look" if order > _MARGIN else "fine", words)


def _shear(run: Run) -> Verdict | None:
    """Judge the shear on independent minibatches against random directions."""
    rows = run.pairs
    cosines = rows[(rows["object"] == "shear") & (rows["lag"] == 0)]["cosine"].dropna().to_numpy(dtype=np.float64)
    random = looks_random(cosines)
    if random is None:
        return None
    error = cosines.std(ddof=1) / np.sqrt(len(cosines))
    words = f"cosine of the shears of two minibatches {cosines.mean():.2g} ± {error:.1g} in {len(cosines)} windows"
    return Verdict("look" if random else "fine", words)


def _trigger(run: Run) -> Verdict | None:
    """Judge the trigger against random signs of its phi."""
    if not isinstance(run.manifest.get("trigger"), dict):
        return None
    from lossscope.landscape.analysis.trigger import trigger_of  # loads scipy

    record = trigger_of(run)
    if record is None or record.mode == "timer" or record.test is None:
        return None
    share, expected = record.test.share, record.test.expected
    if share.low is None or share.high is None or share.high - share.low > _WIDEST:
        return None
    words = f"it fired at {100 * share.value:.0f} % of its chances, [{100 * share.low:.0f}, {100 * share.high:.0f}] %"
    return Verdict("fine" if share.low > expected else "look", f"{words}, a coin at {100 * expected:.0f} %")


def _ascent(run: Run) -> Verdict | None:
    """Judge the sign of the rise of the loss by the ascent."""
    gaps = step_series(run, "surrogate_gap").y
    gaps = gaps[np.isfinite(gaps)]
    if not len(gaps):
        return None
    words = f"the ascent raised the batch loss in {int((gaps > 0).sum())} of {len(gaps)} steps"
    return Verdict("look" if does_not_ascend(gaps) else "fine", words)


COLLAPSE: Final = Rule(
    "collapse",
    "Did the spectrum of a weight matrix collapse?",
    _collapse,
    "a random matrix that takes steps of white noise, ten matrices, ten samples in 1000 steps",
    0.01,
    "Few directions are learned: look at weight decay and at the learning rate of the layer.",
    ("entropy",),
)
ENTROPY: Final = Rule(
    "entropy",
    "Is the entropy of the orthogonalized update below that of white noise?",
    _entropy,
    "Newton-Schulz of white noise",
    0.01,
    "Orthogonalization does not work: look at the number of Newton-Schulz steps, its dtype and its norm.",
    ("entropy",),
)
SHEAR: Final = Rule(
    "shear",
    "Is the shear more than a random direction?",
    _shear,
    "a shear whose mean cosine is five standard errors above 0, in eight windows in 1000 steps",
    0.1,
    "Two minibatches give unrelated shears: injecting it adds noise. Use larger batches or a smaller alpha.",
    ("dynamics",),
)
TRIGGER: Final = Rule(
    "trigger",
    "Does the trigger know more than a timer?",
    _trigger,
    "a trigger that fires at 70 % of 400 chances in 1000 steps",
    0.01,
    "A random timer of the same rate would do the same: compare with `ars2-timer`.",
    ("dynamics",),
)
ASCENT: Final = Rule(
    "ascent",
    "Does the ascent raise the loss?",
    _ascent,
    "ascents that raise the loss as often as not, a hundred in 1000 steps",
    0.02,
    "Lower rho: the ascent overshoots, or its gradient is of another batch or scale than its loss.",
    ("dynamics",),
)
