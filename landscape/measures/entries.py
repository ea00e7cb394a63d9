"""Entries of the catalogue: one `MeasureGroup` declares all that the recorder, `probe`, lists and reports know.

To add a measure, add an entry to the tuple at the end; those of one kind are in files of their own beside this one
(`flatness_entries.py`, `limit_entries.py`, ...). This module imports no torch; the functions that measure import it
when called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.declarations import EVERY, OPTIMIZER, ROTATIONS, krylov, long
from lossscope.landscape.measures.flatness_entries import FLATNESS
from lossscope.landscape.measures.limit_entries import LIMITS
from lossscope.landscape.measures.measure import EIGENVALUES, FROM_DENSITY, Bound, Measure
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup, Names, Schedule
from lossscope.landscape.measures.memory import METRIC_COPIES, krylov_vectors
from lossscope.landscape.measures.perturbation_entries import PERTURBATIONS
from lossscope.landscape.measures.step_entries import ALONG_STEP
from lossscope.landscape.measures.structural_entries import STRUCTURAL
from lossscope.landscape.measures.symmetry_entries import SYMMETRIES

if TYPE_CHECKING:
    from lossscope.landscape.measures.panel import Panel
    from lossscope.probes.statistics.estimate import Estimate

__all__ = ["ENTRIES"]


def _spectrum_due(evaluation: Evaluation) -> Collection[str]:
    """Return the top eigenvalues unless tracked, and the whole spectrum at long evaluations."""
    top = () if evaluation.tracked else ("sharpness_edge_ratio", *EIGENVALUES)[: 1 + evaluation.eigenvalues]
    return (*top, "lambda_min", "trace", "frobenius", *FROM_DENSITY) if evaluation.long else top


def _alignment_due(evaluation: Evaluation) -> Collection[str]:
    """Return the shares along as many eigenvectors as the preset measures."""
    five = ("top5_share",) if evaluation.eigenvalues >= 5 else ()
    return ("top_share", "gradient_cosine", "gradient_rayleigh", *five) if evaluation.long else ()


def _metric_due(evaluation: Evaluation) -> Collection[str]:
    """Return the measures in the optimizer's metric, which is that of the step taken."""
    stepped = evaluation.long and evaluation.stepped
    return ("preconditioned_sharpness", "preconditioned_edge_ratio") if stepped else ()


def _pairs_of_spectrum(names: Names) -> int:
    """Return the number of eigenpairs at both ends that some measures of the spectrum need."""
    top = max((1 + i for i, name in enumerate(EIGENVALUES) if name in names), default=0)
    return max(top, int("sharpness_edge_ratio" in names)) + ("lambda_min" in names)


def _least_of_spectrum(names: Names, size: int) -> int:
    """Return the smallest budget for some measures of the spectrum."""
    space = bool(_pairs_of_spectrum(names) or names & set(FROM_DENSITY))
    return krylov(_pairs_of_spectrum, space=space, probes=bool(names & {"trace", "frobenius"}))(names, size)


def _pairs_of_alignment(names: Names) -> int:
    """Return the number of eigenvectors with which the gradient is compared."""
    return 5 if "top5_share" in names else 1


def _keskar(panel: Panel, names: Names) -> Mapping[str, Estimate]:
    """Compute Keskar's sharpness; the budget counts loss evaluations."""
    from lossscope.probes.sharpness.keskar import keskar_sharpness

    rel, budget, seed = panel.options.rel, panel.options.max_products, panel.options.seed
    return {"keskar": keskar_sharpness(panel.objective, rel=rel, max_evaluations=budget, seed=seed).sharpness}


