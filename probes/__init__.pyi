from .alignment import (
    GradientAlignment as GradientAlignment,
    gradient_alignment as gradient_alignment,
)
from .audit import (
    PhiMemory as PhiMemory,
    TriggerAudit as TriggerAudit,
    noise_chances as noise_chances,
    phi_memory as phi_memory,
    trigger_audit as trigger_audit,
)
from .batch_curvature import (
    BatchSharpness as BatchSharpness,
    batch_sharpness as batch_sharpness,
)
from .curvature import measure_spectrum as measure_spectrum
from .departure import (
    PatientZero as PatientZero,
    patient_zero as patient_zero,
)
from .direction import (
    DirectionalSharpness as DirectionalSharpness,
    directional_sharpness as directional_sharpness,
)
from .energy import energies as energies
from .errors import ProbeError as ProbeError
from .estimate import Estimate as Estimate
from .flatness import (
    adaptive_trace as adaptive_trace,
    log_fisher_rao as log_fisher_rao,
)
from .gauss_newton_operator import (
    fisher as fisher,
    gauss_newton as gauss_newton,
)
from .gradient_noise import (
    NoiseScale as NoiseScale,
    noise_scale as noise_scale,
)
from .hessian_operator import hessian as hessian
from .logits import (
    LogitScale as LogitScale,
    logit_scale as logit_scale,
)
from .loss import (
    CrossEntropy as CrossEntropy,
    MeanSquaredError as MeanSquaredError,
)
from .matrix_spectrum import (
    MatrixSpectrum as MatrixSpectrum,
    singular_spectrum as singular_spectrum,
)
from .memory import (
    DirectionMemory as DirectionMemory,
    LaggedCosines as LaggedCosines,
    direction_memory as direction_memory,
    memory_difference as memory_difference,
)
from .module_blocks import per_module as per_module
from .module_table import (
    ModuleRow as ModuleRow,
    ModuleTable as ModuleTable,
)
from .newton_schulz_map import newton_schulz_image as newton_schulz_image
from .objective import Objective as Objective
from .operator import (
    SymmetricOperator as SymmetricOperator,
    from_matrix as from_matrix,
    preconditioned as preconditioned,
    scaled as scaled,
)
from .polar_quality import newton_schulz_quality as newton_schulz_quality
from .radial import theta_hessian_theta as theta_hessian_theta
from .remainders import (
    LayerRemainders as LayerRemainders,
    layer_remainders as layer_remainders,
)
from .restriction import restricted as restricted
from .sampling_error import (
    SampledEigenvalue as SampledEigenvalue,
    sampled_eigenvalue as sampled_eigenvalue,
)
from .shear_memory import lagged_cosines as lagged_cosines
from .spectral_density import SpectralDensity as SpectralDensity
from .spectrum_estimate import (
    EigenPairs as EigenPairs,
    SpectrumEstimate as SpectrumEstimate,
)
from .stability import edge_ratio as edge_ratio
from .taylor import (
    SecantCurvature as SecantCurvature,
    StepQuality as StepQuality,
    secant_curvature as secant_curvature,
    step_quality as step_quality,
)
from .tracking import EigenTracker as EigenTracker
from .worst_case import (
    NormSharpness as NormSharpness,
    norm_sharpness as norm_sharpness,
)
