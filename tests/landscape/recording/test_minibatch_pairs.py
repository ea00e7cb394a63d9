"""Pairs of minibatches: cosines, squares and spectra equal those of gradients and shears computed directly."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.measures.host_transfer import to_host
from lossscope.landscape.recording.minibatch_pairs import MinibatchPairs
from lossscope.landscape.recording.spectrum_rows import finished_spectra
from lossscope.optimizer import ARS2Neo, StepRecord, create
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.step_tensors.singular_values import singular_spectrum


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 6, generator=generator).double(), torch.randint(0, 3, (10,), generator=generator))
        for _ in range(count)
    ]


def gradient(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


def step(model, optimizer, batch) -> None:
    for p in optimizer.passes(model):
        p.backward(F.cross_entropy(model(batch[0]), batch[1]))
    optimizer.step()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_cosines_are_between_two_minibatches_averaged_over_both_assignments() -> None:
    model, data = network(), batches()
    optimizer = create("adamw", model, lr=0.05)
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), data), optimizer, 20)
    before = [gradient(model, one) for one in data]
    (first,) = to_host(pairs.rows(10, 1, 0)[0])  # window 1: the second pair
    step(model, optimizer, data[0])
    after = [gradient(model, one) for one in data]
    (later,) = to_host(pairs.rows(11, 1, 1)[0])
    assert first["cosine"] == pytest.approx(cosine(before[2], before[3]))
    expected = (cosine(before[2], after[3]) + cosine(before[3], after[2])) / 2
    assert later["cosine"] == pytest.approx(expected)
    assert later["cosine"] != pytest.approx((cosine(before[2], after[2]) + cosine(before[3], after[3])) / 2, abs=1e-3)
    assert (first["lag"], later["lag"], first["step"], later["step"]) == (0, 1, 10, 11)
    assert (first["samples"], first["size"], first["object"]) == (10, 83, "gradient")
    assert first["square"] == pytest.approx(float(before[2] @ before[2] + before[3] @ before[3]) / 2)
    both = (before[2] + before[3]) / 2
    assert first["pair_square"] == pytest.approx(float(both @ both))


@pytest.mark.parametrize("name", ["ars2-sync", "ars2-lazy", "sam", "asam"])
def test_the_shear_is_the_one_that_a_step_on_that_minibatch_would_take(name: str) -> None:
    model, data = network(), batches()
    optimizer = create(name, model, lr=0.01, rho=0.2)
    for _ in range(5):  # so that there is a second moment to whiten with, and the next step is a sync step
        step(model, optimizer, data[2])
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), data), optimizer, 20)
    rows = {row["object"]: row for row in to_host(pairs.rows(10, 0, 0)[0])}
    shears = []
    for batch in data[:2]:
        kept: list[StepRecord] = []
        twin = network()
        twin.load_state_dict(model.state_dict())
        other = create(name, twin, lr=0.01, rho=0.2)
        other.load_state_dict(deepcopy(optimizer.state_dict()))
        other.observe(kept.append)
        step(twin, other, batch)
        assert kept[0].synced
        tensors = kept[0].tensors
        shears.append(
            torch.cat(
                [
                    (
                        t.adversarial - t.gradient * (t.adversarial * t.gradient).sum() / t.gradient.square().sum()
                    ).flatten()
                    for t in tensors
                ]
            )
        )
    assert rows["shear"]["cosine"] == pytest.approx(cosine(*shears), abs=1e-9)
    assert rows["shear"]["square"] == pytest.approx(float(sum(s @ s for s in shears)) / 2)
    assert rows["gradient"]["cosine"] == pytest.approx(cosine(*(gradient(model, one) for one in data[:2])))


@pytest.mark.parametrize(
    ("name", "settings"), [("adamw", {}), ("ars2-base", {}), ("ars2-sync", {"rho": 0.0}), ("ars2-random", {})]
)
def test_an_optimizer_without_an_ascent_or_with_a_random_one_has_no_shear(
    name: str, settings: dict[str, float]
) -> None:
    model = network()
    optimizer = create(name, model, **settings)
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), batches()), optimizer, 20)
    assert [row["object"] for row in pairs.rows(5, 0, 0)[0]] == ["gradient"]


def test_a_parameter_without_a_radius_has_no_shear() -> None:
    model, data = network(), batches()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "rho": 0.0}]
    optimizer = ARS2Neo(groups, mode="sync", rho=0.2)
    loss = Objective(model, CrossEntropy(), data)
    rows = {row["object"]: row for row in to_host(MinibatchPairs(loss, optimizer, 20).rows(5, 0, 0)[0])}
    moved = optimizer.ascent(dict(zip(model.parameters(), loss.vector.split(loss.batch(0).gradient()), strict=True)))
    assert set(moved) == set(model[0].parameters())
    squares = []
    for index in (0, 1):
        one = loss.batch(index)
        g = one.vector.split(one.gradient())
        e = optimizer.ascent(dict(zip(model.parameters(), g, strict=True)))
        step = torch.cat([e.get(p, torch.zeros_like(p)).flatten() for p in model.parameters()])
        with one.at(one.parameters() + step):
            raised = one.vector.split(one.gradient())
        shears = [a - (a * b).sum() / (b * b).sum() * b for a, b in zip(raised[:2], g[:2], strict=True)]
        squares.append(sum(float(s.square().sum()) for s in shears))
    assert rows["shear"]["square"] == pytest.approx(sum(squares) / 2)


def test_the_samples_of_unequal_minibatches_are_their_harmonic_mean() -> None:
    model = network()
    (x, y), (u, v) = batches(2)
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), [(x, y), (u[:2], v[:2])]), create("adamw", model), 20)
    (row,) = pairs.rows(5, 0, 0)[0]
    assert row["samples"] == pytest.approx(2 / (1 / 10 + 1 / 2))  # E|g_b|^2 = |g|^2 + tr / b, averaged over both


def test_the_spectra_are_those_of_one_minibatch_and_of_two_together() -> None:
    model, data = network(), batches()
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), data), create("muon", model), 20)
    rows = finished_spectra(to_host(pairs.rows(5, 0, 0)[1]))
    assert [(row["tensor"], row["object"]) for row in rows] == [
        (f"{layer}.weight", kind) for layer in (0, 2) for kind in ("batch_gradient", "pair_gradient")
    ]
    one, two = (gradient(model, batch)[:48].reshape(8, 6) for batch in data[:2])
    for row, matrix in zip(rows, (one, (one + two) / 2), strict=False):
        assert row["values"] == pytest.approx(singular_spectrum(matrix).values.tolist())
        assert row["excess_order"] == pytest.approx(singular_spectrum(matrix).excess_order)


def test_sampling_leaves_parameters_state_gradients_and_random_numbers_unchanged() -> None:
    model, data = network(), batches()
    optimizer = create("ars2-lazy", model)
    step(model, optimizer, data[0])
    weights = [p.detach().clone() for p in model.parameters()]
    grads = [p.grad.clone() for p in model.parameters()]
    state = {p: {k: torch.as_tensor(v).clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    random = torch.get_rng_state()
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), data), optimizer, 20)
    pairs.rows(5, 0, 0)
    pairs.rows(6, 0, 1)
    assert torch.equal(torch.get_rng_state(), random)
    for p, w, g in zip(model.parameters(), weights, grads, strict=True):
        assert torch.equal(p, w)
        assert torch.equal(p.grad, g)
        assert optimizer.state[p].keys() == state[p].keys()
        assert all(torch.equal(torch.as_tensor(v), state[p][k]) for k, v in optimizer.state[p].items())


def test_sampling_before_the_first_step_creates_no_state() -> None:
    model = network()
    optimizer = create("ars2-sync", model)
    MinibatchPairs(Objective(model, CrossEntropy(), batches()), optimizer, 20).rows(0, 0, 0)
    assert not optimizer.state


def test_a_window_whose_start_was_not_sampled_has_no_rows() -> None:
    model = network()
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), batches()), create("adamw", model), 20)
    assert pairs.rows(41, 1, 1) == ([], [])
    assert pairs.rows(80, 2, 0)[0]
    assert pairs.rows(121, 3, 1) == ([], [])


def test_one_minibatch_is_refused_and_a_loss_that_is_not_finite_ends_the_window() -> None:
    model = network()
    with pytest.raises(LandscapeError, match=r"^minibatches must hold at least 2 batches, drawn independently, got 1$"):
        MinibatchPairs(Objective(model, CrossEntropy(), batches(1)), create("adamw", model), 20)
    pairs = MinibatchPairs(Objective(model, CrossEntropy(), batches()), create("adamw", model), 20)
    assert pairs.rows(40, 1, 0)[0]
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ProbeError):
        pairs.rows(80, 2, 0)
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0
    assert pairs.rows(81, 2, 1) == ([], [])
