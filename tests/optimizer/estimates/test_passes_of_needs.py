"""Passes beside, or in place of, a gradient: drawn labels, graphs, two losses and dense layers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import draw
from lossscope.optimizer import OptimizerError, RuleOptimizer, create
from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.estimates.drawn_labels import DrawnLabels
from lossscope.optimizer.update.rules import RULES

NEEDING = [name for name, rule in RULES.items() if rule.needs]
DRAWING = [name for name in NEEDING if RULES[name].needs.draws_labels]


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    x = draw(1, 12, 4).float()
    return x, x[:, :3].argmax(1)


def train(model: nn.Module, optimizer: Any, steps: int = 1, factors: tuple[float, ...] = (1.0, 1.0)) -> None:
    x, y = batch()
    for _ in range(steps):
        for p in optimizer.passes(model):
            logits = model(x)
            p.backward(factors[p.index] * F.cross_entropy(logits, p.labels(logits, y)))
        optimizer.step()


# -- drawn labels --------------------------------------------------------------------------------------------------


def drawn(logits: Tensor, labels: Tensor, **more: Any) -> Tensor:
    return DrawnLabels(1, rule="a rule", noise=SeededNoise("labels", 0, 0, 0)).labels(logits, labels, **more)


def test_labels_are_drawn_with_the_probabilities_of_the_model():
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    labels = drawn(chances.log().expand(20_000, 4), torch.zeros(20_000, dtype=torch.int64))
    share = torch.bincount(labels, minlength=4) / len(labels)
    assert float(((share - chances) / (chances * (1 - chances) / len(labels)).sqrt()).abs().max()) < 4


def test_classes_may_be_last_or_second_and_rows_that_are_left_out_keep_their_label():
    labels = torch.tensor([[0, 1, -100], [2, -100, 3]])
    sure = torch.full((2, 3, 5), -1e9)
    sure[..., 4] = 0.0
    expected = torch.tensor([[4, 4, -100], [4, -100, 4]])
    assert torch.equal(drawn(sure, labels), expected)
    assert torch.equal(drawn(sure.movedim(-1, 1), labels), expected)
    one = DrawnLabels(1, rule="a rule", noise=SeededNoise("labels", 0, 0, 0))
    one.labels(sure, labels)
    one.labels(sure, labels, ignore_index=1)
    assert int(one.samples) == 4 + 5


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(4, 1), torch.zeros(4, 1), "needs a cross-entropy of classes"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), "needs a cross-entropy of classes"),
        (torch.zeros(4, 3, 3), torch.zeros(4, 3, dtype=torch.int64), "cannot tell which axis"),
    ],
)
def test_what_no_labels_can_be_drawn_for_is_one_sentence(logits: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(OptimizerError, match=rf"^[^\n]*{words}[^\n]+$"):
        drawn(logits, labels)


def test_logits_that_are_not_finite_end_in_no_error_of_torch():
    logits = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0]])
    assert set(drawn(logits, torch.zeros(2, dtype=torch.int64)).tolist()) <= {0, 1}


@pytest.mark.parametrize("name", DRAWING)
def test_a_pass_with_the_labels_of_the_data_where_drawn_ones_are_due_is_refused(name: str) -> None:
    model, (x, y) = network(), batch()
    optimizer = create(name, model)

    def forgetful() -> None:
        for p in optimizer.passes(model):
            p.backward(F.cross_entropy(model(x), y))

    with pytest.raises(OptimizerError, match=rf"^pass 1 of {name} needs labels drawn from the model: [^\n]+$"):
        forgetful()


@pytest.mark.parametrize("name", DRAWING)
def test_labels_are_drawn_every_period_and_for_a_parameter_that_is_new(name: str) -> None:
    model = network()
    model[2].requires_grad_(False)
    optimizer = create(name, model, period=4)
    model[2].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[2].named_parameters("2"))[:1]})
    model[2].weight.requires_grad_(False)
    counts = []
    for step in range(10):
        if step == 6:
            model[2].weight.requires_grad_(True)
        train(model, optimizer)
        counts.append(optimizer.last.passes)
    assert counts == [2, 1, 1, 1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", DRAWING)
def test_an_estimate_that_is_not_finite_shows_in_the_weights_at_once(name: str, factor: float) -> None:
    model = network()
    train(model, create(name, model), factors=(1.0, factor))
    assert not bool(torch.isfinite(model[2].weight).all())


# -- graphs --------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 12)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x)[:, None].chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q[None], k[None], v[None])[0, :, 0])


def test_adahessian_differentiates_attention_twice():
    model = Attention()
    train(model, create("adahessian", model), 3)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope


def test_a_model_that_can_be_differentiated_once_is_one_sentence():
    model, (x, y) = network(), batch()
    optimizer = create("adahessian", model)

    def go() -> None:
        for p in optimizer.passes(model):
            p.backward(F.cross_entropy(Once.apply(model(x)), y))

    with pytest.raises(OptimizerError, match=r"^adahessian needs a model that can be differentiated twice: [^\n]+$"):
        go()


def test_a_gradient_without_its_graph_is_one_sentence_and_a_linear_loss_is_none():
    model, (x, y) = network(), batch()
    optimizer = create("adahessian", model)

    def plain() -> None:
        for _ in optimizer.passes(model):
            F.cross_entropy(model(x), y).backward()

    with pytest.raises(OptimizerError, match=r"^adahessian needs the graph of the gradient: [^\n]+$"):
        plain()
    w = nn.Parameter(torch.ones(3))
    linear = create("adahessian", [("w", w)], lr=1e-4)
    for p in linear.passes():
        p.backward(w.sum())
    linear.step()
    assert torch.allclose(w.detach(), torch.zeros(3), atol=1e-3)  # lr / eps is 1
    assert w.grad.grad_fn is None


# -- two losses ----------------------------------------------------------------------------------------------------


def test_the_weights_and_the_random_numbers_of_two_losses():
    model = nn.Sequential(network(), nn.Dropout(0.5))
    optimizer = create("zo-gd", model, lr=0.0, mu=0.25)
    before, seen, masks = [p.detach().clone() for p in model.parameters()], [], []
    for p in optimizer.passes(model):
        seen.append([q.detach().clone() for q in model.parameters()])
        out = model(torch.ones(2, 4))
        masks.append(out != 0)
        assert all(q.grad is None for q in model.parameters())
        p.backward(out.sum())
    assert torch.equal(*masks)
    assert all(torch.equal(q, was) for q, was in zip(model.parameters(), before, strict=True))
    for was, up, down in zip(before, *seen, strict=True):
        torch.testing.assert_close(up - was, was - down)
        assert float((up - was).std()) == pytest.approx(0.25, rel=0.8)
    optimizer.step()


def test_a_pass_without_a_loss_is_one_sentence_and_a_closure_needs_no_gradient():
    model, (x, y) = network(), batch()
    optimizer = create("zo-gd", model)

    def silent() -> None:
        for _ in optimizer.passes(model):
            F.cross_entropy(model(x), y).backward()

    with pytest.raises(OptimizerError, match=r"^zo-gd needs the loss of each pass: [^\n]+$"):
        silent()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        optimizer.step(lambda: F.cross_entropy(model(x), y))
    assert not torch.equal(before, model[0].weight)


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, "8.8e-02"), (torch.float16, "3.1e-02")])
def test_a_displacement_below_the_rounding_of_losses_is_one_sentence(dtype: torch.dtype, least: str) -> None:
    words = rf"mu=0.001 must be at least {least} for {dtype}[^\n]+$"
    with pytest.raises(OptimizerError, match=rf"^optimizer zo-gd: {words}"):
        create("zo-gd", network().to(dtype))
    model = network()
    optimizer = create("zo-gd", model)
    model.to(dtype)
    with pytest.raises(OptimizerError, match=words):
        next(optimizer.passes(model))


# -- dense layers --------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A table that the last layer shares, a convolution, a raw matrix, a norm, attention, and dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 8)
        self.kernel = nn.Conv1d(8, 8, 3, padding=1)
        self.raw = nn.Parameter(torch.eye(8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.dense = nn.Linear(8, 8)
        self.vocabulary = nn.Linear(8, 6, bias=False)
        self.vocabulary.weight = self.table.weight
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.kernel(self.table(tokens).mT).mT @ self.raw
        h = self.attention(self.norm(h), h, h, need_weights=False)[0]
        return self.head(torch.tanh(self.dense(h)) + self.table(self.vocabulary(h).argmax(-1)))


def test_kfac_steps_the_weights_of_dense_layers_and_adamw_the_rest():
    torch.manual_seed(0)
    model = Mixed()
    optimizer = create("kfac", model, period=2)
    assert [group["param_names"] for group in optimizer.param_groups if group["track"] is None] == [
        ["dense.weight", "head.weight"]
    ]
    tokens = torch.randint(6, (5, 7), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        for p in optimizer.passes(model):
            logits = model(tokens)
            p.backward(F.cross_entropy(logits.mT, p.labels(logits.mT, tokens % 3)))
        losses.append(float(optimizer.step()))
    assert losses[-1] < 0.7 * losses[0]
    kept = {name: set(optimizer.state[p]) - {"step"} for name, p in model.named_parameters()}
    dense = {"dense.weight", "head.weight"}
    assert {name for name, keys in kept.items() if keys == {"inputs", "outputs"}} == dense
    assert all(keys == {"exp_avg", "exp_avg_sq"} for name, keys in kept.items() if name not in dense)


def test_a_layer_is_called_without_its_model():
    """`passes()` without a model, as for a loss over several modules."""
    model = network()
    optimizer = create("kfac", model)
    x, y = batch()
    for p in optimizer.passes():
        logits = model(x)
        p.backward(F.cross_entropy(logits, p.labels(logits, y)))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[model[0].weight]["inputs"], x.T @ x / len(x))


def test_a_matrix_that_is_no_dense_layer_is_one_sentence():
    with pytest.raises(OptimizerError, match=r"^optimizer kfac: [^\n]*no weight of a dense layer[^\n]+$|^no weight of"):
        create("kfac", nn.Sequential(nn.Conv1d(2, 3, 3), nn.LayerNorm(4)))
    with pytest.raises(
        OptimizerError, match=r"^kfac steps weights of dense layers, got a parameter of shape \(3, 2, 3\)"
    ):
        RuleOptimizer(nn.Conv1d(2, 3, 3, bias=False).named_parameters(), "kfac")
    w = nn.Parameter(torch.ones(4, 3))
    optimizer = create("kfac", [("w", w)])
    x, y = batch()

    def go() -> None:
        for p in optimizer.passes():
            logits = x @ w
            p.backward(F.cross_entropy(logits, p.labels(logits, y)))

    with pytest.raises(
        OptimizerError, match=r"^kfac saw no dense layer \(torch.nn.Linear\) with the weight w: [^\n]+$"
    ):
        go()


# -- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("name", NEEDING)
def test_losses_of_every_size_leave_weights_finite(name: str, scale: float, dtype: torch.dtype) -> None:
    scale = min(scale, 10.0) if dtype == torch.float16 else scale  # whose losses have no larger place
    model = network().to(dtype)
    settings: dict[str, Any] = {"mu": 0.1} if name == "zo-gd" else {"eps": 1e-3} if name == "adahessian" else {}
    settings |= {"eps": 1e-3} if name == "kfac" else {}
    optimizer = create(name, model, lr=1e-3, **settings)
    x, y = batch()
    for _ in range(4):
        for p in optimizer.passes(model):
            logits = model(x.to(dtype))
            p.backward(scale * F.cross_entropy(logits, p.labels(logits, y)))
        optimizer.step()
    assert all(bool(torch.isfinite(p).all()) and p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("name", NEEDING)
def test_an_ascent_and_several_processes_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    with pytest.raises(OptimizerError, match=rf"^mode='sync' has no meaning for {name}, which has passes of its own$"):
        RuleOptimizer(model.named_parameters(), name, mode="sync")
    optimizer = create(name, model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(OptimizerError, match=rf"^{name} works in one process, and this is one of 2: [^\n]+$"):
        next(optimizer.passes(model))


@pytest.mark.parametrize("name", NEEDING)
def test_another_seed_draws_other_numbers(name: str) -> None:
    ends = []
    for seed in (0, 0, 1):
        model = network()
        settings = {"gamma": 10.0} if name == "sophia-g" else {}  # so that not all elements are clipped
        train(model, create(name, model, lr=0.01, seed=seed, **settings), 2)
        ends.append(model[0].weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
