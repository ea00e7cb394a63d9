"""From the matrices that a step shows to rows of `spectra`: first on the device, then with what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.curvature.host_transfer import Row
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot
from lossscope.optimizer import StepRecord, TensorRecord
from lossscope.probes.steps.newton_schulz import newton_schulz_image, newton_schulz_quality
from lossscope.probes.steps.singular_values import MatrixSpectrum, gram_error, gram_spectra

__all__ = ["finished_spectra", "spectrum_rows"]

_QUALITY: Final = {"outside_band": "outside_band", "polar_norm": "output_norm", "polar_cosine": "polar_cosine"}


def spectrum_rows(seen: Sequence[ParameterSnapshot], step: StepRecord | None) -> list[Row]:
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


def _objects(seen: ParameterSnapshot) -> list[tuple[str, Tensor]]:
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
