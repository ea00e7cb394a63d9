"""Invalid input raises an error of one sentence with the number in it, and leaves no partial state."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.derived import preconditioned, restricted, scaled
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.invariant import log_fisher_rao
from lossscope.probes.sharpness.sampling_error import sampled_eigenvalue


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.25), nn.Tanh(), nn.Linear(5, 3))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.arange(n) % 3) for n in (8, 5)]


def objective(model: nn.Module | None = None, loss: Any = None, batches: Any = None, **how: Any) -> Objective:
    return Objective(model or net(), loss or CrossEntropy(), data() if batches is None else batches, **how)


def spectrum(of: Objective | None = None, **how: Any) -> Any:
    return measure_spectrum(hessian(of or objective()), **how)


def nan_in_the_data() -> Any:
    batches = data()
    batches[1][0][2, 3] = float("nan")
    return spectrum(objective(batches=batches))


def nan_in_a_parameter() -> Any:
    model = net()
    model[3].bias.data[1] = float("nan")
    return spectrum(objective(model))


def changed_since(change: Callable[[nn.Sequential], object]) -> Any:
    model = net()
    of = objective(model)
    of.value()
    change(model)
    return spectrum(of)


def a_slope_without_end() -> Any:
    """Return a finite loss whose derivative at 0 is not finite."""
    model = nn.Module()
    model.theta = nn.Parameter(torch.zeros(4))
    return spectrum(objective(model, lambda m, _: m.theta.abs().sum().sqrt()))


def exhausted() -> Any:
    used = iter(data())
    list(used)
    return objective(batches=used)


def integer_parameters() -> Any:
    model = nn.Module()
    model.table = nn.Parameter(torch.arange(6), requires_grad=False)
    return objective(model, lambda m, _: m.table.sum())


def empty_parameters() -> Any:
    model = nn.Module()
    model.first, model.second = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(3, 0))
    return objective(model, lambda m, _: m.first.sum())


def frozen() -> Any:
    return objective(net().requires_grad_(False))


def rotation(n: int = 40) -> SymmetricOperator:
    """Return a user's product that is not symmetric: the identity plus half a shift."""
    return SymmetricOperator(n, lambda V: V + 0.5 * V.roll(1, 0), dtype=torch.float64, device=torch.device("cpu"))


def rotated(eigenvalues: Tensor) -> Tensor:
    random = torch.randn(len(eigenvalues), len(eigenvalues), generator=torch.Generator().manual_seed(2))
    Q, _ = torch.linalg.qr(random.double())
    A = (Q * eigenvalues) @ Q.mT
    return (A + A.mT) / 2


def penalty(model: nn.Module, _: Any) -> Tensor:
    """Return a loss that needs no data."""
    return sum(p.square().sum() for p in model.parameters())


def lazy() -> Any:
    return objective(nn.Sequential(nn.LazyLinear(5), nn.Tanh()))


