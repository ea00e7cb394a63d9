"""Each rule against its formulas, written once more in float64 by singular values, and against torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

from helpers import draw
from lossscope.optimizer import ENTRIES, OptimizerError, RuleOptimizer, create, settings
from lossscope.optimizer.update.newton_schulz import PRESETS, coefficients, orthogonal_factor
from lossscope.optimizer.update.rules import RULES

FLOAT64 = torch.float64
SHAPES = {"W": (4, 7), "tall": (9, 3), "b": (5,)}
MATRICES = ("W", "tall")
STEPS = 10

Memory = dict[str, Any]
Rule = Callable[[Tensor, Tensor, int, Memory], Tensor]


def norm(x: Tensor) -> float:
    return math.sqrt(sum(float(element) ** 2 for element in x.detach().flatten()))


def polar(A: Tensor) -> Tensor:
    """Five Keller polynomials on the singular values, which is what Newton-Schulz computes without them."""
    U, values, Vh = torch.linalg.svd(A, full_matrices=False)
    images = []
    for value in values:
        x = float(value) / (norm(A) + 1e-7)
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
        images.append(x)
    return U @ torch.diag(torch.tensor(images, dtype=FLOAT64)) @ Vh


def keller(W: Tensor) -> float:
    return math.sqrt(max(1.0, W.shape[0] / W.shape[1]))


def moonlight(W: Tensor) -> float:
    return 0.2 * math.sqrt(max(W.shape))


# -- the references: the next weights from the weights, the gradient, the number of the step and a memory -------------


def adam_parts(g: Tensor, t: int, memory: Memory, b1: float, b2: float, eps: float) -> tuple[Tensor, Tensor]:
    memory["m"] = b1 * memory.get("m", 0 * g) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0 * g) + (1 - b2) * g * g
    m_hat, v_hat = memory["m"] / (1 - b1**t), memory["v"] / (1 - b2**t)
    return m_hat, m_hat / (v_hat.sqrt() + eps)


def adamw(lr: float, wd: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        return (1 - lr * wd) * W - lr * adam_parts(g, t, memory, b1, b2, eps)[1]

    return step


def rmsuon(lr: float, wd: float, unit: bool) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        m_hat, A = adam_parts(g, t, memory, 0.9, 0.999, 1e-8)
        O = polar(m_hat)
        size = norm(A) / norm(O) if unit else norm(A)
        return (1 - lr * wd) * W - lr * size * O

    return step


def mean_momentum(g: Tensor, memory: Memory, b: float, nesterov: bool) -> Tensor:
    B = memory["B"] = b * memory.get("B", 0 * g) + (1 - b) * g
    return (1 - b) * g + b * B if nesterov else B


def muon(lr: float, wd: float, b: float, nesterov: bool, factor: Callable[[Tensor], float]) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        return (1 - lr * wd) * W - lr * factor(W) * polar(mean_momentum(g, memory, b, nesterov))

    return step


def adamuon(lr: float, wd: float, b: float, eps: float) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        O = polar(torch.sign(mean_momentum(g, memory, b, True)))
        V = memory["V"] = b * memory.get("V", 0 * g) + (1 - b) * O * O
        D = O / (V.sqrt() + eps)
        return (1 - lr * wd) * W - lr * 0.2 * math.sqrt(W.numel()) / (norm(D) + eps) * D

    return step


def polargrad(lr: float, wd: float, b: float) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        M = mean_momentum(g, memory, b, False)
        O = polar(M)
        return (1 - lr * wd) * W - lr * sum(
            float(x) * float(y) for x, y in zip(M.flatten(), O.flatten(), strict=True)
        ) * O

    return step


def fismo(lr: float, wd: float, b: float, c: float, d: float) -> Rule:
    """Powers of the metrics are those of Schur's method in scipy, and the inverse is that of LAPACK's elimination."""

    def even(metric: Tensor, measured: Tensor) -> Tensor:
        size = len(metric)
        mixed = c * metric + (1 - c) * (measured + d * metric.trace() / size * torch.eye(size).double())
        return size * mixed / mixed.trace()

    def root(metric: Tensor) -> Tensor:
        return torch.from_numpy(scipy.linalg.fractional_matrix_power(metric.numpy(), -0.5))

    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        m, n = W.shape
        P, Q = memory.get("P", torch.eye(m).double()), memory.get("Q", torch.eye(n).double())
        P = memory["P"] = even(P, g @ torch.linalg.inv(Q) @ g.T / n)
        Q = memory["Q"] = even(Q, g.T @ torch.linalg.inv(P) @ g / m)
        M = mean_momentum(root(P) @ g @ root(Q), memory, b, False)
        return (1 - lr * wd) * W - lr * root(P) @ polar(M) @ root(Q)

    return step


def normuon(lr: float, wd: float, b: float, b2: float) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        O = polar(mean_momentum(g, memory, b, True))
        V = memory.setdefault("V", [0.0] * len(O))
        D = torch.empty_like(O)
        for i, row in enumerate(O):
            V[i] = b2 * V[i] + (1 - b2) * norm(row) ** 2 / len(row)
            D[i] = row / (math.sqrt(V[i]) + 1e-10)
        return (1 - lr * wd) * W - lr * keller(W) * norm(O) / norm(D) * D

    return step


def muoneq(lr: float, wd: float, b: float, which: str) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        B = memory["B"] = b * memory.get("B", 0 * g) + g
        U = g + b * B
        even = U.clone()
        for i in range(len(U)):
            for j in range(U.shape[1]):
                even[i, j] /= math.sqrt(norm(U[i]) ** 2 + 1e-8) if "R" in which else 1.0
                even[i, j] /= math.sqrt(norm(U[:, j]) ** 2 + 1e-8) if "C" in which else 1.0
        return (1 - lr * wd) * W - lr * moonlight(W) * polar(even)

    return step


def sgd(lr: float, wd: float, b: float, nesterov: bool) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        g = g + wd * W
        u = memory["u"] = b * memory.get("u", 0 * g) + g
        return W - lr * (g + b * u if nesterov else u)

    return step


def lion(lr: float, wd: float, b1: float, b2: float) -> Rule:
    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        m = memory.get("m", 0 * g)
        memory["m"] = b2 * m + (1 - b2) * g
        return (1 - lr * wd) * W - lr * torch.sign(b1 * m + (1 - b1) * g)

    return step


def signsgd(lr: float, wd: float) -> Rule:
    return lambda W, g, t, memory: (1 - lr * wd) * W - lr * torch.sign(g)


def clion(lr: float, wd: float, b1: float, b2: float, nu: float) -> Rule:
    """The group of this rule holds one tensor in the reference: `nu` decides alike for all tensors in its cases."""

    def step(W: Tensor, g: Tensor, t: int, memory: Memory) -> Tensor:
        m = memory.get("m", 0 * g)
        memory["m"] = b2 * m + (1 - b2) * g
        c = b1 * m + (1 - b1) * g
        signs = min(abs(float(x)) for x in c.flatten() if x != 0) >= nu
        return (1 - lr * wd) * W - lr * (torch.sign(c) if signs else c)

    return step


LR, WD = 0.03, 0.2
# name, settings, the reference of matrices, the reference of vectors (AdamW at the learning rate of vectors)
CASES: dict[str, tuple[str, dict[str, Any], Rule, Rule]] = {
    "adamw": ("adamw", {}, adamw(LR, WD), adamw(LR, WD)),
    "adamw, own betas": (
        "adamw",
        {"betas": (0.7, 0.8), "eps": 1e-2},
        adamw(LR, WD, 0.7, 0.8, 1e-2),
        adamw(LR, WD, 0.7, 0.8, 1e-2),
    ),
    "sgd": ("sgd", {}, sgd(LR, WD, 0, False), sgd(LR, WD, 0, False)),
    "sgd, momentum": ("sgd", {"momentum": 0.8}, sgd(LR, WD, 0.8, False), sgd(LR, WD, 0.8, False)),
    "sgd, nesterov": ("sgd", {"momentum": 0.8, "nesterov": True}, sgd(LR, WD, 0.8, True), sgd(LR, WD, 0.8, True)),
    "muon": ("muon", {}, muon(LR, WD, 0.95, True, keller), adamw(3e-4, WD, 0.9, 0.95, 1e-10)),
    "muon, plain": (
        "muon",
        {"momentum": 0.5, "nesterov": False, "vector_lr": 0.1},
        muon(LR, WD, 0.5, False, keller),
        adamw(0.1, WD, 0.9, 0.95, 1e-10),
    ),
    "muon, moonlight": (
        "muon",
        {"adjust": "moonlight"},
        muon(LR, WD, 0.95, True, moonlight),
        adamw(3e-4, WD, 0.9, 0.95, 1e-10),
    ),
    "muon, unadjusted": (
        "muon",
        {"adjust": "none"},
        muon(LR, WD, 0.95, True, lambda W: 1.0),
        adamw(3e-4, WD, 0.9, 0.95, 1e-10),
    ),
    "rmsuon": ("rmsuon", {}, rmsuon(LR, WD, True), adamw(LR, WD)),
    "muon@rms": ("muon@rms", {}, rmsuon(LR, WD, False), adamw(LR, WD)),
    "adamuon": ("adamuon", {}, adamuon(LR, WD, 0.95, 1e-8), adamw(3e-4, WD, 0.9, 0.95, 1e-10)),
    "normuon": ("normuon", {"row_beta": 0.8}, normuon(LR, WD, 0.95, 0.8), adamw(3e-4, WD, 0.9, 0.95, 1e-10)),
    "muoneq": ("muoneq", {}, muoneq(LR, WD, 0.95, "R"), adamw(LR, WD, 0.9, 0.95, 1e-10)),
    "muoneq C": ("muoneq", {"equilibrate": "C"}, muoneq(LR, WD, 0.95, "C"), adamw(LR, WD, 0.9, 0.95, 1e-10)),
    "polargrad": ("polargrad", {}, polargrad(LR, WD, 0.95), adamw(3e-4, WD, 0.9, 0.95, 1e-10)),
    "fismo": (
        "fismo",
        {"metric_beta": 0.7, "damping": 0.01},
        fismo(LR, WD, 0.95, 0.7, 0.01),
        adamw(3e-4, WD, 0.9, 0.95, 1e-10),
    ),
    "lion": ("lion", {}, lion(LR, WD, 0.9, 0.99), lion(LR, WD, 0.9, 0.99)),
    "signsgd": ("signsgd", {}, signsgd(LR, WD), signsgd(LR, WD)),
    "clion, signs": ("clion", {"nu": 1e-12}, *2 * (clion(LR, WD, 0.9, 0.99, 1e-12),)),
    "clion, momentum": ("clion", {"nu": 10.0}, *2 * (clion(LR, WD, 0.9, 0.99, 10.0),)),
    "muoneq RC": ("muoneq", {"equilibrate": "RC"}, muoneq(LR, WD, 0.95, "RC"), adamw(LR, WD, 0.9, 0.95, 1e-10)),
}


def gradients(step: int) -> dict[str, Tensor]:
    return {name: draw(1000 + 10 * step + i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def started(dtype: torch.dtype = FLOAT64) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(draw(i, *shape).to(dtype)) for i, (name, shape) in enumerate(SHAPES.items())}


def run(optimizer: torch.optim.Optimizer, weights: dict[str, torch.nn.Parameter], steps: int = STEPS) -> None:
    for t in range(steps):
        for name, g in gradients(t).items():
            if name in weights:
                weights[name].grad = g.to(weights[name].dtype)
        optimizer.step()


@pytest.mark.parametrize(("name", "settings", "matrix", "vector"), CASES.values(), ids=CASES)
def test_ten_steps_are_those_of_the_formulas(name, settings, matrix, vector):
    weights = started()
    run(create(name, list(weights.items()), lr=LR, weight_decay=WD, **settings), weights)
    for label, start in started().items():
        W, memory, rule = start.detach(), {}, matrix if label in MATRICES else vector
        for t in range(STEPS):
            W = rule(W, gradients(t)[label], t + 1, memory)
        torch.testing.assert_close(weights[label].detach(), W, rtol=1e-9, atol=1e-9)


def test_every_rule_has_a_reference():
    """Rules that need more than a gradient have theirs beside the tests of their passes."""
    assert {name for name, *_ in CASES.values()} == {name for name, rule in RULES.items() if rule.needs is None}


@pytest.mark.parametrize("place", ["W", "b"])
def test_one_small_element_in_any_tensor_of_the_group_decides_the_step_of_clion(place):
    """`c` is 0.1 g at the first step: all elements are 0, which do not count, or 0.1 in size, but one is 0.001."""
    weights = {"W": torch.nn.Parameter(torch.ones(2, 2).double()), "b": torch.nn.Parameter(torch.ones(2).double())}
    for nu, signs in ((0.0009, True), (0.0011, False), (0.2, False)):
        optimizer = create("clion", list(weights.items()), nu=nu, lr=1.0)
        for p in weights.values():
            p.data.fill_(1.0)
            p.grad = torch.ones_like(p)
            p.grad.view(-1)[0] = 0.0
        weights[place].grad.view(-1)[1] = -0.01
        optimizer.step()
        for name, p in weights.items():
            moved = 1 - p.detach().view(-1)
            expected = torch.full_like(moved, 1.0 if signs else 0.1)
            expected[0] = 0.0
            expected[1] = expected[1] if name != place else (-1.0 if signs else -0.001)
            torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


def test_a_required_setting_is_one_clear_error_where_it_is_missing():
    words = r"^optimizer clion: nu is required by clion and has no default: pass nu=\.\.\.$"
    with pytest.raises(OptimizerError, match=words):
        create("clion", list(started().items()))
    with pytest.raises(OptimizerError, match="nu=-1 must be at least 0 and finite"):
        create("clion", list(started().items()), nu=-1)
    with pytest.raises(OptimizerError, match=r"^optimizer sam: nu is required by clion"):
        create("sam", list(started().items()), base="clion")
    assert create("sam", list(started().items()), base="clion", nu=0.1).param_groups[0]["nu"] == 0.1
    assert "nu" in settings("clion")
    assert "nu" not in ENTRIES["clion"].usual


# -- independent implementations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.3}, {"betas": (0.5, 0.7), "eps": 1e-3}])
def test_adamw_is_that_of_torch(settings):
    ours, theirs = started(), started()
    run(create("adamw", list(ours.items()), lr=0.03, **settings), ours)
    run(torch.optim.AdamW(theirs.values(), lr=0.03, **settings), theirs)
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)


def test_in_bfloat16_the_second_moment_of_adamw_is_that_of_torch_and_hardly_falls():
    ours, theirs = (torch.nn.Parameter(draw(0, 6, 5).bfloat16()) for _ in range(2))
    optimizer, oracle = create("adamw", [("W", ours)]), torch.optim.AdamW([theirs])
    largest = torch.zeros(6, 5)
    for t in range(40):
        for p, one in ((ours, optimizer), (theirs, oracle)):
            p.grad = (draw(50 + t, 6, 5) * 0.5**t).bfloat16()
            one.step()
        assert torch.equal(optimizer.state[ours]["exp_avg_sq"], oracle.state[theirs]["exp_avg_sq"])
        largest = torch.maximum(largest, optimizer.state[ours]["exp_avg_sq"].float())
    assert torch.equal(optimizer.state[ours]["exp_avg_sq"].float(), largest)  # in float32 it would be 0.96 of it


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.3},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.3},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    ],
)
def test_sgd_is_that_of_torch_bit_for_bit(settings):
    ours, theirs = started(), started()
    run(create("sgd", list(ours.items()), lr=0.03, **settings), ours)
    run(torch.optim.SGD(theirs.values(), lr=0.03, foreach=False, **settings), theirs)
    for name in SHAPES:
        assert torch.equal(ours[name], theirs[name])


def test_momentum_may_be_switched_on_later_and_off_again():
    ours, theirs = started(), started()
    optimizer, oracle = create("sgd", list(ours.items()), lr=0.03), torch.optim.SGD(theirs.values(), lr=0.03)
    for momentum in (0.0, 0.9, 0.5, 0.0):
        for one, weights in ((optimizer, ours), (oracle, theirs)):
            one.param_groups[0]["momentum"] = momentum
            run(one, weights, 2)
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("adjust", "theirs_adjust"), [("keller", "original"), ("moonlight", "match_rms_adamw")])
def test_muon_is_that_of_torch(monkeypatch, adjust, theirs_adjust, nesterov):
    """Torch rounds to bfloat16 for Newton-Schulz; in float64 the two agree but for where the floor 1e-7 is added."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours, theirs = started(), started()
    shared = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    run(create("muon", [(n, ours[n]) for n in MATRICES], adjust=adjust, **shared), ours)
    run(torch.optim.Muon([theirs[n] for n in MATRICES], adjust_lr_fn=theirs_adjust, **shared), theirs)
    for name in MATRICES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("adjust", "theirs_adjust"), [("keller", "original"), ("moonlight", "match_rms_adamw")])
