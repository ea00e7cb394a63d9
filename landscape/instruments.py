"""From what a step shows of itself to the numbers in rows of `steps` and `tensors`, still on the device."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from torch import Tensor

from lossscope.landscape.seen import Seen
from lossscope.landscape.settled import Row
from lossscope.optimizer import TensorRecord
from lossscope.probes.energy import energies
from lossscope.probes.norms import norm, norms, relative_radius, update_ratio
from lossscope.probes.shear_geometry import angle, cosine, secants, surrogate_gap

__all__ = ["injection_angles", "step_numbers", "tensor_rows"]


def tensor_rows(seen: Sequence[Seen]) -> list[Row]:
    """One row a parameter: norms, energies and the geometry of the adversarial gradient."""
    weights = norms([s.parameter for s in seen])
    updates = norms([s.displacement for s in seen])
    rows = []
    for s, weight, update in zip(seen, weights, updates, strict=True):
        row: Row = {"tensor": s.name, "track": s.track, "weight_norm": weight, "update_norm": update}
        row["update_ratio"] = update_ratio(update, weight)
        if s.gradient is not None:
            row["gradient_norm"] = norm(s.gradient)
        if s.record is not None:
            row |= _energies(s, s.record) | _shear(s.record, s.before)
        rows.append(row)
    return rows


def _energies(seen: Seen, record: TensorRecord) -> Row:
    mean, square = record.m_hat, record.v_hat
    if record.gradient is None or mean is None or square is None or record.eps is None:
        return {}
    followed = record.orthogonal if record.direction is record.orthogonal else None
    found = energies(
        mean,
        square,
        record.eps,
        gradient=record.gradient,
        update=seen.displacement,
        orthogonal=followed,
        whitened=record.whitened,
    )
    return dict(found)


def _shear(record: TensorRecord, before: Tensor) -> Row:
    row: Row = {}
    g = record.gradient
    if g is None:
        return row
    if record.perturbation is not None:
        row["perturbation_norm"] = norm(record.perturbation)
        row["relative_radius"] = relative_radius(record.perturbation, before)
    if record.adversarial is not None:
        row["adversarial_angle"] = angle(g, record.adversarial)
    if record.shear is not None:
        row["shear_norm"] = norm(record.shear)
        row["shear_ratio"] = row["shear_norm"] / norm(g)
    if record.stale_shear is not None:
        row["phi"] = cosine(g, record.stale_shear)
        if record.shear is not None:
            row["freshness"] = cosine(record.stale_shear, record.shear)
    if record.injected is not None:
        row["injected_norm"] = norm(record.injected - g)
    return row


def step_numbers(
    seen: Sequence[Seen], losses: tuple[Tensor | None, Tensor | None], everything: Collection[Tensor]
) -> Row:
    """The numbers about all parameters together that need their tensors.

    Args:
        seen: The parameters of the step.
        losses: Of its passes.
        everything: All trainable parameters, those too that the step had no gradient of.
    """
    with_gradient = [s for s in seen if s.gradient is not None]
    row: Row = {"weight_norm": norm(list(everything)), "update_norm": norm([s.displacement for s in seen])}
    if with_gradient:
        row["gradient_norm"] = norm([cast(Tensor, s.gradient) for s in with_gradient])
    records = [s.record for s in seen if s.record is not None]
    stale = [(r.gradient, r.stale_shear) for r in records if r.gradient is not None and r.stale_shear is not None]
    if stale:
        row["phi"] = cosine([g for g, _ in stale], [s for _, s in stale])
    return row | _second_pass_numbers(records, losses)


def _second_pass_numbers(records: Sequence[TensorRecord], losses: tuple[Tensor | None, Tensor | None]) -> Row:
    row: Row = {}
    passed = [r for r in records if r.adversarial is not None and r.gradient is not None and r.perturbation is not None]
    if not passed:
        return row
    g = [cast(Tensor, r.gradient) for r in passed]
    ga = [cast(Tensor, r.adversarial) for r in passed]
    e = [cast(Tensor, r.perturbation) for r in passed]
    loss, adversarial = losses
    gap = surrogate_gap(loss, adversarial) if loss is not None and adversarial is not None else None
    row |= {"adversarial_norm": norm(ga), "perturbation_norm": norm(e), "adversarial_angle": angle(g, ga)}
    row |= secants(g, ga, e, gap)
    fresh = [r.shear for r in passed if r.shear is not None]
    if fresh:
        row["shear_norm"] = norm(fresh)
    pairs = [(r.stale_shear, r.shear) for r in passed if r.stale_shear is not None and r.shear is not None]
    if pairs:
        row["freshness"] = cosine([old for old, _ in pairs], [new for _, new in pairs])
    return row


def injection_angles(seen: Sequence[Seen], without: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """How far the injected shear has turned the update: of all parameters together, and of each.

    Args:
        seen: The parameters of a step of one of our own optimizers.
        without: The update of each had nothing been injected, by the record's names.
    """
    pairs = {s.name: (s.record.update, without[s.record.name]) for s in seen if s.record is not None}
    whole = angle([taken for taken, _ in pairs.values()], [plain for _, plain in pairs.values()])
    return whole, {name: angle(taken, plain) for name, (taken, plain) in pairs.items()}
