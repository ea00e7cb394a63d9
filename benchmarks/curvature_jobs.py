"""Three jobs of the curvature benchmark: their arms, run in interleaved rounds, and their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import curvature_rivals as rivals
import numpy as np
import torch
from curvature_reference import Reference, kept_product, largest_eigenvalue
from curvature_rivals import Combination, Found
from networks import RECIPES, Problem, evaluated, trained
from torch import Tensor

from lossscope.probes import hessian, measure_spectrum
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker

Call = Callable[[int], Found]  # by seed
PANEL = ("top", "bottom", "trace", "density")


@dataclass
class Series:
    """An arm of a job with the results of its rounds."""

    label: str
    call: Call
    seconds: list[float] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)

    @property
    def products(self) -> float:
        """Median number of products."""
        return median(f.products for f in self.found)

    @property
    def time(self) -> float:
        """Median seconds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Result:
    """Result of a job on one network; the first arm is ours."""

    problem: Problem
    truth: Reference
    arms: Sequence[Series]
    gradient: float  # seconds


@dataclass(frozen=True)
class Rounds:
    """Number of interleaved rounds: a minimum, and more up to a time limit."""

    least: int
    most: int
    seconds: float = 0.0


def timed(problem: Problem, call: Callable[[], object]) -> float:
    """Return the seconds of a call, synchronizing the device at both ends."""
    _wait(problem)
    begun = time.perf_counter()
    call()
    _wait(problem)
    return time.perf_counter() - begun


def _wait(problem: Problem) -> None:
    if problem.device.type == "cuda":
        torch.cuda.synchronize()


def run(problem: Problem, arms: Sequence[Series], rounds: Rounds) -> float:
    """Run all arms round by round, one seed each, in rotating order; return the seconds per gradient in between."""
    gradients: list[float] = []
    begun = time.perf_counter()
    for turn in range(rounds.most):
        if turn >= rounds.least and time.perf_counter() - begun > rounds.seconds:
            break
        for place in range(len(arms)):
            arm = arms[(turn + place) % len(arms)]
            arm.seconds.append(timed(problem, lambda arm=arm, turn=turn: arm.found.append(arm.call(turn))))
            gradients += [timed(problem, problem.gradient) for _ in range(2)]
    return median(gradients)


# -- lambda_max to one percent --------------------------------------------------------------------------------


def top_arms(problem: Problem) -> list[Series]:
    """Return our arms first, then each library with its settings, pyhessian's default first."""
    arms = [
        Series("lossscope, rel 0.01", partial(our_top, problem)),
        Series("lossscope, rel 0.01, proof=False", partial(our_residual, problem)),
    ]
    if rivals.installed("pyhessian"):
        for tol in (1e-3, 1e-4):
            arms.append(Series(f"pyhessian, tol {tol:g}", partial(rivals.pyhessian_top, problem, tol=tol)))
    if rivals.installed("curvlinops"):
        for tol, ncv in ((1e-2, None), (1e-1, 8)):
            call = partial(rivals.curvlinops_top, problem.elementary(), tol=tol, ncv=ncv)
            arms.append(Series(f"curvlinops + eigsh, tol {tol:g}{f', ncv {ncv}' if ncv else ''}", call))
    if rivals.installed("hessian_eigenthings"):
        for steps in (8, 16):
            call = partial(rivals.eigenthings_top, problem, steps=steps)
            arms.append(Series(f"hessian-eigenthings lanczos, {steps} steps", call))
    return arms


def our_top(problem: Problem, seed: int) -> Found:
    """Compute the largest eigenvalue by our engine, to a bound of 1 %."""
    found = measure_spectrum(hessian(problem.objective()), top=1, rel=0.01, quantities=("top",), seed=seed)
    return Found(found.products, _values(found.top), unmet=found.unmet)


def our_residual(problem: Problem, seed: int) -> Found:
    """Compute it without the proof that it is the largest: some eigenvalue is within 1 %."""
    operator = hessian(problem.objective())
    found = measure_spectrum(operator, top=1, rel=0.01, quantities=("top",), seed=seed, proof=False)
    return Found(found.products, _values(found.top), unmet=found.unmet)


# -- the panel ------------------------------------------------------------------------------------------------


def panel_arms(problem: Problem, truth: Reference, settings: Combination | None) -> list[Series]:
    """Return our single call, pyhessian's three calls, and curvlinops' parts with their cheapest settings.

    pyhessian's trace stops early, so it is also run with the number of samples needed for a standard error of 1 %.
    """
    arms = [Series("lossscope, one call", partial(our_panel, problem))]
    if rivals.installed("pyhessian"):
        arms.append(Series("pyhessian, three calls", partial(rivals.pyhessian_panel, problem)))
        samples = truth.trace_samples(0.01, problem.size)
        call = partial(rivals.pyhessian_panel, problem, samples=samples)
        arms.append(Series("pyhessian, trace to 1 % too", call))
    if settings is not None:
        call = partial(rivals.curvlinops_panel, problem.elementary(), settings=settings)
        arms.append(Series(f"curvlinops, {settings.words()}", call))
    return arms


def our_panel(problem: Problem, seed: int) -> Found:
    """Compute the top five eigenvalues, lambda_min, trace and density by one call."""
    operator = hessian(problem.objective())
    found = measure_spectrum(operator, top=5, rel=0.01, max_products=2000, quantities=PANEL, seed=seed)
    assert found.trace is not None
    assert found.density is not None
    density = (found.density.nodes, found.density.shares)
    bottom = _values(found.bottom)[0]
    return Found(found.products, _values(found.top), bottom, found.trace.value, density, found.unmet)


