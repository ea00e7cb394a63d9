"""The measures a run can hold: name, unit, what its error bar is, and under which maps it stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["CALLS", "EIGENVALUES", "MEASURES", "UNASKED", "Limit", "Measure", "call_of", "limit_of"]

EIGENVALUES: Final = ("lambda_max", "lambda_2", "lambda_3", "lambda_4", "lambda_5")
Limit = Literal["exact", "effort", "depth", "batches", "data"]


@dataclass(frozen=True)
class Measure:
    """A value of the column `measure` of the probes table."""

    name: str
    unit: str
    call: str  # what measures it: all measures of one call share its cost
    bound: str  # what low and high are
    invariance: str  # which function-preserving maps of the parameters leave it alone
    meaning: str


_INTERVAL: Final = "95 % interval over random probes"
# A Ritz value is a weighted mean of the eigenvalues, so it lies between the ends; one further out may have been missed.
_BELOW: Final = (
    "value: never above the eigenvalue, up to rounding; bound: no eigenvalue lies above value + bound, with 95 % "
    "confidence over the random start; residual: some eigenvalue lies within it"
)
_ABOVE: Final = (
    "value: never below the eigenvalue, up to rounding; bound: no eigenvalue lies below value - bound, with 95 % "
    "confidence over the random start; residual: some eigenvalue lies within it"
)
_INNER: Final = "value: never above the eigenvalue, up to rounding; bound: an eigenvalue lies within it"
_EXACT: Final = "exact on the fixed data"
_ROUNDED: Final = "exact on the fixed data, within the rounding of losses and gradients"
_EIGENVECTORS: Final = "none: as good as the eigenvectors, which are less certain than their eigenvalues"
_EIGENVALUE: Final = "between the bounds of lambda_max"
_QUADRATURE: Final = "95 % interval over random vectors, widened by the change since half of the steps"
_DATA: Final = "95 % interval over the drawing of the data"
_BATCHES: Final = "95 % interval over minibatches"
_ROTATIONS: Final = "rotations only"
_LINEAR: Final = "every linear map"
_DIAGONAL: Final = "every diagonal rescaling"
_OPTIMIZER: Final = "those maps that its optimizer's own metric follows"

_ORDINALS: Final = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}

MEASURES: Final = (
    Measure(
        "loss",
        "nats",
        "loss",
        _EXACT,
        "every function-preserving map",
        "mean training loss on the fixed data of curvature",
    ),
    Measure("lambda_max", "nats", "spectrum", _BELOW, _ROTATIONS, "largest eigenvalue of the Hessian"),
    *(
        Measure(f"lambda_{k}", "nats", "spectrum", _INNER, _ROTATIONS, f"{word} largest eigenvalue of the Hessian")
        for k, word in _ORDINALS.items()
    ),
    Measure("lambda_min", "nats", "spectrum", _ABOVE, _ROTATIONS, "smallest eigenvalue of the Hessian"),
    Measure("trace", "nats", "spectrum", _INTERVAL, _ROTATIONS, "sum of the eigenvalues of the Hessian"),
    Measure("frobenius", "nats", "spectrum", _INTERVAL, _ROTATIONS, "root of the sum of squared eigenvalues"),
    Measure(
        "density",
        "1/nats",
        "spectrum",
        _QUADRATURE,
        _ROTATIONS,
        "how the eigenvalues are distributed; nodes and weights in a table of their own",
    ),
    Measure(
        "negative_mass",
        "1",
        "spectrum",
        _QUADRATURE,
        _ROTATIONS,
        "share of negative eigenvalues in the sum of absolute eigenvalues",
    ),
    Measure(
        "effective_rank",
        "1",
        "spectrum",
        _QUADRATURE,
        _ROTATIONS,
        "exp of the entropy of the positive eigenvalues: how many matter",
    ),
    Measure(
        "participation_ratio",
        "1",
        "spectrum",
        _QUADRATURE,
        _ROTATIONS,
        "squared sum of the positive eigenvalues over the sum of their squares: how many dominate",
    ),
    Measure(
        "sharpness_edge_ratio",
        "1",
        "spectrum",
        _BELOW,
        _OPTIMIZER,
        "lambda_max over the threshold of SGD at its settings: 1 is the edge of stability",
    ),
    Measure(
        "preconditioned_sharpness",
        "1",
        "metric",
        _BELOW,
        _OPTIMIZER,
        "largest eigenvalue of P^-1/2 H P^-1/2 with the metric P of the optimizer's last step",
    ),
    Measure(
        "preconditioned_edge_ratio",
        "1",
        "metric",
        _BELOW,
        _OPTIMIZER,
        "preconditioned sharpness over the optimizer's threshold: 1 is the edge of stability",
    ),
    Measure(
        "directional_sharpness", "nats", "direction", _EXACT, _ROTATIONS, "D'HD / |D|^2 along the step D that was taken"
    ),
    Measure(
        "directional_edge_ratio",
        "1",
        "direction",
        _EXACT,
        _LINEAR,
        "R_dir = -D'HD / (2 g'D): above 1 the step goes too far downhill",
    ),
    *(
        Measure(name, "nats", "direction", _ROUNDED, _LINEAR, words)
        for name, words in {
            "loss_change": "L(theta + D) - L(theta) along the step D that was taken",
            "first_remainder": "R1 = that change less g'D: what the slope did not say",
            "second_remainder": "R2 = R1 - D'HD / 2: what slope and curvature did not say",
        }.items()
    ),
    *(
        Measure(name, "1", "direction", _ROUNDED, _LINEAR, words)
        for name, words in {
            "relative_first": "|R1| / |g'D|",
            "relative_second": "|R2| / (|g'D| + |D'HD| / 2)",
            "trust_ratio": "the change of the loss over what slope and curvature predicted: 1 where they are right",
        }.items()
    ),
    Measure(
        "secant_curvature",
        "nats",
        "direction",
        _ROUNDED,
        _ROTATIONS,
        "D'y / |D|^2, y the change of gradient on the step",
    ),
    Measure("secant_norm", "nats", "direction", _ROUNDED, _ROTATIONS, "|y| / |D|: never below the one along the step"),
    Measure(
        "secant_alignment", "1", "direction", _ROUNDED, _ROTATIONS, "cosine of the step and the change of gradient"
    ),
    Measure("top_share", "1", "alignment", _EIGENVECTORS, _ROTATIONS, "share of |g|^2 along the top eigenvector"),
    Measure("top5_share", "1", "alignment", _EIGENVECTORS, _ROTATIONS, "share of |g|^2 in the top five eigenvectors"),
    Measure("gradient_cosine", "1", "alignment", _EXACT, _ROTATIONS, "cos(g, Hg)"),
    Measure(
        "gradient_rayleigh",
        "1",
        "alignment",
        _EIGENVALUE,
        _ROTATIONS,
        "g'Hg / |g|^2 over lambda_max: 1 where the gradient is the top eigenvector",
    ),
    Measure(
        "adaptive_trace",
        "nats",
        "adaptive_trace",
        _INTERVAL,
        _DIAGONAL,
        "sum of theta_i^2 H_ii: a flatness measure",
    ),
    Measure(
        "log_fisher_rao",
        "1",
        "log_fisher_rao",
        _EXACT,
        _LINEAR,
        "ln of theta'F theta with the Fisher matrix of the model",
    ),
    Measure(
        "logit_norm",
        "1",
        "logits",
        _EXACT,
        "every function-preserving map",
        "mean norm of the centered logits: curvature shrinks as they grow",
    ),
    Measure(
        "mean_margin",
        "1",
        "logits",
        _EXACT,
        "every function-preserving map",
        "mean of the right logit less the largest other one",
    ),
    Measure(
        "theta_hessian_theta",
        "nats",
        "radial",
        _EXACT,
        _LINEAR,
        "theta'H theta: curvature of the loss where all parameters grow by one factor",
    ),
    Measure(
        "batch_sharpness",
        "nats",
        "batch_sharpness",
        _BATCHES,
        _ROTATIONS,
        "mean over minibatches of g_B'H_B g_B / |g_B|^2",
    ),
    Measure(
        "batch_sharpness_ratio_of_means",
        "nats",
        "batch_sharpness",
        _BATCHES,
        _ROTATIONS,
        "mean of g_B'H_B g_B over the mean of |g_B|^2",
    ),
    Measure(
        "trace_share", "1", "per_module", _INTERVAL, _ROTATIONS, "trace of a module's block over the trace of the whole"
    ),
    Measure(
        "frobenius_share",
        "1",
        "per_module",
        _INTERVAL,
        _ROTATIONS,
        "squared norm of a module's block over that of the whole",
    ),
    Measure(
        "cross_block_share",
        "1",
        "per_module",
        _INTERVAL,
        _ROTATIONS,
        "share of the squared norm that lies between the modules' blocks",
    ),
    Measure(
        "lambda_max_in_sample",
        "nats",
        "sampling_error",
        _BELOW,
        _ROTATIONS,
        "lambda_max of this sample of data: on average above that of the population",
    ),
    Measure(
        "lambda_max_cross_fitted",
        "nats",
        "sampling_error",
        _DATA,
        _ROTATIONS,
        "v'Hv with v from one half of the data and H from the other, both ways: on average below",
    ),
    Measure(
        "lambda_max_population",
        "nats",
        "sampling_error",
        _DATA,
        _ROTATIONS,
        "lambda_max of the population that the data were drawn from",
    ),
)

CALLS: Final = tuple(dict.fromkeys(measure.call for measure in MEASURES))
_CALL_OF: Final = {measure.name: measure.call for measure in MEASURES}


_LIMIT_OF_BOUND: Final[dict[str, Limit]] = {
    _EXACT: "exact",
    _ROUNDED: "exact",
    _EIGENVECTORS: "exact",
    _QUADRATURE: "depth",
    _BATCHES: "batches",
    _DATA: "data",
}
UNASKED: Final[frozenset[Limit]] = frozenset({"exact", "batches"})  # limits of measures of which no bound is asked
_LIMITS: Final = {measure.name: _LIMIT_OF_BOUND.get(measure.bound, "effort") for measure in MEASURES}


def limit_of(measure: str) -> Limit:
    """What the precision of a measure hangs on.

    That is nothing (`exact`), the bound and budget asked for (`effort`), the depth of the Krylov space (`depth`), how
    many minibatches there are (`batches`), or the data themselves (`data`).
    """
    return _LIMITS.get(measure, "effort")


def call_of(measure: str, tensor: object = None) -> str:
    """What measured a row: the call of its measure, `per_module` where it is about one block."""
    return "per_module" if isinstance(tensor, str) else _CALL_OF.get(measure, measure)