class Checkpointed(nn.Module):
    """A network whose middle block recomputes its activations in the backward pass."""

    def __init__(self, *, reentrant: bool, first: type[nn.Module]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.block, self.head = first(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda z: torch.tanh(self.block(z)), self.first(x), use_reentrant=self.reentrant)
        return self.head(h)


def through_a_checkpoint(take: Callable[[Objective], Any], first: type[nn.Module]) -> Callable[[], Any]:
    def attempt() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as a user may have set
            return take(objective(Checkpointed(reentrant=True, first=first)))

    return attempt


def with_inputs_that_require_grad(take: Callable[[Objective], Any]) -> Callable[[], Any]:
    batches = [(x.requires_grad_(), y) for x, y in data()]
    return lambda: take(objective(Checkpointed(reentrant=True, first=nn.Identity), batches=batches))


def out_of_range(attempt: Any) -> Callable[[], Any]:
    return lambda: SymmetricOperator(3, lambda V: V, dtype=attempt, device=torch.device("cpu"))


def unseen_outputs() -> Any:
    return gauss_newton(objective(loss=lambda m, b: m(b[0]).square().mean())) @ torch.ones(43)


def coupled_samples() -> Any:
    """Measure in frozen mode, where batch norm couples the samples of a batch: parts do not estimate the whole."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    return sampled_eigenvalue(objective(model, mode="frozen"), parts=4, max_products=20)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nan in the data": (nan_in_the_data, r"the loss is nan on batch 1 of 2"),
    "nan in a parameter": (nan_in_a_parameter, r"the loss is nan on batch 0 of 2"),
    "an infinite loss": (
        lambda: spectrum(objective(loss=lambda m, b: m(b[0]).sum() / 0)),
        r"the loss is -?inf on batch 0",
    ),
    "a derivative that is not finite": (a_slope_without_end, r"not finite"),
    "no trainable parameter": (frozen, r"0 of 4 parameters require grad, need at least 1"),
    "no parameter at all": (lambda: objective(nn.Tanh()), r"0 of 0 parameters require grad"),
    "empty parameters": (empty_parameters, r"2 trainable parameters have 0 entries"),
    "integer parameters": (integer_parameters, r"table.*torch\.int64"),
    "a vector for a loss": (
        lambda: spectrum(objective(loss=lambda m, b: m(b[0]).sum(1))),
        r"must return one real number, got torch\.float32 of shape \(8,\) on batch 0 of 2",
    ),
    "an exhausted iterator": (exhausted, r"at least 1 batch, got 0: an exhausted iterator"),
    "batches of no length": (lambda: objective(loss=penalty, batches=[{}]), r"has no tensor with a length"),
    "dropout left on": (lambda: spectrum(objective(mode="train")), r"100 units.*1 \(Dropout\) is active"),
    "dropout left on in frozen mode": (lambda: spectrum(objective(mode="frozen")), r"1 \(Dropout\) is active"),
    "no budget": (lambda: spectrum(max_products=0), r"max_products must be at least \d+ .*, got 0"),
    "a negative budget": (lambda: spectrum(max_products=-5), r"max_products must be at least \d+ .*, got -5"),
    "no accuracy": (lambda: spectrum(rel=0.0), r"rel must be between 0 and 1, got 0"),
    "an operator that is not symmetric": (lambda: measure_spectrum(rotation()), r"not symmetric.*\d\.\d"),
    "a matrix that is not symmetric": (
        lambda: from_matrix(torch.tensor([[1.0, 0.25], [0.0, 1.0]])),
        r"differs from its transpose by 0\.25 where its largest entry is 1",
    ),
    "a preconditioner with a zero": (
        lambda: preconditioned(from_matrix(torch.eye(3)), torch.tensor([1.0, 0.0, 2.0])),
        r"\b0\b",
    ),
    "a preconditioner of another length": (lambda: preconditioned(hessian(objective()), torch.ones(5)), r"43.*5"),
    "a scale that is not finite": (
        lambda: scaled(from_matrix(torch.eye(2)), torch.tensor([1.0, float("inf")])),
        r"diagonal must be finite, got 1 of 2 entries that are not",
    ),
    "a warm start of another length": (lambda: spectrum(warm_start=torch.ones(7)), r"7.*43|43.*7"),
    "a name that no parameter has": (lambda: restricted(hessian(objective()), ["0.weights"]), r"'0\.weights'.*4"),
    "a Gauss-Newton matrix without outputs": (unseen_outputs, r"outputs"),
    "samples that hang together": (coupled_samples, r"\d"),
    "a lazy module": (lazy, r"2 tensors, such as 0\.weight, have no shape yet: run one forward pass first"),
    "no batches": (lambda: Objective(net(), CrossEntropy(), None), r"batches must be iterable, got NoneType"),
    "a count that is no number": (lambda: objective(count=lambda _: "eight"), r"got 'eight' for batch 0"),
    "a count of nothing": (
        lambda: objective(count=lambda _: None),
        r"must return the number of terms, got None for batch 0",
    ),
    "an integer operator": (out_of_range(torch.int64), r"dtype must be real and floating, .* got torch\.int64"),
    "a complex operator": (out_of_range(torch.complex64), r"dtype must be real and floating, .* got torch\.complex64"),
    "a complex vector": (
        lambda: from_matrix(torch.eye(3)) @ torch.ones(3, dtype=torch.complex64),
        r"V must be real, got torch\.complex64",
    ),
    **{
        f"a reentrant checkpoint{where}: {name}": (through_a_checkpoint(take, first), r"use_reentrant=True.*=False")
        for where, first in (("", nn.Linear), (" that torch only warns of", nn.Identity))
        for name, take in {
            "gradient": Objective.gradient,
            "spectrum": spectrum,
            "Gauss-Newton": lambda of: gauss_newton(of) @ torch.ones(of.size),
        }.items()
    },
    **{
        f"a reentrant checkpoint whose input requires grad: {name}": (
            with_inputs_that_require_grad(take),
            r"use_reentrant=True.*=False",
        )
        for name, take in {
            "value": Objective.value,
            "gradient": Objective.gradient,
            "Gauss-Newton": lambda of: gauss_newton(of) @ torch.ones(of.size),
            "Fisher-Rao": log_fisher_rao,
        }.items()
    },
    "a model that lost a layer since": (
        lambda: changed_since(lambda model: model.pop(3)),
        r"parameter 3\.weight is gone, was \(3, 5\): make a new Objective for the new model",
    ),
    "a model that lost a parameter since": (
        lambda: changed_since(lambda model: setattr(model[0], "bias", None)),
        r"parameter 0\.bias is gone, was \(5,\)",
    ),
    "a model of another width since": (
        lambda: changed_since(lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones(6, 4)))),
        r"parameter 0\.weight has shape \(6, 4\), was \(5, 4\)",
    ),
    "a model without values since": (
        lambda: changed_since(lambda model: model.to("meta")),
        "tensors of the model are on the device meta and have no values",
    ),
    "an unknown Fisher matrix": (
        lambda: fisher(objective(), kind="exact"),
        r"must be one of .+, got 'exact'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_sentence_with_the_number_in_it(case: str) -> None:
    attempt, expected = REFUSED[case]
    before = torch.get_rng_state()
    with pytest.raises(ProbeError, match=expected) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_of_the_newer_kind_changes_nothing() -> None:
    model = Checkpointed(reentrant=False, first=nn.Linear)
    H = hessian(objective(model))
    plain = nn.Sequential(model.first, model.block, nn.Tanh(), model.head)
    torch.testing.assert_close(H @ torch.ones(H.size), hessian(objective(plain)) @ torch.ones(H.size))


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_a_refused_model_is_as_it_was(mode: Any) -> None:
    model = net()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    refused = objective(model, mode=mode)
    for _ in range(2):  # it raises again, although it was checked once
        with pytest.raises(ProbeError, match=r"1 \(Dropout\)"):
            spectrum(refused)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_was_refused_can_be_measured_once_it_is_mended() -> None:
    batches = data()
    batches[0][0][0, 0] = float("nan")
    mended = objective(batches=batches)
    with pytest.raises(ProbeError, match="the loss is nan on batch 0 of 2"):
        spectrum(mended)
    batches[0][0][0, 0] = 0.5
    assert float(spectrum(mended, top=1, quantities=("top",)).top.values[0]) > 0


@pytest.mark.parametrize("argument", [{"top": 0}, {"rel": -1.0}, {"max_products": 1}, {"quantities": ("slope",)}])
def test_a_wrong_argument_costs_no_product(argument: dict[str, Any]) -> None:
    operator = hessian(objective())
    with pytest.raises(ProbeError):
        measure_spectrum(operator, **argument)
    assert operator.products == 0


@pytest.mark.parametrize("quantities", [("top",), ("top", "bottom", "trace"), None])
def test_a_budget_that_cannot_hold_what_is_requested_names_the_least_that_can(quantities: Any) -> None:
    eigenvalues = torch.linspace(0, 1, 400, dtype=torch.float64)
    operator = from_matrix(rotated(eigenvalues))
    with pytest.raises(ProbeError, match=r"max_products must be at least \d .*, got 1") as caught:
        measure_spectrum(operator, quantities=quantities, max_products=1)
    assert operator.products == 0
    least = int(re.search(r"must be at least (\d+)", str(caught.value))[1])
    found = measure_spectrum(operator, rel=1e-4, quantities=quantities, max_products=least)
    assert found.products <= least
    # enough to begin with and too small for the bound: each number says so and gives an honest bound
    assert {"top", "trace"} & set(quantities or ("top", "trace")) <= set(found.unmet)
    assert not bool(found.top.converged.any())
    low, high = found.top.estimate().low, found.top.estimate().high
    assert bool(((low <= eigenvalues) & (eigenvalues <= high)).any())
