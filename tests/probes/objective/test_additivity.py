"""Batches that do not add up to a mean: what is refused with which count, what passes, and what stays unchecked."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError, ProbeWarning
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian

W = torch.tensor([0.1, 5.0, 1.0])


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@dataclass
class Case:
    """A loss that is no mean over the first axis, the count that is suggested, and the largest eigenvalue."""

    loss: Callable[[Any, Any], Tensor]
    batches: list[Any]
    count: str
    top: float


def weighted(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=W)


def with_255(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=255)


def tokens(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["inputs"]).reshape(-1, 3), batch["labels"].reshape(-1))


def graphs(model: nn.Module, batch: Any) -> Tensor:
    h = model(batch[0])
    pooled = torch.zeros(int(batch[1].max()) + 1, 3, dtype=h.dtype).index_add(0, batch[1], h)
    return F.cross_entropy(pooled, batch[2])


def time_first(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).mean(0), batch[1])


def cases() -> dict[str, Case]:
    """Return the inputs of the findings, drawn in their order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net()
        torch.manual_seed(0)
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        X, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
        ids, labels = torch.randn(6, 7, 4), torch.randint(0, 3, (6, 7))
        nodes = [torch.randn(k, 4) for k in (12, 3)]
        S, T = [torch.randn(5, 6, 4), torch.randn(9, 1, 4)], [torch.randint(0, 3, (6,)), torch.randint(0, 3, (1,))]
    y[:30] = 0
    y255 = y.clone()
    y255[20:38] = 255
    labels[3:, 2:] = -100
    padded = [{"inputs": ids[:3], "labels": labels[:3]}, {"inputs": ids[3:], "labels": labels[3:]}]
    sets = [torch.arange(12) // 4, torch.zeros(3, dtype=torch.long)]
    graph_labels = [torch.tensor([0, 1, 2]), torch.tensor([1])]
    return {
        "class weights": Case(
            weighted, [(X[:20], y[:20]), (X[20:], y[20:])], "lambda batch: float(W[batch[1]].sum())", 1.224
        ),
        "ignored labels": Case(
            with_255, [(X[:20], y255[:20]), (X[20:], y255[20:])], "lambda batch: int((batch[1] != 255).sum())", 0.920
        ),
        "tokens": Case(tokens, padded, "lambda batch: int((batch['labels'] != -100).sum())", 0.775),
        "graphs": Case(graphs, list(zip(nodes, sets, graph_labels, strict=True)), "lambda batch: len(batch[2])", 9.547),
        "time first": Case(time_first, list(zip(S, T, strict=True)), "lambda batch: len(batch[1])", 0.681),
    }


@pytest.mark.parametrize("name", ["class weights", "ignored labels", "tokens", "graphs", "time first"])
def test_it_is_refused_with_the_count_that_makes_it_right(name: str) -> None:
    case = cases()[name]
    with pytest.raises(ProbeError, match=re.escape(f"pass count={case.count}")) as error:
        Objective(net(), case.loss, case.batches).value()
    assert "\n" not in str(error.value)
    objective = Objective(net(), case.loss, case.batches, count=eval(case.count))
    H = hessian(objective) @ torch.eye(objective.size)
    assert float(torch.linalg.eigvalsh(H.double())[-1]) == pytest.approx(case.top, abs=6e-4)
    assert objective.additivity == "mean of samples"
    declared = Objective(net(), case.loss, case.batches, additive=False)
    losses = [float(case.loss(net(), batch).detach()) for batch in case.batches]
    assert declared.value() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert declared.additivity == "mean of batches"


def summed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def pairs(*sizes: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=generator).to(dtype), torch.randint(0, 3, (n,), generator=generator))
        for n in sizes
    ]


