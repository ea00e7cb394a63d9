"""Fans as a report: bands of directions over relative noise, quadratic models, and what the picture cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from lossscope.landscape.measures.declarations import DIAGONAL
from lossscope.reports.content import Column, Missing, Quantity, Report, Statement, Table
from lossscope.reports.figure_content import Axis, Curve, Curves, Numbers
from lossscope.reports.shared.number_format import plain
from lossscope.reports.shared.quantities import number
from lossscope.reports.surfaces.made import Made

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.pictures import Fan

__all__ = ["fan_report"]

_LIMITS: Final = (
    f"Random directions relative to each weight: invariant under {DIAGONAL}.",
    "No rare sharp direction among many shows here, and one fan is no verdict on flatness.",
)
_NOTES: Final = (
    f"A fan is invariant under {DIAGONAL}: neurons rescaled against each other without changing the function leave it "
    "as it is. Maps that mix weights, such as those inside attention heads, do not, and weights that are zero stay so.",
    "It shows no rare sharp direction among many: the sharpest one has a figure of its own. One fan is no verdict on "
    "flatness: `lossscope compare` reads several seeds at equal loss.",
)
_MODELED: Final = 1.25  # factor up to which a quadratic model is called right


def fan_report(fans: Mapping[str, Fan], made: Made) -> Report:
    """Return the fans of some points as a report.

    Args:
        fans: Fans by the name of their points.
        made: How the report was made.
    """
    figures = [_figure(fans, made.unit)]
    if any(one.sharp is not None for one in fans.values()):
        figures.append(_sharp_figure(fans, made.unit))
    return Report(
        kind="surface",
        title="Loss along random relative directions",
        subtitle=", ".join(fans),
        findings=(),
        tables=(_table(fans, made.unit),),
        figures=tuple(figures),
        notes=(*made.notes, *_NOTES),
        missing=tuple(
            Missing(f"{what} of {name}", why) for name, one in fans.items() for what, why in one.missing.items()
        ),
        provenance=made.table(_facts(fans)),
        summary=tuple(statement for name, one in fans.items() for statement in _statements(name, one)),
    )


def _statements(name: str, fan: Fan) -> Iterator[Statement]:
    """Yield what a fan shows, in words."""
    low, high = fan.band
    edge = float(fan.sigmas[-1])
    yield Statement(
        f"{name}: where each weight is off by {plain(100 * edge, 2)} % of itself, the loss rises from "
        f"{plain(fan.loss, 4)} by {_rise(fan.median[-1], fan.loss)} in the median direction "
        f"({_rise(low[-1], fan.loss)} to {_rise(high[-1], fan.loss)} in the middle 80 % of {len(fan.losses)})",
        "look" if fan.lost.any() else "fine",
        "fan",
    )
    lowest = float(np.nanmin(fan.losses)) if np.isfinite(fan.losses).any() else math.nan
    if lowest < fan.loss:
        where = fan.sigmas[int(np.nanargmin(np.nanmin(fan.losses, axis=0)))]
        yield Statement(
            f"{name}: the loss is lower by {plain(fan.loss - lowest, 2)} in one of these directions, at sigma "
            f"{plain(abs(float(where)), 2)}: this is no minimum",
            "look",
            "fan",
        )
    if fan.quadratic is not None and (until := _modeled_until(fan)) is not None:
        yield Statement(
            f"{name}: the quadratic model of the median direction holds to a factor of {_MODELED:g} up to sigma "
            f"{plain(until, 2)}",
            "fine",
            "fan",
        )
    if count := int(fan.lost.max()):
        first = float(np.abs(fan.sigmas[fan.lost > 0]).min())
        yield Statement(
            f"{name}: the loss is not finite in {count} of {len(fan.losses)} directions, from sigma "
            f"{plain(first, 2)} on",
            "act",
            "fan",
        )


def _modeled_until(fan: Fan) -> float | None:
    """Return the largest noise up to which the median rise is that of the quadratic models within a factor."""
    assert fan.quadratic is not None
    half = len(fan.sigmas) // 2
    truth = fan.median[half + 1 :] - fan.loss
    model = np.median(fan.quadratic, axis=0)[half + 1 :] - fan.loss
    with np.errstate(all="ignore"):
        ratio = truth / model
    held = (ratio > 1 / _MODELED) & (ratio < _MODELED) & (truth > 0)
    count = len(held) if held.all() else int(np.argmin(held))
    return float(fan.sigmas[half + count]) if count else None


def _figure(fans: Mapping[str, Fan], unit: str) -> Curves:
    """Return the figure of medians, bands and quadratic models."""
    curves = []
    for hue, (name, one) in enumerate(fans.items()):
        curves.append(_curve(name, hue, one, one.median, one.band))
        if one.quadratic is not None:
            curves.append(_curve(name, hue, one, np.median(one.quadratic, axis=0), None))
    draws = len(next(iter(fans.values())).losses)
    modeled = any(one.dashed for one in curves)
    return Curves(
        key="fan",
        title="Loss along random relative directions",
        caption="Loss where each weight is off by a random share of itself: L(θ + σ θ∘z), z normal. Lines are medians "
        f"of {draws} directions, bands hold the middle 80 % of them"
        + ("; dashed, the median of the quadratic models of the same directions." if modeled else "."),
        x=Axis("relative noise σ"),
        y=_loss_axis(fans, unit),
        curves=tuple(curves),
        styles=("loss", "quadratic model") if modeled else None,
        summary=tuple(
            f"{name}: {plain(one.loss, 4)} at the center, median {plain(number(one.median[-1]), 3)} at σ = "
            f"{plain(float(one.sigmas[-1]), 2)}"
            for name, one in fans.items()
        ),
        limits=_LIMITS,
    )


def _loss_axis(fans: Mapping[str, Fan], unit: str) -> Axis:
    """Return the axis of the loss, over what is measured: a quadratic model may leave the picture."""
    ends = [
        value for one in fans.values() for line in (one.median, *one.band) for value in line if math.isfinite(value)
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05
    return Axis("loss", unit, limits=(low - margin, high + margin))


def _sharp_figure(fans: Mapping[str, Fan], unit: str) -> Curves:
    """Return the figure of the sharpest relative directions."""
    shown = {name: one for name, one in fans.items() if one.sharp is not None}
    curves = [_curve(name, list(fans).index(name), one, one.sharp, None) for name, one in shown.items()]
    return Curves(
        key="sharpest",
        title="Loss along the sharpest relative direction",
        caption="Loss along the top eigenvector u of diag(θ) H diag(θ), L(θ + σ θ∘u) with |u| = 1: all weights "
        "together are off by σ, where in the other figure each of them is.",
        x=Axis("length σ of the relative change"),
        y=Axis("loss", unit),
        curves=tuple(curves),
        absent=tuple(name for name in fans if name not in shown),
        summary=tuple(
            f"{name}: eigenvalue {plain(one.sharpness, 3)} ± {plain(one.sharpness_error, 1)}"
            for name, one in shown.items()
        ),
        limits=(f"One direction of many, the sharpest by the local curvature: invariant under {DIAGONAL}.",),
    )


def _table(fans: Mapping[str, Fan], unit: str) -> Table:
    """Return the numbers of all fans, from the center outward."""
    columns = (
        Column("point", "point", words=True),
        Column("sigma", "σ", "1", "relative noise"),
        Column("rise", "rise of the loss", unit, "median over directions and both signs, with its middle 80 %"),
        Column("model", "quadratic model", unit, "median of the models of the same directions"),
        Column("sharpest", "sharpest", unit, "rise along the sharpest relative direction of length σ, larger sign"),
    )
    return Table(
        "fan", "Rise of the loss", columns, tuple(row for name, one in fans.items() for row in _rows(name, one))
    )


def _rows(name: str, fan: Fan) -> Iterator[tuple[str, float, Quantity, float | None, float | None]]:
    """Yield the rows of a fan: some noise levels, both signs together."""
    half = len(fan.sigmas) // 2
    for place in sorted({max(1, round(half * share)) for share in (0.1, 0.25, 0.5, 0.75, 1.0)}):
        both = [half - place, half + place]
        rises = np.concatenate([fan.losses[:, one] for one in both]) - fan.loss
        middle, low, high = _middle(rises)
        model = None if fan.quadratic is None else _middle(fan.quadratic[:, both].ravel() - fan.loss)[0]
        sharp = None if fan.sharp is None else number(np.max(fan.sharp[both]) - fan.loss)
        yield name, float(fan.sigmas[half + place]), Quantity(middle, low=low, high=high), model, sharp


def _middle(values: npt.NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    """Return median and middle 80 %; values that are not finite are the largest."""
    filled = np.where(np.isfinite(values), values, math.inf)
    with np.errstate(invalid="ignore"):
        middle, low, high = (number(np.percentile(filled, share)) for share in (50, 10, 90))
    return middle, low, high


def _curve(
    name: str,
    hue: int,
    fan: Fan,
    line: npt.NDArray[np.float64] | None,
    band: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None,
) -> Curve:
    """Return a line over the noise; dashed without a band."""
    assert line is not None
    low, high = band or (line, line)
    return Curve(
        name,
        hue,
        _numbers(fan.sigmas),
        _numbers(line),
        _numbers(low),
        _numbers(high),
        (None,) * len(line),
        len(fan.losses) if band else 1,
        dashed=band is None,
    )


def _numbers(values: npt.NDArray[np.float64]) -> Numbers:
    return tuple(number(one) for one in values)


def _rise(loss: float, center: float) -> str:
    """Return a rise as text."""
    return plain(number(loss - center), 2)


def _facts(fans: Mapping[str, Fan]) -> dict[str, str]:
    """Return how the fans were made."""
    some = next(iter(fans.values()))
    return {
        "directions": f"{len(some.losses)}, seed {some.seed}",
        "noise levels": f"{len(some.sigmas)}, up to {plain(float(some.sigmas[-1]), 3)} on both sides",
        "points evaluated": "; ".join(dict.fromkeys(one.evaluated for one in fans.values())),
        "seconds": plain(sum(one.seconds for one in fans.values()), 2),
    }