def test_a_step_of_muon_is_that_of_torch_as_it_stands(adjust, theirs_adjust):
    """Its Newton-Schulz rounds to bfloat16, which leaves 3 % of this step: a wrong scale would be 20 % or more."""
    ours, theirs = started(torch.float32), started(torch.float32)
    before = {name: W.detach().clone() for name, W in ours.items()}
    shared = {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9}
    run(create("muon", [(n, ours[n]) for n in MATRICES], adjust=adjust, **shared), ours, steps=1)
    run(torch.optim.Muon([theirs[n] for n in MATRICES], adjust_lr_fn=theirs_adjust, **shared), theirs, steps=1)
    for name in MATRICES:
        assert norm(ours[name] - theirs[name]) < 0.05 * norm(theirs[name] - before[name])


# -- what a step's size and shape are known to be ----------------------------------------------------------------------


def last_record(optimizer: torch.optim.Optimizer, weights: dict[str, torch.nn.Parameter]) -> tuple[dict, dict]:
    """The records of the tenth step, and by how much it moved each tensor."""
    kept: list[Any] = []
    run(optimizer, weights, STEPS - 1)
    before = {name: W.detach().clone() for name, W in weights.items()}
    optimizer.observe(lambda record: kept.append({t.name: t for t in record.tensors}))
    for name, g in gradients(STEPS).items():
        weights[name].grad = g
    optimizer.step()
    return kept[0], {name: before[name] - W.detach() for name, W in weights.items()}


