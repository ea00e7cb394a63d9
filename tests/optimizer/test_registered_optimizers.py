"""Guarantees of every registered optimizer in one table; registering an optimizer tests it."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, OneCycleLR

from helpers import draw
from lossscope.optimizer import ENTRIES, OptimizerError, RhoSchedule, StepRecord, names, settings
from lossscope.optimizer.update.rule import Need
from lossscope.optimizer.update.rules import RULES
from required_settings import create

FLOAT64 = torch.float64
NAMES = names()
# relatives of another one in the list, with the same passes and state: in the slow suite
RELATIVES = {"rmsuon", "muon@rms", "muoneq", "signsgd", "adarmsuon", "asam", "adamw@rms", "ars2-random", "ars2-timer"}
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in RELATIVES else ()) for name in NAMES]
)
NEEDS = {name: RULES[name].needs for name in NAMES if name in RULES and RULES[name].needs}
ONE_GRADIENT_KIND = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in RELATIVES else ())
        for name in NAMES
        if name not in NEEDS  # whose passes are of several kinds
    ],
)
ASCENDING = tuple(name for name in NAMES if "rho" in settings(name))

# State of a matrix between steps (Adam's moments, a momentum, or nothing), and True if its step has an orthogonal
# factor. A vector keeps Adam's moments, or what a matrix keeps if the rule steps both. A rule without a row here is
# tested against its own declaration.
DECLARED = {
    name: ("moments" if rule.adam_moments else "momentum" if rule.momentum else "nothing", rule.orthogonalizes)
    for name, rule in RULES.items()
}
KEEPS: dict[str, tuple[str, bool]] = {
    **DECLARED,
    "adamw": ("moments", False),
    "sgd": ("nothing", False),
    "muon": ("momentum", True),
    "rmsuon": ("moments", True),
    "adarmsuon": ("moments", True),
    "adamuon": ("momentum", True),
    "normuon": ("momentum", True),
    "muoneq": ("momentum", True),
    "ars2-base": ("moments", True),
    "ars2-sync": ("moments", True),
    "ars2-lazy": ("moments", True),
    "ars2-aga": ("moments", True),
    "ars": ("moments", True),
    "sam": ("nothing", False),
    "asam": ("nothing", False),
    "gsam": ("nothing", False),
    "looksam": ("nothing", False),
    "adamw@rms": ("moments", True),
    "muon@rms": ("moments", True),
    "ars2-timer": ("moments", True),
    "ars2-random": ("moments", True),
    "sophia-g": ("momentum", False),
    "adahessian": ("momentum", False),
    "zo-gd": ("nothing", False),
    "kfac": ("factors", False),
}


def adamw_vectors(name: str) -> bool:
    """Return True if vectors take AdamW's step."""
    return name not in RULES or RULES[name].adamw_vectors


# Guarantees that a method cannot give, and why. Each is shown not to hold: a cell that heals fails here.
CANNOT: dict[tuple[str, str], str] = {
    ("looksam", "clipped"): "the injected shear adds alpha of the clipped gradient's norm",
    ("ars2-lazy", "clipped"): "the injected shear adds alpha of the clipped gradient's norm",
    ("ars2-aga", "clipped"): "the injected shear adds alpha of the clipped gradient's norm",
    ("ars2-timer", "clipped"): "the injected shear adds alpha of the clipped gradient's norm",
    **{
        (
            name,
            "forgets in bfloat16",
        ): "moments have the dtype of the weights, as in torch.optim.AdamW, and the nearest "
        "bfloat16 to 0.999 v is v: keep weights in float32, or set betas up to (0.99, 0.99)"
        for name, (kept, _) in KEEPS.items()
        if kept in ("moments", "factors")
    },
    **{
        (
            name,
            "cycled momentum",
        ): "torch's schedules cycle betas where there are any, which here are those of vectors: "
        "set cycle_momentum=False"
        for name, (kept, _) in KEEPS.items()
        if kept == "momentum" and adamw_vectors(name)
    },
    ("ars2-random", "first gradient shows"): "it plays no part: neither the ascent nor the step is made of it",
    ("zo-gd", "waits for a gradient"): "two losses do not tell which parameters the model uses: all are displaced",
    ("zo-gd", "statistics at the weights"): "both of its passes are run at displaced weights",
}


