from .budget import (
    Budget as Budget,
    Price as Price,
    budget as budget,
)
from .dynamics.direction_memory import (
    DirectionMemory as DirectionMemory,
    LaggedCosines as LaggedCosines,
    direction_memory as direction_memory,
    memory_difference as memory_difference,
)
from .dynamics.gradient_noise import (
    NoiseScale as NoiseScale,
    noise_scale as noise_scale,
)
from .dynamics.outlier_layer import (
    OutlierLayer as OutlierLayer,
    first_outlier_layer as first_outlier_layer,
)
from .dynamics.trigger_test import (
    PhiAutocorrelation as PhiAutocorrelation,
    TriggerTest as TriggerTest,
    phi_autocorrelation as phi_autocorrelation,
    timer_test as timer_test,
    trigger_test as trigger_test,
)
from .eigenvalues.density import SpectralDensity as SpectralDensity
from .eigenvalues.eigen_tracker import EigenTracker as EigenTracker
from .eigenvalues.measure import measure_spectrum as measure_spectrum
from .eigenvalues.results import (
    EigenPairs as EigenPairs,
    SpectrumEstimate as SpectrumEstimate,
)
from .errors import (
    ProbeError as ProbeError,
    ProbeWarning as ProbeWarning,
)
from .gauge.balance import (
    Balanced as Balanced,
    balance as balance,
)
from .gauge.charges import (
    SymmetryCharges as SymmetryCharges,
    symmetry_charges as symmetry_charges,
)
from .objective.hugging_face import HuggingFaceLoss as HuggingFaceLoss
from .objective.losses import (
    BinaryCrossEntropy as BinaryCrossEntropy,
    CrossEntropy as CrossEntropy,
    MeanSquaredError as MeanSquaredError,
)
from .objective.objective import Objective as Objective
from .operators.base import (
    SymmetricOperator as SymmetricOperator,
    from_matrix as from_matrix,
)
from .operators.derived import (
    preconditioned as preconditioned,
    restricted as restricted,
    scaled as scaled,
)
from .operators.distributed import over_ranks as over_ranks
from .operators.gauss_newton import (
    fisher as fisher,
    gauss_newton as gauss_newton,
)
from .operators.hessian import hessian as hessian
from .operators.objective_operator import ObjectiveOperator as ObjectiveOperator
from .operators.residual import residual as residual
from .operators.sharded import ShardedObjective as ShardedObjective
from .sharpness.alignment import (
    GradientAlignment as GradientAlignment,
    gradient_alignment as gradient_alignment,
)
from .sharpness.average_case import (
    average_sharpness as average_sharpness,
    low_pass_loss as low_pass_loss,
)
from .sharpness.basin import (
    NoiseCurve as NoiseCurve,
    basin_radius as basin_radius,
    noise_curve as noise_curve,
)
from .sharpness.critical import (
    CriticalLearningRate as CriticalLearningRate,
    critical_learning_rate as critical_learning_rate,
    nonquadraticity as nonquadraticity,
)
from .sharpness.directional import (
    DirectionalSharpness as DirectionalSharpness,
    directional_sharpness as directional_sharpness,
)
from .sharpness.ghost_radius import (
    GhostRadius as GhostRadius,
    softmax_ghost_radius as softmax_ghost_radius,
)
from .sharpness.gradient_smoothness import (
    GradientSmoothness as GradientSmoothness,
    gradient_smoothness as gradient_smoothness,
)
from .sharpness.invariant import (
    adaptive_lambda_max as adaptive_lambda_max,
    adaptive_trace as adaptive_trace,
    log_fisher_rao as log_fisher_rao,
    theta_hessian_theta as theta_hessian_theta,
)
from .sharpness.logits import (
    LogitScale as LogitScale,
    logit_scale as logit_scale,
)
from .sharpness.minibatch import (
    BatchSharpness as BatchSharpness,
    batch_sharpness as batch_sharpness,
)
from .sharpness.norm_ball import (
    NormSharpness as NormSharpness,
    norm_sharpness as norm_sharpness,
)
from .sharpness.orbit_trace import (
    OrbitTrace as OrbitTrace,
    orbit_trace as orbit_trace,
)
from .sharpness.pac_bayes import pac_bayes_sigma as pac_bayes_sigma
from .sharpness.per_block import (
    ModuleRow as ModuleRow,
    ModuleTable as ModuleTable,
    per_module as per_module,
)
from .sharpness.quantization import quantized_loss as quantized_loss
from .sharpness.relative_flatness import relative_flatness as relative_flatness
from .sharpness.sam import (
    SamSharpness as SamSharpness,
    sam_sharpness as sam_sharpness,
)
from .sharpness.sampling_error import (
    SampledEigenvalue as SampledEigenvalue,
    sampled_eigenvalue as sampled_eigenvalue,
)
from .sharpness.stability_thresholds import edge_ratio as edge_ratio
from .sharpness.step_quality import (
    LayerRemainders as LayerRemainders,
    SecantCurvature as SecantCurvature,
    StepQuality as StepQuality,
    layer_remainders as layer_remainders,
    secant_curvature as secant_curvature,
    step_quality as step_quality,
)
from .sharpness.worst_case import (
    WorstCase as WorstCase,
    worst_case_sharpness as worst_case_sharpness,
)
from .sharpness.zeroth_order import zeroth_order_interval as zeroth_order_interval
from .statistics.estimate import Estimate as Estimate
from .step_tensors.energy import energies as energies
from .step_tensors.lagged_vectors import lagged_cosines as lagged_cosines
from .step_tensors.matrix_spectrum import MatrixSpectrum as MatrixSpectrum
from .step_tensors.newton_schulz import (
    newton_schulz_image as newton_schulz_image,
    newton_schulz_quality as newton_schulz_quality,
)
from .step_tensors.singular_values import singular_spectrum as singular_spectrum