def _values(pairs: object) -> list[float]:
    assert pairs is not None
    return pairs.values.tolist()  # type: ignore[attr-defined,no-any-return]


class _StandIn:
    """The Hessian with a cached graph behind the interface of a curvlinops operator, to run its algorithms faster."""

    def __init__(self, problem: Problem) -> None:
        self._product = kept_product(problem)
        self.shape, self.device, self.dtype = (problem.size,) * 2, problem.device, torch.float32

    def __matmul__(self, V: Tensor) -> Tensor:
        if V.ndim == 1:
            return self._product(V).float()
        return torch.stack([self._product(v) for v in V.unbind(1)], 1).float()

    def to_scipy(self) -> object:
        from scipy.sparse.linalg import LinearOperator

        def matvec(v: np.ndarray) -> np.ndarray:
            return self._product(torch.as_tensor(v).ravel().to(self.device)).cpu().numpy()

        return LinearOperator(self.shape, matvec=matvec, dtype=np.float64)


def cheapest_combination(problem: Problem, truth: Reference, density_error: float) -> Combination:
    """Return the cheapest setting of each of curvlinops' parts that is accurate enough.

    Ends within 1 % of lambda_max for two seeds; the trace with a root mean square error of at most 1 % over six
    seeds, as fewer pass by luck; the density at most `density_error` away by the median of three seeds or, where no
    setting gets there, within a tenth of its best.
    """
    operator = _StandIn(problem)

    def end(which: str, count: int, error: Callable[[np.ndarray], float]) -> Callable[[float], float]:
        return lambda tol: max(error(rivals.eigsh_ends(operator, seed, which, count, tol)) for seed in range(2))

    def trace(matvecs: float) -> float:
        total, seeds = 0.0, 6
        for seed in range(seeds):
            total += (rivals.curvlinops_trace(operator, seed, int(matvecs)) / truth.trace - 1) ** 2
            if total > seeds * 0.01**2:  # the other seeds cannot reduce it
                break
        return (total / seeds) ** 0.5

    def density(steps: int) -> float:
        found = (rivals.curvlinops_density(operator, seed, steps) for seed in range(3))
        return median(truth.density_distance(one) for one in found)

    distances = {steps: density(steps) for steps in (10, 20, 40)}
    bound = max(density_error, 1.1 * min(distances.values()))
    return Combination(
        _first_within((1e-1, 1e-2, 1e-3, 1e-4), end("LA", 5, truth.top_error), 0.01),
        _first_within((1e-1, 1e-2, 1e-3), end("SA", 1, lambda found: truth.bottom_error(found[0])), 0.01),
        int(_first_within((16, 24, 36, 54, 80, 120, 180, 270, 400, 600), trace, 0.01)),
        min(steps for steps, distance in distances.items() if distance <= bound),
    )


def _first_within(ladder: Sequence[float], error: Callable[[float], float], bound: float) -> float:
    """Return the first setting whose error is within the bound, or the last one."""
    return next((setting for setting in ladder if error(setting) <= bound), ladder[-1])


# -- tracking -------------------------------------------------------------------------------------------------


@dataclass
class Track:
    """Result of tracking along a run: products and errors of all evaluations, and seconds of each pass over them."""

    label: str
    products: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def tracking_run(optimizer: type[torch.optim.Optimizer], evaluations: int, lr: float) -> list[Tensor]:
    """Return the parameters of the digits MLP after every fifth step of a run."""
    return trained(RECIPES["mlp"].work, optimizer, 5 * evaluations, lr=lr)[1]


def track(problem: Problem, evaluations: list[Tensor], seeds: int) -> list[Track]:
    """Run our tracker, our engine without memory, and pyhessian's rule over the same evaluations, seed by seed."""
    truth = [largest_eigenvalue(problem) for _ in evaluated(problem, evaluations)]
    tracks = [Track("lossscope EigenTracker, rel 0.03"), Track("lossscope without memory, rel 0.03")]
    if rivals.installed("pyhessian"):
        tracks.append(Track("pyhessian, tol 0.001"))
    for seed in range(seeds):
        tracker = EigenTracker(rel=0.03, seed=seed)
        calls = [partial(_tracked, problem, tracker), partial(_untracked, problem, seed)]
        if rivals.installed("pyhessian"):
            calls.append(partial(rivals.pyhessian_top, problem, seed))
        for one, call in zip(tracks, calls, strict=True):
            spent = 0.0
            for number in evaluated(problem, evaluations):
                found: list[Found] = []
                spent += timed(problem, lambda call=call, found=found: found.append(call()))
                one.products.append(found[0].products)
                one.errors.append(abs(found[0].top[0] / truth[number] - 1))
            one.seconds.append(spent)
    return tracks


def _tracked(problem: Problem, tracker: EigenTracker) -> Found:
    found = tracker.measure(hessian(problem.objective()))
    return Found(found.products, _values(found.top))


def _untracked(problem: Problem, seed: int) -> Found:
    found = measure_spectrum(hessian(problem.objective()), top=1, rel=0.03, quantities=("top",), seed=seed)
    return Found(found.products, _values(found.top))