def test_a_step_of_rmsuon_has_the_norm_of_adams():
    weights = started()
    records, moved = last_record(create("rmsuon", list(weights.items()), lr=LR, weight_decay=0.0), weights)
    for name in MATRICES:
        assert norm(moved[name]) == pytest.approx(LR * norm(records[name].whitened), rel=1e-12)


@pytest.mark.parametrize("name", ["muon@rms", "adamw@rms"])
def test_a_control_at_equal_norm_steps_as_far_as_ars2_from_the_same_moments(name):
    """`lr E |O|`, with O of the matrix that the arm orthogonalizes: m_hat or A."""
    weights = started()
    records, moved = last_record(create(name, list(weights.items()), lr=LR, weight_decay=0.0), weights)
    for label in MATRICES:
        A, source = records[label].whitened, records[label].m_hat if name == "muon@rms" else records[label].whitened
        assert norm(moved[label]) == pytest.approx(LR * norm(A) * norm(polar(source)), rel=1e-9)
        direction = polar(source) if name == "muon@rms" else A
        along = float((moved[label] * direction).sum()) / (norm(moved[label]) * norm(direction))
        assert along == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(moved["b"], LR * records["b"].whitened, rtol=1e-9, atol=1e-12)


def test_adamw_at_equal_norm_steps_exactly_as_far_as_ars2():
    ours, theirs = started(), started()
    _, moved = last_record(create("adamw@rms", list(ours.items()), weight_decay=0.0), ours)
    _, reference = last_record(create("ars2-base", list(theirs.items()), weight_decay=0.0), theirs)
    for name in MATRICES:  # the moments are those of the gradients, which are the same
        assert norm(moved[name]) == pytest.approx(norm(reference[name]), rel=1e-9)


