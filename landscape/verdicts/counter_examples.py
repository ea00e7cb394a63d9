"""Checks of identities: each looks for one exact counter-example, in a recorded run or in a small example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.verdicts.level import evaluations_of

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["CHECKS", "Check", "Finding", "look"]

_EXACT: Final = 0.01  # relative deviation from an identity that counts as a counter-example; errors are added to it
_MOST_NAMED: Final = 2  # tensors in a counter-example


@dataclass(frozen=True)
class Finding:
    """Result of a search."""

    tries: int  # numbers that were compared with the identity
    text: str = ""  # the first counter-example, with its numbers; empty if there is none


@dataclass(frozen=True)
class Check:
    """A named search for a counter-example."""

    about: str  # the identity, in words
    of_run: Callable[[Run], Finding] | None = None  # in a recorded run
    exact: Callable[[], Finding] | None = None  # in an example that needs no run


def look(check: Check, run: Run | None) -> Finding:
    """Search a run, or the example of a check that needs none."""
    if run is not None and check.of_run is not None:
        return check.of_run(run)
    return check.exact() if check.exact is not None else Finding(0)


def update_condition(run: Run) -> Finding:
    """Search the outputs of Newton-Schulz for one whose singular values are not all equal."""
    rows = run.spectra[run.spectra["object"] == "orthogonal"]
    shapes = _shapes(run)
    tries, found, first = 0, list[str](), None
    for row in rows.to_dict("records"):
        values, error = np.asarray(row["values"], dtype=np.float64), _number(row["error"])
        tries += 1
        low, high = float(values.min()), float(values.max())
        if high - error <= (1 + _EXACT) * (low + error) or (first is not None and row["step"] != first):
            continue
        first = row["step"]
        end = "singular" if low <= error or not low > 0 else f"condition {high / low:.3g}"
        found.append(
            f"{row['tensor']}{shapes.get(str(row['tensor']), '')}: singular values {low:.2g} to {high:.3g}, {end}"
        )
    return Finding(tries, f"step {first}, update of {'; '.join(found[:_MOST_NAMED])}" if found else "")


def update_norm(run: Run) -> Finding:
    """Search for a step whose norm is not lr E, the learning rate times the norm of the whitened momentum."""
    rows = run.spectra[(run.spectra["object"] == "update") & run.spectra["slice"].isna()]
    rows = rows[rows["tensor"].isin(set(run.spectra.loc[run.spectra["object"] == "orthogonal", "tensor"]))]
    energies = run.tensors.set_index(["step", "tensor"])[["lr", "energy"]].dropna()
    tries = 0
    for row in rows.to_dict("records"):
        place = (row["step"], row["tensor"])
        if place not in energies.index:
            continue
        rate, energy = (float(number) for number in energies.loc[place])
        if not rate * energy > 0:
            continue
        tries += 1
        ratio = _number(row["norm"]) / (rate * energy)
        if abs(ratio - 1) > _EXACT:
            shape = _shapes(run).get(str(row["tensor"]), "")
            return Finding(
                tries, f"step {row['step']}, {row['tensor']}{shape}: the step has norm {ratio:.3g} lr E, not lr E"
            )
    return Finding(tries)


def weights_orthogonal(run: Run) -> Finding:
    """Search the weights for a matrix that is no point of a Stiefel manifold, up to a factor."""
    rows = run.spectra[run.spectra["object"] == "weight"]
    tries = 0
    for row in rows.to_dict("records"):
        values, error = np.asarray(row["values"], dtype=np.float64), _number(row["error"])
        tries += 1
        if values.max() - error > (1 + _EXACT) * (values.min() + error):
            place = f"step {row['step']}, {row['tensor']}{_shapes(run).get(str(row['tensor']), '')}"
            text = f"the weights have singular values {values.min():.2g} to {values.max():.3g}"
            return Finding(tries, f"{place}: {text}, so they lie on no Stiefel manifold and move on no geodesic of it")
    return Finding(tries)


def energy_descent(run: Run) -> Finding:
    """Search for two evaluations between which the training loss rose though the energy was above 0."""
    evaluations = evaluations_of(run)
    losses = evaluations.losses("loss")
    known = np.flatnonzero(np.isfinite(losses))
    energies = run.tensors[["step", "tensor", "energy_rms"]].dropna()
    tries = 0
    for before, after in pairwise(known):
        begin, end = evaluations.steps[before], evaluations.steps[after]
        inside = energies[(energies["step"] > begin) & (energies["step"] <= end) & (energies["energy_rms"] > 0)]
        tries += bool(len(inside))
        if len(inside) and losses[after] > (1 + _EXACT) * losses[before]:
            worst = inside.loc[inside["energy_rms"].idxmax()]
            rise = f"from {losses[before]:.3g} to {losses[after]:.3g}"
            text = f"from step {begin:.0f} to {end:.0f} the training loss rose {rise}"
            return Finding(tries, f"{text} while E / sqrt(numel) of {worst['tensor']} was {worst['energy_rms']:.2g}")
    return Finding(tries)


def wide_matrices(run: Run) -> Finding:
    """Search the trained matrices for one with m rows and n columns, m <= n, where m << n does not hold."""
    tries = 0
    for one in _tensors(run):
        shape = one.get("shape")
        if one.get("track") != "matrix" or not isinstance(shape, list) or len(shape) != 2:
            continue
        tries += 1
        m, n = sorted(int(size) for size in shape)
        if 4 * m > n:
            return Finding(tries, f"{one.get('name')} is {shape[0]} x {shape[1]}: m / n = {m / n:.2g}")
    return Finding(tries)


def sign_entropy() -> Finding:
    """Compare -sum s ln s of a matrix and of its sign with rank log 2."""
    G = np.array([[1.0, 1.0], [1.0, -1.0]])
    values = np.linalg.svd(np.sign(G), compute_uv=False)
    information = -float(values @ np.log(values))
    text = f"G = [[1, 1], [1, -1]] is its own sign, so I(sign G) = I(G) = {information:.3g}"
    return Finding(1, f"{text}, not rank(G) log 2 = {2 * math.log(2):.3g}; an entropy is not below 0")


def adam_exponent() -> Finding:
    """Compare Adam's direction with that of the diagonal natural gradient."""
    F, g = np.array([1.0, 100.0]), np.array([1.0, 1.0])
    adam, natural = g / np.sqrt(F), g / F
    text = f"Fisher diagonal (1, 100), gradient (1, 1): natural gradient (1, {natural[1]:.3g}), Adam (1, {adam[1]:.3g})"
    return Finding(1, f"{text}: the exponent is 1/2, not 1")


