from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError, ProbeWarning
from lossscope.probes.objective.hugging_face import HuggingFaceLoss
from lossscope.probes.objective.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    MeanSquaredError,
    SplitLoss,
    rows,
)
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.sharpness.invariant import log_fisher_rao
from lossscope.probes.sharpness.logits import logit_scale


def test_it_is_the_mean_cross_entropy() -> None:
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(CrossEntropy()(model, (x, y)), F.cross_entropy(model(x), y))
    assert torch.equal(CrossEntropy().logits(model, [x, y]), model(x))


@pytest.mark.parametrize("classes", [2, 10, 15, 16])
@pytest.mark.parametrize("settings", [{}, {"ignore_index": 1}, {"weight": 0.1}, {"label_smoothing": 0.2}])
def test_logits_with_few_classes_have_the_loss_of_torch_and_its_slope(classes: int, settings: dict[str, float]) -> None:
    z, y = torch.randn(2, 7, classes, dtype=torch.float64), torch.arange(14).reshape(2, 7) % classes
    options = dict(settings)
    if "weight" in settings:
        options["weight"] = torch.linspace(0.1, 1, classes)
    weight = {"weight": options["weight"].double()} if "weight" in options else {}
    truth = F.cross_entropy(z.reshape(14, -1), y.reshape(14), **{**options, **weight})
    loss = CrossEntropy(**options)
    assert float(loss.of_outputs(z, (z, y))) == pytest.approx(float(truth), rel=1e-12)
    graph = z.clone().requires_grad_()
    slope = torch.autograd.grad(loss.of_outputs(graph, (z, y)), graph)[0]
    v = torch.randn_like(z)
    value, along = torch.func.jvp(lambda o: loss.of_outputs(o, (z, y)), (z,), (v,))
    assert float(value) == pytest.approx(float(truth), rel=1e-12)
    assert float(along) == pytest.approx(float((slope * v).sum()), rel=1e-9)


def test_tokens_are_averaged_and_labels_may_be_probabilities() -> None:
    model, x, y = nn.Linear(3, 4).requires_grad_(False), torch.randn(2, 5, 3), torch.randint(4, (2, 5))
    hard = CrossEntropy()(model, (x, y))
    assert float(hard) == pytest.approx(float(F.cross_entropy(model(x).reshape(10, 4), y.reshape(10))), rel=1e-6)
    assert float(CrossEntropy()(model, (x, F.one_hot(y, 4).float()))) == pytest.approx(float(hard), rel=1e-6)


def test_a_batch_or_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"a batch must be a pair \(inputs, labels\), got Tensor of 5"):
        CrossEntropy()(nn.Linear(3, 4), torch.randn(5, 3))
    with pytest.raises(ProbeError, match=r"the model must return a tensor of logits \(..., C\), got tuple"):
        CrossEntropy()(nn.LSTM(3, 4), (torch.randn(5, 3), torch.zeros(5, dtype=torch.long)))


def test_the_squared_error_is_the_mean_over_all_entries() -> None:
    model, x, y = nn.Linear(3, 4).requires_grad_(False), torch.randn(5, 3), torch.randn(5, 4)
    loss = MeanSquaredError()
    assert float(loss(model, (x, y))) == pytest.approx(float(F.mse_loss(model(x), y)), rel=1e-6)
    with pytest.raises(ProbeError, match=r"targets must have the shape of the outputs \(5, 4\), got \(5, 1\)"):
        loss(model, (x, y[:, :1]))
    with pytest.raises(ProbeError, match="the model must return a tensor, got tuple: subclass MeanSquaredError"):
        loss(nn.LSTM(3, 4), (x, y))


def test_targets_of_true_and_false_are_one_and_zero_and_others_than_tensors_are_refused() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.randn(5, 3) > 0
    for loss in (MeanSquaredError(), BinaryCrossEntropy()):
        assert torch.equal(loss(model, (x, y)), loss(model, (x, y.float())))
        with pytest.raises(ProbeError, match="targets must be a tensor, got list: convert them"):
            Objective(model, loss, [(x, y.tolist())])


