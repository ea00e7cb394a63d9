"""The second pass leaves no trace: weights, buffers, random numbers, hooks, gradients."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from helpers import draw
from lossscope.optimizer import ARS2Neo, OptimizerError, base as ascending

FLOAT64 = torch.float64
TWO_PASSES = {"sync": {"mode": "sync"}, "lazy": {"mode": "lazy", "k": 2}, "aga": {"mode": "aga"}}


def seeded(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=FLOAT64))
    return network.double()


def copies(network: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in network.state_dict().values()]


def unchanged(network: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(t, b) for t, b in zip(network.state_dict().values(), before, strict=True))


class Mixed(nn.Module):
    """Batch norm, instance norm with statistics, and a spectral norm with its power-iteration vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3)
        self.batch = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 2, 3)
        self.instance = nn.InstanceNorm2d(2, track_running_stats=True, affine=True)
        self.last = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.batch(self.first(x)))
        x = self.instance(self.second(x))
        return self.last(x.flatten(1))


@pytest.mark.parametrize("way", ["model", "hooks", "closure"])
def test_buffers_count_once(way):
    """Running means, counters and power-iteration vectors are as after the first pass alone."""
    network, alone = seeded(Mixed()), seeded(Mixed())
    alone.load_state_dict(network.state_dict())
    x = draw(1, 4, 1, 6, 6)
    optimizer = ARS2Neo(network.named_parameters(), mode="sync", lr=0.0, weight_decay=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(x).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        alone(x)
        if way == "closure":
            optimizer.step(closure)
            continue
        for _ in optimizer.passes(network if way == "model" else None):
            closure()
        optimizer.step()
    assert int(network.batch.num_batches_tracked) == 2
    assert unchanged(network, copies(alone))
    # the second pass did run on other weights: without the guard the statistics would differ
    assert optimizer.trigger_state.syncs == 2


def test_buffers_would_change_without_the_guard(monkeypatch):
    network = seeded(Mixed())
    monkeypatch.setattr(ascending, "untouched_buffers", lambda model: nullcontext())
    optimizer = ARS2Neo(network.named_parameters(), mode="sync")
    for _ in optimizer.passes(network):
        network(draw(1, 4, 1, 6, 6)).square().sum().backward()
    assert int(network.batch.num_batches_tracked) == 2


def test_a_buffer_that_forward_replaces_comes_back_as_the_same_tensor():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.ones(2, 2, dtype=FLOAT64))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self) -> Tensor:
            self.seen = self.seen + 1
            return (self.W**2).sum()

    for given in (True, False):
        network = Counting()
        optimizer = ARS2Neo(network.parameters(), mode="sync")
        for p in optimizer.passes(network if given else None):
            network().backward()
            if p.index == 0:
                after_first = network.seen
        assert network.seen is after_first
        assert float(network.seen) == 1.0


def test_both_passes_draw_the_same_dropout_masks():
    """A loss that is linear in the weights has one gradient for one mask: any difference is another mask."""
    W = nn.Parameter(draw(0, 8, 8))
    optimizer = ARS2Neo([W], mode="lazy", k=2)
    records = []
    optimizer.observe(lambda record: records.append(record.tensors[0]))
    torch.manual_seed(3)
    for _ in optimizer.passes():
        F.dropout(draw(1, 8, 8) * W, 0.5).sum().backward()
    optimizer.step()
    assert (records[0].gradient == 0).any()
    assert torch.equal(records[0].adversarial, records[0].gradient)
    assert records[0].shear.norm() < 1e-10 * records[0].gradient.norm()


@pytest.mark.parametrize("options", TWO_PASSES.values(), ids=TWO_PASSES)
def test_the_random_stream_goes_on_as_without_a_second_pass(options):
    def stream(**mode: object) -> Tensor:
        torch.manual_seed(7)
        W = nn.Parameter(draw(0, 4, 4))
        optimizer = ARS2Neo([W], **mode)
        for _ in range(3):
            for _ in optimizer.passes():
                F.dropout(W**2, 0.5).sum().backward()
            optimizer.step()
        return torch.rand(5)

    assert torch.equal(stream(**options), stream(mode="base"))


def test_no_global_hook_stays_behind():
    before = len(module_hooks._global_forward_pre_hooks)
    network = seeded(nn.Linear(3, 3))
    optimizer = ARS2Neo(network.parameters(), mode="sync")
    for p in optimizer.passes():
        if p.index == 1:
            assert len(module_hooks._global_forward_pre_hooks) == before + 1
        network(draw(1, 2, 3)).sum().backward()
    assert len(module_hooks._global_forward_pre_hooks) == before

    def broken() -> None:
        for p in optimizer.passes():
            network(draw(1, 2, 3)).sum().backward()
            if p.index == 1:
                raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        broken()
    assert len(module_hooks._global_forward_pre_hooks) == before


