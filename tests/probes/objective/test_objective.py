from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian


def mean_square(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch) - 1).square().mean()


def linear(seed: int = 0) -> nn.Linear:
    model = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


def rows(*counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in counts]


def test_unequal_batches_give_the_mean_over_all_samples() -> None:
    model, batches = linear(), rows(5, 2, 1)
    objective = Objective(model, mean_square, batches)
    whole = mean_square(model, torch.cat(batches))
    whole.backward()
    assert objective.value() == pytest.approx(float(whole.detach()), rel=1e-14)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(objective.gradient(), expected, rtol=1e-12, atol=1e-14)
    assert objective.samples == 8


def test_count_weights_batches() -> None:
    objective = Objective(
        linear(),
        lambda _, b: b.mean() + 0 * _.weight.sum(),
        rows(2, 2),
        count=lambda b: b[0, 0] ** 2,
        additive=False,
    )
    weights = [float(b[0, 0] ** 2) for b in rows(2, 2)]
    expected = sum(w * float(b.mean()) for w, b in zip(weights, rows(2, 2), strict=True)) / sum(weights)
    assert objective.value() == pytest.approx(expected, rel=1e-14)


class Halved(CrossEntropy):
    """A mean over other terms than the labels."""

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return super().of_outputs(outputs, batch) / 2


