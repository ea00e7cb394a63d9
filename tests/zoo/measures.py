"""Every public measure, called on a member, with its true value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor

from lossscope.landscape.measures.pyhessian_engine import pyhessian_spectrum
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.gauge.orbit import RescalingOrbit
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import preconditioned, restricted, scaled
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.residual import residual
from lossscope.probes.sharpness.alignment import gradient_alignment
from lossscope.probes.sharpness.average_case import average_sharpness, low_pass_loss
from lossscope.probes.sharpness.basin import basin_radius, noise_curve
from lossscope.probes.sharpness.critical import critical_learning_rate
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.ghost_radius import softmax_ghost_radius
from lossscope.probes.sharpness.gradient_smoothness import gradient_smoothness
from lossscope.probes.sharpness.invariant import (
    adaptive_lambda_max,
    adaptive_trace,
    log_fisher_rao,
    theta_hessian_theta,
)
from lossscope.probes.sharpness.keskar import keskar_sharpness
from lossscope.probes.sharpness.logits import logit_scale
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.norm_ball import norm_sharpness
from lossscope.probes.sharpness.orbit_trace import orbit_trace
from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.quantization import quantized_loss
from lossscope.probes.sharpness.relative_flatness import last_layer, relative_flatness
from lossscope.probes.sharpness.sam import sam_sharpness
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue
from lossscope.probes.sharpness.step_quality import layer_remainders, secant_curvature, step_quality
from lossscope.probes.sharpness.worst_case import worst_case_sharpness
from lossscope.probes.step_tensors.singular_values import singular_spectrum
from zoo.checks import ROUNDINGS, Check, exact, interval, small
from zoo.member import Member, Parts
from zoo.truth import Truth

__all__ = ["MEASURES", "SEEDED", "Bench"]


@dataclass
class Bench:
    """A member under measurement: its parts, a new objective for each measure, and its true values."""

    member: Member
    parts: Parts
    truth: Truth
    seed: int = 0

    @cached_property
    def objective(self) -> Objective:
        """The objective."""
        return self.member.objective(self.parts)

    @property
    def digits(self) -> float:
        """Rounding unit."""
        return self.member.digits

    @cached_property
    def vector(self) -> Tensor:
        """A direction of length 1, float64."""
        v = torch.randn(self.truth.size, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
        return (v / v.norm()).float().double()

    @cached_property
    def step(self) -> Tensor:
        """A step, as the parameters' own dtype rounds it."""
        g = self.truth.gradient()
        target = self.truth.theta - 0.05 * g / g.norm() + 0.02 * self.vector
        kinds = [p.dtype for p in self.parts.model.parameters() if p.requires_grad]
        cut = torch.split(target, [p.numel() for p in self.truth.parameters])
        return torch.cat([one.to(kind).double() for one, kind in zip(cut, kinds, strict=True)]) - self.truth.theta

    def product(self, name: str, found: Tensor, matrix: Tensor) -> Check:
        """Compare a product with `vector`."""
        wanted = matrix @ self.vector
        return small(name, found.double() - wanted, self.digits, float(torch.linalg.matrix_norm(matrix, 2)))


Checks = Iterator[Check]


def value(b: Bench) -> Checks:
    yield exact("loss", b.objective.value(), b.truth.value(), b.digits)


def gradient(b: Bench) -> Checks:
    slopes = b.truth.gradients(b.truth.theta)
    error = b.objective.gradient().double() - b.truth.gradient()
    yield small("gradient", error, b.digits, max(float(g.norm()) for g in slopes))


def moved(b: Bench) -> Checks:
    theta = b.truth.theta + b.step
    with b.objective.at(theta):
        yield exact("loss", b.objective.value(), b.truth.value(theta), b.digits)


def first_name(b: Bench) -> tuple[list[str], Tensor]:
    """Return the name of the first parameter with entries, and its place in the vector."""
    sizes = [p.numel() for p in b.truth.parameters]
    index = next(i for i, size in enumerate(sizes) if size)
    start = sum(sizes[:index])
    return [b.objective.names[index]], torch.arange(start, start + sizes[index])


def of_some(b: Bench) -> Checks:
    names, where = first_name(b)
    part = b.objective.restricted(names)
    slopes = b.truth.gradients(b.truth.theta)
    error = part.gradient().double() - b.truth.gradient()[where]
    yield small("gradient", error, b.digits, max(float(g.norm()) for g in slopes))
    block = b.truth.hessian[where][:, where]
    yield small("product", (hessian(part) @ b.vector[where]).double() - block @ b.vector[where], b.digits, b.truth.norm)


