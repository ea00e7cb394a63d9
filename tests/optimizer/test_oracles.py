"""SAM, ASAM, GSAM and LookSAM against those of the package pytorch_optimizer: where they agree, and where not.

They agree in the ascent, in GSAM's decomposition and in LookSAM's shear, tensor by tensor. They differ in

* rounding: they take the global norm of a gradient in float32 in any dtype, and so a radius that is 1e-8 off;
* floors: their LookSAM divides by `|g_v| + 1e-8` and ours by `|g_v| + 1e-12`, which a tiny shear shows;
* radius: their GSAM takes it from the learning rate, and ours is a setting that a schedule may drive;
* traces: their SAM counts batch statistics twice and draws another dropout mask at the second pass, their GSAM counts
  batches twice and adds and subtracts the perturbation, and their GSAM and LookSAM write into `p.grad`;
* defaults: their LookSAM has k = 10, as its first public code, and ours 5, as the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from helpers import draw
from lossscope.optimizer import create, settings
from lossscope.optimizer.registry import ENTRIES

oracles = pytest.importorskip("pytorch_optimizer")
GSAM, SAM, LookSAM = oracles.GSAM, oracles.SAM, oracles.LookSAM

FLOAT64 = torch.float64
STEPS = 11
# Relative error of their radius in half units of float32, to which they round each tensor's norm. The square of one is
# off by 3 (its norm counts twice), the sum of four by 3 more, and the root halves that; rounding the root, the sum with
# the floor, and the radius over it adds 3.
RADIUS = 6 * torch.finfo(torch.float32).eps / 2
NEAR = 2e-7  # a radius that is one unit off (1.2e-7) moves the weights by up to 5e-8 in 11 steps, and RADIUS is 3 units
BASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}),
}
EVERY_BASE = pytest.mark.parametrize("base", BASES)


def network(*between: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 8), *between, nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(draw(i, *p.shape) / 2)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = draw(100 + step, 12, 5)
    return x, (x[:, :3] + 0.3 * draw(500 + step, 12, 3)).argmax(1)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x), y)


def by_closure(model: nn.Module, optimizer: Any, step: int) -> None:
    """A step as their SAM and LookSAM take it: a gradient, and a closure for another."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)


def by_passes(model: nn.Module, optimizer: Any, step: int) -> None:
    for p in optimizer.passes(model):
        p.backward(loss_of(model, step))
    optimizer.step()


def ours(name: str, model: nn.Module, base: str, **more: Any) -> Any:
    return create(name, model, base=base, **BASES[base][1], **more)


