"""Measurements: of matrices, of a step, and of an objective's curvature. Each returns its number with its error."""

from lossscope.probes.curvature import measure_spectrum
from lossscope.probes.direction import DirectionalSharpness, directional_sharpness
from lossscope.probes.energy import energies
from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate
from lossscope.probes.flatness import adaptive_trace, log_fisher_rao
from lossscope.probes.loss import CrossEntropy
from lossscope.probes.matrix_spectrum import MatrixSpectrum, singular_spectrum
from lossscope.probes.newton_schulz_map import newton_schulz_image
from lossscope.probes.objective import Objective
from lossscope.probes.operator import SymmetricOperator, from_matrix, hessian, scaled
from lossscope.probes.spectrum_estimate import EigenPairs, SpectrumEstimate

__all__ = [
    "CrossEntropy",
    "DirectionalSharpness",
    "EigenPairs",
    "Estimate",
    "MatrixSpectrum",
    "Objective",
    "ProbeError",
    "SpectrumEstimate",
    "SymmetricOperator",
    "adaptive_trace",
    "directional_sharpness",
    "energies",
    "from_matrix",
    "hessian",
    "log_fisher_rao",
    "measure_spectrum",
    "newton_schulz_image",
    "scaled",
    "singular_spectrum",
]