def test_labels_that_are_left_out_weigh_nothing() -> None:
    model, x, y = linear(), torch.cat(rows(12)), torch.arange(12) % 2
    y[[0, 1, 3, 9]] = -100
    pairs = list(zip(x.split([5, 7]), y.split([5, 7]), strict=True))
    objective = Objective(model, CrossEntropy(), pairs)
    whole = Objective(model, CrossEntropy(), [(x, y)])
    assert objective.data.counts == (2.0, 6.0)
    assert objective.value() == pytest.approx(float(CrossEntropy()(model, (x, y)).detach()), rel=1e-14)
    torch.testing.assert_close(objective.gradient(), whole.gradient(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hessian(objective) @ torch.eye(8), hessian(whole) @ torch.eye(8))
    for count in (2, 4):  # in four, a part has samples of the first batch whose labels are all left out
        parts = objective.split(count, seed=0)
        assert sum(part.samples * part.value() for part in parts) / 8 == pytest.approx(objective.value(), rel=1e-14)
    assert min(len(part.data.batches) for part in parts) == 1
    counts = [
        Objective(model, CrossEntropy(), [(x, y)], count=len).data.counts,  # a count of one's own comes first
        Objective(model, Halved(), [(x, y)]).data.counts,
        Objective(model, CrossEntropy(), [(x, torch.ones(12, 2))]).data.counts,
        Objective(model, CrossEntropy(), [(x.reshape(3, 4, 3), y.reshape(3, 4))]).data.counts,
    ]
    assert counts == [(2.0,), (12.0,), (12.0,), (8.0,)]
    with pytest.raises(ProbeError, match="must be finite and positive, got 0 for batch 0"):
        Objective(model, CrossEntropy(), [(x, torch.full((12,), -100))])


def test_an_iterator_can_be_evaluated_again_and_again() -> None:
    objective = Objective(linear(), mean_square, (b for b in rows(2, 3)))
    assert objective.value() == objective.value()


def test_parameters_are_those_that_require_grad_and_tied_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    objective = Objective(model, mean_square, [torch.ones(2, 3)])
    assert objective.names == ("0.weight", "1.bias", "2.weight")
    assert objective.size == 9 + 3 + 6
    expected = torch.cat([model[0].weight.flatten(), model[1].bias, model[2].weight.flatten()]).detach()
    assert torch.equal(objective.parameters(), expected)
    assert objective.dtype == torch.float32
    assert objective.device == torch.device("cpu")


def test_a_short_dtype_is_measured_in_float32() -> None:
    model = nn.Linear(3, 2).bfloat16()
    objective = Objective(model, mean_square, [torch.ones(2, 3, dtype=torch.bfloat16)])
    assert objective.gradient().dtype == torch.float32


def test_at_moves_the_model_itself_and_brings_it_back() -> None:
    model = linear()
    objective = Objective(model, mean_square, rows(4))
    theta, value = objective.parameters(), objective.value()
    with objective.at(torch.zeros(objective.size)):
        assert objective.value() == 1.0
        assert not model.weight.any()
    assert torch.equal(objective.parameters(), theta)
    with pytest.raises(KeyError), objective.at(theta + 1):
        raise KeyError
    assert torch.equal(objective.parameters(), theta)
    assert objective.value() == value
    with (
        pytest.raises(
            ProbeError, match=r"vector must have shape \(8,\), one entry per trainable parameter, got \(7,\)"
        ),
        objective.at(torch.zeros(7)),
    ):
        pass


def test_a_parameter_the_loss_does_not_contain_has_gradient_zero() -> None:
    model = nn.ModuleDict({"used": linear(), "unused": linear()})
    objective = Objective(model, lambda m, b: mean_square(m["used"], b), rows(4))
    assert not objective.gradient()[8:].any()
    assert objective.gradient()[:8].any()


def test_what_cannot_be_measured_is_refused() -> None:
    model, batches = linear(), rows(4)
    with pytest.raises(ProbeError, match=r"mode must be one of .*frozen.*, got 'trian'"):
        Objective(model, mean_square, batches, mode="trian")  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="batches must have at least 1 batch, got 0"):
        Objective(model, mean_square, [])
    with pytest.raises(ProbeError, match=r"model must be a torch.nn.Module, got function"):
        Objective(mean_square, mean_square, batches)  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="0 of 2 parameters require grad"):
        Objective(linear().requires_grad_(False), mean_square, batches)
    with pytest.raises(ProbeError, match=r"parameters must be real and floating, got weight of torch.complex64"):
        Objective(nn.Linear(3, 2, dtype=torch.complex64), mean_square, batches)
    with pytest.raises(ProbeError, match=r"got torch.float64 of shape \(4, 2\) on batch 0 of 1"):
        Objective(model, lambda m, b: m(b), batches).value()
    with pytest.raises(ProbeError, match="loss_fn must return one real number, got float on batch 0 of 1"):
        Objective(model, lambda m, b: 1.0, batches).value()  # type: ignore[arg-type, return-value]
    with pytest.raises(ProbeError, match=r"got torch.int64 of shape \(\)"):
        Objective(model, lambda m, b: m(b).argmax(), batches).value()
    with pytest.raises(ProbeError, match=r"the loss is (inf|nan) on batch 1 of 2"):
        Objective(model, mean_square, [*batches, torch.full((1, 3), math.inf, dtype=torch.float64)]).value()
    with pytest.raises(ProbeError, match="depends on none of the 2 trainable parameters"):
        Objective(model, lambda m, b: mean_square(m, b).detach(), batches).gradient()
    other = linear()
    with pytest.raises(ProbeError, match="depends on none"):
        Objective(model, lambda m, b: mean_square(other, b), batches).gradient()


def test_a_model_that_was_rebuilt_is_refused() -> None:
    model = nn.Sequential(linear())
    objective = Objective(model, mean_square, rows(4))
    model[0] = nn.Linear(3, 3)
    with pytest.raises(ProbeError, match=r"parameter 0.weight has shape \(3, 3\), was \(2, 3\)"):
        objective.value()


def test_random_losses_are_refused_and_the_layer_is_named() -> None:
    model = nn.Sequential(linear(), nn.Dropout())
    assert Objective(model, mean_square, rows(4)).value() > 0  # eval mode is fine
    for mode in ("frozen", "train"):
        with pytest.raises(ProbeError, match=r"1 \(Dropout\) is active; use mode='eval'"):
            Objective(model, mean_square, rows(4), mode=mode).gradient()  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="loss_fn or the model draws random numbers"):
        Objective(model, lambda m, b: mean_square(m, b + torch.randn_like(b)), rows(4)).value()


def headless(*random: nn.Module) -> nn.Sequential:
    """Return a network with a last layer of zeros, so that the layers before it do not affect the loss."""
    head = nn.Linear(3, 2, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Tanh(), *random, head)