def in_double(b: Bench) -> Checks:
    wide = b.objective.in_double()
    digits = 1e-11 if b.digits <= 1e-6 else b.digits
    yield exact("loss", wide.value(), b.truth.value(), digits)
    operator = hessian(wide)
    error = (operator @ b.vector) - b.truth.hessian @ b.vector
    stated = operator.unit if operator.method == "differences" else 0.0  # they measure their own error
    yield small("product", error, max(digits, stated / ROUNDINGS), b.truth.norm)


def split(b: Bench) -> Checks:
    pieces = b.objective.split(2, seed=0)
    total = sum(piece.samples for piece in pieces)
    found = sum(piece.samples / total * piece.value() for piece in pieces)
    yield exact("loss", found, b.truth.value(), b.digits)


def one_batch(b: Bench) -> Checks:
    for i, loss in enumerate(b.truth.losses(b.truth.theta)):
        yield exact(f"loss {i}", b.objective.batch(i).value(), loss, b.digits)


def by_method(method: str, b: Bench) -> Checks:
    operator, digits = hessian(b.objective, method=method), max(b.digits, 1e-11 * (method == "differences"))
    both = operator @ torch.stack([b.vector, 2 * b.vector], 1)
    wanted = b.truth.hessian @ b.vector
    yield small("product", (operator @ b.vector).double() - wanted, digits, b.truth.norm)
    yield small("block", both[:, 1].double() / 2 - wanted, digits, b.truth.norm)


def cached(b: Bench) -> Checks:
    operator = hessian(b.objective)
    with operator.cached():
        _ = operator @ b.vector
        yield b.product("product", operator @ b.vector, b.truth.hessian)


