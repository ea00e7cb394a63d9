"""The fast step against the readable float64 reference, and both against rewrites of published formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lossscope.optimizer import ARS2Neo
from lossscope.optimizer.reference import Hyper, ReferenceARS2Neo

Tensors = dict[str, Tensor]

# Every kind of tensor: vectors, wide, tall (aspect >= 2: the Gram form), raw 3-D, a convolution.
SHAPES = {
    "W_in": (6, 5),
    "b_in": (6,),
    "heads": (2, 3, 6),
    "kernel": (4, 2, 3, 3),
    "k_bias": (4,),
    "W_out": (3, 10),
    "b_out": (3,),
}
STEPS = 50


def initial(seed: int, dtype: torch.dtype = torch.float64) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (torch.randn(s, generator=generator, dtype=torch.float64) / math.sqrt(s[-1])).to(dtype)
        for n, s in SHAPES.items()
    }


def batches(seed: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [(draw(12, 5), draw(12, 2, 4, 4), draw(12, 3)) for _ in range(4)]


def loss_of(w: Tensors, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A network in which the gradient of every tensor has full dimension."""
    x, image, target = batch
    hidden = torch.tanh(x @ w["W_in"].T + w["b_in"])
    mixed = torch.tanh(torch.einsum("hij,bj->bhi", w["heads"], hidden)).flatten(1)
    seen = torch.tanh(F.conv2d(image, w["kernel"], w["k_bias"])).mean((2, 3))
    out = torch.cat([mixed, seen], 1) @ w["W_out"].T + w["b_out"]
    return ((out - target) ** 2).mean()


def gradient_of(w: Tensors, batch: tuple[Tensor, Tensor, Tensor]) -> Tensors:
    leaves = {n: p.detach().requires_grad_() for n, p in w.items()}
    return dict(zip(leaves, torch.autograd.grad(loss_of(leaves, batch), list(leaves.values())), strict=True))


def run_both(dtype: torch.dtype = torch.float64, steps: int = STEPS, **options: object):
    data, wide = batches(1, dtype), batches(1)
    parameters = {n: torch.nn.Parameter(w) for n, w in initial(0, dtype).items()}
    fast = ARS2Neo(list(parameters.items()), **options)
    slow = ReferenceARS2Neo(initial(0), Hyper(**{"k": fast.param_groups[0]["k"], **options}))
    syncs = []
    for step in range(steps):

        def closure(batch=data[step % 4]):
            fast.zero_grad()
            loss = loss_of(parameters, batch)
            loss.backward()
            return loss

        fast.step(closure)
        slow.step(lambda w, batch=wide[step % 4]: gradient_of(w, batch))
        assert fast.last is not None
        assert fast.last.decision.sync == slow.synced, f"step {step + 1}"
        syncs.append(slow.synced)
    return parameters, fast, slow, syncs


def assert_equal(parameters: Tensors, fast: ARS2Neo, slow: ReferenceARS2Neo, tolerance: float) -> None:
    for name, p in parameters.items():
        state = fast.state[p]
        pairs = {"w": (p, slow.theta), "m": (state["exp_avg"], slow.m), "v": (state["exp_avg_sq"], slow.v)}
        if "shear" in state or name in slow.s:
            pairs["shear"] = (state["shear"], slow.s)
        for what, (ours, theirs) in pairs.items():
            error = (ours.double() - theirs[name]).norm() / theirs[name].norm()
            assert error < tolerance, f"{what} of {name}: {error:.1e}"
        assert float(state["step"]) == slow.t


USUAL = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}
MODES = {
    "base": {"mode": "base"},
    "sync": {"mode": "sync"},
    "lazy": {"mode": "lazy", "k": 3},
    "aga with triggers": {"mode": "aga", "k": 10, "aga_lambda": 0.1, "aga_beta": 0.9},
    "aga without triggers": {"mode": "aga", "k": 4, "aga_lambda": 50.0},
}
VARIANTS = {
    "paper": {"mode": "lazy", "k": 3, "perturbation": "paper"},
    "sam": {"mode": "lazy", "k": 3, "perturbation": "sam"},
    "asam": {"mode": "aga", "perturbation": "asam", "aga_lambda": 0.1},
    "unit": {"mode": "sync", "energy": "unit"},
    "rms": {"mode": "lazy", "k": 3, "energy": "rms"},
    "signflip": {"mode": "lazy", "k": 3, "shear": "signflip"},
    "signflip aga": {"mode": "aga", "shear": "signflip", "aga_lambda": 0.1},
    "shear off": {"mode": "lazy", "k": 3, "shear": "off"},
    "shear off aga": {"mode": "aga", "shear": "off", "aga_lambda": 0.1},
    "flatten": {"mode": "lazy", "k": 3, "flatten": True},
    "no decay": {"mode": "lazy", "k": 3, "weight_decay": 0.0},
    "three polynomials": {"mode": "base", "ns_steps": 3},
    "large eps": {"mode": "lazy", "k": 2, "eps": 1e-2},
}