def test_both_losses_split_into_outputs_and_a_loss_of_outputs() -> None:
    model, x = nn.Linear(3, 4).requires_grad_(False), torch.randn(5, 3)
    for loss, y in ((CrossEntropy(), torch.tensor([0, 1, 2, 3, 0])), (MeanSquaredError(), torch.randn(5, 4))):
        assert isinstance(loss, SplitLoss)
        assert torch.equal(loss.of_outputs(loss.outputs(model, (x, y)), (x, y)), loss(model, (x, y)))
    assert not isinstance(F.cross_entropy, SplitLoss)


def test_terms_marked_minus_100_are_left_out_as_in_torch() -> None:
    z, y = torch.randn(2, 3, 4), torch.tensor([[0, -100, 2], [3, 1, -100]])
    loss, batch = CrossEntropy(), (None, y)
    assert loss.terms(z, batch) == 4
    expected = F.cross_entropy(z.reshape(6, 4), y.reshape(6), reduction="none").sum() / 4
    assert float(loss.of_outputs(z, batch)) == pytest.approx(float(expected), rel=1e-6)
    assert not loss.model_fisher(z, batch)(torch.randn(2, 3, 4))[y == -100].any()
    assert loss.terms(z, (None, torch.ones(2, 3, 4))) == 6


def test_rows_are_terms() -> None:
    assert [tuple(rows(torch.ones(*shape)).shape) for shape in ((5,), (5, 3), (2, 5, 3))] == [(5, 1), (5, 3), (10, 3)]


def network(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes)).double()


def token_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (4, 6), generator=generator)
    y[0, 2:] = y[1, 1:] = -100
    return x, y


@dataclass(frozen=True)
class Reference:
    """Dense matrices from the definition: one gradient and one Jacobian for each term."""

    value: float
    gauss_newton: Tensor
    empirical: Tensor
    radial: float


def reference(model: nn.Module, loss: CrossEntropy, x: Tensor, y: Tensor) -> Reference:
    """Return the matrices of the mean that torch computes; `sum(omega) = 1` over the terms that count."""
    parameters = list(model.parameters())

    def flat(one: Tensor) -> Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, parameters, retain_graph=True)])

    z = model(x).reshape(-1, 3)
    keep = y.reshape(-1) != loss.ignore_index
    labels, z = y.reshape(-1)[keep], z[keep]
    w = torch.ones(3, dtype=torch.float64) if loss.weight is None else loss.weight
    one = torch.nn.functional.cross_entropy
    omega = w[labels] / w[labels].sum()
    whole = one(z, labels, weight=loss.weight, label_smoothing=loss.label_smoothing)
    J = torch.stack([torch.stack([flat(z[i, c]) for c in range(3)]) for i in range(len(z))])
    terms = [
        one(z[i : i + 1], labels[i : i + 1], weight=loss.weight, label_smoothing=loss.label_smoothing)
        for i in range(len(z))
    ]  # torch divides by the weight of the label
    gradients = torch.stack([flat(term) for term in terms])
    S = [
        torch.autograd.functional.hessian(
            lambda row, i=i: one(
                row[None], labels[i : i + 1], weight=loss.weight, label_smoothing=loss.label_smoothing
            ),
            z[i].detach(),
        )
        for i in range(len(z))
    ]
    p = z.softmax(-1).detach()
    F_ = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    theta = torch.cat([q.detach().reshape(-1) for q in parameters])
    fisher_ = torch.einsum("i,icp,icd,idq->pq", omega, J, F_, J)
    return Reference(
        float(whole.detach()),
        torch.einsum("i,icp,icd,idq->pq", omega, J, torch.stack(S), J),
        torch.einsum("i,ip,iq->pq", omega, gradients, gradients),
        float(theta @ fisher_ @ theta),
    )


SETTINGS = {
    "ignored": CrossEntropy(),
    "255": CrossEntropy(ignore_index=255),
    "weights": CrossEntropy(weight=torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)),
    "smoothing": CrossEntropy(label_smoothing=0.2),
    "all": CrossEntropy(torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64), ignore_index=255, label_smoothing=0.2),
}


class Ignoring255(CrossEntropy):
    """A subclass that overrides the mean alone."""

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs.reshape(-1, 3), batch[1].reshape(-1), ignore_index=255)