def test_a_step_of_adamuon_has_a_root_mean_square_of_a_fifth():
    weights = started()
    _, moved = last_record(create("adamuon", list(weights.items()), lr=LR, weight_decay=0.0), weights)
    for name in MATRICES:
        assert norm(moved[name]) == pytest.approx(LR * 0.2 * math.sqrt(moved[name].numel()), rel=1e-6)


def test_normuon_keeps_the_norm_of_the_orthogonal_factor_and_evens_its_rows():
    weights = started()
    optimizer = create("normuon", list(weights.items()), lr=LR, weight_decay=0.0, row_beta=0.0)
    records, moved = last_record(optimizer, weights)
    for name in MATRICES:
        O, D = records[name].orthogonal, records[name].direction
        assert norm(D) == pytest.approx(norm(O), rel=1e-12)
        assert norm(moved[name]) == pytest.approx(LR * keller(O) * norm(O), rel=1e-12)
        rows = [norm(row) for row in D]  # without a memory every row has the same length
        assert max(rows) == pytest.approx(min(rows), rel=1e-6)
    uneven = [norm(row) for row in records["tall"].orthogonal]
    assert max(uneven) > 1.2 * min(uneven)


@pytest.mark.parametrize("which", ["R", "C", "RC"])
def test_muoneq_orthogonalizes_a_momentum_with_even_rows_or_columns(which):
    weights = started()
    records, _ = last_record(create("muoneq", list(weights.items()), equilibrate=which), weights)
    for name in MATRICES:
        source, B, g = records[name].source, records[name].momentum, records[name].followed
        if which == "RC":  # both from the same U, not one after the other
            U = g + 0.95 * B
            expected = U / torch.outer(U.norm(dim=1), U.norm(dim=0))
            torch.testing.assert_close(source, expected, rtol=1e-7, atol=1e-9)
            continue
        lengths = source.norm(dim=1 if which == "R" else 0)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-7, atol=0)