# other combinations of what the rest tries
COMBINED = {"sam", "rms", "signflip aga", "shear off aga", "flatten", "no decay", "three polynomials"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=pytest.mark.slow if name in COMBINED else ())
        for name, options in (MODES | VARIANTS).items()
    ],
)
def test_the_fast_step_is_the_reference_in_parameters_and_state(options):
    parameters, fast, slow, syncs = run_both(**{**USUAL, **options})
    assert_equal(parameters, fast, slow, 1e-10)
    if options["mode"] == "aga":
        assert fast.trigger_state.syncs == sum(syncs)
        assert fast.trigger_state.phi_variance == pytest.approx(slow.nu, rel=1e-9)
        assert fast.last.decision.phi == pytest.approx(slow.phi, rel=1e-7)


def test_the_two_aga_runs_differ_in_who_decides():
    # Otherwise the parity above would not have tried both: with lambda 50 only the cap syncs, with 0.1 phi does.
    *_, triggered = run_both(**USUAL, **MODES["aga with triggers"])
    *_, capped = run_both(**USUAL, **MODES["aga without triggers"])
    assert [i for i, s in enumerate(capped) if s] == list(range(0, STEPS, 4))
    gaps = {b - a for a, b in zip(*(lambda x: (x, x[1:]))([i for i, s in enumerate(triggered) if s]), strict=False)}
    assert len(gaps) > 1


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_float32_stays_within_its_rounding_of_the_reference(options):
    # A float32 gradient of this network carries a relative error near 5e-7 (twenty operations of 6e-8, in quadrature
    # and at the edges); the shear is a difference a tenth its size: 5e-6; in 50 steps it grows by sqrt(50): 4e-5.
    parameters, fast, slow, _ = run_both(torch.float32, **{**USUAL, **options})
    assert_equal(parameters, fast, slow, 1e-4)


