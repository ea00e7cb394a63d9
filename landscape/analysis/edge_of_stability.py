"""Stability thresholds over a run: the level that holds for its optimizer and batch size, at each evaluation.

Each threshold belongs to one quantity. Where none is known, or the run does not tell its batch size, there is none and
the reason is given: a line that does not hold is worse than no line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.analysis.layer_spectra import orthogonalizes
from lossscope.landscape.analysis.series import FloatArray, Series, probe_series
from lossscope.probes.errors import ProbeError
from lossscope.probes.sharpness import stability_thresholds as known

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["QUANTITIES", "RunThreshold", "edge_ratio", "threshold_of", "uses_all_data"]

RATIOS: Final = {"lambda_max": "sharpness_edge_ratio", "preconditioned_sharpness": "preconditioned_edge_ratio"}
QUANTITIES: Final = (*RATIOS, "batch_sharpness")
_SAME_LOSS: Final = 1e-4  # relative difference of two losses on the same data at the same parameters, in float32
_LEAST_LOSSES: Final = 2  # losses that must agree before the steps count as steps on all data
_UNKNOWN_BATCH: Final = "the run does not tell whether its steps use all data, which decides the threshold"
_MINIBATCH: Final = "its steps use minibatches, for which no threshold of this quantity is known"


@dataclass(frozen=True)
class RunThreshold:
    """Threshold of one quantity over a run.

    Attributes:
        quantity: Name of the measure.
        formula: The threshold as a formula of the settings; "" if there is none.
        levels: The threshold at the evaluations of the quantity, one series; two where it is known only to lie between
            them; empty if there is none.
        why: Reason why there is none; "" if there is one.
        measured: False if the quantity itself was not measured.
    """

    quantity: str
    formula: str = ""
    levels: tuple[Series, ...] = ()
    why: str = ""
    measured: bool = True


@dataclass(frozen=True)
class _Step:
    """Recorded facts about the step of an optimizer."""

    rule: str  # sgd, adam, or another name
    settings: Mapping[str, Any]  # of the first group; empty if not recorded
    groups: int
    ascends: bool
    ours: bool  # one of lossscope's optimizers

    def number(self, name: str) -> float:
        """Return a setting as a number, 0 if it is not there."""
        value = self.settings.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0

    @property
    def momentum(self) -> float:
        """Momentum of a step along the gradient."""
        return self.number("momentum")


def threshold_of(run: Run, quantity: str) -> RunThreshold:
    """Return the threshold of a quantity over a run.

    Args:
        run: The run.
        quantity: One of `QUANTITIES`.

    Returns:
        The threshold at each evaluation of the quantity, or the reason why none holds.
    """
    measured, step, whole = probe_series(run, quantity), _step(run), uses_all_data(run)
    if not np.isfinite(measured.y).any():
        return RunThreshold(quantity, why="it was not measured", measured=False)
    if whole is None:
        return RunThreshold(quantity, why=_UNKNOWN_BATCH)
    if quantity == "batch_sharpness":
        return _of_batches(run, measured, step, whole)
    if not whole:
        read = "read batch_sharpness" if step.rule == "sgd" and not step.ascends else "read directional_edge_ratio"
        return RunThreshold(quantity, why=f"{_MINIBATCH}: {read}")
    if step.ascends:
        return _of_sam(run, measured, step, quantity)
    return _of_all_data(run, measured, step, quantity)


def edge_ratio(run: Run) -> tuple[str, Series] | None:
    """Return the quantity whose threshold holds for a run, and its ratio to it; None without a single one that does."""
    for quantity in ("preconditioned_sharpness", "lambda_max", "batch_sharpness"):
        found = threshold_of(run, quantity)
        if len(found.levels) == 1:
            measured, level = probe_series(run, quantity), found.levels[0].y
            return quantity, replace(measured, y=measured.y / level, error=measured.error / level)
    return None


def uses_all_data(run: Run) -> bool | None:
    """Return True if each step uses all data of the curvature, False for minibatches, None if the run tells neither.

    The recorded batch size and number of samples decide. Otherwise the loss of a step is compared with the loss on the
    fixed data at the same parameters: on the same data they agree up to rounding.
    """
    config = run.manifest.get("config")
    config = config if isinstance(config, Mapping) else {}
    batch, samples = (_count(run.manifest, config, key) for key in ("batch_size", "training_samples"))
    if batch is not None and samples is not None:
        return batch >= samples
    fixed = probe_series(run, "loss")
    of_steps = _at_steps(run, "loss", fixed.x + 1)
    both = np.isfinite(of_steps) & np.isfinite(fixed.y)
    if both.sum() < _LEAST_LOSSES:
        return None
    apart = np.abs(of_steps - fixed.y)[both]
    return bool((apart <= _SAME_LOSS * np.abs(fixed.y[both])).all())


def _at_steps(run: Run, column: str, steps: FloatArray) -> FloatArray:
    """Return a column of `steps` at some steps, nan where there is none."""
    at, values = run.numbers("steps", "step", column)
    if not len(at):
        return np.full(len(steps), np.nan)
    places = np.maximum(np.searchsorted(at, steps, side="right") - 1, 0)
    return np.where(at[places] == steps, values[places], np.nan)


def _of_all_data(run: Run, measured: Series, step: _Step, quantity: str) -> RunThreshold:
    """Return the threshold of steps on all data without an ascent."""
    recorded = _recorded(run, measured, RATIOS[quantity])
    if np.isfinite(recorded).any():
        return RunThreshold(quantity, _formula(step, quantity), (_level(measured, recorded),))
    if quantity == "lambda_max" and step.rule == "sgd" and step.groups == 1:
        values = _at_rates(run, measured, lambda lr: _of_gradient(lr, step))
        if np.isfinite(values).any():
            return RunThreshold(quantity, _formula(step, quantity), (_level(measured, values),))
    if step.rule == "adam" and quantity == "lambda_max":
        return RunThreshold(quantity, why="the threshold of Adam is one of preconditioned_sharpness")
    if step.rule in ("sgd", "adam"):
        return RunThreshold(quantity, why="the settings of its steps were not recorded")
    return RunThreshold(quantity, why=_other_rule(step, orthogonalizes(run)))


def _other_rule(step: _Step, orthogonal: bool) -> str:
    """Return the reason why a rule without a diagonal metric has no threshold here."""
    if orthogonal:
        return (
            "its steps are orthogonalized: their threshold 2/η is one of the sharpness in the spectral norm over the "
            "nuclear norm of the gradient, for steps without momentum, and no run records that sharpness "
            "(lossscope.probes.norm_sharpness measures it); read directional_edge_ratio"
        )
    return f"no threshold is known for {step.rule or 'its optimizer'}: read directional_edge_ratio"


def _of_sam(run: Run, measured: Series, step: _Step, quantity: str) -> RunThreshold:
    """Return the threshold of SAM on gradient descent, at the gradient of the step that was taken."""
    plain = step.rule == "sgd" and not step.momentum and step.groups == 1 and not step.number("weight_decay")
    same = step.settings.get("perturbation") == "sam" and step.settings.get("mode") == "sync"
    if not (plain and same and step.settings.get("surrogate") == "adversarial") or quantity != "lambda_max":
        why = "no threshold is known for an ascent with this rule: read directional_edge_ratio"
        return RunThreshold(quantity, why=why)
    rho, rates, norms = step.number("rho"), _rates(run, measured), _at_steps(run, "gradient_norm", measured.x)
    values = [
        _valid(lambda lr=lr, norm=norm: known.sam(lr, rho, norm).value)  # type: ignore[misc]
        for lr, norm in zip(rates, norms, strict=True)
    ]
    if not np.isfinite(values).any():
        return RunThreshold(quantity, why="the norm of the gradient of its steps was not recorded")
    formula = "‖g‖/(2ρ) (√(1 + 8ρ/(η‖g‖)) − 1)"
    return RunThreshold(quantity, formula, (_level(measured, np.array(values)),))


def _of_batches(run: Run, measured: Series, step: _Step, whole: bool) -> RunThreshold:
    """Return the level at which batch sharpness was observed to settle."""
    quantity = "batch_sharpness"
    if whole:
        return RunThreshold(quantity, why="its steps use all data: read lambda_max")
    if _count(run.manifest, run.manifest.get("config") or {}, "batch_size") is None:
        return RunThreshold(quantity, why="the run does not tell the batch size of its steps")
    if step.rule != "sgd" or step.ascends or step.groups != 1 or step.settings.get("nesterov"):
        return RunThreshold(quantity, why="a level is known for SGD with one learning rate only")
    if step.number("dampening") or step.number("weight_decay"):
        return RunThreshold(quantity, why="a level is known for SGD without dampening and weight decay only")
    if not step.momentum:
        values = _at_rates(run, measured, lambda lr: known.batch_sharpness_threshold(lr).value)
        return RunThreshold(quantity, "2/η (observed)", (_level(measured, values),))
    momentum = step.momentum
    small = _at_rates(run, measured, lambda lr: known.momentum_batch_sharpness_threshold(lr, momentum, "small").value)
    large = _at_rates(run, measured, lambda lr: known.momentum_batch_sharpness_threshold(lr, momentum, "large").value)
    formula = "from 2(1−β)/η, small batches, to 2(1+β)/η, large ones (observed)"
    return RunThreshold(quantity, formula, (_level(measured, small), _level(measured, large)))


def _formula(step: _Step, quantity: str) -> str:
    """Return the formula of a threshold."""
    decay = ", weight decay included" if step.number("weight_decay") else ""
    several = ", of the first group" if step.groups > 1 else ""
    if quantity == "preconditioned_sharpness":
        return f"2(1+β₁)/((1−β₁)η){decay}{several}" if step.rule != "sgd" else f"that of SGD{several}"
    if not step.settings:
        return "as recorded"
    if not step.momentum:
        return f"2/η{decay}"
    if step.settings.get("nesterov"):
        return f"2(1+β)/((1+2β)η){decay}"
    return f"2(1+β)/((1−d)η){decay}" if step.number("dampening") else f"2(1+β)/η{decay}"


def _of_gradient(lr: float, step: _Step) -> float:
    """Return the threshold of a step along the gradient; of ours, weight decay is not known to be coupled."""
    decay = step.number("weight_decay")
    if decay and step.ours:
        return float("nan")
    if step.settings.get("nesterov"):
        return known.nesterov(lr, step.momentum, coupled_decay=decay).value
    dampening = step.number("dampening") if step.momentum else 0.0
    return known.heavy_ball(lr, step.momentum, dampening, coupled_decay=decay).value


def _recorded(run: Run, measured: Series, ratio: str) -> FloatArray:
    """Return the threshold that the recorder used: the quantity over its recorded ratio, nan where it has none."""
    series = probe_series(run, ratio)
    found = dict(zip(series.x.tolist(), series.y.tolist(), strict=True))
    ratios = np.array([found.get(step, np.nan) for step in measured.x], dtype=np.float64)
    with np.errstate(all="ignore"):
        levels: FloatArray = measured.y / ratios
    return np.where(np.isfinite(levels) & (levels > 0), levels, np.nan)


def _at_rates(run: Run, measured: Series, threshold: Callable[[float], float]) -> FloatArray:
    """Return a function of the learning rate at each evaluation; nan where there is none."""
    return np.array([_valid(lambda lr=lr: threshold(lr)) for lr in _rates(run, measured)])  # type: ignore[misc]


def _rates(run: Run, measured: Series) -> FloatArray:
    """Return the learning rate of the last step before each evaluation, or of the first step; nan if unknown."""
    at, rates = run.numbers("steps", "step", "lr")
    if not len(at):
        return np.full(len(measured.x), np.nan)
    places = np.clip(np.searchsorted(at, measured.x, side="right") - 1, 0, len(at) - 1)
    found: FloatArray = rates[places]
    return found


def _valid(value: Callable[[], float]) -> float:
    """Return a threshold; nan if its settings are out of range."""
    try:
        return value()
    except ProbeError:
        return float("nan")


def _level(measured: Series, values: FloatArray) -> Series:
    """Return a threshold as a series at the evaluations of its quantity."""
    there = np.where(np.isfinite(measured.y), values, np.nan)
    return replace(measured, y=there, error=np.full_like(there, np.nan))


def _step(run: Run) -> _Step:
    """Return what a run recorded about the step of its optimizer."""
    facts = run.manifest.get("optimizer_facts")
    facts = facts if isinstance(facts, Mapping) else {}
    groups = facts.get("groups")
    settings = [one.get("settings") for one in groups if isinstance(one, Mapping)] if isinstance(groups, list) else []
    first = settings[0] if settings and isinstance(settings[0], Mapping) else {}
    kind, rule = str(facts.get("class") or ""), facts.get("rule")
    name = str(rule) if isinstance(rule, str) else kind.rpartition(".")[2].lower()
    if name.partition("@")[0] == "adamw" or (name == "ars2" and first.get("orthogonalize") is False):
        name = "adam"
    ascends = isinstance(rule, str) and first.get("mode", "base") != "base" and bool(first.get("rho"))
    return _Step(name, first, len(settings), ascends, isinstance(rule, str))


def _count(manifest: Mapping[str, Any], config: Mapping[str, Any], key: str) -> int | None:
    """Return a positive number of samples from the manifest or its configuration."""
    values = (part.get(key) for part in (manifest, config))
    return next((one for one in values if isinstance(one, int) and not isinstance(one, bool) and one > 0), None)