# -- the norm before Newton-Schulz -------------------------------------------------------------------------------------


def test_the_schatten_norm_bounds_the_singular_values_by_one_and_leaves_fewer_small():
    below = dict.fromkeys(("frobenius", "schatten4"), 0)
    for A in (draw(seed, 96, 96) for seed in range(4)):
        values = torch.linalg.svdvals(A)
        sizes = {"frobenius": float(values.square().sum().sqrt()), "schatten4": float(values.pow(4).sum() ** 0.25)}
        for name, size in sizes.items():
            X = orthogonal_factor(A, [(1.0, 0.0, 0.0)], FLOAT64, norm=name)
            assert float(torch.linalg.matrix_norm(X, ord=2)) <= 1
            torch.testing.assert_close(X, A / size, rtol=1e-8, atol=0)
            images = torch.linalg.svdvals(orthogonal_factor(A, coefficients("keller", 5), FLOAT64, norm=name))
            below[name] += int((images < 0.68).sum())  # the band of five Keller polynomials begins at 0.68
    assert below["schatten4"] < below["frobenius"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (3, 3), (3, 4, 5)])
def test_the_schatten_norm_of_a_matrix_of_rank_one_is_its_frobenius_norm(shape):
    A = draw(0, *shape[:-1], 1) @ draw(1, *shape[:-2], 1, shape[-1])
    triples = coefficients("keller", 5)
    frobenius, schatten = (orthogonal_factor(A, triples, FLOAT64, norm=n) for n in ("frobenius", "schatten4"))
    torch.testing.assert_close(frobenius, schatten, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "ns_norm" in rule.settings])