def network_and_optimizer(**options: object) -> tuple[nn.Module, ARS2Neo]:
    network = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    return network, ARS2Neo(network.named_parameters(), rho=0.37, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_weights_come_back_exactly(dtype):
    network, optimizer = network_and_optimizer(mode="sync")
    network.to(dtype)
    before = copies(network)
    for p in optimizer.passes():
        if p.index == 1:
            assert not unchanged(network, before)
        network(draw(1, 5, 3).to(dtype)).square().sum().backward()
    assert unchanged(network, before)


@pytest.mark.parametrize("options", TWO_PASSES.values(), ids=TWO_PASSES)
def test_the_weights_come_back_when_the_second_pass_raises(options):
    network, optimizer = network_and_optimizer(**options)
    before, stream, calls = copies(network), torch.get_rng_state(), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = network(draw(1, 5, 3)).square().sum()
        if calls == 2:
            assert not unchanged(network, before)
            torch.rand(3)
            raise FloatingPointError("the second pass failed")
        loss.backward()
        return loss

    with pytest.raises(FloatingPointError, match="second pass failed"):
        optimizer.step(closure)
    assert unchanged(network, before)
    assert torch.equal(torch.get_rng_state(), stream)
    assert optimizer.trigger_state.clock == 0
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())
    # and the optimizer goes on as if it had not been called
    other, fresh = network_and_optimizer(**options)
    calls = 2
    optimizer.step(closure)
    for _ in fresh.passes():
        other(draw(1, 5, 3)).square().sum().backward()
    fresh.step()
    assert unchanged(network, copies(other))


@pytest.mark.parametrize("at", [0, 1])
def test_the_weights_come_back_when_the_loop_is_left(at):
    network, optimizer = network_and_optimizer(mode="sync")
    before = copies(network)
    for p in optimizer.passes():
        network(draw(1, 5, 3)).square().sum().backward()
        if p.index == at:
            break
    assert unchanged(network, before)
    with pytest.raises(OptimizerError, match=r"step 1 of mode='sync' needs a second gradient"):
        optimizer.step()


def test_a_parameter_without_a_gradient_in_the_second_pass_comes_back_and_is_not_stepped():
    used, dropped = nn.Parameter(draw(0, 3, 3)), nn.Parameter(draw(1, 3, 3))
    optimizer = ARS2Neo([used, dropped], mode="sync", rho=0.5)
    before = dropped.detach().clone()
    for p in optimizer.passes():
        loss = (used**4).sum()
        if p.index == 0:
            loss = loss + (dropped**4).sum()
        else:
            assert not torch.equal(dropped, before)
        loss.backward()
    assert torch.equal(dropped, before)
    optimizer.step()
    assert torch.equal(dropped, before)
    assert "step" not in optimizer.state.get(dropped, {})


@pytest.mark.parametrize("options", TWO_PASSES.values(), ids=TWO_PASSES)
def test_a_parameter_with_its_first_gradient_in_the_second_pass_is_stepped_by_it(options):
    used, late = nn.Parameter(draw(0, 3, 3)), nn.Parameter(draw(1, 3, 3))
    optimizer = ARS2Neo([used, late], **options)
    records = []
    optimizer.observe(lambda record: records.append(record.tensors))
    before = late.detach().clone()
    for p in optimizer.passes():
        loss = (used**4).sum()
        (loss if p.index == 0 else loss + (late**4).sum()).backward()
    optimizer.step()
    assert not torch.equal(late, before)
    row = records[0][1]
    assert row.gradient is None
    assert row.perturbation is None
    assert row.adversarial is late.grad
    assert "shear" not in optimizer.state[late]


def test_a_parameter_that_never_has_a_gradient_is_skipped():
    used, idle = nn.Parameter(draw(0, 3, 3)), nn.Parameter(draw(1, 3, 3))
    for options in ({"mode": "base"}, *TWO_PASSES.values()):
        optimizer = ARS2Neo([used, idle], weight_decay=0.5, **options)
        before = idle.detach().clone()
        for _ in range(3):
            for _ in optimizer.passes():
                (used**4).sum().backward()
            optimizer.step()
        assert torch.equal(idle, before)
        assert not optimizer.state.get(idle)


def test_step_inside_the_loop_is_refused():
    network, optimizer = network_and_optimizer(mode="sync")
    before = copies(network)
    for at in (0, 1):
        for p in optimizer.passes():
            network(draw(1, 5, 3)).square().sum().backward()
            if p.index == at:
                with pytest.raises(OptimizerError, match=r"inside the passes\(\) loop; call it once, after the loop"):
                    optimizer.step()
        assert unchanged(network, before)


def test_a_loop_inside_a_loop_is_refused_and_the_outer_one_still_restores():
    network, optimizer = network_and_optimizer(mode="sync")
    before = copies(network)
    for p in optimizer.passes():
        network(draw(1, 5, 3)).square().sum().backward()
        if p.index == 1:
            with pytest.raises(OptimizerError, match=r"inside another passes\(\) loop; leave or close"):
                next(iter(optimizer.passes()))
    assert unchanged(network, before)
    optimizer.step()