@pytest.mark.parametrize("name", [*SETTINGS, "subclass"])
def test_every_setting_has_its_own_value_matrices_and_fisher_rao_norm(name: str) -> None:
    loss = SETTINGS.get(name, Ignoring255())
    settings = SETTINGS["255"] if name == "subclass" else loss
    model, (x, y) = network(), token_data()
    y = y.where(y != -100, settings.ignore_index)
    expected = reference(model, settings, x, y)
    batches = [(x, y)] if name == "subclass" else [(x[:1], y[:1]), (x[1:], y[1:])]
    objective = Objective(model, loss, batches)
    eye = torch.eye(objective.size, dtype=torch.float64)
    assert objective.value() == pytest.approx(expected.value, rel=1e-12)
    torch.testing.assert_close(gauss_newton(objective) @ eye, expected.gauss_newton, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fisher(objective, "empirical") @ eye, expected.empirical, rtol=1e-9, atol=1e-12)
    theta = objective.parameters()
    assert float(theta @ (fisher(objective) @ theta)) == pytest.approx(expected.radial, rel=1e-9)
    assert math.exp(log_fisher_rao(objective).value) == pytest.approx(expected.radial, rel=1e-9)
    scale = logit_scale(objective)
    shares = settings.shares(model(x).detach(), (x, y))
    z = model(x).detach().reshape(-1, 3)
    assert scale.norm.value == pytest.approx(float((z - z.mean(1, keepdim=True)).norm(dim=1) @ shares), rel=1e-12)


def test_probabilities_may_exceed_one_by_rounding() -> None:
    labels = torch.tensor([[1 + 1e-6, -1e-7, 0.0]])
    assert CrossEntropy()(nn.Linear(4, 3), (torch.ones(1, 4), labels)).isfinite()


def test_probabilities_with_weights_and_smoothing_are_those_of_torch() -> None:
    loss, z = SETTINGS["all"], torch.randn(5, 3, dtype=torch.float64)
    soft = torch.randn(5, 3, dtype=torch.float64).softmax(-1)
    expected = F.cross_entropy(z, soft, weight=loss.weight, label_smoothing=0.2)
    assert float(loss.of_outputs(z, (None, soft))) == pytest.approx(float(expected), rel=1e-12)
    assert loss.count((None, soft)) == 5
    S = torch.autograd.functional.hessian(lambda one: loss.of_outputs(one, (None, soft)), z)
    u = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(loss.hessian_of_outputs(z, (None, soft))(u), torch.einsum("icjd,jd->ic", S, u))