def test_the_settings_of_newton_schulz_reach_the_step(name):
    def moved(**settings: Any) -> Tensor:
        weights = started()
        run(create(name, list(weights.items()), lr=LR, **settings), weights, 2)
        return weights["W"].detach()

    usual = moved()
    assert not torch.equal(usual, moved(ns_norm="schatten4"))
    assert not torch.equal(usual, moved(ns_steps=4))
    assert not torch.equal(usual, moved(ns_dtype="float32"))
    assert set(PRESETS) >= {"you"}
    assert not torch.equal(usual, moved(newton_schulz="you"))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_an_unknown_rule_or_setting_is_one_sentence():
    with pytest.raises(OptimizerError, match=r"unknown rule 'adam'; known: [^\n]*muon"):
        RuleOptimizer(started().items(), "adam")
    with pytest.raises(OptimizerError, match=r"rule adamw has no setting 'momentum'; known: [^\n]*rho"):
        RuleOptimizer(started().items(), "adamw", momentum=0.9)


@pytest.mark.parametrize("perturbation", ["ars2", "paper"])
def test_a_whitened_ascent_needs_a_second_moment(perturbation):
    with pytest.raises(OptimizerError, match="needs a second-moment estimate and muon keeps none; use 'sam'"):
        RuleOptimizer(started().items(), "muon", mode="sync", perturbation=perturbation)
    RuleOptimizer(started().items(), "rmsuon", mode="sync", perturbation=perturbation)
