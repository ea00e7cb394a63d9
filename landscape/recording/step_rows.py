"""From what a step shows of itself to the numbers in rows of `steps` and `tensors`, still on the device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from lossscope.landscape.curvature.host_transfer import Row
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot
from lossscope.optimizer import TensorRecord
from lossscope.probes.steps.energy import energies
from lossscope.probes.steps.norms import norm, norms, ratios
from lossscope.probes.steps.shear_geometry import angle, angles, cosine, cosines, secants, surrogate_gap

__all__ = ["injection_angles", "step_numbers", "tensor_rows"]


def tensor_rows(seen: Sequence[ParameterSnapshot]) -> list[Row]:
    """One row a parameter: norms, energies and the geometry of the adversarial gradient."""
    rows: list[Row] = [{"tensor": s.name, "track": s.track, **_energies(s)} for s in seen]
    weights, updates = norms([s.parameter for s in seen]), norms([s.displacement for s in seen])
    _fill(rows, "weight_norm", _same, weights)
    _fill(rows, "update_norm", _same, updates)
    _fill(rows, "update_ratio", ratios, updates, weights)
    _fill(rows, "gradient_norm", norms, [s.gradient for s in seen])
    ours = [i for i, s in enumerate(seen) if s.record is not None and s.record.gradient is not None]
    _add_shear(
        [rows[i] for i in ours], [cast(TensorRecord, seen[i].record) for i in ours], [seen[i].before for i in ours]
    )
    return rows


def _fill(
    rows: Sequence[Row], column: str, measure: Callable[..., Iterable[Tensor]], *taken: Sequence[Tensor | None]
) -> None:
    """A column of the rows that have all it takes, measured together: a call for each would take longer to begin."""
    having = [i for i, of_row in enumerate(zip(*taken, strict=True)) if all(tensor is not None for tensor in of_row)]
    if having:
        found = measure(*([one[i] for i in having] for one in taken))
        for i, value in zip(having, found, strict=True):
            rows[i][column] = value


def _same(values: Sequence[Tensor]) -> Sequence[Tensor]:
    return values


def _energies(seen: ParameterSnapshot) -> Row:
    record = seen.record
    if record is None or record.gradient is None or record.m_hat is None or record.v_hat is None or record.eps is None:
        return {}
    found = energies(
        record.m_hat,
        record.v_hat,
        record.eps,
        gradient=record.gradient,
        update=seen.displacement,
        orthogonal=record.orthogonal if record.direction is record.orthogonal else None,
        whitened=record.whitened,
    )
    return dict(found)


def _add_shear(rows: Sequence[Row], records: Sequence[TensorRecord], before: Sequence[Tensor]) -> None:
    """The geometry of the adversarial gradient of the parameters that have a gradient."""
    g = [r.gradient for r in records]
    ascents, fresh, stale = ([getattr(r, name) for r in records] for name in ("perturbation", "shear", "stale_shear"))
    _fill(rows, "perturbation_norm", norms, ascents)
    _fill(rows, "relative_radius", lambda e, p: ratios(norms(e), norms(p)), ascents, before)
    _fill(rows, "adversarial_angle", angles, g, [r.adversarial for r in records])
    _fill(rows, "shear_norm", norms, fresh)
    _fill(rows, "shear_ratio", lambda s, g: ratios(norms(s), norms(g)), fresh, g)
    _fill(rows, "phi", cosines, g, stale)
    _fill(rows, "freshness", cosines, stale, fresh)
    _fill(rows, "injected_norm", lambda a, g: norms(torch._foreach_sub(a, g)), [r.injected for r in records], g)


def step_numbers(
    seen: Sequence[ParameterSnapshot], losses: tuple[Tensor | None, Tensor | None], everything: Collection[Tensor]
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


def injection_angles(seen: Sequence[ParameterSnapshot], without: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """How far the injected shear has turned the update: of all parameters together, and of each.

    Args:
        seen: The parameters of a step of one of our own optimizers.
        without: The update of each had nothing been injected, by the record's names.
    """
    pairs = {s.name: (s.record.update, without[s.record.name]) for s in seen if s.record is not None}
    whole = angle([taken for taken, _ in pairs.values()], [plain for _, plain in pairs.values()])
    return whole, {name: angle(taken, plain) for name, (taken, plain) in pairs.items()}
