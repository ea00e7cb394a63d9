"""The tables of a run: every column with its type, its unit and what it means.

A missing number is null in every table: a gap, never a zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

__all__ = ["RENAMED_MEASURES", "SCHEMA_VERSION", "TABLES", "Column", "arrow_schema", "columns"]

# 2: cost in gradients, method, and whose density. 3: pairs of minibatches, Newton-Schulz, excess order, injection,
# layers. 4: `directional_edge_ratio` in place of `edge_ratio`. Earlier versions are read under the new names, with
# missing values for what they did not have.
SCHEMA_VERSION: Final = 4
RENAMED_MEASURES: Final = {"edge_ratio": "directional_edge_ratio"}  # old name -> name since schema 4


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: str  # "int", "float", "bool", "text" or "floats" (a list)
    unit: str  # "1": dimensionless; "": none, or it varies by row; "loss": the unit of the loss, see `Run.loss_unit`
    meaning: str
    required: bool = False


_ARROW_TYPES: Final = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "floats": pa.list_(pa.float64()),
}

_STEP = Column("step", "int", "steps", "optimizer steps taken so far", required=True)
_TENSOR = Column("tensor", "text", "", "name of the parameter", required=True)

_STEPS: Final = (
    _STEP,
    Column("seconds", "float", "s", "wall time since the recorder started"),
    Column("loss", "float", "loss", "training loss of the first pass, at the parameters before the step"),
    Column("adversarial_loss", "float", "loss", "training loss of the second pass, at the ascended parameters"),
    Column("lr", "float", "1", "learning rate of the first parameter group"),
    Column("weight_decay", "float", "1", "weight decay of the first parameter group; lr times it is the decay a step"),
    Column("passes", "int", "passes", "forward and backward passes of this step"),
    Column("synced", "bool", "", "whether this step took a second, adversarial gradient"),
    Column("phi", "float", "1", "cosine of the gradient with the stored shear, before any injection"),
    Column("threshold", "float", "1", "phi below this makes the trigger ask for a second pass"),
    Column("alpha", "float", "1", "strength of the injected shear at this step"),
    Column("gradient_norm", "float", "loss", "norm of the base gradient, all parameters"),
    Column("adversarial_norm", "float", "loss", "norm of the adversarial gradient, all parameters"),
    Column("weight_norm", "float", "1", "norm of the parameters after the step"),
    Column("update_norm", "float", "1", "norm of the change the step made, decay included"),
    Column("perturbation_norm", "float", "1", "norm of the ascent e, all parameters"),
    Column("adversarial_angle", "float", "rad", "angle between the base and the adversarial gradient"),
    Column("shear_norm", "float", "loss", "norm of the fresh shear, all parameters"),
    Column("freshness", "float", "1", "cosine of the stored shear with the fresh one that replaces it"),
    Column("injection_angle", "float", "rad", "angle between the update and the one without the injected shear"),
    Column("remainder_rounding", "float", "loss", "by how much each remainder of this step may be off"),
    Column("surrogate_gap", "float", "loss", "adversarial loss minus loss"),
    Column("secant_gradient", "float", "loss", "<g_adv - g, e> / |e|^2, a curvature along the ascent"),
    Column("secant_loss", "float", "loss", "2 (gap - <g, e>) / |e|^2, the same from two losses"),
    Column("train_accuracy", "float", "1", "fraction right on the training set"),
    Column("test_loss", "float", "loss", "mean loss on the test set"),
    Column("test_accuracy", "float", "1", "fraction right on the test set"),
)

_TENSORS: Final = (
    _STEP,
    _TENSOR,
    Column("track", "text", "", "matrix or vector", required=True),
    Column("gradient_norm", "float", "loss", "norm of the base gradient"),
    Column("weight_norm", "float", "1", "norm of the parameter after the step"),
    Column("update_norm", "float", "1", "norm of the change the step made, decay included"),
    Column("update_ratio", "float", "1", "update_norm / weight_norm"),
    Column("energy", "float", "1", "E = |A|_F, the norm of the whitened momentum"),
    Column("energy_rms", "float", "1", "E / sqrt(numel): a signal-to-noise meter between 0 and 1"),
    Column("natural_energy", "float", "loss^2", "sum m^2 v / (sqrt(v) + eps)^2, bias-corrected m and v"),
    Column("alignment", "float", "1", "<O, A>: the nuclear norm of A where O is its exact polar factor"),
    Column("gradient_energy", "float", "loss", "sum g^2 / (sqrt(v) + eps)"),
    Column("update_energy", "float", "loss^2", "sum dW^2 v"),
    Column("second_moment_sum", "float", "loss^2", "sum of bias-corrected v; not a Fisher trace"),
    Column("perturbation_norm", "float", "1", "norm of the ascent e"),
    Column("relative_radius", "float", "1", "norm of the ascent e over the norm of the parameter"),
    Column("adversarial_angle", "float", "rad", "angle between the base and the adversarial gradient"),
    Column("shear_norm", "float", "loss", "norm of the fresh shear"),
    Column(
        "shear_ratio", "float", "1", "norm of the fresh shear over that of the base gradient; a gap where that is 0"
    ),
    Column("phi", "float", "1", "cosine of the gradient with the stored shear, before any injection"),
    Column("freshness", "float", "1", "cosine of the stored shear with the fresh one that replaces it"),
    Column("injected_norm", "float", "loss", "norm of what the shear added to the gradient"),
    Column("injection_angle", "float", "rad", "angle between the update and the one without the injected shear"),
    Column(
        "remainder",
        "float",
        "loss",
        "L(w + D_l) - L(w) - g_l'D_l on the fixed data, were this parameter alone to take its part of the step",
    ),
)

_SPECTRA: Final = (
    _STEP,
    _TENSOR,
    Column("slice", "int", "", "index along dimension 0 of a batched 3-D parameter"),
    Column(
        "object",
        "text",
        "",
        "gradient, momentum, whitened, source (of Newton-Schulz, where that is another), orthogonal, update or weight; "
        "batch_gradient and pair_gradient are of one probe minibatch, and of two together",
        required=True,
    ),
    Column("values", "floats", "", "singular values, descending", required=True),
    Column("norm", "float", "", "Frobenius norm"),
    Column("entropy_energy", "float", "1", "entropy of s^2 / sum s^2 over ln r; null for a vector"),
    Column("entropy_nuclear", "float", "1", "entropy of s / sum s over ln r; null for a vector"),
    Column("stable_rank", "float", "1", "|M|_F^2 / |M|_2^2"),
    Column("effective_rank", "float", "1", "exp of the unnormalized nuclear entropy"),
    Column("condition", "float", "1", "largest over smallest singular value; null where singular"),
    Column("orthogonality_defect", "float", "1", "|MM' - I|_F / sqrt r after scaling |M|_F to sqrt r"),
    Column("excess_order", "float", "nats", "energy entropy of white noise of this shape less that of the matrix"),
    Column("outside_band", "float", "1", "of orthogonal: share of singular values outside 0.68 to 1.21"),
    Column("polar_norm", "float", "1", "of orthogonal: |O|_F / sqrt r, 1 for an orthogonal matrix"),
    Column("polar_cosine", "float", "1", "of orthogonal: cosine with the exact polar factor of the input"),
    Column(
        "method",
        "text",
        "",
        "gram (float64 eigenvalues), map (Newton-Schulz scalar map) or scaled (a multiple of another)",
    ),
    Column(
        "error",
        "float",
        "",
        "largest error of a value: rounding of the Gram matrix, or the map's distance from the real spectrum",
    ),
)

_PROBES: Final = (
    _STEP,
    Column("measure", "text", "", "name of the measure, see lossscope list measures", required=True),
    Column("tensor", "text", "", "name of the parameter or block; null where it is about all of them"),
    Column("value", "float", "", "the estimate"),
    Column("stderr", "float", "", "standard error; 0 where exact, null where the bound is of another kind"),
    Column("low", "float", "", "lower end of the bound or of the 95 % interval"),
    Column("high", "float", "", "upper end"),
    Column("residual", "float", "", "|Hy - theta y| of a Ritz pair"),
    Column("samples", "int", "samples", "random probes behind the estimate"),
    Column("products", "int", "products", "Hessian products spent"),
    Column("seconds", "float", "s", "time spent"),
    Column("gradients", "float", "gradients", "time spent over the time of one gradient; null where that is unknown"),
    Column("method", "text", "", "what took the products"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "which loss was differentiated"),
    Column("gauge", "text", "", "raw, or the parametrization that was fixed first"),
    Column("dtype", "text", "", "dtype of the products"),
    Column("seed", "int", "", "seed of the random probes"),
    Column("engine", "text", "", "lossscope or pyhessian"),
    Column("data_hash", "text", "", "hash of the data the loss was averaged over"),
    Column("converged", "bool", "", "whether the asked-for bound was met"),
)

_DENSITIES: Final = (
    _STEP,
    Column("probe", "int", "", "index of the random probe; 0 begins another density", required=True),
    Column("nodes", "floats", "loss", "quadrature nodes (Ritz values)", required=True),
    Column("weights", "floats", "1", "quadrature weights, summing to one", required=True),
    Column("settled", "floats", "1", "1 where the node is a single eigenvalue, 0 where it stands for many"),
    Column("size", "int", "", "eigenvalues that the whole spectrum has"),
    Column("products", "int", "products", "Hessian products of its call, with everything else that it measured"),
    Column("seconds", "float", "s", "time of the same"),
    Column("gradients", "float", "gradients", "that time over the time of one gradient; null where that is unknown"),
    Column("method", "text", "", "what took the products"),
    Column("engine", "text", "", "lossscope"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "which loss was differentiated"),
    Column("seed", "int", "", "seed of the random probes"),
    Column("data_hash", "text", "", "hash of the data the loss was averaged over"),
)

_PAIRS: Final = (
    Column("step", "int", "steps", "optimizer steps taken at the later of the two points", required=True),
    Column("object", "text", "", "gradient or shear", required=True),
    Column("lag", "int", "steps", "from the earlier point, at which the window began, to the later one", required=True),
    Column(
        "cosine",
        "float",
        "1",
        "between the vectors of two independent minibatches, one at either point; both ways round, averaged",
    ),
    Column("square", "float", "loss^2", "at lag 0: squared norm of the vector of one minibatch, mean of the two"),
    Column("pair_square", "float", "loss^2", "at lag 0: squared norm of the mean of both vectors"),
    Column("samples", "float", "samples", "in one minibatch"),
    Column("size", "int", "", "numbers in a vector"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "which loss was differentiated"),
    Column("dtype", "text", "", "dtype of the vectors"),
    Column("data_hash", "text", "", "hash of the minibatches, all of them together"),
)

TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "steps": _STEPS,
    "tensors": _TENSORS,
    "spectra": _SPECTRA,
    "probes": _PROBES,
    "densities": _DENSITIES,
    "pairs": _PAIRS,
}


def columns(table: str) -> tuple[str, ...]:
    """The column names of a table, in order."""
    return tuple(column.name for column in TABLES[table])


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table; unit and meaning travel as metadata of each field."""
    fields = [
        pa.field(
            column.name,
            _ARROW_TYPES[column.type],
            nullable=not column.required,
            metadata={"unit": column.unit, "meaning": column.meaning},
        )
        for column in TABLES[table]
    ]
    return pa.schema(fields, metadata={"table": table, "schema_version": str(SCHEMA_VERSION)})