@pytest.mark.parametrize("lay", ["transposed parameter", "transposed gradient", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_and_the_foreach_form_agree(lay, dtype):
    """Tensors that do not lie alike in memory cannot take the fused kernel; the numbers are the same."""
    shape = (4, 3, 3, 3) if lay == "channels last" else (5, 7)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(shape, generator=generator, dtype=dtype)
    gradients = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(20)]

    def other(x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x.T.contiguous().T

    plain = torch.nn.Parameter(start.clone())
    strange = torch.nn.Parameter(start.clone() if lay == "transposed gradient" else other(start.clone()))
    first, second = ARS2Neo([plain], weight_decay=0.1), ARS2Neo([strange], weight_decay=0.1)
    for g in gradients:
        plain.grad = g.clone()
        strange.grad = other(g) if lay == "transposed gradient" else g.clone()
        assert strange.grad.stride() != second.state[strange].get("exp_avg", strange).stride()
        first.step()
        second.step()
    assert strange.stride() == (start if lay == "transposed gradient" else other(start)).stride()
    # twenty steps of a handful of roundings each
    torch.testing.assert_close(strange, plain, rtol=200 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)
    torch.testing.assert_close(
        second.state[strange]["exp_avg_sq"],
        first.state[plain]["exp_avg_sq"],
        rtol=100 * torch.finfo(dtype).eps,
        atol=0,
    )


def published_base(W: Tensor, m: Tensor, v: Tensor, g: Tensor, t: int, lr: float, betas, wd: float) -> Tensor:
    """AdaRMSuon as published, written anew: moments, whitening, energy, five quintics."""
    m.mul_(betas[0]).add_((1 - betas[0]) * g)
    v.mul_(betas[1]).add_((1 - betas[1]) * g**2)
    A = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8)
    X = A.reshape(A.shape[0], -1)
    tall = X.shape[0] > X.shape[1]
    X = X.T if tall else X
    X = X / (X.pow(2).sum().sqrt() + 1e-7)
    for _ in range(5):
        S = X @ X.T
        X = 3.4445 * X + (-4.7750 * S + 2.0315 * S @ S) @ X
    O = (X.T if tall else X).reshape(A.shape)
    return W * (1 - lr * wd) - lr * A.pow(2).sum().sqrt() * O


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (5, 2, 3, 3), (1, 7), (7, 1)])
def test_base_is_adarmsuon(shape):
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    p = torch.nn.Parameter(W.clone())
    optimizer = ARS2Neo([p], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.2)
    m, v = torch.zeros_like(W), torch.zeros_like(W)
    for t in range(1, 51):
        g = torch.randn(shape, generator=generator, dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        W = published_base(W, m, v, g, t, 3e-3, (0.9, 0.95), 0.2)
    torch.testing.assert_close(p.detach(), W, rtol=0, atol=1e-12)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_base_is_adarmsuon_for_any_shape_and_size_of_gradient(rows, columns, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    p = torch.nn.Parameter(W.clone())
    optimizer = ARS2Neo([p], lr=0.1, weight_decay=0.0)
    m, v = torch.zeros_like(W), torch.zeros_like(W)
    for t in range(1, 4):
        g = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        W = published_base(W, m, v, g, t, 0.1, (0.9, 0.999), 0.0)
    torch.testing.assert_close(p.detach(), W, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_vector_track_is_adamw_of_torch(dtype):
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(5, 4, generator=generator, dtype=dtype)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    # the optimizer wants at least one matrix
    matrix = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))
    options = {"lr": 0.02, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.3}
    first = ARS2Neo([{"params": [ours], "track": "vector"}, {"params": [matrix]}], **options)
    second = torch.optim.AdamW([theirs], foreach=False, **options)
    for _ in range(50):
        ours.grad = torch.randn(5, 4, generator=generator, dtype=dtype)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    # 50 steps of a few roundings of numbers of order one
    torch.testing.assert_close(ours, theirs, rtol=0, atol=50 * 4 * torch.finfo(dtype).eps)


def one_step(p: Tensor, optimizer: ARS2Neo, gradients: list[Tensor]) -> Tensor:
    for g in gradients:
        before = p.detach().clone()
        p.grad = g.clone()
        optimizer.step()
    return p.detach() - before


SHAPES_OF_MATRICES = [(4, 9), (9, 4), (2, 3, 8), (5, 2, 3, 3)]


@pytest.mark.parametrize("energy", ["reference", "unit", "rms"])
@pytest.mark.parametrize("shape", SHAPES_OF_MATRICES)
def test_adamw_at_rms_follows_adamw_with_the_step_norm_of_base(shape, energy):
    generator = torch.Generator().manual_seed(8)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(5)]

    def step(**options) -> Tensor:
        p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        return one_step(p, ARS2Neo([p], weight_decay=0.0, energy=energy, **options), gradients)

    base, control = step(), step(orthogonalize=False)
    p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    adam = torch.optim.AdamW([p], weight_decay=0.0)
    for g in gradients:
        before = p.detach().clone()
        p.grad = g.clone()
        adam.step()
    A = p.detach() - before
    torch.testing.assert_close(control.norm(), base.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(control / control.norm(), A / A.norm(), rtol=0, atol=1e-12)
    assert (base / base.norm() - A / A.norm()).norm() > 0.1


@pytest.mark.parametrize("orthogonalize", [True, False])
@pytest.mark.parametrize("shape", SHAPES_OF_MATRICES)
def test_unit_energy_steps_by_exactly_lr_times_the_energy(shape, orthogonalize):
    generator = torch.Generator().manual_seed(9)
    p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = ARS2Neo([p], lr=0.01, energy="unit", weight_decay=0.0, orthogonalize=orthogonalize)
    records = []
    optimizer.observe(lambda record: records.append(record.tensors[0].whitened.norm()))
    for _ in range(5):
        moved = one_step(p, optimizer, [torch.randn(shape, generator=generator, dtype=torch.float64)])
        torch.testing.assert_close(moved.norm(), 0.01 * records[-1], rtol=1e-12, atol=0)


def test_a_batch_of_matrices_shares_one_energy():
    p = torch.nn.Parameter(torch.zeros(2, 3, 3, dtype=torch.float64))
    optimizer = ARS2Neo([p], lr=1.0, weight_decay=0.0)
    p.grad = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer.step()
    pieces = []
    for i in range(2):
        q = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
        q.grad = p.grad[i].clone()
        ARS2Neo([q], lr=1.0, weight_decay=0.0).step()
        pieces.append(q.detach())
    # at the first step A = sign(g): E is sqrt(18) for the pair and sqrt(9) for one of them
    torch.testing.assert_close(p.detach(), torch.stack(pieces) * math.sqrt(2), rtol=1e-6, atol=0)


def test_a_one_dimensional_gradient_has_a_shear_of_rounding_noise_that_injection_makes_large():
    """The noise enters with a share alpha of the gradient, so parity is checked on a network without such tensors."""
    w = torch.nn.Parameter(torch.tensor([0.7, 0.3], dtype=torch.float64))  # only its first element is used
    W = torch.nn.Parameter(torch.eye(2, dtype=torch.float64))
    optimizer = ARS2Neo([("w", w), ("W", W)], mode="lazy", k=2, alpha=0.1)
    seen = []
    optimizer.observe(lambda record: seen.append(record.tensors[0]))
    for _ in range(2):
        for _ in optimizer.passes():
            (torch.tanh(w[0]) ** 2 + ((W @ W).sum() - 1) ** 2).backward()
        optimizer.step()
    synced, lazy = seen
    # exactly zero on paper; the floor 1e-12 in the projection and rounding leave this much
    assert 0 < synced.shear.norm() < 1e-10 * synced.adversarial.norm()
    assert (lazy.injected - lazy.gradient).norm() > 1e-3 * lazy.gradient.norm()