@pytest.mark.parametrize(
    ("sizes", "mode"), [((20, 20), "eval"), ((30, 10), "eval"), ((8,), "eval"), ((8, 5), "frozen")]
)
def test_a_sum_is_refused(sizes: tuple[int, ...], mode: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(ProbeError, match=r"must return the mean over the batch, got a sum.*take reduction='mean'"):
        Objective(model, summed, pairs(*sizes), mode=mode).value()


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    one, two = F.normalize(model(batch[0]), dim=1), F.normalize(model(batch[1]), dim=1)
    return F.cross_entropy(one @ two.T / 0.2, torch.arange(len(one)))


def test_a_contrastive_loss_is_the_mean_of_its_batches_if_that_is_declared() -> None:
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(32, 4, generator=generator)
    B = A + 0.3 * torch.randn(32, 4, generator=generator)
    halves = [(A[:16], B[:16]), (A[16:], B[16:])]
    with pytest.raises(ProbeError, match=r"no mean of batches weighted by 16 and 16.*additive=False"):
        Objective(net(), contrastive, halves).value()
    found = Objective(net(), contrastive, halves, additive=False)
    expected = sum(float(contrastive(net(), half).detach()) for half in halves) / 2
    assert found.value() == pytest.approx(expected, rel=1e-6)
    whole = Objective(net(), contrastive, [(A, B)])  # one batch: its loss is what it is
    assert whole.value() == pytest.approx(float(contrastive(net(), (A, B)).detach()), rel=1e-6)
    assert whole.additivity == "mean of batches"


def mean(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_legitimate_losses_pass_by_one_more_forward_pass() -> None:
    calls: list[int] = []
    model = net()
    model.register_forward_hook(lambda *_: calls.append(1))
    objective = Objective(model, mean, pairs(7, 7, 3))
    objective.value()
    assert len(calls) == 2 * 3 + 1
    assert objective.additivity == "mean of samples"
    assert objective.split(2, seed=0)[0].additivity == "mean of samples"


def autocast(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(batch[0])
    return F.cross_entropy(z.float(), batch[1])


def lstm_over_time(model: nn.Module, batch: Any) -> Tensor:
    hidden, _ = model[0](batch[0])  # (T, B, H): joined along time it goes on
    return F.cross_entropy(model[1](hidden).reshape(-1, 3), batch[1].reshape(-1))


class Recurrent(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LSTM(4, 5), nn.Linear(5, 3))


def legitimate() -> dict[str, Objective]:
    generator = torch.Generator().manual_seed(2)
    wide = nn.Sequential(nn.Linear(4, 40), nn.Dropout(0.5), nn.Tanh(), nn.Linear(40, 3))
    zero = net()
    nn.init.zeros_(zero[2].weight)  # type: ignore[index]
    nn.init.zeros_(zero[2].bias)  # type: ignore[index]
    sequences = [
        (torch.randn(6, 3, 4, generator=generator), torch.randint(0, 3, (6, 3), generator=generator)) for _ in range(2)
    ]
    late = sequences[1]
    return {
        "bfloat16": Objective(net().bfloat16(), mean, pairs(40, 24, dtype=torch.bfloat16)),
        "autocast": Objective(wide, autocast, pairs(60, 40)),
        "float64": Objective(net().double(), mean, pairs(5, 2, dtype=torch.float64)),
        "long sums": Objective(net(), mean, pairs(20000, 3000)),
        "equal losses": Objective(zero, mean, pairs(5, 9)),
        "time first, equal lengths": Objective(Recurrent(), lstm_over_time, sequences),
        "time first, unequal lengths": Objective(
            Recurrent(), lstm_over_time, [sequences[0], (late[0][:2], late[1][:2])]
        ),
        "layer norm in train mode": Objective(
            nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), mean, pairs(8, 3), mode="train"
        ),
        "batch norm in frozen mode": Objective(
            nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), mean, pairs(8, 3), mode="frozen"
        ),
        "dictionaries with words": Objective(
            net(),
            lambda m, b: F.cross_entropy(m(b["x"]), b["y"]),
            [{"x": x, "y": y, "name": ["a"] * len(y), "task": "t"} for x, y in pairs(8, 3)],
        ),
        "divided by a number": Objective(
            net(),
            lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum") / b[2],
            [(*pair, 6) for pair in pairs(6, 6)],
        ),
        "one sample per batch": Objective(net(), mean, pairs(1, 1, 1)),
    }


@pytest.mark.parametrize("name", list(legitimate()))
def test_no_legitimate_loss_is_refused(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = legitimate()[name]
    checked = objective.mode == "eval" and name not in ("divided by a number", "time first, unequal lengths")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if checked or objective.mode != "eval" else "ignore", ProbeWarning)
        objective.value()
    assert objective.additivity == ("mean of samples" if checked else "unchecked")


def test_weights_of_classes_are_found_though_all_losses_are_equal() -> None:
    model = net()
    nn.init.zeros_(model[2].weight)  # type: ignore[index]
    nn.init.zeros_(model[2].bias)  # type: ignore[index]
    with pytest.raises(ProbeError, match=re.escape("float(W[batch[1]].sum())")):
        Objective(model, weighted, pairs(20, 20)).value()


def by_sample(model: nn.Module, batch: Any) -> Tensor:
    return (batch[2] * F.cross_entropy(model(batch[0]), batch[1], reduction="none")).sum() / batch[2].sum()


def ctc(model: nn.Module, batch: Any) -> Tensor:
    return F.ctc_loss(model(batch[0]).log_softmax(-1), batch[1], batch[2], batch[3])


criterion = nn.CrossEntropyLoss(weight=W)


def test_other_counts_are_found() -> None:
    generator = torch.Generator().manual_seed(4)
    weights = [torch.rand(n, generator=generator) + 0.1 for n in (6, 4)]
    triples = [(*pair, w) for pair, w in zip(pairs(6, 4), weights, strict=True)]
    with pytest.raises(ProbeError, match=re.escape("count=lambda batch: float(batch[2].sum())")):
        Objective(net(), by_sample, triples).value()
    with pytest.raises(ProbeError, match=re.escape("count=lambda batch: float(criterion.weight[batch[1]].sum())")):
        Objective(net(), lambda m, b: criterion(m(b[0]), b[1]), pairs(6, 6)).value()
    spoken = [
        (
            torch.randn(12, n, 4, generator=generator),
            torch.randint(1, 3, (n, 3), generator=generator),
            torch.full((n,), 12),
            torch.full((n,), 3),
        )
        for n in (5, 2)
    ]
    with pytest.raises(ProbeError, match=re.escape("count=lambda batch: len(batch[3])")):
        Objective(net(), ctc, spoken).value()
    assert Objective(net(), ctc, spoken, count=lambda batch: len(batch[3])).value() > 0


def of_numpy(model: nn.Module, batch: Any) -> Tensor:
    noise = np.random.default_rng(0).normal(size=tuple(batch[0].shape))  # another one for joined batches
    return F.cross_entropy(model(batch[0] + torch.as_tensor(noise, dtype=batch[0].dtype)), batch[1])


def fixed_size(model: nn.Module, batch: Any) -> Tensor:
    assert len(batch[1]) in (5, 9)
    return mean(model, batch)


@pytest.mark.parametrize("loss", [of_numpy, fixed_size])
def test_what_cannot_be_compared_is_used_with_one_note(loss: Any) -> None:
    objective = Objective(net(), loss, pairs(5, 9))
    with pytest.warns(ProbeWarning, match=r"additivity: unchecked.*\(5, 9\).*Pass count=lambda batch: \.\.\.") as given:
        value = objective.value()
    assert objective.value() == value
    assert len(given) == 1
    assert objective.additivity == "unchecked"
    assert Objective(net(), loss, pairs(5, 9), count=lambda b: len(b[1])).value() == value  # declared: no note


def drawing(model: nn.Module, batch: Any) -> Tensor:
    torch.manual_seed(int(batch[1][0]))
    random.random()
    return mean(model, (batch[0] + torch.randn(batch[0].shape), batch[1]))


def test_losses_with_random_numbers_of_their_own_are_unchecked() -> None:
    objective = Objective(net(), drawing, pairs(5, 9))
    objective.value()
    assert objective.additivity == "unchecked"


class Keeping(nn.Module):
    """A model that keeps what it saw last, and draws numbers that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = net(), torch.zeros(1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.seen += len(x)
        return self.net(x)


def test_the_check_leaves_no_trace() -> None:
    model, last = Keeping(), None
    last = model.last
    state = torch.get_rng_state()
    (model.net(torch.ones(2, 4)).sum()).backward()
    before = [p.grad.clone() for p in model.parameters()]
    objective = Objective(model, mean, pairs(5, 9))
    objective.value()
    assert objective.additivity == "mean of samples"
    assert model.last is last
    assert float(model.seen) == 0
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


class Graphs:
    """A batch that is an object, as those of graph libraries are."""

    def __init__(self, x: Tensor, batch: Tensor, y: Tensor) -> None:
        self.store = {"x": x, "batch": batch, "y": y}

    def __getattr__(self, name: str) -> Any:
        if name == "store":
            raise AttributeError
        return self.store[name]


def test_graphs_in_objects_are_numbered_on() -> None:
    plain = cases()["graphs"].batches
    batches = [Graphs(*batch) for batch in plain]
    loss = lambda m, b: graphs(m, (b.x, b.batch, b.y))  # noqa: E731
    with pytest.raises(ProbeError, match=re.escape("count=lambda batch: len(batch.y)")):
        Objective(net(), loss, batches).value()
    objective = Objective(net(), loss, batches, count=lambda b: len(b.y))
    assert objective.value() == pytest.approx(1.002312, abs=1e-5)
    assert objective.additivity == "mean of samples"


def test_the_ready_loss_counts_by_itself() -> None:
    case = cases()["class weights"]
    whole = tuple(torch.cat(parts) for parts in zip(*case.batches, strict=True))
    objective = Objective(net(), CrossEntropy(weight=W), case.batches)
    assert objective.value() == pytest.approx(float(weighted(net(), whole).detach()), rel=1e-6)
    assert objective.additivity == "mean of samples"


def test_batch_norm_without_running_statistics_is_told_in_eval_mode() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    data = [(gaussian(n, 4, seed=n).float(), torch.arange(n) % 3) for n in (9, 6)]
    objective = Objective(model, CrossEntropy(), data)
    with pytest.warns(ProbeWarning, match="1 is a batch norm without running statistics"):
        objective.value()
    assert objective.additivity == "unchecked"
    with pytest.raises(ProbeError, match="the loss must be a mean over samples"):
        objective.split(2, seed=0)
    assert Objective(model, CrossEntropy(), data, additive=False).additivity == "mean of batches"


def test_fractional_counts_are_kept() -> None:
    data = [(gaussian(6, 4, seed=n).float(), torch.arange(6) % 3) for n in range(3)]
    whole = Objective(nn.Linear(4, 3), CrossEntropy(), data, count=lambda batch: 0.005 * len(batch[1]))
    assert whole.samples == pytest.approx(0.09, rel=1e-12)
    assert isinstance(Objective(nn.Linear(4, 3), CrossEntropy(), data).samples, int)
    parts = whole.split(2, seed=0)
    found = sum(part.samples / whole.samples * part.value() for part in parts)
    assert found == pytest.approx(whole.value(), rel=1e-6)