def outer(b: Bench, curvature: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """Return the mean over the terms of J'SJ, with S of the outputs of a term and its target."""
    total = torch.zeros(b.truth.size, b.truth.size, dtype=torch.float64)
    outputs = b.truth.outputs(b.truth.theta)
    for weight, J, z, batch in zip(b.truth.weights, b.truth.jacobians, outputs, b.truth.parts.batches, strict=True):
        y = batch[1].reshape(len(z), -1)
        S = torch.stack([curvature(row, label) for row, label in zip(z, y, strict=True)])
        total += weight / len(z) * torch.einsum("ian,iab,ibm->nm", J, S, J)
    return total


def squared_errors(b: Bench) -> bool:
    return "Squared" in type(b.parts.loss_fn).__name__


def of_model(b: Bench) -> Tensor:
    """Return the Fisher matrix of the model, which is the Gauss-Newton matrix too."""

    def of_softmax(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(0)
        return torch.diag(p) - torch.outer(p, p)

    def constant(z: Tensor, y: Tensor) -> Tensor:
        return 2 / len(z) * torch.eye(len(z), dtype=z.dtype)

    return outer(b, constant if squared_errors(b) else of_softmax)


def generalized(methods: tuple[str, ...], b: Bench) -> Checks:
    for method in methods:
        found = gauss_newton(b.objective, method=method) @ b.vector
        yield b.product(f"product, {method}", found, of_model(b))


def fisher_true(b: Bench) -> Checks:
    found = fisher(b.objective) @ b.vector
    yield b.product("product", found, of_model(b))


def fisher_empirical(b: Bench) -> Checks:
    def of_labels(z: Tensor, y: Tensor) -> Tensor:
        r = z.softmax(0)
        r[int(y)] -= 1
        return torch.outer(r, r)

    def of_errors(z: Tensor, y: Tensor) -> Tensor:
        r = 2 / len(z) * (z - y)
        return torch.outer(r, r)

    found = fisher(b.objective, "empirical") @ b.vector
    yield b.product("product", found, outer(b, of_errors if squared_errors(b) else of_labels))


def of_rest(b: Bench) -> Checks:
    found = residual(b.objective) @ b.vector
    yield b.product("product", found, b.truth.hessian - of_model(b))


def by_parameters(b: Bench) -> Checks:
    D = torch.diag(b.truth.theta)
    found = scaled(hessian(b.objective), b.objective.parameters()) @ b.vector
    yield b.product("product", found, D @ b.truth.hessian @ D)


def by_metric(b: Bench) -> Checks:
    metric = (b.truth.theta.abs() + 0.1).float()
    D = torch.diag(metric.double().rsqrt())
    yield b.product("product", preconditioned(hessian(b.objective), metric) @ b.vector, D @ b.truth.hessian @ D)


def block_of(b: Bench) -> Checks:
    names, where = first_name(b)
    found = restricted(hessian(b.objective), names) @ b.vector[where]
    wanted = b.truth.hessian[where][:, where] @ b.vector[where]
    yield small("product", found.double() - wanted, b.digits, b.truth.norm)


def of_own(b: Bench) -> Checks:
    H = b.truth.hessian
    own = SymmetricOperator(b.truth.size, lambda V: H @ V, dtype=torch.float64, device=H.device)
    top = measure_spectrum(own, top=1, quantities=("top",), max_products=b.truth.size).top
    assert top is not None
    yield interval("lambda_max", top.estimate(0), float(b.truth.values[-1]), 1e-13)


def of_operator(b: Bench) -> Checks:
    operator = ObjectiveOperator(b.objective, lambda V: 2 * V, restrict=hessian(b.objective).restrict)
    yield b.product("product", operator @ b.vector, 2 * torch.eye(b.truth.size, dtype=torch.float64))


def pairs(name: str, found: EigenPairs, values: Tensor, b: Bench) -> Checks:
    """Compare the outermost eigenvalue with the end of the spectrum, and the others with the nearest one."""
    for i in range(len(found.values)):
        one = found.estimate(i)
        nearest = float(values[0] if i == 0 else values[(values - one.value).abs().argmin()])
        yield interval(f"{name} {i}", one, nearest, b.digits, b.truth.norm)


def derived(values: Tensor) -> dict[str, float]:
    """Return negative mass, effective rank and participation ratio of a spectrum."""
    dead = 1e-3 * float(values.abs().max())
    plus = values.clamp(min=0)
    share = plus / plus.sum()
    return {
        "negative_mass": float(-values[values < -dead].sum() / values.abs().sum()),
        "effective_rank": math.exp(-float((share * share.clamp(min=1e-300).log()).sum())),
        "participation_ratio": float(plus.sum() ** 2 / plus.square().sum()),
    }


def spectrum(b: Bench) -> Checks:
    found = measure_spectrum(hessian(b.objective), top=3, max_products=40, seed=b.seed)
    assert found.top is not None
    assert found.bottom is not None
    assert found.trace is not None
    assert found.frobenius is not None
    yield from pairs("top", found.top, b.truth.values.flip(0), b)
    yield from pairs("bottom", found.bottom, b.truth.values, b)
    norm = float(b.truth.values.norm())
    yield interval("trace", found.trace, float(b.truth.values.sum()), b.digits, norm)
    yield interval("frobenius", found.frobenius, norm, b.digits)
    for name, right in derived(b.truth.values).items():
        yield interval(name, getattr(found, name), right, b.digits)


def few_probes(b: Bench) -> Checks:
    found = measure_spectrum(
        hessian(b.objective), quantities=("trace", "frobenius"), rel=0.1, max_products=16, seed=b.seed
    )
    assert found.trace is not None
    assert found.frobenius is not None
    norm = float(b.truth.values.norm())
    yield interval("trace", found.trace, float(b.truth.values.sum()), b.digits, norm)
    yield interval("frobenius", found.frobenius, norm, b.digits)


def tracked(b: Bench) -> Checks:
    tracker = EigenTracker(rel=0.05, seed=b.seed)
    operator = hessian(b.objective)
    for name in ("cold", "warm"):
        top = tracker.measure(operator).top
        assert top is not None
        yield interval(name, top.estimate(0), float(b.truth.values[-1]), b.digits, b.truth.norm)


def second_opinion(b: Bench) -> Checks:
    found = pyhessian_spectrum(
        b.objective,
        hessian(b.objective),
        top=1,
        rel=0.01,
        max_products=60,
        quantities=("top", "trace"),
        seed=b.seed,
    )
    assert found.top is not None
    assert found.trace is not None
    top = found.top.estimate(0)
    if top.converged:  # it finds the largest modulus, and proves nothing
        near = float(b.truth.values[(b.truth.values - top.value).abs().argmin()])
        yield interval("top", top, near, b.digits, b.truth.norm)
    yield interval("trace", found.trace, float(b.truth.values.sum()), b.digits, b.truth.norm)


def modules(b: Bench) -> Checks:
    """Compare the numbers of the whole, of its largest and of its flattest block: more would miss by chance."""
    table = per_module(b.objective, rel=0.05, max_products=16, seed=b.seed)
    H, norm = b.truth.hessian, float(b.truth.values.norm())
    ends = torch.tensor([0, *[p.numel() for p in b.truth.parameters]]).cumsum(0)
    blocks = [H[start:end, start:end] for start, end in pairwise(ends.tolist()) if end > start]
    largest = max(range(len(blocks)), key=lambda i: len(blocks[i]))
    row, block = table.rows[largest], blocks[largest]
    yield interval("block trace", row.trace, float(block.trace()), b.digits, norm)
    yield interval("block lambda_max", row.lambda_max, float(torch.linalg.eigvalsh(block)[-1]), b.digits, norm)
    if not math.isnan(row.trace_share.value):  # undefined where the interval of the whole trace includes zero
        yield interval("block trace_share", row.trace_share, float(block.trace() / H.trace()), b.digits)
    flattest = min(range(len(blocks)), key=lambda i: float(blocks[i].norm()))
    top = float(torch.linalg.eigvalsh(blocks[flattest])[-1])
    yield interval("flattest lambda_max", table.rows[flattest].lambda_max, top, b.digits, norm)
    yield interval("trace", table.trace, float(H.trace()), b.digits, norm)
    yield interval("lambda_max", table.lambda_max, float(b.truth.values[-1]), b.digits, norm)
    inside = sum(float(one.square().sum()) for one in blocks)
    yield interval("cross_share", table.cross_share, 1 - inside / norm**2, b.digits, 1.0)


def drawn(b: Bench) -> Checks:
    found = sampled_eigenvalue(b.objective, parts=4, rel=0.05, max_products=40, seed=b.seed)
    yield interval("in_sample", found.in_sample, float(b.truth.values[-1]), b.digits, b.truth.norm)


def by_batch(b: Bench) -> Checks:
    found = batch_sharpness(b.objective)
    slopes = b.truth.gradients(b.truth.theta)
    images = [b.truth.products(g) for g in slopes]
    own = [float(g @ image[i]) for i, (g, image) in enumerate(zip(slopes, images, strict=True))]
    squares = [float(g @ g) for g in slopes]
    ratios = [o / s for o, s in zip(own, squares, strict=True)]
    norm = max(abs(r) for r in ratios) + b.truth.norm
    m = len(own)
    yield exact("mean_of_ratios", found.mean_of_ratios.value, sum(ratios) / m, b.digits, norm)
    yield exact("ratio_of_means", found.ratio_of_means.value, sum(own) / sum(squares), b.digits, norm)
    if m >= 3:
        crossed = [float(slopes[i] @ images[i][i + 1]) for i in range(m - 1)]
        w, g = b.truth.weights, b.truth.gradient()
        pairs = [(m - 1) * w[i + 1] * c for i, c in enumerate(crossed)]
        same = sum(wi * o for wi, o in zip(w, own, strict=True)) / m
        right = (same + sum(pairs) / len(pairs)) / float(g @ g)
        scale = norm * max(squares) / float(g @ g)
        # the gradient before is that of the previous batch
        yield exact("noise_interaction", found.noise_interaction.value, right, b.digits, scale)


def in_ball(norm: Any, b: Bench) -> Checks:
    found = norm_sharpness(b.objective, norm, restarts=1, max_products=6, seed=b.seed)
    d = found.direction.cpu()
    scale = float(d @ d) * b.truth.norm
    form = float(d @ b.truth.hessian @ d)
    one = found.sharpness
    low, high = min(one.low, one.value - 30 * b.digits * scale), one.value + 30 * b.digits * scale
    yield Check("d'Hd", one.value, low, high, form)
    if norm == "sign":
        yield Check("|d|", float(d.abs().max()), 0, 1 + 1e-6, 1.0)
        g = b.truth.gradient()
        yield exact("dual norm", found.dual_norm, float(g.abs().sum()), b.digits, math.sqrt(len(g)) * float(g.norm()))


def in_box(b: Bench) -> Checks:
    found = keskar_sharpness(b.objective, max_evaluations=12, restarts=2, seed=b.seed)
    d, theta = found.displacement.double(), b.truth.theta
    kinds = [p.dtype for p in b.parts.model.parameters() if p.requires_grad]
    cut = torch.split(theta + d, [p.numel() for p in b.truth.parameters])
    there = torch.cat([one.to(kind).double() for one, kind in zip(cut, kinds, strict=True)])
    rise = b.truth.value(there) - b.truth.value()
    allowed = 8 * b.digits * max(abs(b.truth.value()), 1e-3)
    yield Check("rise", found.rise, found.rise - allowed, found.rise + allowed, rise)
    outside = float((d.abs() / (1e-3 * (theta.abs() + 1))).max())
    yield Check("box", outside, 0, 1 + 1e-5, min(outside, 1.0))


def along(b: Bench) -> Checks:
    D, g, H = b.step, b.truth.gradient(), b.truth.hessian
    found = directional_sharpness(b.objective, D)
    slope, bend = float(g @ D), float(D @ H @ D)
    lengths = float(D.norm()) * max(float(one.norm()) for one in b.truth.gradients(b.truth.theta))
    norm = float(D @ D) * b.truth.norm
    yield exact("slope", found.slope, slope, b.digits, lengths)
    yield exact("curvature", found.curvature, bend, b.digits, norm)
    yield exact("normalized", found.normalized, bend / float(D @ D), b.digits, b.truth.norm)
    if slope < 0:
        ratio = -bend / (2 * slope)
        scale = norm / abs(2 * slope) + abs(ratio) * lengths / abs(slope)
        yield exact("edge_ratio", found.edge_ratio, ratio, b.digits, scale)


def critical(b: Bench) -> Checks:
    """Compare the change of the loss at both ends of the bracket: lower before, higher behind."""
    g = b.truth.gradient()
    D = (-g / g.norm() * (0.1 * float(b.truth.theta.norm()))).to(b.objective.dtype).double()
    found = critical_learning_rate(b.objective, D, 0.1)
    before = b.truth.value()
    lower, higher = (b.truth.value(b.truth.theta + s * D) - before for s in (found.multiple.low, found.multiple.high))
    yield Check("lower", lower, -math.inf, 0.0, lower)
    yield Check("higher", higher, 0.0, math.inf, higher)
    yield Check("order", found.rate.value, found.rate.low, found.rate.high, found.rate.value)


def adaptive(b: Bench) -> Checks:
    theta = b.truth.theta
    found = adaptive_trace(b.objective, max_products=24, seed=b.seed)
    scale = float(theta.square().max()) * b.truth.norm
    yield interval("trace", found, float((theta.square() * b.truth.hessian.diagonal()).sum()), b.digits, scale)


def adaptive_top(b: Bench) -> Checks:
    theta = b.truth.theta
    found = adaptive_lambda_max(b.objective, max_products=40, seed=b.seed)
    values = torch.linalg.eigvalsh(theta[:, None] * b.truth.hessian * theta)
    yield interval("lambda_max", found, float(values[-1]), b.digits, float(theta.square().max()) * b.truth.norm)


def stored(b: Bench, theta: Tensor) -> Tensor:
    """Return parameters as the dtypes of the model hold them, float64."""
    kinds = [p.dtype for p in b.parts.model.parameters() if p.requires_grad]
    parts = zip(torch.split(theta, [p.numel() for p in b.truth.parameters]), kinds, strict=True)
    return torch.cat([part.to(kind).double() for part, kind in parts])


def rises(b: Bench, sigma: float, draws: int, *, relative: bool = True) -> list[float]:
    """Return the rise of the loss at the first draws of noise."""
    noise, unit = torch.Generator().manual_seed(0), b.truth.theta if relative else torch.ones(b.truth.size)
    z = [torch.randn(b.truth.size, generator=noise).double() for _ in range(draws)]
    return [b.truth.value(stored(b, b.truth.theta + sigma * unit * one)) - b.truth.value() for one in z]


def by_pairs(b: Bench, sigma: float, *, relative: bool) -> tuple[float, float]:
    """Return the mean rise over 16 pairs of draws, and the scale of its rounding."""
    both = [*rises(b, sigma, 16, relative=relative), *rises(b, -sigma, 16, relative=relative)]
    return sum(both) / 32, 10 * (abs(b.truth.value()) + max(map(abs, both)))


def average(b: Bench) -> Checks:
    right, scale = by_pairs(b, 0.1, relative=True)
    yield exact("rise", average_sharpness(b.objective, draws=16).value, right, b.digits, scale)


def filtered(b: Bench) -> Checks:
    sigma = 0.1 * float(b.truth.theta.square().mean().sqrt())
    right, scale = by_pairs(b, sigma, relative=False)
    found = low_pass_loss(b.objective, sigma=sigma, draws=16)
    yield exact("loss", found.value, b.truth.value() + right, b.digits, scale)


def with_slope(b: Bench) -> Checks:
    """Compare the step on each batch with that along the true gradient."""
    theta, before = b.truth.theta, b.truth.losses(b.truth.theta)
    found = sam_sharpness(b.objective, rho=0.5, relative=True)
    for i, g in enumerate(b.truth.gradients(theta)):
        after = b.truth.losses(stored(b, theta + 0.5 * theta**2 * g / (theta * g).norm()))[i]
        scale = 10 * (abs(before[i]) + abs(after))
        yield exact(f"rise {i}", found.rises[i], after - before[i], b.digits, scale)


def worst(norm: Any, rho: float, b: Bench) -> Checks:
    """Compare the largest rise with the true one at its point, which lies within the radius."""
    theta = b.truth.theta
    found = worst_case_sharpness(b.objective, rho=rho, norm=norm, restarts=2, max_evaluations=10, seed=b.seed)
    where = max(range(len(found.rises)), key=lambda i: found.rises[i])
    there = b.truth.losses(stored(b, theta + found.displacement.double()))[where]
    before = b.truth.losses(theta)[where]
    yield exact("rise", found.rises[where], there - before, b.digits, abs(before) + abs(there))
    u = found.displacement.double() / torch.where(theta == 0, 1.0, theta)
    length = float(u.norm() if norm == "l2" else u.abs().max())
    yield Check("radius", length, 0, rho * (1 + 1e-5), min(length, rho))


def pac_bayes(b: Bench) -> Checks:
    unit = float(b.truth.theta.square().mean().sqrt())
    rise = max(0.7 * sum(rises(b, 0.5 * unit, 16, relative=False)) / 16, 1e-3)
    found = pac_bayes_sigma(b.objective, rise=rise, draws=16, rel=0.02)
    sigmas = (share * found.value for share in (0.98, 1.0, 1.02))
    before, reached, behind = (sum(rises(b, sigma, 16, relative=False)) / 16 for sigma in sigmas)
    slack = 0.01 * rise + ROUNDINGS * b.digits * abs(b.truth.value())
    yield Check("mean rise", reached, before - slack, behind + slack, rise)


def noisy(b: Bench) -> Checks:
    found = noise_curve(b.objective, [0.1], draws=16)
    right = rises(b, 0.1, 16)
    scale = 10 * (abs(b.truth.value()) + max(map(abs, right)))
    yield exact("rise", float(found.mean[0]), sum(right) / 16, b.digits, scale)
    yield exact("first draw", float(found.rises[0, 0]), right[0], b.digits, scale)


def basin(b: Bench) -> Checks:
    rise = max(0.7 * sum(rises(b, 0.5, 16)) / 16, 1e-3)
    found = basin_radius(b.objective, rise=rise, draws=16, rel=0.02)
    # just before the radius the mean rise is below, just behind it above: a loss with routing jumps there
    before, reached, behind = (sum(rises(b, share * found.value, 16)) / 16 for share in (0.98, 1.0, 1.02))
    slack = 0.01 * rise + ROUNDINGS * b.digits * abs(b.truth.value())
    yield Check("mean rise", reached, before - slack, behind + slack, rise)
    assert found.converged == (found.low <= found.value <= found.high)  # draws may differ too much far from a minimum


def fisher_rao(b: Bench) -> Checks:
    found = log_fisher_rao(b.objective)
    u = b.truth.differences(b.truth.outputs, b.truth.theta)
    total = 0.0
    for weight, z, along_theta in zip(b.truth.weights, b.truth.outputs(b.truth.theta), u, strict=True):
        p = z.softmax(-1)
        centered = along_theta - (p * along_theta).sum(-1, keepdim=True)
        total += weight * float((p * centered.square()).sum(-1).mean())
    yield exact("log", found, math.log(total), b.digits, max(1.0, abs(math.log(total))))


def ghosts(b: Bench) -> Checks:
    """Compare spread and nonlinearity along the step with differences of the logits."""
    D, theta, h = b.step, b.truth.theta, 1e-5
    found = softmax_ghost_radius(b.objective, D)
    ends = (b.truth.outputs(theta + s * h * D) for s in (1, -1))
    a = [(up - down).reshape(-1, up.shape[-1]) / (2 * h) for up, down in zip(*ends, strict=True)]
    right = max(float((one.amax(-1) - one.amin(-1)).max()) for one in a)
    yield exact("spread", float(found.spreads.max()), right, max(b.digits, 1e-8), 10 * right)
    moved, before = (b.truth.outputs(at) for at in (theta + D, theta))
    rest = [(m - z).reshape(one.shape) - one for m, z, one in zip(moved, before, a, strict=True)]
    length, remainder, size = (math.sqrt(sum(float(x.square().sum()) for x in part)) for part in (a, rest, before))
    digits = max(b.digits, 1e-8)
    yield exact("nonlinearity", found.nonlinearity.value, remainder / length, digits, 1 + size / length)


def smooth(b: Bench) -> Checks:
    """Check that no larger radius holds: along some direction the true error exceeds the gradient there."""
    found = gradient_smoothness(b.objective, random=1, seed=b.seed)
    theta, g, H = b.truth.theta, b.truth.gradient(), b.truth.hessian
    z = torch.randn(len(g), generator=torch.Generator().manual_seed(b.seed)).double()
    units = [u / u.norm() for u in (g, H @ g, z)]
    ends = [s * found.radius.high * u for u in units for s in (1, -1)]
    errors = [float((b.truth.gradient(theta + h) - g - H @ h).norm()) for h in ends]
    scale = 100 * b.digits * max(float(g.norm()), found.radius.high * b.truth.norm)
    yield Check("error", max(errors), float(g.norm()) - scale, math.inf, max(errors))


def radial(b: Bench) -> Checks:
    theta = b.truth.theta
    right = float(theta @ b.truth.hessian @ theta)
    yield exact("form", theta_hessian_theta(b.objective), right, b.digits, float(theta @ theta) * b.truth.norm)


def least_trace(b: Bench) -> Checks:
    """Compare with the minimum that SciPy finds for the diagonal of the true Hessian."""
    found = orbit_trace(b.objective, max_products=100, seed=b.seed).trace
    orbit, h = RescalingOrbit(b.objective.model, b.objective.names), b.truth.hessian.diagonal()

    def trace(x: Any) -> float:
        return float(h @ (-2 * orbit.logarithms(torch.tensor([0.0, *x], dtype=torch.float64))).exp())

    least = float(minimize(trace, [0.0] * orbit.size).fun) if orbit.size else float(h.sum())
    yield interval("trace", found, least, b.digits, float(b.truth.values.norm()))


def in_few_bits(b: Bench) -> Checks:
    """Compare with the loss where each matrix holds multiples of a seventh of its largest entry."""
    moved = []
    for part in b.truth.parameters:
        one, largest = part.detach(), float(part.detach().abs().max()) if part.numel() else 0.0
        moved.append((torch.round(one * 7 / largest) * largest / 7 if one.ndim > 1 and largest else one).reshape(-1))
    there = b.truth.value(torch.cat(moved))
    yield exact("loss", quantized_loss(b.objective, 4), there, b.digits, max(abs(there), abs(b.truth.value())))


def last_rows(b: Bench) -> Checks:
    """Compare with the sum over pairs of rows of their product times the trace of their block."""
    found = relative_flatness(b.objective, max_products=24, seed=b.seed)
    sizes = [p.numel() for p in b.truth.parameters]
    index = b.objective.names.index(last_layer(b.objective))
    start, W = sum(sizes[:index]), b.truth.parameters[index].detach()
    W = W.reshape(len(W), -1)
    H = b.truth.hessian[start : start + W.numel(), start : start + W.numel()].view(*W.shape, *W.shape)
    weighted = torch.einsum("st,sjtj->", W @ W.mT, H)
    yield interval("kappa", found, float(weighted), b.digits, float(W.square().sum()) * b.truth.norm)


def logits(b: Bench) -> Checks:
    found = logit_scale(b.objective)
    norm = margin = 0.0
    for weight, z, batch in zip(b.truth.weights, b.truth.outputs(b.truth.theta), b.truth.parts.batches, strict=True):
        y = batch[1].reshape(-1)
        norm += weight * float((z - z.mean(-1, keepdim=True)).norm(dim=-1).mean())
        own = z.gather(-1, y[:, None])[:, 0]
        margin += weight * float((own - z.scatter(-1, y[:, None], -math.inf).amax(-1)).mean())
    yield exact("norm", found.norm, norm, b.digits)
    yield exact("margin", found.margin, margin, b.digits, norm)


def quality(b: Bench) -> Checks:
    D, g, H = b.step, b.truth.gradient(), b.truth.hessian
    found = step_quality(b.objective, D)
    change = b.truth.value(b.truth.theta + D) - b.truth.value()
    slope, bend = float(g @ D), float(D @ H @ D)
    allowed = 30 * b.digits * (abs(slope) + float(D @ D) * b.truth.norm) + found.rounding
    for name, measured, right in (
        ("change", found.change, change),
        ("first_remainder", found.first_remainder, change - slope),
        ("second_remainder", found.second_remainder, change - slope - bend / 2),
    ):
        yield Check(name, measured, measured - allowed, measured + allowed, right)


def secant(b: Bench) -> Checks:
    D = b.step
    y = b.truth.gradient(b.truth.theta + D) - b.truth.gradient()
    found = secant_curvature(b.objective, D)
    length = float(D.norm())
    for name, measured, right in (
        ("rayleigh", found.rayleigh, float(D @ y) / length**2),
        ("norm", found.norm, float(y.norm()) / length),
    ):
        reach = max(
            found.rounding, 10 * b.digits * max(float(g.norm()) for g in b.truth.gradients(b.truth.theta)) / length
        )
        yield Check(name, measured, measured - reach, measured + reach, right)


def by_layer(b: Bench) -> Checks:
    D, g = b.step, b.truth.gradient()
    found = layer_remainders(b.objective, D)
    ends = torch.tensor([0, *[p.numel() for p in b.truth.parameters]]).cumsum(0)
    before = b.truth.value()
    for (name, measured), start, end in zip(found.by_name.items(), ends[:-1], ends[1:], strict=True):
        part = torch.zeros_like(D)
        part[start:end] = D[start:end]
        right = b.truth.value(b.truth.theta + part) - before - float(g @ part)
        reach = found.rounding + 30 * b.digits * abs(float(g @ part))
        yield Check(name, measured, measured - reach, measured + reach, right)


def alignment(b: Bench) -> Checks:
    k = min(2, b.truth.size)
    top = measure_spectrum(hessian(b.objective), top=k, rel=1e-3, max_products=60, quantities=("top",), seed=b.seed).top
    assert top is not None
    found = gradient_alignment(b.objective, top)
    g, H = b.truth.gradient(), b.truth.hessian
    Hg = H @ g
    rayleigh = float(g @ Hg) / float(g @ g)
    yield exact(
        "cosine",
        found.cosine.value,
        float(g @ Hg / (g.norm() * Hg.norm())),
        b.digits,
        b.truth.norm * float(g.norm() / Hg.norm()),
    )
    yield exact("rayleigh", found.rayleigh, rayleigh, b.digits, b.truth.norm)
    share = found.share
    reach = 30 * b.digits * b.truth.norm / float(b.truth.values[-1])
    right = rayleigh / float(b.truth.values[-1])
    yield Check("share", share.value, share.low - reach, share.high + reach, right)
    vectors = torch.linalg.eigh(H)[1].flip(1)[:, :k]
    gap = float((b.truth.values[-1 - k + 1] - b.truth.values[-1 - k]).abs()) if b.truth.size > k else b.truth.norm
    if bool(top.converged.all()) and gap > 0.05 * b.truth.norm:
        off = 4 * (float(top.residuals.max()) / gap) + 100 * b.digits * b.truth.norm / gap
        chi = float((vectors.mT @ (g / g.norm())).square().sum())
        yield Check("chi", float(found.chi[-1]), float(found.chi[-1]) - off, float(found.chi[-1]) + off, chi)


def singular(b: Bench) -> Checks:
    for name, p in zip(b.objective.names, b.parts.model.parameters(), strict=False):
        if p.ndim == 2 and p.numel():
            found = singular_spectrum(p.detach())
            right = torch.linalg.svdvals(p.detach().double())
            error = torch.tensor(found.values.tolist(), dtype=torch.float64) - right
            yield small(name, error, max(b.digits, 1e-6), float(right[0]))


MEASURES: dict[str, Callable[[Bench], Checks]] = {
    "Objective: value": value,
    "Objective: gradient": gradient,
    "Objective: at": moved,
    "Objective: restricted": of_some,
    "Objective: in_double": in_double,
    "Objective: split": split,
    "Objective: batch": one_batch,
    "SymmetricOperator": of_own,
    "ObjectiveOperator": of_operator,
    **{f"hessian: {name}": partial(by_method, name) for name in ("reverse", "batched", "forward", "differences")},
    "hessian: cached": cached,
    "gauss_newton": partial(generalized, ("reverse",)),
    "gauss_newton: batched": partial(generalized, ("batched",)),
    "gauss_newton: forward": partial(generalized, ("forward",)),
    "fisher: true": fisher_true,
    "fisher: empirical": fisher_empirical,
    "residual": of_rest,
    "scaled": by_parameters,
    "preconditioned": by_metric,
    "restricted": block_of,
    "measure_spectrum": spectrum,
    "measure_spectrum: few probes": few_probes,
    "EigenTracker": tracked,
    "pyhessian_spectrum": second_opinion,
    "per_module": modules,
    "sampled_eigenvalue": drawn,
    "batch_sharpness": by_batch,
    "norm_sharpness: spectral": partial(in_ball, "spectral"),
    "norm_sharpness: sign": partial(in_ball, "sign"),
    "keskar_sharpness": in_box,
    "directional_sharpness": along,
    "critical_learning_rate": critical,
    "adaptive_trace": adaptive,
    "adaptive_lambda_max": adaptive_top,
    "noise_curve": noisy,
    "basin_radius": basin,
    "pac_bayes_sigma": pac_bayes,
    "average_sharpness": average,
    "low_pass_loss": filtered,
    "sam_sharpness": with_slope,
    "worst_case_sharpness: l2": partial(worst, "l2", 0.3),
    "worst_case_sharpness: linf": partial(worst, "linf", 0.05),
    "log_fisher_rao": fisher_rao,
    "softmax_ghost_radius": ghosts,
    "gradient_smoothness": smooth,
    "theta_hessian_theta": radial,
    "orbit_trace": least_trace,
    "quantized_loss": in_few_bits,
    "relative_flatness": last_rows,
    "logit_scale": logits,
    "step_quality": quality,
    "secant_curvature": secant,
    "layer_remainders": by_layer,
    "gradient_alignment": alignment,
    "singular_spectrum": singular,
}
# measures that draw random numbers: taken with three seeds
SEEDED = {
    "measure_spectrum",
    "measure_spectrum: few probes",
    "EigenTracker",
    "pyhessian_spectrum",
    "per_module",
    "sampled_eigenvalue",
    "adaptive_trace",
    "adaptive_lambda_max",
    "orbit_trace",
    "relative_flatness",
}
