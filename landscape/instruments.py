"""From what a step shows of itself to rows of tables, with one wait for the device.

Numbers stay 0-d tensors in the rows until `settled` fetches all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from lossscope.optimizer import StepRecord, TensorRecord
from lossscope.probes.energy import energies
from lossscope.probes.matrix_spectrum import MatrixSpectrum, gram_error, gram_spectra
from lossscope.probes.newton_schulz_map import newton_schulz_image
from lossscope.probes.norms import norm, norms, relative_radius, update_ratio
from lossscope.probes.polar_quality import newton_schulz_quality
from lossscope.probes.shear_geometry import angle, cosine, secants, surrogate_gap

__all__ = [
    "Row",
    "Seen",
    "finished_spectra",
    "injection_angles",
    "seen_by_any",
    "seen_by_record",
    "settled",
    "spectrum_rows",
    "step_numbers",
    "tensor_rows",
]

Row = dict[str, Any]
_QUALITY: Final = {"outside_band": "outside_band", "polar_norm": "output_norm", "polar_cosine": "polar_cosine"}


@dataclass(frozen=True)
class Seen:
    """One parameter of one step, whichever optimizer took it."""

    name: str
    parameter: Tensor  # after the step
    before: Tensor
    gradient: Tensor | None
    displacement: Tensor  # after minus before, decay included
    record: TensorRecord | None  # what only our own optimizers show

    @property
    def track(self) -> str:
        """`matrix` or `vector`."""
        return self.record.track if self.record else ("matrix" if self.parameter.ndim >= 2 else "vector")

    def as_matrix(self, tensor: Tensor) -> Tensor:
        """The tensor cut as the step cut its parameter: `(m, n)` or `(batch, m, n)`."""
        if self.record is not None and self.record.matrix_shape is not None:
            return tensor.reshape(self.record.matrix_shape)
        return tensor if tensor.ndim in (2, 3) else tensor.flatten(1)


def seen_by_record(record: StepRecord, names: dict[Tensor, str], before: dict[Tensor, Tensor]) -> list[Seen]:
    """What one of our own optimizers shows, with the displacement from a copy taken before the step.

    Parameters go by the model's names; those that are none of the model's are left out.
    """
    mine = [t for t in record.tensors if t.parameter in before]
    return [_seen(names[t.parameter], t.parameter, before[t.parameter], t.gradient, t) for t in mine]


def seen_by_any(names: dict[Tensor, str], before: dict[Tensor, Tensor], gradients: dict[Tensor, Tensor]) -> list[Seen]:
    """What any optimizer shows: parameters before and after, and the gradients it was given."""
    return [_seen(names[p], p, old, gradients.get(p), None) for p, old in before.items()]


def _seen(name: str, parameter: Tensor, before: Tensor, gradient: Tensor | None, record: TensorRecord | None) -> Seen:
    return Seen(name, parameter, before, gradient, parameter.detach() - before, record)


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


def spectrum_rows(seen: Sequence[Seen], step: StepRecord | None) -> list[Row]:
    """One row a matrix and object, values still on the device.

    The output of Newton-Schulz has the singular vectors of its input, so its spectrum is the scalar map of the
    input's; how far that is from the real one is measured for every matrix and stands in `error`.
    """
    matrices = [s for s in seen if s.track == "matrix"]
    asked = [(s, name, tensor) for s in matrices for name, tensor in _objects(s)]
    cuts = [s.as_matrix(tensor) for s, _, tensor in asked]
    rows: list[Row] = [
        {"tensor": s.name, "object": name, "values": found, "method": "gram", "shape": tuple(cut.shape[-2:])}
        for (s, name, _), cut, found in zip(asked, cuts, gram_spectra(cuts), strict=True)
    ]
    records = {s.name: s.record for s in matrices if s.record is not None}
    for name, record in records.items():
        mine = {row["object"]: row for row in rows if row["tensor"] == name}
        if "orthogonal" in mine and step is not None and step.newton_schulz:
            _use_map(mine["orthogonal"], mine[_source(record)], step)
        followed = mine.get(_followed(record) or "")
        if followed is None:
            continue  # the update is among the objects
        size = abs(float(record.lr)) * record.scale
        scaled: Row = {key: followed[key] * size for key in ("values", "error") if key in followed}
        kept = {key: value for key, value in followed.items() if key not in _QUALITY}  # those are of Newton-Schulz
        rows.append({**kept, **scaled, "object": "update", "method": "scaled"})
    return rows


def _source(record: TensorRecord) -> str:
    """The object that went into Newton-Schulz."""
    return "whitened" if record.source is record.whitened else "source"


def _followed(record: TensorRecord) -> str | None:
    """The object that the update is a multiple of; None where it is none of them."""
    if record.direction is record.orthogonal:
        return "orthogonal"
    return "whitened" if record.direction is record.whitened else None


def _use_map(orthogonal: Row, source: Row, step: StepRecord) -> None:
    values, triples = source["values"], step.newton_schulz
    size = torch.linalg.vector_norm(values, ord=4 if step.ns_norm == "schatten4" else 2, dim=-1)
    image = newton_schulz_image(values, triples, norm=size)
    deviation = (image - orthogonal["values"]).abs().amax(-1)
    quality = newton_schulz_quality(values, triples, norm=size)
    orthogonal |= {"values": image, "method": "map", "error": deviation, **{c: quality[k] for c, k in _QUALITY.items()}}


def _objects(seen: Seen) -> list[tuple[str, Tensor]]:
    objects = [("weight", seen.parameter.detach())]
    if seen.gradient is not None:
        objects.append(("gradient", seen.gradient))
    record = seen.record
    if record is None:
        return [*objects, ("update", seen.displacement)]
    shown = {"momentum": record.m_hat, "whitened": record.whitened}
    if record.direction is not record.whitened:  # else the factor gave the step its norm alone
        shown |= {"source": None if record.source is record.whitened else record.source}
        shown |= {"orthogonal": record.orthogonal}
    if _followed(record) is None:
        shown["update"] = record.update
    return objects + [(name, tensor) for name, tensor in shown.items() if tensor is not None]


def settled(rows: Sequence[Row]) -> list[Row]:
    """The rows with plain floats and arrays in place of tensors, fetched from the device in one go."""
    found = [(row, key) for row in rows for key, value in row.items() if isinstance(value, Tensor)]
    if not found:
        return list(rows)
    flat = torch.cat([row[key].detach().reshape(-1).double() for row, key in found]).cpu().numpy()
    fetched: dict[tuple[int, str], Any] = {}
    start = 0
    for row, key in found:
        count, shape = row[key].numel(), tuple(row[key].shape)
        part = flat[start : start + count]
        fetched[id(row), key] = part.reshape(shape) if shape else float(part[0])
        start += count
    return [{key: fetched.get((id(row), key), value) for key, value in row.items()} for row in rows]


def finished_spectra(rows: Sequence[Row]) -> list[Row]:
    """Rows of the spectra table: one for each slice of a batch, with everything that follows from the values."""
    return [done for row in rows for done in _slices(row)]


def _slices(row: Row) -> list[Row]:
    values = row["values"]
    shape, method, error = row["shape"], row["method"], row.get("error")
    parts = [(None, values)] if values.ndim == 1 else list(enumerate(values))
    done = []
    for index, part in parts:
        if not np.isfinite(part).all():
            continue  # a gap: the matrix had an entry that is not finite
        known = gram_error(part) if error is None else float(error if index is None else error[index])
        spectrum = MatrixSpectrum.from_values(part, shape, method, known)
        quality = {key: float(row[key] if index is None else row[key][index]) for key in _QUALITY if key in row}
        place = {"tensor": row["tensor"], "slice": index, "object": row["object"]}
        done.append({**place, **_described(spectrum), **quality})
    return done


def _described(spectrum: MatrixSpectrum) -> Row:
    return {
        "values": [float(v) for v in spectrum.values],
        "norm": spectrum.norm,
        "entropy_energy": spectrum.entropy("energy"),
        "entropy_nuclear": spectrum.entropy("nuclear"),
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "condition": spectrum.condition if math.isfinite(spectrum.condition) else None,
        "orthogonality_defect": spectrum.orthogonality_defect,
        "excess_order": spectrum.excess_order,
        "method": spectrum.method,
        "error": spectrum.error,
    }
