"""The four modes on losses whose gradients are known on paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from helpers import draw
from lossscope.optimizer import ARS2Neo, OptimizerError
from lossscope.optimizer.ascent.shear import residual
from lossscope.optimizer.update import newton_schulz as ns

FLOAT64 = torch.float64
USUAL = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}


def hessian(seed: int, size: int) -> Tensor:
    B = draw(seed, size, size)
    return B @ B.T / size


def run(loss_of, steps: int, seed: int = 0, **options):
    """Step a (3, 4) matrix and a vector; returns the trajectory, the optimizer and the calls of the closure."""
    W, b = torch.nn.Parameter(draw(seed, 3, 4)), torch.nn.Parameter(draw(seed + 1, 3))
    optimizer = ARS2Neo([("W", W), ("b", b)], **{**USUAL, **options})
    calls, path = 0, []

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(W, b)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        path.append((W.detach().clone(), b.detach().clone()))
    return path, optimizer, calls


def same(first, second) -> bool:
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def quartic(W: Tensor, b: Tensor) -> Tensor:
    return (W**4).sum() + (W.sum(1) * b).sum() + (b**4).sum() + (W[0] * W[1]).sum()


def linear(W: Tensor, b: Tensor) -> Tensor:
    return (draw(5, 3, 4) * W).sum() + (draw(6, 3) * b).sum()


@pytest.mark.parametrize("perturbation", ["ars2", "paper", "sam", "asam"])
def test_a_linear_loss_has_one_gradient_and_no_shear(perturbation):
    records = []
    W, b = torch.nn.Parameter(draw(0, 3, 4)), torch.nn.Parameter(draw(1, 3))
    optimizer = ARS2Neo([("W", W), ("b", b)], mode="lazy", k=2, perturbation=perturbation, **USUAL)
    optimizer.observe(lambda r: records.append([(t.gradient, t.adversarial, t.shear) for t in r.tensors]))
    for _ in optimizer.passes():
        linear(W, b).backward()
    optimizer.step()
    for g, adversarial, shear in records[0]:
        assert torch.equal(adversarial, g)
        assert shear.norm() < 1e-11 * g.norm()  # g (1 - g'g / (g'g + 1e-12))


def test_on_a_linear_loss_sync_is_base():
    assert same(run(linear, 10, mode="sync")[0], run(linear, 10, mode="base")[0])


@given(seed=st.integers(0, 1000), perturbation=st.sampled_from(["ars2", "paper", "sam", "asam"]))
@settings(max_examples=15, deadline=None)
def test_on_a_quadratic_the_second_gradient_differs_by_the_hessian_times_the_ascent(seed, perturbation):
    """`g_adv - g = H e` and `s = (I - g g' / g'g) H e`: a second gradient is a curvature measurement."""
    H, w = hessian(seed, 12), torch.nn.Parameter(draw(seed + 1, 3, 4))
    optimizer = ARS2Neo([w], mode="lazy", k=2, perturbation=perturbation, **USUAL)
    records = []
    optimizer.observe(lambda record: records.append(record.tensors[0]))
    for _ in range(3):
        for _ in optimizer.passes():
            (0.5 * w.flatten() @ H @ w.flatten()).backward()
        optimizer.step()
    for r in (records[0], records[2]):
        g, He = r.gradient.flatten(), H @ r.perturbation.flatten()
        torch.testing.assert_close((r.adversarial - r.gradient).flatten(), He, rtol=0, atol=1e-13 * float(g.norm() + 1))
        s = He - g * (g @ He) / (g @ g)
        torch.testing.assert_close(r.shear.flatten(), s, rtol=0, atol=1e-10 * float(g.norm() + 1))


@pytest.mark.parametrize(("k", "expected"), [(2, [1, 3, 5, 7]), (3, [1, 4, 7]), (5, [1, 6])])
def test_lazy_syncs_at_step_one_and_every_k_steps_after(k, expected):
    _, optimizer, calls = run(quartic, 8, mode="lazy", k=k)
    assert calls == 8 + len(expected)
    assert optimizer.trigger_state.syncs == len(expected)
    synced: list[int] = []
    W = torch.nn.Parameter(draw(0, 3, 4))
    again = ARS2Neo([W], mode="lazy", k=k)
    again.observe(lambda record: synced.append(record.step) if record.synced else None)
    for _ in range(8):
        for _ in again.passes():
            (W**4).sum().backward()
        again.step()
    assert synced == expected


def test_aga_syncs_at_step_one_where_phi_is_unmeasured():
    _, optimizer, calls = run(quartic, 1, mode="aga")
    assert calls == 2
    assert optimizer.last.decision.phi is None
    assert optimizer.trigger_state.phi_variance == 0.0


def test_sync_counts_a_second_gradient_every_step():
    _, optimizer, calls = run(quartic, 6, mode="sync")
    assert (calls, optimizer.trigger_state.syncs) == (12, 6)


def test_the_modes_differ():
    ends = [run(quartic, 6, **o)[0][-1][0] for o in ({"mode": "base"}, {"mode": "sync"}, {"mode": "lazy", "k": 3})]
    assert len({tuple(e.flatten().tolist()) for e in ends}) == 3


@pytest.mark.parametrize(
    "options", [{"mode": "sync"}, {"mode": "lazy", "k": 3}, {"mode": "aga"}], ids=lambda o: o["mode"]
)
def test_without_a_radius_every_mode_is_base_bit_for_bit_and_at_its_cost(options, monkeypatch):
    base, _, base_calls = run(quartic, 7, mode="base")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_rng_state", lambda: pytest.fail("base reads no random state"))
        path, optimizer, calls = run(quartic, 7, rho=0.0, **options)
    assert same(path, base)
    assert calls == base_calls == 7
    assert optimizer.trigger_state.syncs == 0
    for state in optimizer.state.values():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("mode", ["sync", "lazy", "aga"])
def test_without_a_radius_there_is_one_pass_and_no_closure_is_needed(mode):
    W = torch.nn.Parameter(draw(0, 3, 4))
    optimizer = ARS2Neo([W], mode=mode, rho=0.0)
    assert [p.index for p in optimizer.passes()] == [0]
    W.grad = draw(1, 3, 4)
    optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("k", [2, 3])
def test_lazy_without_injection_is_sam_every_k_steps_with_plain_steps_between(k):
    silent = run(quartic, 9, mode="lazy", k=k, alpha=0.0)[0]
    assert same(silent, run(quartic, 9, mode="lazy", k=k, shear="off")[0])
    # by hand: switch one optimizer between sync and base
    W, b = torch.nn.Parameter(draw(0, 3, 4)), torch.nn.Parameter(draw(1, 3))
    optimizer = ARS2Neo([W, b], mode="sync", **USUAL)
    for step in range(9):
        optimizer.param_groups[0]["mode"] = "sync" if step % k == 0 else "base"
        for _ in optimizer.passes():
            quartic(W, b).backward()
        optimizer.step()
        assert torch.equal(W, silent[step][0])
        assert torch.equal(b, silent[step][1])
    assert not same(silent, run(quartic, 9, mode="lazy", k=k)[0])


def test_a_group_without_a_radius_gets_the_second_gradient_but_no_shear():
    W, b = torch.nn.Parameter(draw(0, 3, 4)), torch.nn.Parameter(draw(1, 3))
    optimizer = ARS2Neo([{"params": [W]}, {"params": [b], "rho": 0.0}], mode="lazy", k=2, **USUAL)
    records = []
    optimizer.observe(lambda record: records.append(record.tensors))
    for _ in range(2):
        for _ in optimizer.passes():
            quartic(W, b).backward()
        optimizer.step()
    assert "shear" in optimizer.state[W]
    assert "shear" not in optimizer.state[b]
    still = records[0][1]
    assert still.perturbation is None
    assert not torch.equal(still.adversarial, still.gradient)  # W moved, and b's gradient depends on W
    assert records[1][0].injected is not None
    assert records[1][1].injected is None


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (3, 1, 5)])
def test_a_matrix_of_one_row_is_stepped_along_its_whitened_momentum(shape):
    constant = 1.0
    for a, b, c in ns.coefficients("keller", 5):
        constant = a * constant + b * constant**3 + c * constant**5
    assert constant == pytest.approx(0.6964, abs=5e-5)
    p = torch.nn.Parameter(torch.zeros(shape, dtype=FLOAT64))
    optimizer = ARS2Neo([p], lr=1.0, weight_decay=0.0, energy="reference", flatten=False)
    seen = []
    optimizer.observe(lambda record: seen.append(record.tensors[0]))
    p.grad = draw(1, *shape)
    optimizer.step()
    A = seen[0].whitened
    slices = A if A.ndim == 3 else A[None]
    expected = torch.stack([x / x.norm() for x in slices]).reshape(shape) * A.norm()
    # the floor 1e-7 under the norm moves sigma = 1 by 4e-8, and the map is steep by at most 30 there
    torch.testing.assert_close(-p.detach(), constant * expected, rtol=2e-6, atol=0)
    if len(shape) == 2:
        torch.testing.assert_close(seen[0].orthogonal * A.norm(), 0.6964 * A, rtol=1e-4, atol=0)


def test_aga_triggers_when_the_gradient_turns_against_the_shear():
    # the gradient is set by hand: first along the stored shear, then against it
    W = torch.nn.Parameter(draw(0, 3, 4))
    optimizer = ARS2Neo([W], mode="aga", k=100, aga_lambda=0.5, aga_beta=0.9, lr=0.0, weight_decay=0.0)
    for p in optimizer.passes():
        W.grad = draw(1, 3, 4) if p.index == 0 else draw(2, 3, 4)
    optimizer.step()
    shear = optimizer.state[W]["shear"]
    torch.testing.assert_close(shear, residual(draw(2, 3, 4), draw(1, 3, 4)))
    passes = []
    for sign in (0.3, 0.3, 0.3, -0.3):
        count = 0
        for p in optimizer.passes():
            count += 1
            W.grad = sign * shear + shear.roll(1, 0) if p.index == 0 else draw(3, 3, 4)
        optimizer.step()
        passes.append((count, round(optimizer.last.decision.phi, 2)))
    assert [c for c, _ in passes] == [1 + (phi < -0.5 * 0.9 * abs(phi)) for _, phi in passes]
    assert passes[-1][0] == 2


def test_both_ways_to_step_are_one():
    W, b = torch.nn.Parameter(draw(0, 3, 4)), torch.nn.Parameter(draw(1, 3))
    optimizer = ARS2Neo([W, b], mode="lazy", k=3, **USUAL)
    path = []
    for _ in range(7):
        for p in optimizer.passes():
            p.backward(quartic(W, b))
        optimizer.step()
        path.append((W.detach().clone(), b.detach().clone()))
    assert same(path, run(quartic, 7, mode="lazy", k=3)[0])


@pytest.mark.parametrize("mode", ["base", "sync", "lazy", "aga"])
def test_two_runs_are_bitwise_equal(mode):
    assert same(run(quartic, 12, mode=mode)[0], run(quartic, 12, mode=mode)[0])


@pytest.mark.parametrize("mode", ["base", "sync", "lazy", "aga"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_parameters_run_and_go_downhill(mode, dtype):
    W, b = torch.nn.Parameter(draw(0, 3, 4).to(dtype)), torch.nn.Parameter(draw(1, 3).to(dtype))
    optimizer = ARS2Neo([W, b], mode=mode, lr=0.02, rho=0.01)
    losses = []
    for _ in range(15):
        for p in optimizer.passes():
            p.backward((W.float() ** 2).sum() + (b.float() ** 2).sum())
        losses.append(float(optimizer.step()))
    assert W.dtype == dtype
    assert losses[-1] < 0.7 * losses[0]


def test_a_tensor_as_learning_rate_gives_the_same_step():
    def step(lr):
        W, b = torch.nn.Parameter(draw(0, 3, 4)), torch.nn.Parameter(draw(1, 3))
        optimizer = ARS2Neo([W, b], **{**USUAL, "lr": lr})
        W.grad, b.grad = draw(2, 3, 4), draw(3, 3)
        optimizer.step()
        return W, b

    for one, other in zip(step(0.01), step(torch.tensor(0.01, dtype=FLOAT64)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", ["base", "sync"])
def test_k_has_no_meaning_without_a_period(mode):
    with pytest.raises(OptimizerError, match=rf"k=3 has no meaning in mode='{mode}'"):
        ARS2Neo([torch.nn.Parameter(torch.ones(2, 2))], mode=mode, k=3)


@pytest.mark.parametrize("mode", ["lazy", "aga"])
@pytest.mark.parametrize("k", [0, 1, -2, 2.5])
def test_k_is_a_whole_number_of_at_least_two(mode, k):
    with pytest.raises(OptimizerError, match=r"k=.* must be an integer >= 2; .*mode='sync'"):
        ARS2Neo([torch.nn.Parameter(torch.ones(2, 2))], mode=mode, k=k)


def test_the_default_periods_are_five_and_ten():
    p = [torch.nn.Parameter(torch.ones(2, 2))]
    assert ARS2Neo(p, mode="lazy").param_groups[0]["k"] == 5
    assert ARS2Neo(p, mode="aga").param_groups[0]["k"] == 10


def test_a_learning_rate_schedule_works():
    W = torch.nn.Parameter(draw(0, 3, 4))
    optimizer = ARS2Neo([W], lr=0.1, mode="lazy", k=2, weight_decay=0.0, energy="unit")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.5, total_iters=4)
    sizes = []
    optimizer.observe(
        lambda record: sizes.append(float(record.tensors[0].update.norm() / record.tensors[0].whitened.norm()))
    )
    for _ in range(5):
        for _ in optimizer.passes():
            (W**4).sum().backward()
        optimizer.step()
        schedule.step()
    assert sizes == pytest.approx([0.1, 0.0875, 0.075, 0.0625, 0.05], rel=1e-10)
