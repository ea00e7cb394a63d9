"""Rows of the table `spectra`: singular values on the device, derived quantities after their copy to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.spectrum_columns import spectrum_columns
from lossscope.landscape.recording.parameter_snapshot import ParameterSnapshot
from lossscope.optimizer import StepRecord, TensorRecord
from lossscope.probes.step_tensors.matrix_spectrum import MatrixSpectrum, gram_error
from lossscope.probes.step_tensors.newton_schulz import newton_schulz_image, newton_schulz_quality
from lossscope.probes.step_tensors.singular_values import gram_spectra

__all__ = ["finished_spectra", "spectrum_rows"]

_QUALITY: Final = {"outside_band": "outside_band", "polar_norm": "output_norm", "polar_cosine": "polar_cosine"}


_NOTHING: Final[Mapping[str, Tensor]] = MappingProxyType({})


def spectrum_rows(
    snapshots: Sequence[ParameterSnapshot], step: StepRecord | None, start: Mapping[str, Tensor] = _NOTHING
) -> list[Row]:
    """Return one row for each matrix and object, with values on the device.

    The output of Newton-Schulz has the singular vectors of its input, so its spectrum is the scalar map of the input's
    spectrum. The deviation from the actual spectrum is measured for every matrix and recorded as `error`.

    Args:
        snapshots: The parameters of the step; vectors are skipped, and matrices that have no real singular values.
        step: The record of the step, if the optimizer provides one.
        start: Matrices before the first step by name, of those whose movement is recorded.
    """
    matrices = [s for s in snapshots if s.track == "matrix" and not s.no_spectrum]
    objects = [(s, name, tensor) for s in matrices for name, tensor in _objects(s, start.get(s.name))]
    cuts = [s.as_matrix(tensor) for s, _, tensor in objects]
    rows: list[Row] = [
        {"tensor": s.name, "object": name, "values": found, "method": "gram", "shape": tuple(cut.shape[-2:])}
        for (s, name, _), cut, found in zip(objects, cuts, gram_spectra(cuts), strict=True)
    ]
    records = {s.name: s.record for s in matrices if s.record is not None}
    for name, record in records.items():
        mine = {row["object"]: row for row in rows if row["tensor"] == name}
        if "orthogonal" in mine and step is not None and step.newton_schulz:
            _use_map(mine["orthogonal"], mine[_source(record)], step)
        followed = mine.get(_followed(record) or "")
        if followed is None:
            continue  # the update is one of the objects
        size = abs(float(record.lr)) * record.scale
        scaled: Row = {key: followed[key] * size for key in ("values", "error") if key in followed}
        kept = {
            key: value for key, value in followed.items() if key not in _QUALITY
        }  # quality of the Newton-Schulz output, not of the update
        rows.append({**kept, **scaled, "object": "update", "method": "scaled"})
    return rows


def _source(record: TensorRecord) -> str:
    """Return the name of the object that is the input of Newton-Schulz."""
    return "whitened" if record.source is record.whitened else "source"


def _followed(record: TensorRecord) -> str | None:
    """Return the name of the object that the update is a multiple of, if there is one."""
    if record.direction is record.orthogonal:
        return "orthogonal"
    return "whitened" if record.direction is record.whitened else None


def _use_map(orthogonal: Row, source: Row, step: StepRecord) -> None:
    """Replace the spectrum of the Newton-Schulz output by the scalar map of its input's spectrum."""
    values, triples = source["values"], step.newton_schulz
    size = torch.linalg.vector_norm(values, ord=4 if step.ns_norm == "schatten4" else 2, dim=-1)
    image = newton_schulz_image(values, triples, norm=size)
    deviation = (image - orthogonal["values"]).abs().amax(-1)
    quality = newton_schulz_quality(values, triples, norm=size)
    orthogonal |= {"values": image, "method": "map", "error": deviation, **{c: quality[k] for c, k in _QUALITY.items()}}


def _objects(snapshot: ParameterSnapshot, start: Tensor | None) -> list[tuple[str, Tensor]]:
    """Return the tensors of a parameter whose spectra are recorded, by object."""
    weight = snapshot.parameter.detach()
    objects = [("weight", weight)]
    if start is not None and start.shape == weight.shape:
        wide = torch.promote_types(weight.dtype, torch.float32)  # the difference of two halves is no half
        objects.append(("movement", weight.to(wide) - start.to(weight.device, wide)))
    if snapshot.gradient is not None:
        objects.append(("gradient", snapshot.gradient))
    record = snapshot.record
    if record is None:
        return [*objects, ("update", snapshot.displacement)]
    shown = {"momentum": record.m_hat, "whitened": record.whitened}
    if record.direction is not record.whitened:  # otherwise the orthogonal factor only set the norm of the step
        shown |= {"source": None if record.source is record.whitened else record.source}
        shown |= {"orthogonal": record.orthogonal}
    if _followed(record) is None:
        shown["update"] = record.update
    return objects + [(name, tensor) for name, tensor in shown.items() if tensor is not None]


def finished_spectra(rows: Sequence[Row]) -> list[Row]:
    """Return rows of `spectra`: one for each slice of a batch, with the quantities derived from the values."""
    return [done for row in rows for done in _slices(row)]


def _slices(row: Row) -> list[Row]:
    """Return one row for each slice of a batched matrix, or the row of a single matrix."""
    values = row["values"]
    shape, method, error = row["shape"], row["method"], row.get("error")
    parts = [(None, values)] if values.ndim == 1 else list(enumerate(values))
    done = []
    for index, part in parts:
        if not np.isfinite(part).all():
            continue  # the matrix has a non-finite entry: no row
        known = gram_error(part) if error is None else float(error if index is None else error[index])
        spectrum = MatrixSpectrum.from_values(part, shape, method, known)
        quality = {key: float(row[key] if index is None else row[key][index]) for key in _QUALITY if key in row}
        place = {"tensor": row["tensor"], "slice": index, "object": row["object"]}
        done.append({**place, **spectrum_columns(spectrum), **quality})
    return done
