"""Measurements: of matrices, of a step, and of an objective's curvature. Each returns its number with its error.

Names are loaded when first used: what reads logs alone goes without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossscope.probes.alignment import GradientAlignment, gradient_alignment
    from lossscope.probes.audit import PhiMemory, TriggerAudit, noise_chances, phi_memory, trigger_audit
    from lossscope.probes.batch_curvature import BatchSharpness, batch_sharpness
    from lossscope.probes.curvature import measure_spectrum
    from lossscope.probes.departure import PatientZero, patient_zero
    from lossscope.probes.direction import DirectionalSharpness, directional_sharpness
    from lossscope.probes.energy import energies
    from lossscope.probes.errors import ProbeError
    from lossscope.probes.estimate import Estimate
    from lossscope.probes.flatness import adaptive_trace, log_fisher_rao
    from lossscope.probes.gauss_newton_operator import fisher, gauss_newton
    from lossscope.probes.gradient_noise import NoiseScale, noise_scale
    from lossscope.probes.hessian_operator import hessian
    from lossscope.probes.logits import LogitScale, logit_scale
    from lossscope.probes.loss import CrossEntropy, MeanSquaredError
    from lossscope.probes.matrix_spectrum import MatrixSpectrum, singular_spectrum
    from lossscope.probes.memory import (
        DirectionMemory,
        LaggedCosines,
        direction_memory,
        memory_difference,
    )
    from lossscope.probes.module_blocks import per_module
    from lossscope.probes.module_table import ModuleRow, ModuleTable
    from lossscope.probes.newton_schulz_map import newton_schulz_image
    from lossscope.probes.objective import Objective
    from lossscope.probes.operator import SymmetricOperator, from_matrix, preconditioned, scaled
    from lossscope.probes.polar_quality import newton_schulz_quality
    from lossscope.probes.radial import theta_hessian_theta
    from lossscope.probes.remainders import LayerRemainders, layer_remainders
    from lossscope.probes.restriction import restricted
    from lossscope.probes.sampling_error import SampledEigenvalue, sampled_eigenvalue
    from lossscope.probes.shear_memory import lagged_cosines
    from lossscope.probes.spectral_density import SpectralDensity
    from lossscope.probes.spectrum_estimate import EigenPairs, SpectrumEstimate
    from lossscope.probes.stability import edge_ratio
    from lossscope.probes.taylor import SecantCurvature, StepQuality, secant_curvature, step_quality
    from lossscope.probes.tracking import EigenTracker
    from lossscope.probes.worst_case import NormSharpness, norm_sharpness

_HOMES = {
    "BatchSharpness": "batch_curvature",
    "CrossEntropy": "loss",
    "DirectionMemory": "memory",
    "DirectionalSharpness": "direction",
    "EigenPairs": "spectrum_estimate",
    "EigenTracker": "tracking",
    "Estimate": "estimate",
    "GradientAlignment": "alignment",
    "LaggedCosines": "memory",
    "LayerRemainders": "remainders",
    "LogitScale": "logits",
    "MatrixSpectrum": "matrix_spectrum",
    "MeanSquaredError": "loss",
    "ModuleRow": "module_table",
    "ModuleTable": "module_table",
    "NoiseScale": "gradient_noise",
    "NormSharpness": "worst_case",
    "Objective": "objective",
    "PatientZero": "departure",
    "PhiMemory": "audit",
    "ProbeError": "errors",
    "SampledEigenvalue": "sampling_error",
    "SecantCurvature": "taylor",
    "SpectralDensity": "spectral_density",
    "SpectrumEstimate": "spectrum_estimate",
    "StepQuality": "taylor",
    "SymmetricOperator": "operator",
    "TriggerAudit": "audit",
    "adaptive_trace": "flatness",
    "batch_sharpness": "batch_curvature",
    "direction_memory": "memory",
    "directional_sharpness": "direction",
    "edge_ratio": "stability",
    "energies": "energy",
    "fisher": "gauss_newton_operator",
    "from_matrix": "operator",
    "gauss_newton": "gauss_newton_operator",
    "gradient_alignment": "alignment",
    "hessian": "hessian_operator",
    "lagged_cosines": "shear_memory",
    "layer_remainders": "remainders",
    "log_fisher_rao": "flatness",
    "logit_scale": "logits",
    "measure_spectrum": "curvature",
    "memory_difference": "memory",
    "newton_schulz_image": "newton_schulz_map",
    "newton_schulz_quality": "polar_quality",
    "noise_chances": "audit",
    "noise_scale": "gradient_noise",
    "norm_sharpness": "worst_case",
    "patient_zero": "departure",
    "per_module": "module_blocks",
    "phi_memory": "audit",
    "preconditioned": "operator",
    "restricted": "restriction",
    "sampled_eigenvalue": "sampling_error",
    "scaled": "operator",
    "secant_curvature": "taylor",
    "singular_spectrum": "matrix_spectrum",
    "step_quality": "taylor",
    "theta_hessian_theta": "radial",
    "trigger_audit": "audit",
}

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
    "LayerRemainders",
    "LogitScale",
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
    "logit_scale",
    "measure_spectrum",
    "memory_difference",
    "newton_schulz_image",
    "newton_schulz_quality",
    "noise_chances",
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


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lossscope.probes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
