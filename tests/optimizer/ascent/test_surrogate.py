"""SAM, ASAM, GSAM and LookSAM against their formulas, on a function whose gradient autograd takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from helpers import draw
from lossscope.optimizer import ARS2Neo, OptimizerError, names, settings
from lossscope.optimizer.ascent.surrogate import SURROGATES, adversarial, gsam
from lossscope.optimizer.update.rules import RULES
from required_settings import ONE_KIND_OF_PASS, create

FLOAT64 = torch.float64
SHAPES = {"W": (3, 4), "b": (3,)}
STEPS = 10

Tensors = dict[str, Tensor]


def loss(weights: Tensors, t: int) -> Tensor:
    return torch.tanh(weights["W"] @ draw(50 + t, 4, 6) + weights["b"][:, None]).square().sum()


def gradient(weights: Tensors, t: int) -> Tensors:
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves, t), list(leaves.values())), strict=True))


def started() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(draw(i, *shape)) for i, (name, shape) in enumerate(SHAPES.items())}


def inner(a: Tensors, b: Tensors) -> float:
    return sum(float(x) * float(y) for n in a for x, y in zip(a[n].flatten(), b[n].flatten(), strict=True))


def trained(name: str, base: str, steps: int = STEPS, **settings: Any) -> tuple[Tensors, list[Any]]:
    """The weights after some steps, and what each step followed."""
    weights, followed = started(), []
    optimizer = create(name, list(weights.items()), base=base, lr=0.05, weight_decay=0.1, **settings)
    optimizer.observe(lambda r: followed.append({t.name: t.followed.clone() for t in r.tensors}))
    for t in range(steps):
        for p in optimizer.passes():
            p.backward(loss(weights, t))
        optimizer.step()
    return {n: w.detach() for n, w in weights.items()}, followed


# -- the references ----------------------------------------------------------------------------------------------------


def at_sam(w: Tensors, g: Tensors, rho: float) -> Tensors:
    size = math.sqrt(inner(g, g))
    return {n: w[n] + rho * g[n] / size for n in w}


def at_asam(w: Tensors, g: Tensors, rho: float) -> Tensors:
    scaled = {n: w[n].abs() * g[n] for n in w}
    size = math.sqrt(inner(scaled, scaled))
    return {n: w[n] + rho * w[n] ** 2 * g[n] / size for n in w}


def sam(w: Tensors, t: int, memory: dict[str, Any]) -> Tensors:
    return gradient(at_sam(w, gradient(w, t), 0.05), t)


def asam(w: Tensors, t: int, memory: dict[str, Any]) -> Tensors:
    return gradient(at_asam(w, gradient(w, t), 0.5), t)


def gsam_of_the_paper(w: Tensors, t: int, memory: dict[str, Any]) -> Tensors:
    g = gradient(w, t)
    g_s = gradient(at_sam(w, g, 0.05), t)
    size, size_s = math.sqrt(inner(g, g)), math.sqrt(inner(g_s, g_s))
    cosine = inner(g, g_s) / (size * size_s)
    g_perp = {n: g[n] - cosine * size * g_s[n] / size_s for n in g}
    return {n: g_s[n] - 0.4 * g_perp[n] for n in g}


def looksam(w: Tensors, t: int, memory: dict[str, Any]) -> Tensors:
    g = gradient(w, t)
    if t % 5:
        return {n: g[n] + 0.7 * g[n].norm() / (memory[n].norm() + 1e-8) * memory[n] for n in g}
    g_s = gradient(at_sam(w, g, 0.1), t)
    for n in g:  # per tensor
        cosine = float((g[n] * g_s[n]).sum()) / float(g[n].norm() * g_s[n].norm())
        memory[n] = g_s[n] - g_s[n].norm() * cosine * g[n] / g[n].norm()
    return g_s


FOLLOWED: dict[str, Callable[[Tensors, int, dict[str, Any]], Tensors]] = {
    "sam": sam,
    "asam": asam,
    "gsam": gsam_of_the_paper,
    "looksam": looksam,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_ten_steps_with_momentum_are_those_of_the_formulas(name):
    ours, _ = trained(name, "sgd", momentum=0.8)
    w: Tensors = {n: p.detach() for n, p in started().items()}
    u, memory = {n: torch.zeros_like(x) for n, x in w.items()}, {}
    for t in range(STEPS):
        g = FOLLOWED[name](w, t, memory)
        u = {n: 0.8 * u[n] + g[n] + 0.1 * w[n] for n in w}
        w = {n: w[n] - 0.05 * u[n] for n in w}
    for n in w:
        torch.testing.assert_close(ours[n], w[n], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", FOLLOWED)
def test_on_adamw_they_are_adamw_of_another_gradient(name):
    ours, followed = trained(name, "adamw")
    theirs = started()
    memory: dict[str, Any] = {}
    oracle = torch.optim.AdamW(theirs.values(), lr=0.05, weight_decay=0.1)
    for t in range(STEPS):
        g = FOLLOWED[name]({n: p.detach() for n, p in theirs.items()}, t, memory)
        for n, p in theirs.items():
            p.grad = g[n]
            torch.testing.assert_close(followed[t][n], g[n], rtol=1e-6, atol=1e-6)
        oracle.step()
    for n in theirs:
        torch.testing.assert_close(ours[n], theirs[n].detach(), rtol=1e-6, atol=1e-6)


BASES = [*ONE_KIND_OF_PASS, "adarmsuon", "ars2-base", "adamw@rms"]


def test_every_optimizer_of_one_pass_is_a_base_and_every_setting_of_one_is_accepted():
    of_several_kinds = {name for name, rule in RULES.items() if rule.needs}
    assert {name for name in names() if "rho" not in settings(name)} - of_several_kinds == set(BASES)
    for base in of_several_kinds:
        with pytest.raises(OptimizerError, match=f"base='{base}' must be an optimizer of one pass"):
            create("sam", started().items(), base=base)
    for name in FOLLOWED:
        assert {setting for base in BASES for setting in settings(base)} <= set(settings(name))


def test_sam_over_ars2_is_ars2_in_mode_sync_with_the_ascent_of_sam():
    w, _ = trained("sam", "ars2-base", energy="unit", betas=(0.8, 0.9))
    theirs = started()
    optimizer = ARS2Neo(
        theirs.items(), 0.05, (0.8, 0.9), weight_decay=0.1, mode="sync", perturbation="sam", rho=0.05, energy="unit"
    )
    for t in range(STEPS):
        for p in optimizer.passes():
            p.backward(loss(theirs, t))
        optimizer.step()
    for n, p in theirs.items():
        assert torch.equal(w[n], p.detach())


def test_a_base_keeps_what_it_is_made_of():
    made = create("looksam", list(started().items()), base="adamw@rms")
    first = made.param_groups[0]
    assert (first["orthogonalize"], first["mode"], first["k"], first["alpha"]) == (False, "lazy", 5, 0.7)
    assert create("gsam", list(started().items()), base="ars2-base").param_groups[0]["surrogate"] == "gsam"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", FOLLOWED)
def test_an_ascent_goes_with_any_base_and_without_a_radius_is_that_base(name, base):
    ascended, _ = trained(name, base)
    flat, _ = trained(name, base, rho=0.0)
    plain = started()
    optimizer = create(base, list(plain.items()), lr=0.05, weight_decay=0.1)
    for t in range(STEPS):
        for n, g in gradient(plain, t).items():
            plain[n].grad = g
        optimizer.step()
    for n, p in plain.items():
        assert torch.equal(flat[n], p.detach())
        assert bool(torch.isfinite(ascended[n]).all())
        assert not torch.equal(ascended[n], flat[n])


def test_the_ascents_have_their_lengths():
    moved: list[dict[str, tuple[Tensor, Tensor]]] = []
    for name in ("sam", "asam"):
        weights = started()
        optimizer = create(name, list(weights.items()), rho=0.3)
        before = {n: w.detach().clone() for n, w in weights.items()}
        optimizer.observe(lambda r, b=before: moved.append({t.name: (b[t.name], t.perturbation) for t in r.tensors}))
        for p in optimizer.passes():
            p.backward(loss(weights, 0))
        optimizer.step()
    plain, adaptive = moved
    assert sum(float(e.square().sum()) for _, e in plain.values()) == pytest.approx(0.3**2, rel=1e-10)
    assert sum(float((e / w).square().sum()) for w, e in adaptive.values()) == pytest.approx(0.3**2, rel=1e-10)


# -- the surrogate gap -------------------------------------------------------------------------------------------------


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 2))
def test_gsam_gives_up_what_the_base_gradient_has_beside_the_adversarial_one(seed, alpha):
    raised = [draw(seed, 3, 2), draw(seed + 1, 4)]
    base = [draw(seed + 2, 3, 2), draw(seed + 3, 4)]
    made, g_s, g = flat(gsam(raised, base, alpha)), flat(raised), flat(base)
    removed = g_s - made  # alpha g_perp
    assert abs(float(removed @ g_s)) < 1e-9  # <g_perp, g_s> = 0
    assert float(made @ g_s) == pytest.approx(float(g_s @ g_s), rel=1e-9)
    assert float(removed @ g) == pytest.approx(alpha * float(g @ g - (g @ g_s) ** 2 / (g_s @ g_s)), abs=1e-9)


def test_gsam_projects_over_all_tensors_together():
    raised, base = [draw(0, 2), draw(1, 2)], [draw(2, 2), draw(3, 2)]
    one_by_one = [gsam([s], [g], 1.0)[0] for s, g in zip(raised, base, strict=True)]
    assert not torch.allclose(flat(gsam(raised, base, 1.0)), flat(one_by_one))


def test_gsam_of_parallel_gradients_or_without_a_share_is_sam():
    raised, base = [draw(0, 3, 2)], [draw(1, 3, 2)]
    assert torch.equal(gsam(raised, base, 0.0)[0], raised[0])
    torch.testing.assert_close(gsam(raised, [3 * raised[0]], 0.7)[0], raised[0], rtol=1e-12, atol=1e-12)
    assert adversarial(raised, base, 0.7) == raised


def test_gsam_with_a_clipped_norm_follows_the_shortened_direction_and_goes_downhill():
    ends = {}
    for most in (math.inf, 0.3, 0.01):
        weights = started()
        optimizer = create("gsam", list(weights.items()), lr=1e-3, rho=0.5, alpha=0.7)
        directions: list[Tensor] = []
        optimizer.observe(lambda r, kept=directions: kept.append(flat([t.followed.clone() for t in r.tensors])))
        for _ in range(40):
            for p in optimizer.passes():
                p.backward(loss(weights, 0))
            torch.nn.utils.clip_grad_norm_(list(weights.values()), most)
            optimizer.step()
        ends[most] = directions[0], float(loss(weights, 0).detach())
    free, at_end = ends[math.inf]
    for most in (0.3, 0.01):
        short, value = ends[most]
        assert float(short @ free / (short.norm() * free.norm())) == pytest.approx(1, abs=1e-6)
        assert at_end < value < float(loss(started(), 0).detach())


def test_gsam_of_gradients_of_zero_is_zero():
    zero = [torch.zeros(3, dtype=FLOAT64)]
    assert torch.equal(gsam(zero, zero, 0.4)[0], zero[0])


def test_the_gradients_of_gsam_are_left_as_they_were():
    raised, base = [draw(0, 3)], [draw(1, 3)]
    gsam(raised, base, 0.4)
    assert torch.equal(raised[0], draw(0, 3))
    assert torch.equal(base[0], draw(1, 3))


@pytest.mark.parametrize("missing", ["second", "both"])
def test_a_tensor_without_one_of_its_gradients_stays_out_of_the_projection(missing):
    """A branch may be skipped in the second pass only: its tensor does not move, and the others are as without it."""
    alone, weights = started(), started() | {"c": torch.nn.Parameter(draw(9, 2))}
    for own in (alone, weights):
        optimizer = create("gsam", list(own.items()), weight_decay=0.0)
        for p in optimizer.passes():
            total = loss(own, 0)
            if "c" in own and missing == "second" and p.index == 0:
                total = total + 0 * own["c"].sum()
            p.backward(total)
        optimizer.step()
    for n in SHAPES:
        torch.testing.assert_close(weights[n], alone[n], rtol=1e-12, atol=1e-12)
    assert torch.equal(weights["c"].detach(), draw(9, 2))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_step_without_any_gradient_moves_nothing(name, passes):
    weights = started()
    optimizer = create(name, list(weights.items()))
    for p in optimizer.passes():
        if passes == 2 and p.index == 0:
            p.backward(loss(weights, 0))
    optimizer.step()
    for n, shape in SHAPES.items():
        assert weights[n].shape == shape
        assert torch.equal(weights[n].detach(), started()[n].detach())


def test_an_unknown_surrogate_or_base_is_one_sentence():
    assert set(SURROGATES) == {"adversarial", "gsam"}
    for base, near in (("adm", "did you mean adamw"), ("ars2-lazy", "did you mean ars2-base"), ("sam", "did you mean")):
        words = rf"^optimizer sam: base='{base}' must be an optimizer of one pass; {near}[^\n]*$"
        with pytest.raises(OptimizerError, match=words):
            create("sam", list(started().items()), base=base)


@pytest.mark.parametrize(
    ("base", "setting", "value"),
    [
        ("adamw", "momentum", 0.9),
        ("sgd", "vector_lr", 0.1),
        ("muon", "energy", "rms"),
        ("adamw@rms", "orthogonalize", 1),
    ],
)
def test_a_setting_that_another_base_has_is_one_sentence(base, setting, value):
    with pytest.raises(OptimizerError, match=rf"^optimizer sam: base {base} has no setting '{setting}'; [^\n]+$"):
        create("sam", list(started().items()), base=base, **{setting: value})
