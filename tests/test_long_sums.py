"""Reductions over vectors of the length of the parameters, which go through the two modules of sums.

A float32 reduction of torch over a long vector is short by one per cent at ten million numbers, so `dot`, `norm` and
their kin, and the operator `@`, stand outside `sums.py` only where `ALLOWED` says why.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUMS = ("probes/sums.py", "optimizer/update/sums.py")
REDUCTIONS = {
    *("norm", "vector_norm", "matrix_norm", "_foreach_norm", "normalize", "renorm", "cdist", "cosine_similarity"),
    *("dot", "vdot", "vecdot", "inner", "mv", "mm", "bmm", "matmul", "addmv", "addmm", "baddbmm"),
    *("einsum", "tensordot", "multi_dot", "linalg_vector_norm"),
}
MATRIX = "products of the operator itself"
LEAVES = "sum over the few vectors of a basis, entry by entry of the long axis"
SCALAR = "only its derivative is used, which does not depend on the sum"
SHORT = "short vectors: quadrature nodes, Ritz values, series, singular values, outputs of one sample"
ORACLE = "small problems with known answers, in float64"
LAYER = "layers of a model"
# file -> reductions that it may use outside sums, and how often; the reason stands first
ALLOWED: dict[str, tuple[str, dict[str, int]]] = {
    "landscape/analysis/density.py": (SHORT, {"@": 2}),
    "landscape/analysis/subspaces.py": ("one layer, scaled to a largest entry of 1, in float64", {"@": 5}),
    "landscape/measures/pyhessian_engine.py": (MATRIX, {"@": 1}),
    "landscape/recording/spectrum_rows.py": (SHORT, {"vector_norm": 1}),
    "landscape/recording/step_ring.py": (
        "compared with their own past, where a per cent is nothing",
        {"_foreach_norm": 1},
    ),
    "landscape/storage/parquet.py": ("sizes of row groups, integers", {"@": 1}),
    "landscape/surfaces/fan.py": (MATRIX, {"@": 1}),
    "landscape/surfaces/loss_change.py": (MATRIX, {"@": 1}),
    "landscape/surfaces/plane.py": (LEAVES, {"@": 1}),
    "landscape/training/modular_addition.py": (LAYER, {"@": 1}),
    "landscape/training/rotary_transformer.py": (LAYER, {"norm": 1}),
    "landscape/training/training.py": ("pieces of a data set, in float64", {"@": 1}),
    "landscape/unrecorded/price.py": ("one matrix of a few hundred rows, which is timed", {"@": 2}),
    "landscape/verdicts/counter_examples.py": (ORACLE, {"@": 7, "norm": 4}),
    "optimizer/update/polar_rules.py": ("metrics of rows and columns, in float64", {"@": 9}),
    "probes/dynamics/trigger_test.py": (SHORT, {"@": 1}),
    "probes/eigenvalues/block_krylov.py": (f"{MATRIX}; {LEAVES}; small matrices", {"@": 9, "mm": 1}),
    "probes/eigenvalues/density.py": (SHORT, {"@": 8}),
    "probes/eigenvalues/eigen_tracker.py": (LEAVES, {"@": 1}),
    "probes/eigenvalues/orthonormal_rows.py": (LEAVES, {"mm": 2, "addmm": 1}),
    "probes/eigenvalues/ritz.py": (SHORT, {"@": 11, "norm": 5}),
    "probes/eigenvalues/three_vectors.py": (f"{MATRIX}; sketches of a thousand numbers", {"@": 3}),
    "probes/eigenvalues/trace_and_norm.py": (f"{MATRIX}; norm of a small matrix", {"@": 1, "norm": 1}),
    "probes/gauge/charges.py": ("weights of one neuron, in float64", {"norm": 4}),
    "probes/gauge/balancing.py": ("factors of a layer, in float64", {"@": 2}),
    "probes/gauge/energy.py": ("one number a neuron, in float64", {"@": 2}),
    "probes/operators/base.py": (MATRIX, {"@": 3}),
    "probes/budget.py": (MATRIX, {"@": 2}),
    "probes/operators/derived.py": (MATRIX, {"@": 1}),
    "probes/operators/distributed.py": (MATRIX, {"@": 1}),
    "probes/operators/gauss_newton.py": (SCALAR, {"dot": 1}),
    "probes/operators/residual.py": (MATRIX, {"@": 2}),
    "probes/selfcheck/oracles.py": (MATRIX, {"@": 2}),
    "probes/selfcheck/problems.py": (ORACLE, {"einsum": 3, "@": 7, "norm": 2}),
    "probes/selfcheck/products.py": (ORACLE, {"norm": 4, "@": 5}),
    "probes/selfcheck/spectra.py": (ORACLE, {"norm": 1, "@": 5}),
    "probes/sharpness/alignment.py": (MATRIX, {"@": 1}),
    "probes/sharpness/gradient_smoothness.py": (MATRIX, {"@": 2}),
    "probes/sharpness/invariant.py": (f"{MATRIX}; {SHORT}", {"@": 2}),
    "probes/sharpness/logit_derivative.py": (SCALAR, {"dot": 2}),
    "probes/sharpness/logits.py": (SHORT, {"norm": 1, "@": 2}),
    "probes/sharpness/norm_ball.py": (f"{MATRIX}; layers, in float64", {"@": 3, "normalize": 1}),
    "probes/sharpness/orbit_trace.py": (MATRIX, {"@": 2}),
    "probes/sharpness/per_block.py": (MATRIX, {"@": 1}),
    "probes/sharpness/relative_flatness.py": (f"{MATRIX}; one layer", {"@": 3, "matrix_norm": 1}),
    "probes/sharpness/sampling_error.py": (MATRIX, {"@": 1}),
    "probes/statistics/crossing.py": (SHORT, {"@": 2}),
    "probes/statistics/estimate.py": (SHORT, {"@": 1}),
    "probes/step_tensors/matrix_spectrum.py": ("one layer, scaled to largest entry 1, in float64", {"@": 1}),
    "probes/step_tensors/newton_schulz.py": (SHORT, {"vector_norm": 3, "norm": 1}),
    "probes/step_tensors/singular_values.py": ("one layer, scaled to norm 1, in float64", {"@": 2}),
    "optimizer/estimates/layer_factors.py": ("rows of a batch that went through a layer", {"@": 1}),
    "optimizer/reference.py": ("the specification, in float64", {"@": 3}),
    "optimizer/update/newton_schulz.py": ("products of layers", {"@": 7}),
}


def reductions(source: str) -> Counter[str]:
    """Return the number of uses of each reduction in a source."""
    found: Counter[str] = Counter()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found["@"] += 1
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # the functions of the modules of sums are called by name, or as sums.dot
            ours = isinstance(node.func.value, ast.Name) and node.func.value.id == "sums"
            found[node.func.attr] += node.func.attr in REDUCTIONS and not ours
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found.update(alias.name for alias in node.names if alias.name in REDUCTIONS)
    return +found


def test_long_vectors_are_reduced_by_the_modules_of_sums_only() -> None:
    wrong = []
    for folder in ("probes", "landscape", "optimizer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            allowed = ALLOWED.get(name, ("", {}))[1]
            more = reductions(path.read_text()) - Counter(allowed)
            wrong += [f"{name}: {n} more {what} than allowed" for what, n in more.items() if name not in SUMS]
    assert not wrong, f"use the module sums for vectors of the length of the parameters: {wrong}"


def test_no_exception_is_allowed_that_is_not_used() -> None:
    unused = {
        name: dict(left)
        for name, (_, allowed) in ALLOWED.items()
        if (left := Counter(allowed) - reductions((ROOT / name).read_text()))
    }
    assert not unused


@pytest.mark.parametrize(
    "line",
    [
        "a @ b",
        "a @= b",
        "torch.dot(a, b)",
        "a.double().norm()",
        "torch.linalg.vector_norm(a)",
        "torch._foreach_norm(x)",
        "torch.nn.functional.normalize(a)",
        "from torch.linalg import vector_norm",
        "a.vdot(b)",
        "torch.einsum('i,i->', a, b)",
    ],
)
def test_every_bare_reduction_is_found(line: str) -> None:
    assert sum(reductions(line).values()) == 1
    assert not reductions("sums.dot(a, b); norm(a); row_norms(b); a * b; operator(a)")