@pytest.mark.parametrize(("C", "H", "W"), [(4, 4, 4), (3, 4, 5)])
def test_classes_on_axis_1_are_declared(C: int, H: int, W: int) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = nn.Conv2d(2, C, 3, padding=1)
    x, y = torch.randn(3, 2, H, W, generator=generator), torch.randint(0, C, (3, H, W), generator=generator)
    with pytest.raises(ProbeError, match=r"pass CrossEntropy\(class_axis=1\)"):
        Objective(model, CrossEntropy(), [(x, y)]).value()
    objective = Objective(model, CrossEntropy(class_axis=1), [(x[:1], y[:1]), (x[1:], y[1:])])
    with torch.no_grad():
        assert objective.value() == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-6)
    assert objective.samples == 3 * H * W
    theta = objective.parameters().double()
    radial = float(theta @ (fisher(objective) @ objective.parameters()).double())
    assert math.exp(log_fisher_rao(objective).value) == pytest.approx(radial, rel=1e-4)
    soft = F.one_hot(y, C).permute(0, 3, 1, 2).float()
    with pytest.raises(ProbeError, match="pass class_axis=1"):
        CrossEntropy()(model, (x, soft))
    assert float(CrossEntropy(class_axis=1)(model, (x, soft)).detach()) == pytest.approx(objective.value(), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3, 1]), r"labels must be in 0 to 2 or -100, got 3: pass ignore_index=3 if"),
        (torch.tensor([0, -1, 1]), "labels must be in 0 to 2 or -100, got -1: pass ignore_index=-1 if"),
        (torch.tensor([0, 1]), r"labels must have the shape \(3,\) of the logits \(3, 3\) without classes, got \(2,\)"),
        (F.one_hot(torch.tensor([0, 1, 2]), 3), "pass class indices, or probabilities as floats"),
        (torch.ones(3), r"class indices are integers, labels.long\(\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(labels: Tensor, message: str) -> None:
    with pytest.raises(ProbeError, match=message) as error:
        Objective(nn.Linear(4, 3), CrossEntropy(), [(torch.ones(3, 4), labels)]).value()
    assert "\n" not in str(error.value)


def test_settings_and_single_logits_are_checked() -> None:
    with pytest.raises(ProbeError, match=r"label_smoothing must be in \[0, 1\], got 1.5"):
        CrossEntropy(label_smoothing=1.5)
    with pytest.raises(ProbeError, match=r"ignore_index must be an integer, got 1\.5"):
        CrossEntropy(ignore_index=1.5)  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="class_axis must be an integer, got True"):
        CrossEntropy(class_axis=True)
    with pytest.raises(ProbeError, match=r"weight must be a floating tensor \(C,\)"):
        CrossEntropy(weight=torch.tensor([1.0, -1.0]))
    with pytest.raises(ProbeError, match="weight must have one entry for each of 3 classes, got 2"):
        CrossEntropy(weight=torch.ones(2)).of_outputs(torch.ones(4, 3), (None, torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ProbeError, match=r"got 2: .+; weight has 2 entries and must have one for each class"):
        Objective(nn.Linear(4, 3), CrossEntropy(weight=torch.ones(2)), [(torch.ones(3, 4), torch.arange(3))])
    with pytest.raises(
        ProbeError, match=r"at least 2 classes on their last axis, got \(5, 1\): use BinaryCrossEntropy"
    ):
        CrossEntropy()(nn.Linear(4, 1), (torch.ones(5, 4), torch.zeros(5, dtype=torch.long)))


def test_labels_of_one_more_axis_or_flattened_by_the_model_fit() -> None:
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = float(F.cross_entropy(z, y))
    for labels in (y, y[:, None], y.reshape(2, 3), y.int(), y.to(torch.uint8)):
        assert float(CrossEntropy().of_outputs(z, (None, labels))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pos_weight", [None, 3.0, torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)])
def test_binary_cross_entropy_has_a_term_for_each_logit(pos_weight: Any) -> None:
    model, x = network(), token_data()[0]
    y = torch.randint(0, 2, (4, 6, 3), generator=torch.Generator().manual_seed(8)).double()
    weight = None if pos_weight is None else torch.as_tensor(pos_weight, dtype=torch.float64)
    objective = Objective(model, BinaryCrossEntropy(pos_weight), [(x[:1], y[:1]), (x[1:], y[1:])])
    parameters = list(model.parameters())
    losses = F.binary_cross_entropy_with_logits(model(x), y, pos_weight=weight, reduction="none").reshape(-1)
    z = model(x).reshape(-1)

    def flat(one: Tensor) -> Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, parameters, retain_graph=True)])

    assert objective.value() == pytest.approx(float(losses.mean().detach()), rel=1e-12)
    assert objective.samples == y.numel()
    eye = torch.eye(objective.size, dtype=torch.float64)
    gradients, J = torch.stack([flat(one) for one in losses]), torch.stack([flat(one) for one in z])
    torch.testing.assert_close(fisher(objective, "empirical") @ eye, gradients.T @ gradients / len(gradients))
    p = z.sigmoid().detach()
    q = torch.ones(3, dtype=torch.float64) if weight is None else weight.expand(3)
    curvature = (q * y + 1 - y).reshape(-1) * p * (1 - p)
    torch.testing.assert_close(gauss_newton(objective) @ eye, J.T @ (curvature[:, None] * J) / len(J))
    torch.testing.assert_close(fisher(objective) @ eye, J.T @ ((p * (1 - p))[:, None] * J) / len(J))
    with pytest.raises(ProbeError, match=r"targets must be in \[0, 1\], got 0 to 2"):
        BinaryCrossEntropy()(model, (x, 2 * y))
    with pytest.raises(ProbeError, match="targets must have the shape of the outputs"):
        BinaryCrossEntropy()(model, (x, y[..., :1]))


class Fivefold(MeanSquaredError):  # noqa: N818
    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return 5 * super().of_outputs(outputs, batch)


