"""Columns of the table `spectra` that describe the singular values of a matrix."""

from __future__ import annotations

import math

from lossscope.probes.step_tensors.matrix_spectrum import MatrixSpectrum

__all__ = ["spectrum_columns"]


def spectrum_columns(spectrum: MatrixSpectrum) -> dict[str, object]:
    """Return the columns that describe a spectrum."""
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
