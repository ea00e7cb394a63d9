"""Every probe leaves the model, the random state and torch's switches unchanged bit for bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lossscope.landscape.measures.pyhessian_engine import pyhessian_spectrum
from lossscope.probes.budget import budget
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.fixed_loss import batch_norm_note
from lossscope.probes.objective.loss_terms import class_logits
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derivative_checks import (
    check_adjoint,
    check_product,
    require_agreement,
    require_second_derivative,
)
from lossscope.probes.operators.derived import preconditioned, restricted, scaled
from lossscope.probes.operators.distributed import over_ranks
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton, split_loss
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.residual import residual
from lossscope.probes.operators.second_derivative import HessianProduct, by_forward, by_reverse, gradient_function
from lossscope.probes.operators.stopped_gradient import stops_gradients
from lossscope.probes.operators.timing import signature
from lossscope.probes.sharpness import learning_coefficient
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
from lossscope.probes.sharpness.logit_derivative import logit_derivatives
from lossscope.probes.sharpness.logits import logit_scale
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.norm_ball import norm_sharpness
from lossscope.probes.sharpness.orbit_trace import orbit_trace
from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.perturbation import batches_of
from lossscope.probes.sharpness.quantization import quantized_loss
from lossscope.probes.sharpness.relative_flatness import last_layer, relative_flatness
from lossscope.probes.sharpness.sam import sam_sharpness
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue
from lossscope.probes.sharpness.step_quality import layer_remainders, rounding, secant_curvature, step_quality
from lossscope.probes.sharpness.worst_case import worst_case_sharpness
from zoo.public import public, takes


class Net(nn.Module):
    """A network with batch norm, dropout, tied weights, a frozen parameter and a buffer updated by every call.

    It also draws from numpy and Python, and sets plain attributes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm, self.dropout, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.full((4,), 0.5), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.seen, self.drawn = self.first.weight.detach(), 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.drawn = np.random.rand() + random.random()
        self.seen = torch.tanh(self.first(x))
        h = self.fresh = torch.tanh(self.norm(self.second(self.seen)))
        return self.head(self.dropout(h * self.frozen))


def make_objective(mode: Any) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
        batches = [(torch.randn(n, 4), torch.arange(n) % 3) for n in (40, 24)]
    net.head.bias.grad, net.first.weight.grad = torch.ones(3), torch.full((4, 4), 0.25)
    if mode != "eval":
        net.dropout.p = 0.0  # with dropout the objective would raise
    net.norm.eval()  # a mixed state: neither all train nor all eval
    return Objective(net, CrossEntropy(), batches, mode=mode)


def moved(objective: Objective) -> None:
    with objective.at(objective.parameters() + 0.1):
        objective.value()
        objective.gradient()


def vector(objective: Objective) -> Tensor:
    return torch.linspace(-1, 1, objective.size)


def tracked(objective: Objective) -> None:
    tracker = EigenTracker(rel=0.1)
    tracker.measure(hessian(objective))
    tracker.measure(hessian(objective))


def own_operator(objective: Objective) -> Tensor:
    A = SymmetricOperator(objective.size, lambda V: 2 * V, dtype=objective.dtype, device=objective.device)
    return A @ vector(objective)


def by_method(method: str, objective: Objective) -> Tensor:
    return hessian(objective, method=method) @ torch.stack([vector(objective), vector(objective).square()], 1)


