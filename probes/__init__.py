"""Measurements: of matrices, of a step, and of an objective's curvature. Each returns its number with its error."""

from lossscope.probes.batch_sharpness import BatchSharpness, batch_sharpness
from lossscope.probes.curvature import measure_spectrum
from lossscope.probes.direction import DirectionalSharpness, directional_sharpness
from lossscope.probes.energy import energies
from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate
from lossscope.probes.flatness import adaptive_trace, log_fisher_rao
from lossscope.probes.gauss_newton import fisher, gauss_newton
from lossscope.probes.hessian import hessian
from lossscope.probes.loss import CrossEntropy, MeanSquaredError
from lossscope.probes.matrix_spectrum import MatrixSpectrum, singular_spectrum
from lossscope.probes.module_table import ModuleRow, ModuleTable
from lossscope.probes.newton_schulz_map import newton_schulz_image
from lossscope.probes.norm_sharpness import NormSharpness, norm_sharpness
from lossscope.probes.objective import Objective
from lossscope.probes.operator import SymmetricOperator, from_matrix, preconditioned, scaled
from lossscope.probes.per_module import per_module
from lossscope.probes.radial import theta_hessian_theta
from lossscope.probes.restriction import restricted
from lossscope.probes.sampling_error import SampledEigenvalue, sampled_eigenvalue
from lossscope.probes.spectral_density import SpectralDensity
from lossscope.probes.spectrum_estimate import EigenPairs, SpectrumEstimate
from lossscope.probes.stability import edge_ratio
from lossscope.probes.tracking import EigenTracker

__all__ = [
    "BatchSharpness",
    "CrossEntropy",
    "DirectionalSharpness",
    "EigenPairs",
    "EigenTracker",
    "Estimate",
    "MatrixSpectrum",
    "MeanSquaredError",
    "ModuleRow",
    "ModuleTable",
    "NormSharpness",
    "Objective",
    "ProbeError",
    "SampledEigenvalue",
    "SpectralDensity",
    "SpectrumEstimate",
    "SymmetricOperator",
    "adaptive_trace",
    "batch_sharpness",
    "directional_sharpness",
    "edge_ratio",
    "energies",
    "fisher",
    "from_matrix",
    "gauss_newton",
    "hessian",
    "log_fisher_rao",
    "measure_spectrum",
    "newton_schulz_image",
    "norm_sharpness",
    "per_module",
    "preconditioned",
    "restricted",
    "sampled_eigenvalue",
    "scaled",
    "singular_spectrum",
    "theta_hessian_theta",
]