# The order of the entries is that of `list measures`, and of the groups and rows of `probe`.
ENTRIES: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "loss",
        (Measure("loss", "loss", Bound.EXACT, EVERY, "mean training loss on the fixed data of curvature"),),
        run=lambda panel, names: panel.loss(),
        recorded=Schedule(0, lambda evaluation: ("loss",)),
        usual=True,
        cost="one loss",
        reports=("sharpness", "flatness"),
        own_table=True,
    ),
    MeasureGroup(
        "train_loss",
        (Measure("train_loss", "loss", Bound.EXACT, EVERY, "mean training loss on all training data"),),
        run=lambda panel, names: panel.loss_on("train_loss"),
        recorded=Schedule(0, lambda evaluation: {"train_loss"} & evaluation.losses),
        cost="one loss on all training data",
        reports=("overview",),
        own_table=True,
    ),
    MeasureGroup(
        "test_loss",
        (Measure("test_loss", "loss", Bound.EXACT, EVERY, "mean loss on test data"),),
        run=lambda panel, names: panel.loss_on("test_loss"),
        recorded=Schedule(0, lambda evaluation: {"test_loss"} & evaluation.losses),
        cost="one loss on all test data",
        reports=("overview",),
        own_table=True,
    ),
    MeasureGroup(
        "spectrum",
        (
            Measure("lambda_max", "loss", Bound.BELOW, ROTATIONS, "largest eigenvalue of the Hessian"),
            *(
                Measure(name, "loss", Bound.INNER, ROTATIONS, f"{ordinal} largest eigenvalue of the Hessian")
                for name, ordinal in zip(EIGENVALUES[1:], ("second", "third", "fourth", "fifth"), strict=True)
            ),
            Measure("lambda_min", "loss", Bound.ABOVE, ROTATIONS, "smallest eigenvalue of the Hessian"),
            Measure("trace", "loss", Bound.INTERVAL, ROTATIONS, "sum of the eigenvalues of the Hessian"),
            Measure("frobenius", "loss", Bound.INTERVAL, ROTATIONS, "square root of the sum of squared eigenvalues"),
            Measure(
                "density",
                "1/loss",
                Bound.QUADRATURE,
                ROTATIONS,
                "spectral density of the Hessian; nodes and weights are in the table densities",
            ),
            Measure(
                "negative_mass",
                "1",
                Bound.QUADRATURE,
                ROTATIONS,
                "share of negative eigenvalues in the sum of absolute eigenvalues",
            ),
            Measure(
                "effective_rank",
                "1",
                Bound.QUADRATURE,
                ROTATIONS,
                "exp of the entropy of the positive eigenvalues: their effective number",
            ),
            Measure(
                "participation_ratio",
                "1",
                Bound.QUADRATURE,
                ROTATIONS,
                "squared sum of the positive eigenvalues over the sum of their squares: the number of dominant ones",
            ),
            Measure(
                "sharpness_edge_ratio",
                "1",
                Bound.BELOW,
                OPTIMIZER,
                "lambda_max over the stability threshold of SGD at its settings: 1 is the edge of stability",
            ),
        ),
        run=lambda panel, names: panel.spectrum(names),
        least_products=_least_of_spectrum,
        vectors=krylov_vectors(
            _pairs_of_spectrum, whole=lambda names: bool(names & {"trace", "frobenius", *FROM_DENSITY})
        ),
        recorded=Schedule(1, _spectrum_due, after_tracker=True),
        usual=True,
        own_table=True,
    ),
    MeasureGroup(
        "metric",
        (
            Measure(
                "preconditioned_sharpness",
                "1",
                Bound.BELOW,
                OPTIMIZER,
                "largest eigenvalue of P^-1/2 H P^-1/2 with the metric P of the optimizer's last step",
            ),
            Measure(
                "preconditioned_edge_ratio",
                "1",
                Bound.BELOW,
                OPTIMIZER,
                "preconditioned sharpness over the optimizer's stability threshold: 1 is the edge of stability",
            ),
        ),
        run=lambda panel, names: panel.preconditioned(names),
        least_products=krylov(lambda names: 1),
        vectors=krylov_vectors(lambda names: 1, beside=METRIC_COPIES),
        recorded=Schedule(7, _metric_due),
        usual=True,
        own_table=True,
    ),
    *ALONG_STEP,
    MeasureGroup(
        "alignment",
        (
            Measure("top_share", "1", Bound.EIGENVECTORS, ROTATIONS, "share of |g|^2 along the top eigenvector"),
            Measure("top5_share", "1", Bound.EIGENVECTORS, ROTATIONS, "share of |g|^2 in the top five eigenvectors"),
            Measure("gradient_cosine", "1", Bound.EXACT, ROTATIONS, "cos(g, Hg)"),
            Measure(
                "gradient_rayleigh",
                "1",
                Bound.EIGENVALUE,
                ROTATIONS,
                "g'Hg / |g|^2 over lambda_max: 1 where the gradient is the top eigenvector",
            ),
        ),
        run=lambda panel, names: panel.alignment(names),
        least_products=krylov(_pairs_of_alignment),
        vectors=krylov_vectors(_pairs_of_alignment),
        recorded=Schedule(6, _alignment_due),
        reports=("dynamics",),
        own_table=True,
    ),
    *FLATNESS,
    *PERTURBATIONS,
    *LIMITS,
    *SYMMETRIES,
    MeasureGroup(
        "logits",
        (
            Measure(
                "logit_norm",
                "1",
                Bound.EXACT,
                EVERY,
                "mean norm of the centered logits: curvature shrinks as they grow",
            ),
            Measure("mean_margin", "1", Bound.EXACT, EVERY, "mean of the correct logit minus the largest other one"),
        ),
        run=lambda panel, names: panel.logits(names),
        recorded=Schedule(4, long("logit_norm", "mean_margin")),
        usual=True,
        cost="one loss",
        reports=("sharpness", "flatness", "entropy"),
        own_table=True,
    ),
    MeasureGroup(
        "batch_sharpness",
        (
            Measure(
                "batch_sharpness", "loss", Bound.BATCHES, ROTATIONS, "mean over minibatches of g_B'H_B g_B / |g_B|^2"
            ),
            Measure(
                "batch_sharpness_ratio_of_means",
                "loss",
                Bound.BATCHES,
                ROTATIONS,
                "mean of g_B'H_B g_B over the mean of |g_B|^2",
            ),
        ),
        run=lambda panel, names: panel.batch_sharpness(names),
        cost="a gradient and two Hessian products on each minibatch",
        own_table=True,
    ),
    MeasureGroup(
        "per_module",
        (
            Measure(
                "trace_share",
                "1",
                Bound.INTERVAL,
                ROTATIONS,
                "trace of a module's block over the trace of the whole Hessian",
            ),
            Measure(
                "frobenius_share",
                "1",
                Bound.INTERVAL,
                ROTATIONS,
                "squared norm of a module's block over that of the whole Hessian",
            ),
            Measure(
                "cross_block_share",
                "1",
                Bound.INTERVAL,
                ROTATIONS,
                "share of the squared norm that lies between the modules' blocks",
            ),
        ),
        run=lambda panel, names: panel.per_module(),
        least_products=krylov(lambda names: 2, probes=True),
        own_table=True,
        by_block=True,
    ),
    MeasureGroup(
        "sampling_error",
        (
            Measure(
                "lambda_max_in_sample",
                "loss",
                Bound.BELOW,
                ROTATIONS,
                "lambda_max of this sample of data: biased upwards as an estimate for the population",
            ),
            Measure(
                "lambda_max_cross_fitted",
                "loss",
                Bound.DATA,
                ROTATIONS,
                "v'Hv with v from one half of the data and H from the other, averaged both ways: biased downwards",
            ),
            Measure(
                "lambda_max_population",
                "loss",
                Bound.DATA,
                ROTATIONS,
                "lambda_max of the population that the data were drawn from",
            ),
        ),
        run=lambda panel, names: panel.sampling_error(names),
        least_products=krylov(lambda names: 1),
        own_table=True,
    ),
    *STRUCTURAL,
    MeasureGroup(
        "keskar",
        (
            Measure(
                "keskar",
                "%",
                Bound.LOWER,
                "permutations of hidden units",
                "100 (max L - L) / (1 + L) over the box |d_i| <= 0.001 (|theta_i| + 1)",
            ),
        ),
        run=_keskar,
        cost="up to --max-products losses and gradients",
        least_products=lambda names, size: 10,  # two loss evaluations for each of five ascents
        legacy=True,
    ),
)