class Masked(nn.Module):
    """Dropout with numpy's or Python's generator."""

    def __init__(self, draw: Callable[[int], Any]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([self.draw(0) for _ in range(x.shape[-1])], dtype=x.dtype)


@pytest.mark.parametrize("mode", ["frozen", "train"])
@pytest.mark.parametrize("take", [Objective.value, Objective.gradient, lambda o: hessian(o) @ o.parameters()])
def test_dropout_behind_a_head_of_zeros_is_refused_and_named(take: Any, mode: Any) -> None:
    objective = Objective(headless(nn.Dropout()), mean_square, rows(4, 2), mode=mode)
    for _ in range(2):  # again at the second attempt
        with pytest.raises(ProbeError, match=r"at nearby parameters.*2 \(Dropout\) is active; use mode='eval'"):
            take(objective)
    assert Objective(headless(nn.Dropout()), mean_square, rows(4, 2)).value() == 1.0  # eval mode is fine


@pytest.mark.parametrize("draw", [lambda _: np.random.rand(), lambda _: random.random()])
def test_no_generator_of_random_numbers_is_overlooked(draw: Any) -> None:
    with pytest.raises(ProbeError, match=r"nearby.*loss_fn or the model draws random numbers"):
        Objective(headless(Masked(draw)), mean_square, rows(4)).value()


def test_random_numbers_that_decide_nothing_are_let_through() -> None:
    def idle(model: nn.Module, batch: Any) -> Tensor:
        torch.rand(()), np.random.rand(), random.random()
        return mean_square(model, batch)

    objective = Objective(linear(), idle, rows(4))
    assert objective.value() == Objective(linear(), mean_square, rows(4)).value()


def test_a_last_digit_of_noise_is_let_through() -> None:
    noise = iter(range(100))
    objective = Objective(linear(), lambda m, b: mean_square(m, b) * (1 + 1e-15 * next(noise)), rows(4))
    assert objective.value() > 0


class Counting(nn.Module):
    """A loss that depends on the number of calls since its buffer was last reset."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(3, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x)
        self.calls += self.training
        return self.w * self.calls


@pytest.mark.parametrize(("mode", "value"), [("eval", 0.0), ("frozen", 1.0), ("train", 1.5)])
def test_buffers_stand_still_but_in_train_mode_where_they_move_from_batch_to_batch(mode: Any, value: float) -> None:
    objective = Objective(Counting(), lambda m, b: m(b), rows(2, 2), mode=mode)
    assert objective.value() == value
    assert objective.value() == value


def test_frozen_mode_normalizes_by_the_batch_and_eval_mode_by_the_running_statistics() -> None:
    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    (x,) = rows(5)
    frozen = Objective(norm, lambda m, b: m(b).square().mean(), [x], mode="frozen")
    assert frozen.value() == pytest.approx(1.0, abs=1e-4)  # eps of the layer
    assert Objective(norm, lambda m, b: m(b).square().mean(), [x]).value() == pytest.approx(
        float(x.square().mean()), rel=1e-4
    )


def test_the_loss_goes_by_its_name() -> None:
    kinds = [CrossEntropy(), mean_square, functools.partial(mean_square)]
    batches = [(rows(1)[0], torch.zeros(1, dtype=torch.long))]
    found = [Objective(linear(), kind, batches).loss_kind for kind in kinds]
    assert found == ["CrossEntropy", "mean_square", "mean_square"]


def test_the_hash_is_that_of_the_data() -> None:
    first, second = (Objective(linear(seed), mean_square, rows(2)) for seed in (0, 1))
    assert first.data_hash == second.data_hash
    assert first.data_hash != Objective(linear(), mean_square, rows(3)).data_hash


def test_dict_batches_reach_the_loss_as_they_are() -> None:
    batch = {"x": rows(4)[0], "y": torch.tensor([0, 1, 1, 0])}
    model = linear().requires_grad_()
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"]), [batch])
    assert objective.value() == pytest.approx(F.cross_entropy(model(batch["x"]), batch["y"]).item(), rel=1e-14)


def test_parts_add_up_to_the_whole() -> None:
    objective = Objective(linear(), mean_square, rows(9, 4, 2))
    parts = objective.split(4, seed=3)
    assert sorted(part.samples for part in parts) == [3, 4, 4, 4]
    shares = [part.samples / objective.samples for part in parts]
    assert sum(s * part.value() for s, part in zip(shares, parts, strict=True)) == pytest.approx(objective.value())
    mean = sum(s * part.gradient() for s, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(mean, objective.gradient(), rtol=1e-12, atol=1e-14)
    assert len({part.data_hash for part in parts}) == 4
    with pytest.raises(ProbeError, match="at most that of samples, 15, got 16"):
        objective.split(16, seed=0)


def test_an_objective_of_some_parameters_is_the_same_loss() -> None:
    objective = Objective(linear(), mean_square, rows(9, 4))
    part = objective.restricted(["bias"])
    assert (part.names, part.size, part.value()) == (("bias",), 2, objective.value())
    torch.testing.assert_close(part.gradient(), objective.gradient()[6:])
    with part.at(torch.zeros(2)):
        assert not objective.model.bias.any()
    with pytest.raises(ProbeError, match="unknown parameter 'b': use names of the 2 trainable parameters"):
        objective.restricted(["b"])


def test_the_same_loss_in_float64_leaves_the_model_in_its_own_dtype() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    objective = Objective(model, mean_square, [x.float() for x in rows(9, 4)])
    wide = objective.in_double()
    assert wide.restricted(wide.names[:1]).dtype == torch.float64
    assert wide.dtype == wide.gradient().dtype == torch.float64
    assert wide.value() == pytest.approx(objective.value(), rel=1e-5)
    assert wide.value() != objective.value()
    torch.testing.assert_close(wide.gradient().float(), objective.gradient(), rtol=1e-4, atol=1e-6)
    assert {t.dtype for t in [*model.parameters(), model[1].running_mean]} == {torch.float32}


def test_the_first_use_is_evaluated_twice_and_no_other() -> None:
    model, passes = linear(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    objective = Objective(model, mean_square, rows(4, 4))
    for expected in (5, 7, 9):  # one pass of the joined batches
        objective.gradient()
        assert len(passes) == expected
    part = next(iter(objective.split(2, seed=0)))
    assert len(passes) == 15  # the whole, and its two parts: do they add up
    part.value()
    assert len(passes) == 17


def test_parameters_without_a_number_are_refused() -> None:
    with pytest.raises(ProbeError, match="the 1 trainable parameters have 0 entries in total, need at least 1"):
        Objective(nn.ParameterList([nn.Parameter(torch.ones(0, 3))]), mean_square, rows(2))


def test_a_loss_at_other_parameters_is_the_one_there_and_may_be_infinite() -> None:
    net = nn.Linear(2, 1, bias=False)
    objective = Objective(net, lambda model, x: model(x).exp().mean(), [torch.ones(3, 2), torch.zeros(1, 2)])
    there = torch.tensor([1.0, 2.0])
    with objective.at(there):
        right = objective.value()
    before = net.weight.clone()
    assert objective.value_at(there) == pytest.approx(right, rel=1e-7)
    assert objective.value_at(torch.full((2,), 1e4)) == math.inf
    assert math.isnan(objective.value_at(torch.tensor([math.nan, 0.0])))
    assert torch.equal(net.weight, before)
    with pytest.raises(ProbeError, match="vector must have shape"):
        objective.value_at(torch.ones(3))


def test_another_model_has_the_same_loss_on_the_same_data() -> None:
    net, other = nn.Linear(2, 1), nn.Linear(2, 1)
    objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(3, 2), torch.zeros(1, 2)])
    objective.value()
    with torch.no_grad():
        right = float((3 * other(torch.ones(1, 2)).square() + other(torch.zeros(1, 2)).square()).mean() / 4)
    found = objective.with_model(other)
    assert found.value() == pytest.approx(right, rel=1e-6)
    assert (found.additivity, found.data_hash) == (objective.additivity, objective.data_hash)
    assert objective.in_double().with_model(other).gradient().dtype == torch.float64
    by_itself = Objective(net, lambda model, x: net(x).square().mean(), [torch.ones(3, 2)])
    with pytest.raises(ProbeError, match="reaches the other one by itself"):
        by_itself.with_model(other)
