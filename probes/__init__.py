"""Measurements: of matrices, of a step, and of an objective's curvature. Each returns its number with its error."""

from lossscope.probes.batch_sharpness import BatchSharpness, batch_sharpness
from lossscope.probes.curvature import measure_spectrum
from lossscope.probes.direction import DirectionalSharpness, directional_sharpness
from lossscope.probes.energy import energies
from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate
from lossscope.probes.flatness import adaptive_trace, log_fisher_rao
from lossscope.probes.gauss_newton import fisher, gauss_newton
from lossscope.probes.gradient_alignment import GradientAlignment, gradient_alignment
from lossscope.probes.hessian import hessian
from lossscope.probes.layer_remainders import PatientZero, layer_remainders, patient_zero
from lossscope.probes.loss import CrossEntropy, MeanSquaredError
from lossscope.probes.matrix_spectrum import MatrixSpectrum, singular_spectrum
from lossscope.probes.module_table import ModuleRow, ModuleTable
from lossscope.probes.newton_schulz_map import newton_schulz_image
from lossscope.probes.newton_schulz_quality import newton_schulz_quality
from lossscope.probes.noise_scale import NoiseScale, noise_scale
from lossscope.probes.norm_sharpness import NormSharpness, norm_sharpness
from lossscope.probes.objective import Objective
from lossscope.probes.operator import SymmetricOperator, from_matrix, preconditioned, scaled
from lossscope.probes.per_module import per_module
from lossscope.probes.radial import theta_hessian_theta
from lossscope.probes.restriction import restricted
from lossscope.probes.sampling_error import SampledEigenvalue, sampled_eigenvalue
from lossscope.probes.shear_memory import (
    DirectionMemory,
    LaggedCosines,
    direction_memory,
    lagged_cosines,
    memory_difference,
)
from lossscope.probes.spectral_density import SpectralDensity
from lossscope.probes.spectrum_estimate import EigenPairs, SpectrumEstimate
from lossscope.probes.stability import edge_ratio
from lossscope.probes.step_quality import SecantCurvature, StepQuality, secant_curvature, step_quality
from lossscope.probes.tracking import EigenTracker
from lossscope.probes.trigger_audit import PhiMemory, TriggerAudit, phi_memory, trigger_audit

__all__ = [
    "BatchSharpness",
    "CrossEntropy",
    "DirectionMemory",
    "DirectionalSharpness",
    "EigenPairs",
    "EigenTracker",
    "Estimate",
    "GradientAlignment",
    "LaggedCosines",
    "MatrixSpectrum",
    "MeanSquaredError",
    "ModuleRow",
    "ModuleTable",
    "NoiseScale",
    "NormSharpness",
    "Objective",
    "PatientZero",
    "PhiMemory",
    "ProbeError",
    "SampledEigenvalue",
    "SecantCurvature",
    "SpectralDensity",
    "SpectrumEstimate",
    "StepQuality",
    "SymmetricOperator",
    "TriggerAudit",
    "adaptive_trace",
    "batch_sharpness",
    "direction_memory",
    "directional_sharpness",
    "edge_ratio",
    "energies",
    "fisher",
    "from_matrix",
    "gauss_newton",
    "gradient_alignment",
    "hessian",
    "lagged_cosines",
    "layer_remainders",
    "log_fisher_rao",
    "measure_spectrum",
    "memory_difference",
    "newton_schulz_image",
    "newton_schulz_quality",
    "noise_scale",
    "norm_sharpness",
    "patient_zero",
    "per_module",
    "phi_memory",
    "preconditioned",
    "restricted",
    "sampled_eigenvalue",
    "scaled",
    "secant_curvature",
    "singular_spectrum",
    "step_quality",
    "theta_hessian_theta",
    "trigger_audit",
]
