"""Rows of the tables `steps` and `tensors`, computed from parameter snapshots and left on the device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot, real
from lossscope.optimizer import TensorRecord
from lossscope.probes.step_tensors.energy import energies
from lossscope.probes.step_tensors.norms import norm, norms, ratios
from lossscope.probes.step_tensors.shear_geometry import angle, angles, cosine, cosines, secants, surrogate_gap

__all__ = ["injection_angles", "joined_numbers", "second_gradient", "step_numbers", "tensor_rows"]


def tensor_rows(snapshots: Sequence[ParameterSnapshot]) -> list[Row]:
    """Return one row per parameter: norms, energies and the geometry of the adversarial gradient."""
    rows: list[Row] = [{"tensor": s.name, "track": s.track, **_energies(s)} for s in snapshots]
    weights, updates = norms([s.parameter for s in snapshots]), norms([s.displacement for s in snapshots])
    _fill(rows, "weight_norm", _same, weights)
    _fill(rows, "update_norm", _same, updates)
    _fill(rows, "update_ratio", ratios, updates, weights)
    _fill(rows, "gradient_norm", norms, [s.gradient for s in snapshots])
    ours = [i for i, s in enumerate(snapshots) if s.record is not None and s.record.gradient is not None]
    _add_shear(
        [rows[i] for i in ours],
        [cast(TensorRecord, snapshots[i].record) for i in ours],
        [snapshots[i].before for i in ours],
    )
    return rows


def _fill(
    rows: Sequence[Row], column: str, measure: Callable[..., Iterable[Tensor]], *inputs: Sequence[Tensor | None]
) -> None:
    """Set a column of the rows that have all its inputs. One batched call saves the launch overhead of one per row."""
    complete = [i for i, of_row in enumerate(zip(*inputs, strict=True)) if all(tensor is not None for tensor in of_row)]
    if complete:
        found = measure(*([one[i] for i in complete] for one in inputs))
        for i, value in zip(complete, found, strict=True):
            rows[i][column] = value


def _same(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the values."""
    return values


def _energies(snapshot: ParameterSnapshot) -> Row:
    """Return the Fisher energies of a parameter; empty if its optimizer keeps no second moment."""
    record = snapshot.record
    if record is None or record.gradient is None or record.m_hat is None or record.v_hat is None or record.eps is None:
        return {}
    found = energies(
        record.m_hat,
        record.v_hat,
        record.eps,
        gradient=record.gradient,
        update=snapshot.displacement,
        orthogonal=record.orthogonal if record.direction is record.orthogonal else None,
        whitened=record.whitened,
    )
    return dict(found)


def _add_shear(rows: Sequence[Row], records: Sequence[TensorRecord], before: Sequence[Tensor]) -> None:
    """Set the columns on ascent, adversarial gradient and shear of the parameters that have a gradient."""
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
    snapshots: Sequence[ParameterSnapshot], losses: tuple[Tensor | None, Tensor | None], parameters: Collection[Tensor]
) -> Row:
    """Return the columns of `steps` that are computed from the tensors of all parameters together.

    Args:
        snapshots: The parameters of the step.
        losses: Losses of the first and of the second pass, if known.
        parameters: All trainable parameters, also those without a gradient in this step.
    """
    with_gradient = [s for s in snapshots if s.gradient is not None]
    row: Row = {
        "weight_norm": norm([real(p) for p in parameters]),
        "update_norm": norm([s.displacement for s in snapshots]),
    }
    if with_gradient:
        row["gradient_norm"] = norm([cast(Tensor, s.gradient) for s in with_gradient])
    records = [s.record for s in snapshots if s.record is not None]
    stale = [(r.gradient, r.stale_shear) for r in records if r.gradient is not None and r.stale_shear is not None]
    if stale:
        row["phi"] = cosine([g for g, _ in stale], [s for _, s in stale])
    return row | _second_pass_numbers(records, losses)


def _second_pass_numbers(records: Sequence[TensorRecord], losses: tuple[Tensor | None, Tensor | None]) -> Row:
    """Return the columns of `steps` on ascent, adversarial gradient and shear; empty without a second pass."""
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


def second_gradient(first: Sequence[Tensor], second: Sequence[Tensor]) -> Row:
    """Return the columns of `steps` on the second gradient of a two-step SAM of another package."""
    return {"adversarial_norm": norm(second), "adversarial_angle": angle(first, second)}


def joined_numbers(parts: Sequence[Row]) -> Row:
    """Return the columns of `steps` of several optimizers that stepped disjoint parameters, from those of each.

    Norms add up in squares, `weight_norm` is that of all parameters already. Of other columns, those that one part
    alone has are kept: an angle between parts is unknown.
    """
    found: Row = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        if key == "weight_norm" or len(values) == 1:
            found[key] = values[-1]
        elif key in ("update_norm", "gradient_norm", "adversarial_norm", "perturbation_norm", "shear_norm"):
            found[key] = norm([value.reshape(1) for value in values])
    return found


def injection_angles(
    snapshots: Sequence[ParameterSnapshot], without: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the angle by which the injected shear rotates the update: of all parameters together, and of each.

    Args:
        snapshots: The parameters of a step of one of lossscope's optimizers.
        without: The update of each parameter without injection, by the names in the record.
    """
    pairs = {s.name: (s.record.update, without[s.record.name]) for s in snapshots if s.record is not None}
    whole = angle([taken for taken, _ in pairs.values()], [plain for _, plain in pairs.values()])
    return whole, {name: angle(taken, plain) for name, (taken, plain) in pairs.items()}