def ascent_metric() -> Finding:
    """Compare the Fisher length of rho g_nat / |g_nat| with rho."""
    F, g = np.array([1.0, 100.0]), np.array([1.0, 1.0])
    natural = g / np.sqrt(F)
    e = natural / np.linalg.norm(natural)
    length = float(e @ (F * e))
    return Finding(1, f"Fisher diagonal (1, 100), gradient (1, 1): e'Fe = {length:.3g} rho^2, not rho^2; e'e is rho^2")


def shear_curvature() -> Finding:
    """Compare the curvature along the ascent with the part of the adversarial gradient orthogonal to the gradient."""
    parts = []
    for c in (0.0, 1.0):
        H, e = np.array([[2.0, c], [c, 1.0]]), np.array([1.0, 0.0])  # gradient (1, 0), rho = 1
        change = H @ e
        parts.append((c, float(e @ change), float(np.linalg.norm(change - (change @ e) * e))))
    words = ", and ".join(
        f"c = {c:g} has curvature {along:g} and an orthogonal part of {apart:g} rho" for c, along, apart in parts
    )
    return Finding(
        1, f"Hessian [[2, c], [c, 1]], gradient (1, 0): {words}: the orthogonal part does not see the sharpness"
    )


def fisher_inverse() -> Finding:
    """Compare whitening and orthogonalization with the natural gradient of a Kronecker-factored Fisher matrix."""
    A, B, G = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.5], [0.0, 1.0]])
    natural = np.linalg.solve(A, G) @ np.linalg.inv(B)
    U, _, Vt = np.linalg.svd(G / np.sqrt(np.outer(np.diag(A), np.diag(B))))
    ours = U @ Vt
    cosine = float((natural * ours).sum() / np.linalg.norm(natural) / np.linalg.norm(ours))
    place = "Fisher [[2, 1], [1, 1]] x [[1, .5], [.5, 1]], gradient [[1, .5], [0, 1]]"
    return Finding(1, f"{place}: the cosine of the whitened, orthogonalized step with F^-1 g is {cosine:.3g}, not 1")


CHECKS: Final[Mapping[str, Check]] = {
    "update_condition": Check("the update has condition number one", update_condition),
    "update_norm": Check("the step has the norm of the whitened momentum, times lr", update_norm),
    "weights_orthogonal": Check("weights move on a Stiefel manifold", weights_orthogonal),
    "energy_descent": Check("the energy is a rate of descent", energy_descent),
    "wide_matrices": Check("trained matrices have m << n", wide_matrices),
    "fisher_inverse": Check("diagonal Fisher and orthogonalization make the full Fisher", exact=fisher_inverse),
    "sign_entropy": Check("I(sign G) is rank(G) log 2", exact=sign_entropy),
    "adam_exponent": Check("Adam is the diagonal natural gradient", exact=adam_exponent),
    "ascent_metric": Check("the ascent has length rho in the Fisher metric", exact=ascent_metric),
    "shear_curvature": Check(
        "the orthogonal part of the adversarial gradient carries the sharpness", exact=shear_curvature
    ),
}


def _tensors(run: Run) -> Iterator[Mapping[str, Any]]:
    """Yield the tensors in a run's manifest."""
    model = run.manifest.get("model")
    tensors = model.get("tensors") if isinstance(model, Mapping) else None
    yield from (one for one in tensors or () if isinstance(one, Mapping))


def _shapes(run: Run) -> dict[str, str]:
    """Return the shape of each matrix in words."""
    found = ((str(one.get("name")), one.get("shape")) for one in _tensors(run))
    return {name: f" ({' x '.join(map(str, shape))})" for name, shape in found if isinstance(shape, list)}


def _number(value: object) -> float:
    """Return a number; 0 if it is missing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