def test_a_subclass_with_another_mean_needs_its_own_fisher_matrix() -> None:
    objective = Objective(network(), Fivefold(), [(torch.ones(2, 3).double(), torch.ones(2, 3).double())])
    with pytest.raises(ProbeError, match="Fivefold overrides of_outputs and not model_fisher"):
        fisher(objective) @ objective.parameters()


class Output(dict):  # type: ignore[type-arg]
    """The output of a Hugging Face model: its items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Causal(nn.Module):
    """A language model with the interface of Hugging Face; its loss shifts the labels."""

    def __init__(self, shift: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.shift = shift

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Output:
        logits = self.head(torch.tanh(self.embed(input_ids)))
        z, y = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
        return Output(loss=F.cross_entropy(z.reshape(-1, 11), y.reshape(-1)), logits=logits)


def texts() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(10)
    found = []
    for length, kept in ((9, 8), (9, 2), (5, 4)):
        ids = torch.randint(0, 11, (4, length), generator=generator)
        mask = (torch.arange(length) < kept).long().expand(4, -1)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


@pytest.mark.parametrize("shift", [True, False])
def test_the_loss_of_a_hugging_face_model_is_averaged_over_tokens(shift: bool) -> None:
    model, batches = Causal(shift), texts()
    objective = Objective(model, HuggingFaceLoss(shift=shift), batches)
    tokens = [int((b["labels"][:, int(shift) :] != -100).sum()) for b in batches]
    assert objective.data.counts == tuple(map(float, tokens))
    with torch.no_grad():
        expected = sum(n * float(model(**b).loss) for n, b in zip(tokens, batches, strict=True)) / sum(tokens)
    assert objective.value() == pytest.approx(expected, rel=1e-6)
    assert objective.additivity == "mean of samples"
    theta = objective.parameters()
    radial = float(theta @ (fisher(objective) @ theta))
    assert math.exp(log_fisher_rao(objective).value) == pytest.approx(radial, rel=1e-4)
    with pytest.raises(ProbeError, match="must equal of_outputs"):
        gauss_newton(Objective(model, HuggingFaceLoss(shift=not shift), batches[2:]))


def test_a_loss_by_sequences_is_refused_with_the_count_of_tokens() -> None:
    with pytest.raises(ProbeError, match=r"count=lambda batch: int\(\(batch\['labels'\]\[:, 1:\] != -100\).sum\(\)\)"):
        Objective(Causal(), lambda m, b: m(**b).loss, texts()[:2]).value()
    with pytest.raises(ProbeError, match="a batch must be a mapping with 'labels', got dict"):
        Objective(Causal(), HuggingFaceLoss(), [{"input_ids": torch.zeros(2, 3)}])


def test_the_name_of_a_loss_has_its_settings() -> None:
    def kind(loss: Any) -> str:
        return Objective(nn.Linear(4, 3), loss, [(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))]).loss_kind

    assert kind(CrossEntropy()) == "CrossEntropy"
    assert (
        kind(CrossEntropy(torch.tensor([1.0, 0.5, 2.0]), 255)) == "CrossEntropy(weight=[1, 0.5, 2], ignore_index=255)"
    )
    assert kind(CrossEntropy(class_axis=1)) == "CrossEntropy(class_axis=1)"
    assert kind(MeanSquaredError()) == "MeanSquaredError"


def test_squared_errors_with_rows_of_one_length_are_a_mean_over_samples_and_others_are_not_known_to_be() -> None:
    model = nn.Linear(3, 3)
    even = Objective(model, MeanSquaredError(), [(torch.ones(n, 3), torch.zeros(n, 3)) for n in (2, 5)])
    assert (even.data.counts, even.additivity) == ((2.0, 5.0), "mean of samples")
    lines = [(torch.randn(4, n, 3), torch.randn(4, n)) for n in (2, 5)]
    uneven = Objective(nn.Sequential(nn.Linear(3, 1), nn.Flatten()), MeanSquaredError(), lines)
    with pytest.warns(ProbeWarning, match="additivity: unchecked"):
        uneven.value()
    right = Objective(uneven.model, MeanSquaredError(), lines, count=lambda b: b[1].numel())
    with torch.no_grad():
        expected = sum(float((uneven.model(x) - y).square().sum()) for x, y in lines) / (8 + 20)
    assert right.value() == pytest.approx(expected, rel=1e-6)