class OwnLoss(CrossEntropy):
    """Not the package's own, so it is evaluated whole and by its halves."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return super().__call__(model, batch)


def own_split(objective: Objective) -> None:
    split_loss(Objective(objective.model, OwnLoss(), objective.data.batches, mode=objective.mode))


def own_gradient(objective: Objective) -> None:
    quiet = copy.copy(objective)
    quiet.mode = "eval" if objective.mode == "eval" else "frozen"  # torch's transforms allow no buffer that moves
    with quiet.evaluating():
        gradient_function(quiet, next(quiet.passes()))(quiet.parameters())


def own_product(objective: Objective, product: HessianProduct) -> None:
    quiet = copy.copy(objective)
    quiet.mode = "eval" if objective.mode == "eval" else "frozen"
    with quiet.evaluating():
        product(quiet, next(quiet.passes()), vector(objective))


def between(objective: Objective, operator: SymmetricOperator) -> Tensor:
    """Take two products inside `cached`."""
    with operator.cached():
        return operator @ vector(objective) + operator @ torch.stack([vector(objective)] * 2, 1)[:, 0]


def aligned(objective: Objective) -> None:
    top = measure_spectrum(hessian(objective), top=2, quantities=("top",), max_products=12).top
    assert top is not None
    gradient_alignment(objective, top)


def refused_product(objective: Objective) -> None:
    with pytest.raises(ProbeError, match=r"method='own' differs from finite differences by \d+%"):
        check_product(objective, lambda *_: vector(objective), "own")


def refused_agreement(objective: Objective) -> None:
    with pytest.raises(ProbeError, match=r"method='own' differs from"):
        require_agreement(objective, lambda *_: vector(objective), "own")


def refused_ranks(objective: Objective) -> None:
    with pytest.raises(ProbeError, match="there is no process group"):
        over_ranks(objective)


def refused_orbit(objective: Objective) -> None:
    with pytest.raises(ProbeError, match="the rescalings of this network are not all known"):
        orbit_trace(objective)


def few_proposals(objective: Objective) -> None:
    with objective.evaluating():
        learning_coefficient._Chain(objective, 10.0, 100.0, 0).run(2)


METHODS = ("reverse", "batched", "forward", "differences")


# keys: the public name of a probe; "name: variant" for one that has several variants
def derived_logits(objective: Objective) -> None:
    """Go through the derivatives of the logits along the parameters."""
    logits = class_logits(objective.loss_fn)
    assert logits is not None
    with objective.evaluating():
        list(logit_derivatives(objective, objective.substitution(logits), objective.parameters()))


PROBES: dict[str, Callable[[Objective], Any]] = {
    "number_rounding": lambda objective: number_rounding(objective, lambda other: (other.value(),), (1.0,)),
    "logit_derivatives": derived_logits,
    "Objective: value": Objective.value,
    "Objective: gradient": Objective.gradient,
    "Objective: at": moved,
    "Objective: value_at": lambda o: o.value_at(o.parameters() + 0.1),
    "Objective: with_model": lambda o: o.with_model(copy.deepcopy(o.model)).value(),
    "Objective: restricted": lambda o: o.restricted(["head.weight"]).gradient(),
    "batch_norm_note": lambda o: batch_norm_note(o, 100.0, 0.1),
    "Objective: split": lambda o: [part.value() for part in o.split(2, seed=0)],
    "SymmetricOperator": own_operator,
    "ObjectiveOperator": lambda o: ObjectiveOperator(o, lambda V: 2 * V, restrict=hessian(o).restrict) @ vector(o),
    **{f"hessian: {name}": partial(by_method, name) for name in METHODS},
    "hessian: cached": lambda o: between(o, hessian(o)),
    "hessian: no memory": lambda o: between(o, hessian(o, memory=0)),
    "gauss_newton": lambda o: between(o, gauss_newton(o)),
    "fisher: true": lambda o: between(o, fisher(o, kind="true")),
    "fisher: empirical": lambda o: between(o, fisher(o, kind="empirical")),
    "residual": lambda o: between(o, residual(o)),
    "scaled": lambda o: between(o, scaled(hessian(o), o.parameters())),
    "preconditioned": lambda o: between(o, preconditioned(hessian(o), o.parameters().abs() + 0.1)),
    "restricted": lambda o: between(o.restricted(["head.weight"]), restricted(hessian(o), ["head.weight"])),
    "measure_spectrum": lambda o: measure_spectrum(hessian(o), top=2, max_products=20),
    "pyhessian_spectrum": lambda o: pyhessian_spectrum(
        o, hessian(o), top=2, rel=0.01, max_products=12, quantities=("top", "trace"), seed=0
    ),
    "EigenTracker": tracked,
    "per_module": lambda o: per_module(o, rel=0.5, max_products=16),
    "sampled_eigenvalue": lambda o: sampled_eigenvalue(o, parts=4, rel=0.1, max_products=20),
    "batch_sharpness": batch_sharpness,
    "norm_sharpness: spectral": lambda o: norm_sharpness(o, "spectral", restarts=2, max_products=12),
    "norm_sharpness: sign": lambda o: norm_sharpness(o, "sign", restarts=2, max_products=12),
    "keskar_sharpness": lambda o: keskar_sharpness(o, max_evaluations=12),
    "worst_case_sharpness: l2": lambda o: worst_case_sharpness(o, max_evaluations=15),
    "worst_case_sharpness: linf": lambda o: worst_case_sharpness(o, rho=0.01, norm="linf", max_evaluations=15),
    "batches_of": lambda o: [part.gradient() for _, part in batches_of(o, per_batch=True)],
    "sam_sharpness": lambda o: sam_sharpness(o, rho=0.5, relative=True),
    "average_sharpness": lambda o: average_sharpness(o, draws=16),
    "low_pass_loss": lambda o: low_pass_loss(o, draws=16),
    "pac_bayes_sigma": lambda o: pac_bayes_sigma(o, draws=16),
    "gradient_smoothness": lambda o: gradient_smoothness(o, random=1),
    "softmax_ghost_radius": lambda o: softmax_ghost_radius(o, vector(o)),
    "directional_sharpness": lambda o: directional_sharpness(o, vector(o), at=o.parameters() + 0.1),
    "adaptive_trace": lambda o: adaptive_trace(o, max_products=16),
    "adaptive_lambda_max": lambda o: adaptive_lambda_max(o, max_products=16),
    "basin_radius": lambda o: basin_radius(o, draws=16),
    "noise_curve": lambda o: noise_curve(o, [0.1, 0.2], draws=16),
    "critical_learning_rate": lambda o: critical_learning_rate(
        o, -0.1 * o.gradient(), 0.1, at=o.parameters() + 0.01, scan=4
    ),
    "log_fisher_rao": log_fisher_rao,
    "theta_hessian_theta": theta_hessian_theta,
    "local_learning_coefficient": few_proposals,
    "orbit_trace": refused_orbit,
    "quantized_loss": lambda o: quantized_loss(o, 4),
    "relative_flatness": lambda o: relative_flatness(o, max_products=8),
    "last_layer": last_layer,
    "step_quality": lambda o: step_quality(o, 0.01 * vector(o), at=o.parameters() + 0.1),
    "secant_curvature": lambda o: secant_curvature(o, 0.01 * vector(o), at=o.parameters() + 0.1),
    "logit_scale": lambda o: logit_scale(o),
    "layer_remainders": lambda o: layer_remainders(o, 0.01 * vector(o), at=o.parameters() + 0.1),
    "rounding": lambda o: rounding(o, 1.0),
    "budget": lambda o: budget(o, ["trace"], max_products=4),
    "over_ranks": refused_ranks,
    "gradient_alignment": aligned,
    "split_loss": own_split,
    "stops_gradients": stops_gradients,
    "gradient_function": own_gradient,
    "by_reverse": lambda o: own_product(o, by_reverse),
    "by_forward": lambda o: own_product(o, by_forward),
    "signature": signature,
    "require_second_derivative": require_second_derivative,
    "check_product": refused_product,
    "require_agreement": refused_agreement,
    "check_adjoint": lambda o: check_adjoint(o, torch.ones(1), vector(o) / vector(o).square().sum(), vector(o), "own"),
}
REFUSES = {
    (name, mode) for name in ("sampled_eigenvalue", "Objective: split") for mode in ("frozen", "train")
}  # batch norm: no mean
REFUSES |= {(name, "train") for name in ("critical_learning_rate", "softmax_ghost_radius")}  # buffers move in between
REFUSES |= {(f"hessian: {name}", "train") for name in ("forward", "differences")}  # buffers that move in between


def test_every_probe_that_takes_an_objective_is_in_the_table() -> None:
    listed = {name.partition(":")[0] for name in PROBES}
    missing = sorted({name for name, probe, kinds in public() if takes(probe, kinds)} - listed)
    assert not missing, f"add a call of {', '.join(missing)} to PROBES"


def state(model: nn.Module) -> dict[str, Any]:
    """Return all state that a probe must not change: the bytes, and the objects themselves."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {
        "objects": {name: id(t) for name, t in tensors.items()} | {f"{name}.grad": id(g) for name, g in grads.items()},
        "bytes": {name: t.detach().clone() for name, t in tensors.items()},
        "grads": {name: None if g is None else g.clone() for name, g in grads.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "versions": {name: t._version for name, t in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "attributes": [{name: id(value) for name, value in vars(module).items()} for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": [str(part) for part in np.random.get_state()],
        "numpy words": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
        "python": random.getstate(),
        "grad modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "kernels": (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_num_threads()),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def assert_left(before: dict[str, Any], model: nn.Module) -> None:
    after = state(model)
    changed = [key for key in before if not same(before[key], after[key])]
    assert not changed


@pytest.mark.parametrize("mode", ["eval", "frozen", "train"])
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_leaves_everything_bit_for_bit(probe: str, mode: str) -> None:
    objective = make_objective(mode)
    fired: list[Any] = []
    objective.model.head.weight.register_hook(fired.append)
    before = state(objective.model)
    with pytest.raises(ProbeError) if (probe, mode) in REFUSES else nullcontext():
        PROBES[probe](objective)
    assert_left(before, objective.model)
    assert not fired  # hooks on the parameters belong to training


class Interrupted(BaseException):
    """An interruption, as by ctrl-C, in the middle of a probe; no probe may catch it as an error."""


class Operations(TorchDispatchMode):
    """Count torch's operations, and interrupt one of them."""

    def __init__(self, until: int | None = None) -> None:
        super().__init__()
        self.count, self.until = 0, until

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.until:
            raise Interrupted
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_that_is_interrupted_leaves_everything_too(probe: str) -> None:
    objective = make_objective("eval" if (probe, "frozen") in REFUSES else "frozen")
    loss = objective.value()
    PROBES[probe](objective)  # one-time checks are made here
    before = state(objective.model)
    with Operations() as whole:
        PROBES[probe](objective)
    if not whole.count:
        return  # there is nothing to interrupt
    for share in (0.15, 0.5, 0.8):
        # an interruption inside a compiled rule of torch is raised as a RuntimeError; the default method of a product
        # then falls back to another
        operations = Operations(until=1 + int(share * whole.count))
        with suppress(Interrupted, RuntimeError, ProbeError), operations:
            PROBES[probe](objective)
        assert operations.count >= operations.until
        assert_left(before, objective.model)
    assert objective.value() == loss  # and the objective works again
