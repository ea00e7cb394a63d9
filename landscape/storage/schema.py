"""Schema of a run's tables: name, type, unit and meaning of every column.

Missing values are null in every table, never zero.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

__all__ = ["LONGEST_CELL", "RENAMED_MEASURES", "SCHEMA_VERSION", "TABLES", "Column", "arrow_schema", "columns"]

# 2: cost in gradients, method, identity of a density. 3: pairs of minibatches, Newton-Schulz, excess order, injection,
# layers. 4: `directional_edge_ratio` in place of `edge_ratio`. 5: the table `curves`. 6: the table `spikes`. Earlier
# versions are read under the new names; columns and tables that they do not have are missing values.
SCHEMA_VERSION: Final = 6
LONGEST_CELL: Final = 10_000  # characters of a text in a table
RENAMED_MEASURES: Final = {"edge_ratio": "directional_edge_ratio"}  # old name -> name since schema 4


@dataclass(frozen=True)
class Column:
    """Declaration of one column of a table."""

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

_STEP = Column("step", "int", "steps", "number of optimizer steps taken so far", required=True)
_TENSOR = Column("tensor", "text", "", "name of the parameter", required=True)

_STEPS: Final = (
    _STEP,
    Column("seconds", "float", "s", "wall time since recording started"),
    Column("loss", "float", "loss", "training loss of the first pass, at the parameters before the step"),
    Column("adversarial_loss", "float", "loss", "training loss of the second pass, at the ascended parameters"),
    Column("lr", "float", "1", "learning rate; null where parameter groups differ in it, see the table tensors"),
    Column(
        "weight_decay",
        "float",
        "1",
        "weight decay, times lr the decay per step; null where parameter groups differ in it",
    ),
    Column("passes", "int", "passes", "forward and backward passes in this step"),
    Column("synced", "bool", "", "true if this step took a second, adversarial gradient"),
    Column("phi", "float", "1", "cosine of the gradient with the stored shear, before any injection"),
    Column("threshold", "float", "1", "the trigger requests a second pass if phi is below this value"),
    Column("alpha", "float", "1", "strength of the injected shear in this step"),
    Column("gradient_norm", "float", "loss", "norm of the base gradient, all parameters"),
    Column("adversarial_norm", "float", "loss", "norm of the adversarial gradient, all parameters"),
    Column("weight_norm", "float", "1", "norm of the parameters after the step"),
    Column("update_norm", "float", "1", "norm of the change of the parameters in this step, weight decay included"),
    Column("perturbation_norm", "float", "1", "norm of the ascent e, all parameters"),
    Column("adversarial_angle", "float", "rad", "angle between the base and the adversarial gradient"),
    Column("shear_norm", "float", "loss", "norm of the fresh shear, all parameters"),
    Column("freshness", "float", "1", "cosine of the stored shear with the fresh one that replaces it"),
    Column("injection_angle", "float", "rad", "angle between the update and the update without the injected shear"),
    Column("remainder_rounding", "float", "loss", "bound on the rounding error of each remainder of this step"),
    Column("surrogate_gap", "float", "loss", "adversarial loss minus loss"),
    Column("secant_gradient", "float", "loss", "<g_adv - g, e> / |e|^2, a curvature along the ascent"),
    Column("secant_loss", "float", "loss", "2 (surrogate_gap - <g, e>) / |e|^2, the same curvature from two losses"),
    Column("train_accuracy", "float", "1", "accuracy on the training set, between 0 and 1"),
    Column("test_loss", "float", "loss", "mean loss on the test set"),
    Column("test_accuracy", "float", "1", "accuracy on the test set, between 0 and 1"),
)

_TENSORS: Final = (
    _STEP,
    _TENSOR,
    Column("track", "text", "", "matrix or vector", required=True),
    Column("lr", "float", "1", "learning rate of the parameter's group in this step"),
    Column("weight_decay", "float", "1", "weight decay of the parameter's group; times lr it is the decay per step"),
    Column("gradient_norm", "float", "loss", "norm of the base gradient"),
    Column("weight_norm", "float", "1", "norm of the parameter after the step"),
    Column("update_norm", "float", "1", "norm of the change of the parameter in this step, weight decay included"),
    Column("update_ratio", "float", "1", "update_norm / weight_norm"),
    Column("energy", "float", "1", "E = |A|_F, the norm of the whitened momentum"),
    Column("energy_rms", "float", "1", "E / sqrt(numel), between 0 and 1: a measure of the signal-to-noise ratio"),
    Column("natural_energy", "float", "loss^2", "sum m^2 v / (sqrt(v) + eps)^2, bias-corrected m and v"),
    Column("alignment", "float", "1", "<O, A>; the nuclear norm of A if O is its exact polar factor"),
    Column("gradient_energy", "float", "loss", "sum g^2 / (sqrt(v) + eps)"),
    Column("update_energy", "float", "loss^2", "sum dW^2 v"),
    Column("second_moment_sum", "float", "loss^2", "sum of the bias-corrected v; not a Fisher trace"),
    Column("perturbation_norm", "float", "1", "norm of the ascent e"),
    Column("relative_radius", "float", "1", "norm of the ascent e over the norm of the parameter"),
    Column("adversarial_angle", "float", "rad", "angle between the base and the adversarial gradient"),
    Column("shear_norm", "float", "loss", "norm of the fresh shear"),
    Column("shear_ratio", "float", "1", "norm of the fresh shear over that of the base gradient; null where that is 0"),
    Column("phi", "float", "1", "cosine of the gradient with the stored shear, before any injection"),
    Column("freshness", "float", "1", "cosine of the stored shear with the fresh one that replaces it"),
    Column("injected_norm", "float", "loss", "norm of the shear injected into the gradient"),
    Column("injection_angle", "float", "rad", "angle between the update and the update without the injected shear"),
    Column(
        "remainder",
        "float",
        "loss",
        "L(w + D_l) - L(w) - g_l'D_l on the fixed data, with D_l the step of this parameter alone",
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
        "gradient, momentum, whitened, source (input of Newton-Schulz, if it is none of these), orthogonal, update, "
        "weight or movement (weight minus the weight before the first step); batch_gradient and pair_gradient: "
        "gradient on one probe minibatch, and mean over a pair of them",
        required=True,
    ),
    Column("values", "floats", "", "singular values, descending", required=True),
    Column("norm", "float", "", "Frobenius norm"),
    Column("entropy_energy", "float", "1", "entropy of s^2 / sum s^2 over ln r; null for a vector"),
    Column("entropy_nuclear", "float", "1", "entropy of s / sum s over ln r; null for a vector"),
    Column("stable_rank", "float", "1", "|M|_F^2 / |M|_2^2"),
    Column("effective_rank", "float", "1", "exp of the unnormalized nuclear entropy"),
    Column("condition", "float", "1", "largest over smallest singular value; null where singular"),
    Column("orthogonality_defect", "float", "1", "|MM' - I|_F / sqrt r after scaling M to |M|_F = sqrt r"),
    Column("excess_order", "float", "nats", "energy entropy of white noise of this shape minus that of the matrix"),
    Column("outside_band", "float", "1", "orthogonal only: share of singular values outside [0.68, 1.21]"),
    Column("polar_norm", "float", "1", "orthogonal only: |O|_F / sqrt r, 1 for an orthogonal matrix"),
    Column("polar_cosine", "float", "1", "orthogonal only: cosine with the exact polar factor of the input"),
    Column(
        "method",
        "text",
        "",
        "gram (float64 eigenvalues), map (Newton-Schulz scalar map) or scaled (a multiple of another object)",
    ),
    Column(
        "error",
        "float",
        "",
        "largest error of a value: rounding of the Gram matrix, or deviation of the map from the actual spectrum",
    ),
)

_PROBES: Final = (
    _STEP,
    Column("measure", "text", "", "name of the measure; lossscope list measures explains them", required=True),
    Column("tensor", "text", "", "name of the parameter or block; null for a measure of all parameters"),
    Column("value", "float", "", "the estimate"),
    Column("stderr", "float", "", "standard error; 0 if the value is exact, null if its bound is of another kind"),
    Column("low", "float", "", "lower end of the bound or of the 95 % confidence interval"),
    Column("high", "float", "", "upper end of the same"),
    Column("residual", "float", "", "|Hy - theta y| of a Ritz pair"),
    Column("samples", "int", "samples", "number of random probes used for the estimate"),
    Column("products", "int", "products", "Hessian-vector products used"),
    Column("seconds", "float", "s", "time used"),
    Column("gradients", "float", "gradients", "time used over the time of one gradient; null if that time is unknown"),
    Column("method", "text", "", "method of the products"),
    Column("product_error", "float", "1", "differences only: measured relative error of a product; null if exact"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "name of the loss function"),
    Column("gauge", "text", "", "raw, or the parametrization that was fixed before measuring"),
    Column("dtype", "text", "", "dtype of the products"),
    Column("seed", "int", "", "seed of the random probes"),
    Column("engine", "text", "", "lossscope or pyhessian"),
    Column("data_hash", "text", "", "hash of the data over which the loss is averaged"),
    Column("parameters", "int", "", "number of parameters over which the loss was differentiated; frozen ones are not"),
    Column("additivity", "text", "", "how batches make up the loss: mean of samples, mean of batches, unchecked"),
    Column("converged", "bool", "", "true if the requested accuracy was reached"),
    Column("basis", "text", "", "what was kept of a Krylov basis: whole, spilled, restarted, or three vectors alone"),
    Column("memory", "int", "bytes", "memory for which that was chosen; null where the whole basis fits"),
    Column("proof", "bool", "", "false if an eigenvalue further out than the one found is unlikely but not excluded"),
    Column("cause", "text", "", "reason that it was not, where more products would not reach it; otherwise null"),
)

_DENSITIES: Final = (
    _STEP,
    Column("probe", "int", "", "index of the random probe; 0 starts a new density", required=True),
    Column("nodes", "floats", "loss", "quadrature nodes (Ritz values)", required=True),
    Column("weights", "floats", "1", "quadrature weights; their sum is 1", required=True),
    Column("settled", "floats", "1", "1 if the node is a single eigenvalue, 0 if it represents many"),
    Column("size", "int", "", "number of eigenvalues of the whole spectrum"),
    Column("products", "int", "products", "Hessian-vector products of the call, shared with its other measures"),
    Column("seconds", "float", "s", "time of the same call"),
    Column("gradients", "float", "gradients", "that time over the time of one gradient; null if that time is unknown"),
    Column("method", "text", "", "method of the products"),
    Column("product_error", "float", "1", "differences only: measured relative error of a product; null if exact"),
    Column("engine", "text", "", "lossscope"),
    Column("basis", "text", "", "what was kept of the Krylov basis; with three vectors each probe has its own nodes"),
    Column("memory", "int", "bytes", "memory for which that was chosen; null where the whole basis fits"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "name of the loss function"),
    Column("seed", "int", "", "seed of the random probes"),
    Column("data_hash", "text", "", "hash of the data over which the loss is averaged"),
    Column("additivity", "text", "", "how batches make up the loss: mean of samples, mean of batches, unchecked"),
)

_CURVES: Final = (
    _STEP,
    Column("measure", "text", "", "noise_rise: mean rise of the loss by the size of relative noise", required=True),
    Column("x", "floats", "1", "noise levels, ascending: the noise of each weight over the weight", required=True),
    Column("y", "floats", "loss", "mean over the draws of noise; null where a loss is not finite", required=True),
    Column("low", "floats", "loss", "lower end of the 95 % interval of the mean"),
    Column("high", "floats", "loss", "upper end of the same"),
    Column("samples", "int", "samples", "number of draws, the same at every noise level"),
    Column("products", "int", "products", "Hessian-vector products of the call: none, it takes losses"),
    Column("seconds", "float", "s", "time of the call, shared with its other measures"),
    Column("gradients", "float", "gradients", "that time over the time of one gradient; null if that time is unknown"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "name of the loss function"),
    Column("gauge", "text", "", "raw, or the parametrization that was fixed before measuring"),
    Column("dtype", "text", "", "dtype of the losses"),
    Column("seed", "int", "", "seed of the draws"),
    Column("data_hash", "text", "", "hash of the data over which the loss is averaged"),
    Column("parameters", "int", "", "number of parameters that are moved; frozen ones are not"),
    Column("additivity", "text", "", "how batches make up the loss: mean of samples, mean of batches, unchecked"),
)

_PAIRS: Final = (
    Column("step", "int", "steps", "number of optimizer steps taken at the later of the two points", required=True),
    Column("object", "text", "", "gradient or shear", required=True),
    Column(
        "lag",
        "int",
        "steps",
        "steps from the earlier point, the start of the window, to the later",
        required=True,
    ),
    Column(
        "cosine",
        "float",
        "1",
        "cosine of the vectors of two independent minibatches, one at each point; mean over both assignments",
    ),
    Column("square", "float", "loss^2", "lag 0 only: squared norm of the vector of one minibatch, mean over the two"),
    Column("pair_square", "float", "loss^2", "lag 0 only: squared norm of the mean of the two vectors"),
    Column("samples", "float", "samples", "number of samples in one minibatch"),
    Column("size", "int", "", "number of entries of a vector"),
    Column("mode", "text", "", "mode of the model: eval, frozen or train"),
    Column("loss_kind", "text", "", "name of the loss function"),
    Column("dtype", "text", "", "dtype of the vectors"),
    Column("data_hash", "text", "", "hash of all minibatches together"),
    Column("additivity", "text", "", "how batches make up the loss: mean of samples, mean of batches, unchecked"),
)

_SPIKES: Final = (
    Column("step", "int", "steps", "number of optimizer steps taken at the spike", required=True),
    _TENSOR,
    Column(
        "cause",
        "text",
        "",
        "loss (it passed its level), loss not finite, or norms not finite (no loss was given)",
        required=True,
    ),
    Column("loss", "float", "loss", "training loss of the step, at the parameters before it"),
    Column("level", "float", "loss", "median + 8 MAD of the losses of up to 32 earlier steps, which the loss passed"),
    Column(
        "at", "floats", "steps", "steps of the numbers that follow, ascending, up to that of the spike", required=True
    ),
    Column("gradient_norm", "floats", "loss", "norm of the gradient that each step left; infinite if not finite"),
    Column("update_norm", "floats", "1", "norm of the change of the parameter in each step; infinite if not finite"),
    Column("weight_norm", "floats", "1", "norm of the parameter after each step; infinite if not finite"),
    Column("largest_update", "floats", "1", "largest change of an entry in each step; infinite if not finite"),
)

TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "steps": _STEPS,
    "tensors": _TENSORS,
    "spectra": _SPECTRA,
    "probes": _PROBES,
    "densities": _DENSITIES,
    "curves": _CURVES,
    "pairs": _PAIRS,
    "spikes": _SPIKES,
}


def columns(table: str) -> tuple[str, ...]:
    """Return the column names of a table, in order."""
    return tuple(column.name for column in TABLES[table])


def arrow_schema(table: str, names: Collection[str] | None = None) -> pa.Schema:
    """Return the Arrow schema of a table, with unit and meaning as metadata of each field.

    Args:
        table: A key of `TABLES`.
        names: Columns of the schema, in the order of the table; None for all.
    """
    fields = [
        pa.field(
            column.name,
            _ARROW_TYPES[column.type],
            nullable=not column.required,
            metadata={"unit": column.unit, "meaning": column.meaning},
        )
        for column in TABLES[table]
        if names is None or column.name in names
    ]
    return pa.schema(fields, metadata={"table": table, "schema_version": str(SCHEMA_VERSION)})