def cells(guarantee: str) -> Any:
    """Every name; where the guarantee cannot be given the test must fail, for the reason in the table."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[*_fails(name, guarantee), *([pytest.mark.slow] if name in RELATIVES else [])])
            for name in NAMES
        ],
    )


def _fails(name: str, guarantee: str) -> list[Any]:
    reason = CANNOT.get((name, guarantee))
    return [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if reason else []


def test_every_registered_optimizer_has_a_row():
    assert set(KEEPS) == set(NAMES)
    assert {name for name, _ in CANNOT} <= set(NAMES)


# -- a problem -----------------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Two layers, with batch statistics and dropout where asked for, and a branch that is used on demand."""

    def __init__(self, *, busy: bool = False, branch: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(8) if busy else nn.Identity()
        self.drop = nn.Dropout(0.4) if busy else nn.Identity()
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.late = nn.Linear(8, 3) if branch else None
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(draw(i, *p.shape) / 2)
        self.double()

    def forward(self, x: Tensor, *, branch: bool = False) -> Tensor:
        h = torch.tanh(self.middle(self.drop(torch.tanh(self.norm(self.first(x))))))
        return self.last(h) + (self.late(h) if branch and self.late is not None else 0)


def batch(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    x = draw(100 + step, size, 5)
    return x, (x[:, :3] + 0.3 * draw(500 + step, size, 3)).argmax(1)


def loss_of(model: Busy, step: int, given: Callable[[Tensor, Tensor], Tensor] | None = None, **more: Any) -> Tensor:
    x, y = batch(step)
    logits = model(x.to(model.last.weight.dtype), **more)
    return F.cross_entropy(logits, y if given is None else given(logits, y))


def started(name: str, model: Busy, **overrides: Any) -> Any:
    """The optimizer with a learning rate that suits it, periods of five and some decay."""
    chosen = {"lr": {"adamw": 0.02, "sgd": 0.3}.get(name, 0.01), "weight_decay": 0.1}
    chosen |= {"k": 5} if "k" in settings(name) else {}
    chosen |= {"vector_lr": 0.01} if ENTRIES[name].usual.get("vector_lr") else {}
    chosen |= {"period": 5} if "period" in settings(name) else {}
    chosen |= {"mu": 0.1} if "mu" in settings(name) and model.last.weight.dtype == torch.bfloat16 else {}
    return create(name, model, **{**chosen, **overrides})


def train(model: Busy, optimizer: Any, steps: range, **more: Any) -> None:
    for step in steps:
        for p in optimizer.passes(model):
            p.backward(loss_of(model, step, given=p.labels, **more))
        optimizer.step()


def tensors(model: Busy, optimizer: Any) -> list[Tensor]:
    states = [optimizer.state[p] for p in model.parameters() if p in optimizer.state]
    return [*copies(model), *(state[key] for state in states for key in sorted(state))]


def copies(model: Busy) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def records_of(optimizer: Any) -> list[StepRecord]:
    kept: list[StepRecord] = []
    optimizer.observe(kept.append)
    return kept


# -- names, groups and state ---------------------------------------------------------------------------------------


@EVERY
def test_parameters_keep_their_names(name):
    model = Busy()
    optimizer = started(name, model)
    records = records_of(optimizer)
    train(model, optimizer, range(1))
    labels = {label for label, _ in model.named_parameters()}
    assert {label for group in optimizer.state_dict()["param_groups"] for label in group["param_names"]} == labels
    assert {t.name: id(t.parameter) for t in records[0].tensors} == {n: id(p) for n, p in model.named_parameters()}


@EVERY
def test_a_group_has_its_own_learning_rate_and_decay(name):
    model, alone = Busy(), Busy()
    rest = [(label, p) for label, p in model.named_parameters() if not label.startswith("middle")]
    optimizer = create(name, rest, lr=0.01)
    optimizer.add_param_group({"params": list(model.middle.named_parameters("middle")), "lr": 0.0})
    before = copies(model)
    train(model, optimizer, range(3))
    moved = {label: not torch.equal(t, b) for (label, t), b in zip(model.state_dict().items(), before, strict=True)}
    assert moved == {label: not label.startswith("middle") for label in moved}
    assert {label for label, _ in alone.named_parameters()} == {
        label for group in optimizer.param_groups for label in group["param_names"]
    }


@pytest.mark.parametrize("dtype", [FLOAT64, torch.bfloat16])
@EVERY
def test_a_run_resumed_in_mid_cycle_goes_on_bit_for_bit(name, dtype):
    whole = Busy(busy=True).to(dtype)
    optimizer = started(name, whole)
    torch.manual_seed(0)
    train(whole, optimizer, range(3))
    file = io.BytesIO()
    torch.save((whole.state_dict(), optimizer.state_dict(), torch.get_rng_state()), file)
    train(whole, optimizer, range(3, 9))
    file.seek(0)
    weights, state, random = torch.load(file, weights_only=True)
    again = Busy(busy=True).to(dtype)
    again.load_state_dict(weights)
    resumed = started(name, again)
    resumed.load_state_dict(state)
    torch.set_rng_state(random)
    train(again, resumed, range(3, 9))
    assert same(tensors(whole, optimizer), tensors(again, resumed))
    assert optimizer.trigger_state == resumed.trigger_state
    assert all(bool(torch.isfinite(t).all()) for t in tensors(again, resumed))


@EVERY
def test_a_run_repeats_bit_for_bit(name):
    ends = []
    for _ in range(2):
        model = Busy(busy=True)
        optimizer = started(name, model)
        torch.manual_seed(0)
        train(model, optimizer, range(6))
        ends.append(tensors(model, optimizer))
    assert same(*ends)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@EVERY
def test_a_copy_goes_on_like_the_original_and_unseen(name, copied: Callable[[Any], Any]):
    model = Busy()
    optimizer = started(name, model)
    records = records_of(optimizer)
    train(model, optimizer, range(3))
    twin, its_optimizer = copied((model, optimizer))
    train(twin, its_optimizer, range(3, 7))
    assert len(records) == 3
    assert its_optimizer.param_groups[0]["params"][0] is not optimizer.param_groups[0]["params"][0]
    train(model, optimizer, range(3, 7))
    assert same(tensors(model, optimizer), tensors(twin, its_optimizer))


# -- records -------------------------------------------------------------------------------------------------------


@EVERY
def test_a_record_has_what_the_method_has_and_none_for_the_rest(name):
    model = Busy()
    optimizer = started(name, model)
    records = records_of(optimizer)
    train(model, optimizer, range(8))
    first = optimizer.param_groups[0]
    keeps, orthogonal = KEEPS[name]
    stores = first["mode"] in ("lazy", "aga", "timer")
    assert [r.step for r in records] == list(range(1, 9))
    assert not stores or 2 <= sum(r.synced for r in records) < 8
    for i, record in enumerate(records):
        injects = stores and not record.synced
        assert record.synced or first["mode"] != "sync"
        assert not record.synced or first["mode"] != "base"
        assert first["mode"] != "lazy" or record.synced == (i % 5 == 0)
        assert record.loss is not None
        assert (record.adversarial_loss is not None) == record.synced
        assert (record.phi is not None) == (first["mode"] == "aga" and i > 0)
        assert (record.threshold is not None) == (first["mode"] == "aga")
        assert (record.alpha is not None) == injects
        assert bool(record.newton_schulz) == orthogonal
        for t in record.tensors:
            matrix = t.parameter.ndim == 2
            adam = keeps == "moments" or (not matrix and keeps in ("momentum", "factors") and adamw_vectors(name))
            momentum = keeps == "momentum" and (matrix or not adamw_vectors(name))
            has = {
                "gradient": True,
                "perturbation": record.synced,
                "adversarial": record.synced,
                "stale_shear": stores and i > 0,
                "shear": stores and record.synced,
                "injected": injects,
                "followed": True,
                "exp_avg": adam,
                "exp_avg_sq": adam,
                "first_correction": adam,
                "second_correction": adam,
                "eps": adam,
                "v_hat": adam,
                "whitened": adam,
                "momentum": momentum,
                "m_hat": adam or momentum,
                "source": matrix and orthogonal,
                "orthogonal": matrix and orthogonal,
                "matrix_shape": matrix and orthogonal,
                "direction": True,
                "scale": True,
                "update": True,
            }
            assert {field: getattr(t, field) is not None for field in has} == has, (record.step, t.name)


@EVERY
def test_the_update_of_a_record_is_what_the_weights_moved_by(name):
    model = Busy()
    optimizer = started(name, model, weight_decay=0.0)
    records = records_of(optimizer)
    for step in range(6):
        before = {label: p.detach().clone() for label, p in model.named_parameters()}
        train(model, optimizer, range(step, step + 1))
        for t in records[-1].tensors:
            moved = before[t.name] - t.parameter.detach()
            torch.testing.assert_close(t.update, moved, rtol=1e-9, atol=1e-12)


# -- mixed precision, accumulation, schedules, clipping --------------------------------------------------------------


@ONE_GRADIENT_KIND
def test_scaled_losses_give_the_same_run(name):
    plain, scaled = Busy().float(), Busy().float()
    without, optimizer = started(name, plain), started(name, scaled)
    train(plain, without, range(7))
    expected, records = records_of(without), records_of(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for step in range(8):
        for _ in optimizer.passes(scaled, scaler=scaler):
            scaler.scale(loss_of(scaled, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 6:
            assert same(tensors(plain, without), tensors(scaled, optimizer))
    train(plain, without, range(7, 8))
    for ours, theirs in zip(records[-1].tensors, expected[-1].tensors, strict=True):
        torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-6, atol=0)  # in one unit


@ONE_GRADIENT_KIND
def test_a_scaler_that_the_passes_were_not_told_of_is_refused_where_there_are_two_gradients(name):
    model, told = Busy().float(), Busy().float()
    optimizer, other = started(name, model), started(name, told)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copies(model)
    for _ in optimizer.passes(model):
        scaler.scale(loss_of(model, 0)).backward()
    if name in ASCENDING:
        with pytest.raises(OptimizerError, match=r"^a GradScaler has unscaled the second gradient[^\n]+$"):
            scaler.step(optimizer)
        assert same(before, copies(model))
        scaler.update()
    else:  # one gradient, which the scaler has unscaled
        scaler.step(optimizer)
        scaler.update()
        train(told, other, range(1))
        assert same(tensors(model, optimizer), tensors(told, other))
    for _ in optimizer.passes(model, scaler=scaler):
        scaler.scale(loss_of(model, 1) * math.inf).backward()
    scaler.step(optimizer)  # leaves the step out
    scaler.update()
    train(model, optimizer, range(1, 3))  # and without a scaler again
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    for _ in optimizer.passes(model):
        disabled.scale(loss_of(model, 3)).backward()
    disabled.step(optimizer)
    assert not same(before, copies(model))


@ONE_GRADIENT_KIND
def test_scaled_losses_that_are_clipped_give_the_same_run(name):
    plain, scaled = Busy().float(), Busy().float()
    without, optimizer = started(name, plain), started(name, scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for step in range(4):
        for p in without.passes(plain):
            p.backward(loss_of(plain, step, given=p.labels))
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        without.step()
        for _ in optimizer.passes(scaled, scaler=scaler):
            scaler.scale(loss_of(scaled, step)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(scaled.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert same(tensors(plain, without), tensors(scaled, optimizer))


@ONE_GRADIENT_KIND
def test_a_scaler_that_steps_with_a_closure_is_refused_and_nothing_moves(name):
    model = Busy().float()
    optimizer = started(name, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copies(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        scaler.scale(loss).backward()
        return loss

    closure()
    with pytest.raises(OptimizerError, match=r"^a GradScaler took a step with a closure[^\n]+$"):
        scaler.step(optimizer, closure)
    assert same(before, copies(model))
    disabled = torch.amp.GradScaler("cpu", enabled=False)  # that one calls step() and does nothing else
    disabled.step(optimizer, lambda: (optimizer.zero_grad(), loss_of(model, 0).backward())[1])
    assert not same(before, copies(model))


@ONE_GRADIENT_KIND
def test_a_plain_step_where_the_passes_were_told_of_a_scaler_is_refused_and_the_scaler_still_takes_it(name):
    model, twin = Busy().float(), Busy().float()
    optimizer, other = started(name, model), started(name, twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copies(model)
    for _ in optimizer.passes(model, scaler=scaler):
        scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(OptimizerError, match=r"^passes\(\) was given a GradScaler[^\n]+$"):
        optimizer.step()
    assert same(before, copies(model))
    scaler.step(optimizer)
    train(twin, other, range(1))
    assert same(tensors(model, optimizer), tensors(twin, other))
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    for _ in optimizer.passes(model, scaler=disabled):
        disabled.scale(loss_of(model, 1)).backward()
    optimizer.step()


@pytest.mark.parametrize("name", NEEDS)
def test_a_scaler_is_one_sentence_where_passes_are_of_several_kinds_and_nothing_moves(name):
    model = Busy().float()
    optimizer = started(name, model)
    before = copies(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with pytest.raises(OptimizerError, match=rf"^{name} does not work with a GradScaler[^\n]+$"):
        next(optimizer.passes(model, scaler=scaler))
    for p in optimizer.passes(model):
        p.backward(loss_of(model, 0, given=p.labels))
    scaler.scale(torch.ones(()))  # which makes it ready
    with pytest.raises(OptimizerError, match=rf"^{name} does not work with a GradScaler[^\n]+$"):
        scaler.step(optimizer)
    assert same(before, copies(model))
    disabled = torch.amp.GradScaler("cpu", enabled=False)  # that one calls step() and does nothing else
    for p in optimizer.passes(model, scaler=disabled):
        p.backward(loss_of(model, 0, given=p.labels))
    disabled.step(optimizer)
    assert not same(before, copies(model))


@ONE_GRADIENT_KIND
def test_a_step_that_overflows_is_left_out_and_the_next_one_taken(name):
    model = Busy().float()
    optimizer = started(name, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for step in range(4):
        before = copies(model)
        for _ in optimizer.passes(model, scaler=scaler):
            scaler.scale(loss_of(model, step) * (math.inf if step == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same(before, copies(model)) == (step == 2)
    assert scaler.get_scale() == 2.0**9
    assert all(bool(torch.isfinite(t).all()) for t in tensors(model, optimizer))


@EVERY
def test_weights_in_bfloat16_train_and_keep_their_dtype(name):
    model = Busy().bfloat16()
    optimizer = started(name, model)
    before = copies(model)
    train(model, optimizer, range(6))
    assert not any(torch.equal(a, b) for a, b in zip(before, copies(model), strict=True))
    for p in model.parameters():
        assert bool(torch.isfinite(p).all())
        assert {t.dtype for key, t in optimizer.state[p].items() if key != "step"} <= {torch.bfloat16}


@cells("forgets in bfloat16")
def test_in_bfloat16_what_is_remembered_of_a_gradient_fades(name):
    """Decay by 0.999 over thirty steps is 3 %."""
    model = Busy().bfloat16()
    optimizer = started(name, model)
    train(model, optimizer, range(1))
    kept = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    rows = [(state, key) for state in optimizer.state.values() for key in kept if key in state]
    before = [float(state[key].float().norm()) for state, key in rows]
    for step in range(30):
        for p in optimizer.passes(model):
            p.backward(0.0 * loss_of(model, step, given=p.labels))
        optimizer.step()
    assert all(float(state[key].float().norm()) < 0.98 * was for (state, key), was in zip(rows, before, strict=True))


@EVERY
def test_accumulated_micro_batches_are_the_batch(name):
    whole, parts = Busy(), Busy()
    train(whole, by_whole := started(name, whole), range(6))
    optimizer = started(name, parts)
    for step in range(6):
        x, y = batch(step)
        for p in optimizer.passes(parts):
            for xs, ys in zip(x.split(4), y.split(4), strict=True):
                logits = parts(xs)
                p.backward(F.cross_entropy(logits, p.labels(logits, ys)) / 3)
        optimizer.step()
    for a, b in zip(tensors(whole, by_whole), tensors(parts, optimizer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert float(by_whole.last.losses[0]) == pytest.approx(float(optimizer.last.losses[0]), rel=1e-9)


@EVERY
def test_a_closure_is_the_loop_of_passes(name):
    looped, closed = Busy(busy=True), Busy(busy=True)
    torch.manual_seed(0)
    train(looped, by_loop := started(name, looped), range(6))
    torch.manual_seed(0)
    optimizer = started(name, closed)
    for step in range(6):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            value = loss_of(closed, step)
            value.backward(create_graph=NEEDS.get(name) is Need.HESSIAN_PRODUCT)
            return value

        if name in NEEDS and NEEDS[name].draws_labels:
            with pytest.raises(OptimizerError, match=rf"^{name} cannot take step\(closure\), whose labels are [^\n]+$"):
                optimizer.step(closure)
            return
        optimizer.step(closure)
    assert same(tensors(looped, by_loop), tensors(closed, optimizer))


def test_a_closure_behind_passes_is_not_called():
    looped, stepped = Busy(), Busy()
    torch.manual_seed(0)
    train(looped, by_loop := started("ars2-sync", looped), range(1))
    torch.manual_seed(0)
    optimizer = started("ars2-sync", stepped)
    for p in optimizer.passes(stepped):
        p.backward(loss_of(stepped, 0, given=p.labels))
    optimizer.step(lambda: pytest.fail("the closure was called"))  # as Lightning's, which does nothing
    assert same(tensors(looped, by_loop), tensors(stepped, optimizer))


@EVERY
def test_a_schedule_drives_the_learning_rate_of_every_group(name):
    scheduled, by_hand = Busy(), Busy()
    optimizer, other = started(name, scheduled), started(name, by_hand)
    usual = [group["lr"] for group in other.param_groups]
    schedule = LambdaLR(optimizer, lambda step: 2.0**-step)
    for step in range(6):
        train(scheduled, optimizer, range(step, step + 1))
        schedule.step()
        for group, lr in zip(other.param_groups, usual, strict=True):
            group["lr"] = lr * 2.0**-step
        train(by_hand, other, range(step, step + 1))
    assert same(copies(scheduled), copies(by_hand))
    assert optimizer.param_groups[0]["lr"] == usual[0] / 64


@cells("cycled momentum")
@pytest.mark.parametrize("schedule", [OneCycleLR, CyclicLR])
def test_a_cycle_of_momentum_reaches_what_matrices_remember_by(name, schedule):
    model = Busy()
    optimizer = started(name, model)
    bounds = {"max_lr": 0.02, "total_steps": 20} if schedule is OneCycleLR else {"base_lr": 0.01, "max_lr": 0.02}
    momenta = {"cycle_momentum": True, "base_momentum": 0.6, "max_momentum": 0.8}
    matrices = optimizer.param_groups[0]
    if not {"momentum", "betas"} & matrices.keys():  # a rule without a memory
        with pytest.raises(ValueError, match="must support momentum or beta1"):
            schedule(optimizer, **momenta, **bounds)
        return
    cycle = schedule(optimizer, **momenta, **bounds)
    setting = "momentum" if "momentum" in matrices else "betas"
    seen = set()
    for step in range(4):
        seen.add(matrices[setting])
        train(model, optimizer, range(step, step + 1))
        cycle.step()
    assert len(seen) == 4
    assert all(0.6 <= (value[0] if setting == "betas" else value) <= 0.8 for value in seen)


@EVERY
def test_a_schedule_of_rho_drives_the_ascent_through_its_group(name):
    if name not in ASCENDING:  # one pass and no radius to schedule
        with pytest.raises(OptimizerError, match="has no setting 'rho'"):
            create(name, Busy(), rho=0.1)
        assert name in NEEDS or len(list(started(name, Busy()).passes())) == 1
        return
    lengths = []
    for shrink in (1.0, 0.5):
        model = Busy()
        optimizer = started(name, model)
        for group in optimizer.param_groups:
            group["rho"] *= shrink
        records = records_of(optimizer)
        train(model, optimizer, range(1))
        lengths.append(torch.stack([t.perturbation.norm() for t in records[0].tensors]))
    assert bool((lengths[0] > 0).all())
    torch.testing.assert_close(lengths[1], lengths[0] / 2, rtol=1e-9, atol=0)
    for group in optimizer.param_groups:
        group["rho"] = 0.0
    assert len(list(optimizer.passes(model))) == 1


@pytest.mark.parametrize("schedule", ["one cycle", "cosine"])
@EVERY
def test_a_radius_follows_a_schedule_of_the_learning_rate_and_a_checkpoint_keeps_it(name, schedule):
    def scheduled(model: Busy, optimizer: Any) -> tuple[Any, RhoSchedule]:
        driver = (
            OneCycleLR(optimizer, max_lr=0.02, total_steps=12, cycle_momentum=False)
            if schedule == "one cycle"
            else CosineAnnealingLR(optimizer, T_max=12, eta_min=0.001)
        )
        return driver, RhoSchedule(optimizer, rho_max=0.2, rho_min=0.05, lr_max=0.02, lr_min=0.001)

    def go(model: Busy, optimizer: Any, both: tuple[Any, RhoSchedule], steps: range) -> list[tuple[float, float]]:
        seen = []
        for step in steps:
            first = optimizer.param_groups[0]
            seen.append((first["lr"], first["rho"]))
            assert len({group["rho"] for group in optimizer.param_groups}) == 1
            train(model, optimizer, range(step, step + 1))
            for one in both:
                one.step()
        return seen

    model = Busy()
    optimizer = started(name, model, lr=0.02)
    if name not in ASCENDING:
        with pytest.raises(OptimizerError, match="takes one pass a step and has no radius to schedule"):
            RhoSchedule(optimizer, rho_max=0.2, lr_max=0.02)
        return
    both = scheduled(model, optimizer)
    seen = go(model, optimizer, both, range(5))
    again = copy.deepcopy(model)
    resumed = started(name, again, lr=0.02)
    its = scheduled(again, resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    its[0].load_state_dict(both[0].state_dict())
    late = go(model, optimizer, both, range(5, 11))
    assert late == go(again, resumed, its, range(5, 11))
    assert same(tensors(model, optimizer), tensors(again, resumed))
    for lr, rho in seen + late:
        share = min(1.0, max(0.0, (lr - 0.001) / 0.019))
        assert rho == pytest.approx(0.05 + 0.15 * share, rel=1e-12)
    assert len({rho for _, rho in seen + late}) > 8
    assert any(0.19 < rho <= 0.2 for _, rho in seen + late)


def clipped(name: str) -> Iterator[StepRecord]:
    """The records of six steps whose gradients are clipped to a thousandth after the last pass."""
    model = Busy()
    optimizer = started(name, model)
    records = records_of(optimizer)
    for step in range(6):
        for p in optimizer.passes(model):
            p.backward(loss_of(model, step, given=p.labels))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        yield records[-1]


@cells("clipped")
def test_clipping_after_the_last_pass_bounds_what_is_followed(name):
    for record in clipped(name):
        followed = torch.stack([t.followed.norm() for t in record.tensors]).norm()
        assert float(followed) == pytest.approx(1e-3, rel=1e-2 if record.step == 1 else 1e-3)


@EVERY
def test_clipping_after_the_last_pass_leaves_the_direction_of_what_is_followed(name):
    """Over a step with two gradients and one after it, at weights that stay."""
    seen: list[list[Tensor]] = []
    for most in (math.inf, 1e-2):
        model = Busy()
        optimizer = started(name, model, weight_decay=0.0)
        for group in optimizer.param_groups:
            group.update(lr=0.0, rho=group["rho"] * 20)  # far enough for a second gradient of its own
        kept: list[Tensor] = []
        optimizer.observe(lambda r, kept=kept: kept.append(torch.cat([t.followed.flatten() for t in r.tensors])))
        for _ in range(2):
            for p in optimizer.passes(model):
                p.backward(loss_of(model, 0, given=p.labels))
            torch.nn.utils.clip_grad_norm_(model.parameters(), most)
            optimizer.step()
        seen.append(kept)
    for free, clipped_ in zip(*seen, strict=True):
        assert float(F.cosine_similarity(free, clipped_, dim=0)) == pytest.approx(1, abs=1e-6)
        assert float(clipped_.norm()) < 0.5 * float(free.norm())


@EVERY
def test_clipping_is_what_the_step_is_made_of(name):
    """The gradient of the last pass enters a step as it was clipped, independent of the terms that are added."""
    for record in clipped(name):
        of_last = [t.adversarial if record.synced else t.gradient for t in record.tensors]
        assert float(torch.stack([g.norm() for g in of_last]).norm()) == pytest.approx(1e-3, rel=1e-3)


# -- the second pass leaves no trace -------------------------------------------------------------------------------


@cells("statistics at the weights")
def test_batch_statistics_count_once_a_step(name):
    model = Busy(busy=True)
    optimizer = started(name, model, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    twin = Busy(busy=True)
    torch.manual_seed(0)
    train(model, optimizer, range(6))
    torch.manual_seed(0)
    for step in range(6):
        loss_of(twin, step)
    assert int(model.norm.num_batches_tracked) == 6
    assert same(copies(model), copies(twin))


@EVERY
def test_both_passes_draw_the_same_mask_and_the_stream_goes_on_as_after_one(name):
    model = Busy(busy=True)
    optimizer = started(name, model)
    masks: list[Tensor] = []
    model.drop.register_forward_hook(lambda module, inputs, output: masks.append(output.detach() != 0))
    torch.manual_seed(0)
    seen = []
    for step in range(6):
        masks.clear()
        train(model, optimizer, range(step, step + 1))
        assert all(torch.equal(masks[0], mask) for mask in masks)
        seen.append(masks[0])
    assert not torch.equal(seen[0], seen[1])
    twin = Busy(busy=True)
    torch.manual_seed(0)
    for step in range(6):
        loss_of(twin, step)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    train(model, optimizer, range(6))
    assert torch.equal(torch.get_rng_state(), after)


@EVERY
def test_an_exception_in_the_last_pass_leaves_the_weights_bit_for_bit(name):
    model = Busy(busy=True)
    optimizer = started(name, model)
    before = copies(model)
    displaced = NEEDS.get(name) is Need.TWO_LOSSES
    last = 1 if name in ASCENDING or displaced else 0

    def broken() -> None:
        for p in optimizer.passes(model):
            p.backward(loss_of(model, 0, given=p.labels))
            if p.index == last:
                assert same(before[:1], copies(model)[:1]) == (last == 0 and not displaced)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    for label, now in model.named_parameters():
        assert torch.equal(now, dict(Busy(busy=True).named_parameters())[label])
    assert optimizer.trigger_state.clock == 0
    train(model, optimizer, range(3))
    assert optimizer.trigger_state.clock == 3


@EVERY
def test_gradients_are_left_as_the_last_pass_made_them(name):
    model = Busy()
    optimizer = started(name, model)
    for step in range(6):
        for p in optimizer.passes(model):
            p.backward(loss_of(model, step, given=p.labels))
        before = [(q, q.grad, q.grad.clone()) for q in model.parameters()]
        optimizer.step()
        for q, gradient, value in before:
            assert q.grad is gradient
            assert torch.equal(gradient, value)


# -- gradients that are missing, late, zero, or not finite -------------------------------------------------------------


@cells("waits for a gradient")
def test_a_parameter_may_get_its_first_gradient_late(name):
    model = Busy(branch=True)
    optimizer = started(name, model)
    untouched = [p.detach().clone() for p in model.late.parameters()]
    train(model, optimizer, range(3))
    assert all(torch.equal(p, was) for p, was in zip(model.late.parameters(), untouched, strict=True))
    assert not any("step" in optimizer.state.get(p, ()) for p in model.late.parameters())
    train(model, optimizer, range(3, 8), branch=True)
    for p, was in zip(model.late.parameters(), untouched, strict=True):
        assert not torch.equal(p, was)
        assert bool(torch.isfinite(p).all())
        assert int(optimizer.state[p]["step"]) == 5


@EVERY
def test_a_tensor_frozen_in_the_middle_stays_where_it_is(name):
    model = Busy()
    optimizer = started(name, model)
    train(model, optimizer, range(2))
    model.middle.requires_grad_(False)
    before = [p.detach().clone() for p in model.middle.parameters()]
    train(model, optimizer, range(2, 8))
    assert all(torch.equal(p, was) for p, was in zip(model.middle.parameters(), before, strict=True))
    assert all(int(optimizer.state[p]["step"]) == 2 for p in model.middle.parameters())
    model.middle.requires_grad_(True)
    train(model, optimizer, range(8, 10))
    assert not any(torch.equal(p, was) for p, was in zip(model.middle.parameters(), before, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("dtype", [FLOAT64, torch.bfloat16])
@EVERY
def test_gradients_of_zero_move_nothing_but_decay(name, dtype):
    model = Busy().to(dtype)
    optimizer = started(name, model, weight_decay=0.25)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {p: p.detach().clone() for p in model.parameters()}
    for step in range(6):
        for p in optimizer.passes(model):
            p.backward(0.0 * loss_of(model, step, given=p.labels))
        optimizer.step()
        for p, was in expected.items():
            decoupled = (
                RULES[ENTRIES[name].usual.get("base", name)].decoupled_decay if KEEPS[name][0] == "nothing" else True
            )
            was.mul_(1 - rates[p] * 0.25) if decoupled else was.sub_(was, alpha=rates[p] * 0.25)
    for p, was in expected.items():
        assert torch.equal(p, was)
    assert all(bool(torch.isfinite(t).all()) for t in tensors(model, optimizer))
    train(model, optimizer, range(2))
    assert all(bool(torch.isfinite(t).all()) for t in tensors(model, optimizer))


def assert_shown(name: str, value: float, before: int, *, first: bool) -> None:
    """One element of the first or of the last gradient of a step is not finite: so is its tensor after that step."""
    for label in ("middle.weight", "last.bias"):
        model = Busy()
        optimizer = started(name, model)
        train(model, optimizer, range(before))
        parameter = dict(model.named_parameters())[label]
        for p in optimizer.passes(model):
            p.backward(loss_of(model, before, given=p.labels))
            if first and NEEDS.get(name) is Need.TWO_LOSSES:
                p.loss = p.loss * value
            elif first and p.index == 0:
                parameter.grad.view(-1)[0] = value
        if not first:
            parameter.grad.view(-1)[0] = value
        optimizer.step()
        assert not bool(torch.isfinite(parameter).all()), label


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@EVERY
def test_a_last_gradient_that_is_not_finite_shows_in_the_weights_at_once(name, value, before):
    """As in torch, nothing is checked without a scaler, which would wait for the device; and nothing is hidden."""
    assert_shown(name, value, before, first=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@cells("first gradient shows")
def test_a_first_gradient_that_is_not_finite_shows_in_the_weights_at_once(name, value):
    assert_shown(name, value, 0, first=True)


@EVERY
def test_a_step_without_the_gradient_it_needs_is_one_sentence(name):
    model = Busy()
    optimizer = started(name, model)
    loss_of(model, 0).backward()
    if name in NEEDS:
        before = copies(model)
        with pytest.raises(OptimizerError, match=rf"^{name} cannot take step\(\) without its passes: [^\n]+$"):
            optimizer.step()
        assert same(before, copies(model))
        return
    if name not in ASCENDING:
        optimizer.step()
        return
    before = copies(model)
    with pytest.raises(OptimizerError, match=r"^step 1 of mode='\w+' needs a second gradient: [^\n]+$"):
        optimizer.step()
    assert same(before, copies(model))