def distance(first: nn.Module, second: nn.Module) -> float:
    """The largest relative distance of two tensors of the same name."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).detach().norm() / a.detach().norm()) for a, b in pairs)


# -- SAM and ASAM ------------------------------------------------------------------------------------------------------


@EVERY_BASE
@pytest.mark.parametrize(("name", "rho", "adaptive"), [("sam", 0.3, False), ("asam", 0.8, True)])
def test_sam_and_asam_agree(name, rho, adaptive, base):
    mine, theirs, plain = network(), network(), network()
    optimizer = ours(name, mine, base, rho=rho)
    oracle = SAM(theirs.parameters(), BASES[base][0], rho=rho, adaptive=adaptive, **BASES[base][1])
    for step in range(STEPS):
        by_passes(mine, optimizer, step)
        by_closure(theirs, oracle, step)
    assert distance(mine, theirs) < NEAR
    without = ours(name, plain, base, rho=0.0)
    for step in range(STEPS):
        by_passes(plain, without, step)
    assert distance(mine, plain) > 1e-3  # the ascent is not too small to be seen


def test_the_radius_is_exact_in_ours_and_of_float32_in_theirs():
    mine, theirs = network(), network()
    optimizer = ours("sam", mine, "sgd", rho=0.3)
    oracle = SAM(theirs.parameters(), torch.optim.SGD, rho=0.3, **BASES["sgd"][1])
    before = [p.detach().clone() for p in mine.parameters()]
    loss_of(mine, 0).backward()
    moves = list(optimizer.ascent({p: p.grad for p in mine.parameters()}).values())
    loss_of(theirs, 0).backward()
    oracle.first_step()
    their_moves = [p.detach() - was for p, was in zip(theirs.parameters(), before, strict=True)]
    length, their_length = (float(torch.cat([e.flatten() for e in m]).norm()) for m in (moves, their_moves))
    assert abs(length / 0.3 - 1) < 1e-11  # the floor of the norm
    assert 1e-10 < abs(their_length / 0.3 - 1) < RADIUS


def test_their_sam_counts_batch_statistics_twice_and_ours_once():
    mine, theirs = network(nn.BatchNorm1d(8).double()), network(nn.BatchNorm1d(8).double())
    by_passes(mine, ours("sam", mine, "sgd", rho=0.3), 0)
    by_closure(theirs, SAM(theirs.parameters(), torch.optim.SGD, rho=0.3, **BASES["sgd"][1]), 0)
    assert distance(mine, theirs) < NEAR
    assert int(mine[1].num_batches_tracked) == 1
    assert int(theirs[1].num_batches_tracked) == 2
    assert not torch.allclose(mine[1].running_mean, theirs[1].running_mean, rtol=1e-3)


def test_their_sam_draws_another_dropout_mask_at_the_second_pass_and_ours_the_same():
    masks: dict[str, list[Tensor]] = {"mine": [], "theirs": []}
    for name, kept in masks.items():
        model = network(nn.Dropout(0.5))
        model[1].register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output.detach() != 0))
        torch.manual_seed(0)
        if name == "mine":
            by_passes(model, ours("sam", model, "sgd"), 0)
        else:
            by_closure(model, SAM(model.parameters(), torch.optim.SGD, **BASES["sgd"][1]), 0)
    assert torch.equal(masks["mine"][0], masks["theirs"][0])
    assert torch.equal(*masks["mine"])
    assert not torch.equal(*masks["theirs"])


# -- GSAM --------------------------------------------------------------------------------------------------------------


class Scheduled:
    """Their GSAM with a radius that follows the learning rate between two bounds."""

    def __init__(self, model: nn.Module, base: str, shrink: Callable[[int], float], **bounds: float) -> None:
        self.model = model
        inner = BASES[base][0](model.parameters(), **BASES[base][1])
        self.schedule = LambdaLR(inner, shrink)
        self.radius = oracles.ProportionScheduler(self.schedule, **bounds)
        self.optimizer = GSAM(model.parameters(), inner, model, self.radius, alpha=0.4)

    def step(self, number: int) -> None:
        x, y = batch(number)
        self.optimizer.set_closure(F.cross_entropy, x, y)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.update_rho_t()


@EVERY_BASE
def test_gsam_agrees_where_the_radius_stays(base):
    mine, theirs, sam = network(), network(), network()
    lr = BASES[base][1]["lr"]
    optimizer = ours("gsam", mine, base, rho=0.3, alpha=0.4)
    without = ours("gsam", sam, base, rho=0.3, alpha=0.0)
    oracle = Scheduled(theirs, base, lambda _: 1.0, max_lr=lr, min_lr=0.0, max_value=0.3, min_value=0.1)
    for step in range(STEPS):
        by_passes(mine, optimizer, step)
        by_passes(sam, without, step)
        oracle.step(step)
    assert distance(mine, theirs) < NEAR
    assert distance(mine, sam) > 1e-3  # the share of the base gradient is not too small to be seen


@EVERY_BASE
def test_gsams_radius_follows_the_learning_rate_in_theirs_and_its_group_in_ours(base):
    mine, theirs, constant = network(), network(), network()
    lr = BASES[base][1]["lr"]
    optimizer, fixed = ours("gsam", mine, base, rho=0.3, alpha=0.4), ours("gsam", constant, base, rho=0.3, alpha=0.4)
    schedules = [LambdaLR(one, lambda step: 0.8**step) for one in (optimizer, fixed)]
    oracle = Scheduled(theirs, base, lambda step: 0.8**step, max_lr=lr, min_lr=0.0, max_value=0.3, min_value=0.1)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["rho"] = 0.1 + (0.3 - 0.1) * group["lr"] / lr
        by_passes(mine, optimizer, step)
        by_passes(constant, fixed, step)
        for schedule in schedules:
            schedule.step()
        oracle.step(step)
    assert distance(mine, theirs) < NEAR
    assert distance(constant, theirs) > 1e-4


def test_their_gsam_counts_batches_twice_and_leaves_weights_a_rounding_away():
    mine, theirs = network(nn.BatchNorm1d(8).double()), network(nn.BatchNorm1d(8).double())
    start = [p.detach().clone() for p in theirs.parameters()]
    optimizer = ours("gsam", mine, "sgd", rho=0.3)
    oracle = Scheduled(theirs, "sgd", lambda _: 1.0, max_lr=0.1, min_lr=0.0, max_value=0.3, min_value=0.1)
    for group in (*optimizer.param_groups, *oracle.optimizer.param_groups):
        group["lr"] = 0.0
    by_passes(mine, optimizer, 0)
    oracle.step(0)
    assert all(torch.equal(p, was) for p, was in zip(mine.parameters(), start, strict=True))
    assert not all(torch.equal(p, was) for p, was in zip(theirs.parameters(), start, strict=True))
    torch.testing.assert_close(theirs[1].running_mean, mine[1].running_mean)
    assert int(mine[1].num_batches_tracked) == 1
    assert int(theirs[1].num_batches_tracked) == 2


# -- LookSAM -----------------------------------------------------------------------------------------------------------


@EVERY_BASE
def test_looksam_agrees(base):
    mine, theirs, sam = network(), network(), network()
    optimizer = ours("looksam", mine, base, rho=0.3, k=4, alpha=0.7)
    without = ours("looksam", sam, base, rho=0.3, k=4, alpha=0.0)
    oracle = LookSAM(theirs.parameters(), BASES[base][0], rho=0.3, k=4, alpha=0.7, **BASES[base][1])
    for step in range(STEPS):
        by_passes(mine, optimizer, step)
        by_passes(sam, without, step)
        by_closure(theirs, oracle, step)
    assert distance(mine, theirs) < 1e-6  # their norms, and the floors below
    assert distance(mine, sam) > 1e-2  # the injection is not too small to be seen


def test_looksam_injects_a_tiny_shear_in_full_in_ours_and_less_of_it_in_theirs():
    """A radius of 1e-7 leaves a shear of about that size, and a floor of 1e-8 takes a good share of it away."""
    mine, theirs = network(), network()
    optimizer = ours("looksam", mine, "sgd", rho=1e-7, k=2, alpha=0.7)
    oracle = LookSAM(theirs.parameters(), torch.optim.SGD, rho=1e-7, k=2, alpha=0.7, **BASES["sgd"][1])
    by_passes(mine, optimizer, 0)
    by_closure(theirs, oracle, 0)
    assert distance(mine, theirs) < NEAR
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        shear, gv = optimizer.state[p]["shear"], oracle.state[q]["gv"]
        assert float((shear - gv).norm() / gv.norm()) < 1e-3
    shares = []
    for model, one, step in ((mine, optimizer, by_passes), (theirs, oracle, by_closure)):
        gradient = torch.autograd.grad(loss_of(model, 1), list(model.parameters()))
        buffers = [one_state(one, p)["momentum_buffer"].clone() for p in model.parameters()]
        weights = [p.detach().clone() for p in model.parameters()]
        step(model, one, 1)
        after = [one_state(one, p)["momentum_buffer"] for p in model.parameters()]
        added = [b - 0.9 * a - g - 0.05 * w for a, b, g, w in zip(buffers, after, gradient, weights, strict=True)]
        shares.append([float(x.norm() / g.norm()) for x, g in zip(added, gradient, strict=True)])
    assert shares[0] == pytest.approx([0.7] * 4, rel=1e-3)
    expected = [0.7 * float(n / (n + 1e-8)) for n in (oracle.state[q]["gv"].norm() for q in theirs.parameters())]
    assert shares[1] == pytest.approx(expected, rel=1e-6)
    assert max(shares[1]) < 0.69


def one_state(optimizer: Any, parameter: Tensor) -> dict[str, Any]:
    """The state of the base optimizer."""
    return getattr(optimizer, "base_optimizer", optimizer).state[parameter]


def test_looksam_writes_into_the_gradient_in_theirs_and_not_in_ours():
    mine, theirs = network(), network()
    optimizer = ours("looksam", mine, "sgd", k=2)
    oracle = LookSAM(theirs.parameters(), torch.optim.SGD, k=2, **BASES["sgd"][1])
    for step in range(2):
        by_passes(mine, optimizer, step)
        by_closure(theirs, oracle, step)
        if step == 0:
            expected = torch.autograd.grad(loss_of(theirs, 1), list(theirs.parameters()))
            expected_of_mine = torch.autograd.grad(loss_of(mine, 1), list(mine.parameters()))
    assert all(torch.equal(p.grad, g) for p, g in zip(mine.parameters(), expected_of_mine, strict=True))
    assert not any(torch.allclose(p.grad, g) for p, g in zip(theirs.parameters(), expected, strict=True))


def test_looksams_periods_are_ten_in_theirs_and_five_in_ours():
    oracle = LookSAM(network().parameters(), torch.optim.SGD, lr=0.1)
    usual = ENTRIES["looksam"].usual
    assert "k" in settings("looksam")
    assert (oracle.k, usual["k"]) == (10, 5)
    assert (oracle.alpha, usual["alpha"]) == (0.7, 0.7)
    assert (oracle.defaults["rho"], usual["rho"]) == (0.1, 0.1)


# -- sign steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"betas": (0.5, 0.7)}, {"weight_decay": 0.3}])
def test_lion_agrees_bit_for_bit(settings):
    mine, theirs = network(), network()
    optimizer = create("lion", mine, lr=0.01, **settings)
    oracle = oracles.Lion(theirs.parameters(), lr=0.01, foreach=False, **settings)
    for step in range(STEPS):
        for model, one in ((mine, optimizer), (theirs, oracle)):
            one.zero_grad()
            loss_of(model, step).backward()
            one.step()
    assert distance(mine, theirs) == 0.0
    start = network()
    assert distance(start, mine) > 1e-2


def test_lions_defaults_are_those_of_the_published_code():
    oracle, usual = oracles.Lion(network().parameters()), ENTRIES["lion"].usual
    for setting in ("lr", "betas", "weight_decay"):
        assert usual[setting] == oracle.defaults[setting]


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.3}])
def test_signsgd_agrees_with_theirs_without_momentum(settings):
    mine, theirs = network(), network()
    optimizer = create("signsgd", mine, lr=0.01, **settings)
    oracle = oracles.SignSGD(theirs.parameters(), lr=0.01, momentum=0.0, foreach=False, **settings)
    for step in range(STEPS):
        for model, one in ((mine, optimizer), (theirs, oracle)):
            one.zero_grad()
            loss_of(model, step).backward()
            one.step()
    assert distance(mine, theirs) == 0.0