@pytest.mark.parametrize("options", TWO_PASSES.values(), ids=TWO_PASSES)
def test_a_missing_closure_on_a_sync_step_is_told_what_to_do_and_changes_nothing(options):
    network, optimizer = network_and_optimizer(**options)
    network(draw(1, 5, 3)).square().sum().backward()
    before, gradients = copies(network), [p.grad.clone() for p in network.parameters()]
    match = (
        r"step 1 of mode='\w+' needs a second gradient: run `for p in optimizer.passes\(model\): p.backward\(loss\)`"
    )
    with pytest.raises(OptimizerError, match=match):
        optimizer.step()
    assert unchanged(network, before)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))
    assert not optimizer.state
    assert optimizer.trigger_state.clock == 0


def test_steps_between_two_syncs_need_no_closure():
    results = []
    for bare in (True, False):
        network, optimizer = network_and_optimizer(mode="lazy", k=3)
        for step in range(6):
            if bare and step % 3:
                optimizer.zero_grad()
                network(draw(1, 5, 3)).square().sum().backward()
            else:
                for _ in optimizer.passes():
                    network(draw(1, 5, 3)).square().sum().backward()
            optimizer.step()
        results.append(copies(network))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("options", [{"mode": "base"}, *TWO_PASSES.values()], ids=["base", *TWO_PASSES])
def test_micro_batches_within_a_pass_equal_the_full_batch(options):
    data, ends = draw(1, 12, 3), []
    for pieces in (1, 3):
        network, optimizer = network_and_optimizer(**options)
        for _ in range(4):
            for p in optimizer.passes():
                for x in data.chunk(pieces):
                    p.backward(network(x).square().mean() / pieces)
            loss = optimizer.step()
        ends.append((copies(network), float(loss)))
    (whole, loss), (parts, summed) = ends
    assert summed == pytest.approx(loss, rel=1e-12)
    for a, b in zip(whole, parts, strict=True):
        # sums in another order: rounding, raised by whitening of small elements and four steps
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{"mode": "base"}, *TWO_PASSES.values()], ids=["base", *TWO_PASSES])
def test_step_never_writes_into_a_gradient(options):
    network, optimizer = network_and_optimizer(**options)
    for _ in range(3):
        for _ in optimizer.passes():
            network(draw(1, 5, 3)).square().sum().backward()
        held = [p.grad for p in network.parameters()]
        before = [g.clone() for g in held]
        optimizer.step()
        for p, g, b in zip(network.parameters(), held, before, strict=True):
            assert p.grad is g
            assert torch.equal(g, b)


def test_a_gradient_that_is_a_view_survives_the_second_pass():
    # distributed buckets hand out views of one buffer, which the second backward pass overwrites
    W, bucket = nn.Parameter(draw(0, 3, 3)), torch.zeros(9, dtype=FLOAT64)
    optimizer = ARS2Neo([W], mode="sync")
    records = []
    optimizer.observe(lambda record: records.append(record.tensors[0].gradient.clone()))
    for p in optimizer.passes():
        bucket.copy_(draw(2 + p.index, 9))
        W.grad = bucket.view(3, 3)
    optimizer.step()
    assert torch.equal(records[0], draw(2, 9).view(3, 3))


@pytest.mark.parametrize("options", [{"mode": "base"}, {"mode": "sync"}], ids=["base", "sync"])
def test_a_closure_without_backward_is_refused(options):
    network, optimizer = network_and_optimizer(**options)
    before = copies(network)
    match = "computed no gradient; it must zero the gradients, run forward and backward, and return the loss"
    with pytest.raises(OptimizerError, match=match):
        optimizer.step(lambda: network(draw(1, 5, 3)).square().sum())
    assert unchanged(network, before)


@pytest.mark.parametrize("options", [{"mode": "base"}, *TWO_PASSES.values()], ids=["base", *TWO_PASSES])
def test_a_sparse_gradient_is_refused_before_anything_moves(options):
    network = nn.ModuleList([nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True)]).double()
    optimizer = ARS2Neo([{"params": m.parameters()} for m in network], **options)
    before = copies(network)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network[0](network[1](torch.tensor([1, 2]))).square().sum()
        loss.backward()
        return loss

    with pytest.raises(OptimizerError, match=r"shape \(5, 3\) has a sparse gradient, .*sparse=False"):
        optimizer.step(closure)
    if options["mode"] == "base":
        closure()
        with pytest.raises(OptimizerError, match="sparse gradient"):
            optimizer.step()
    assert unchanged(network, before)


def test_the_closure_returns_the_loss_of_the_first_pass():
    network, optimizer = network_and_optimizer(mode="sync")
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(draw(1, 5, 3)).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    returned = optimizer.step(closure)
    assert float(returned.detach()) == losses[0] != losses[1]
    first, second = optimizer.last.losses
    assert [float(first), float(second)] == losses


def test_step_without_a_known_loss_returns_none():
    network, optimizer = network_and_optimizer(mode="base")
    for _ in optimizer.passes():
        network(draw(1, 5, 3)).square().sum().backward()
    assert optimizer.step() is None


def test_a_closure_that_returns_a_number_works():
    network, optimizer = network_and_optimizer(mode="sync")

    def closure() -> float:
        optimizer.zero_grad()
        loss = network(draw(1, 5, 3)).square().sum()
        loss.backward()
        return float(loss.detach())

    assert isinstance(optimizer.step(closure), float)
