from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError, rows
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian

METHODS = ("reverse", "batched", "forward")


def dense(operator: SymmetricOperator) -> Tensor:
    with operator.cached():
        return operator @ torch.eye(operator.size, dtype=operator.dtype)


def jacobians(objective: Objective) -> list[tuple[float, Tensor, Tensor, Any]]:
    """Return for each batch its weight, the Jacobian `(N C, n)` of the outputs, the outputs and the batch."""
    names, theta = objective.names, objective.parameters()
    shapes = [p.shape for name, p in objective.model.named_parameters() if name in names]
    found = []
    for weight, batch in zip(objective.data.weights, objective.data.batches, strict=True):

        def outputs(theta: Tensor, batch: Any = batch) -> Tensor:
            parts = [p.reshape(s) for p, s in zip(theta.split([s.numel() for s in shapes]), shapes, strict=True)]
            wrapped = nn.Module()
            wrapped.model = objective.model
            wrapped.forward = lambda b: objective.loss_fn.outputs(wrapped.model, b)
            return functional_call(wrapped, {f"model.{n}": p for n, p in zip(names, parts, strict=True)}, (batch,))

        objective.model.eval()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            J = torch.autograd.functional.jacobian(outputs, theta)
            found.append((weight, J.reshape(-1, len(theta)), outputs(theta).detach(), batch))
    return found


def dense_gauss_newton(objective: Objective) -> Tensor:
    """Return J' S J with torch's own Jacobian and Hessian."""
    total = torch.zeros(objective.size, objective.size, dtype=torch.float64)
    for weight, J, z, batch in jacobians(objective):
        S = torch.autograd.functional.hessian(lambda z, batch=batch: objective.loss_fn.of_outputs(z, batch), z)
        total += weight * J.mT @ S.reshape(z.numel(), z.numel()) @ J
    return total


def dense_empirical(objective: Objective) -> Tensor:
    """Return the mean of g g' with the gradient of each term computed separately."""
    total = torch.zeros(objective.size, objective.size, dtype=torch.float64)
    for weight, J, z, batch in jacobians(objective):
        slopes = torch.autograd.functional.jacobian(lambda z, batch=batch: terms(objective.loss_fn, z, batch), z)
        g = slopes.reshape(len(slopes), -1) @ J  # the gradient of each term
        total += weight * g.mT @ g / len(g)
    return total


def terms(loss: Any, z: Tensor, batch: Any) -> Tensor:
    """Return the terms of the mean one by one."""
    if isinstance(loss, MeanSquaredError):
        return (rows(z) - rows(loss.targets(batch))).square().mean(1)
    labels = loss.labels(batch).reshape(-1)
    return F.cross_entropy(rows(z), labels, reduction="none")[labels != -100]


CASES = ("mlp", "tied", "dictionary", "frozen parameters", "batch norm", "conv and group norm", "attention")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_each_method_gives_the_dense_matrices_over_unequal_batches(name: str, method: str, make_case: Any) -> None:
    if (name, method) == ("conv and group norm", "batched"):
        pytest.skip("torch has no rule for group norm there")
    objective = make_case(name).objective()
    found = dense(gauss_newton(objective, method=method))
    torch.testing.assert_close(found, dense_gauss_newton(objective), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dense(fisher(objective, method=method)), found, rtol=1e-8, atol=1e-9)
    empirical = dense(fisher(objective, "empirical", method=method))
    torch.testing.assert_close(empirical, dense_empirical(objective), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_squared_errors_and_labels_that_are_left_out_have_their_matrices(method: str, make_case: Any) -> None:
    squared = make_case("attention").net
    targets = [(x, gaussian(len(x), 2, 3)) for x in (gaussian(5, 4), gaussian(2, 4))]
    inputs, labels = make_case("attention", (6,)).pairs[0]
    labels = labels.clone()
    labels[1, 0] = labels[4] = -100
    for objective in (
        Objective(squared, MeanSquaredError(), targets),
        Objective(squared, CrossEntropy(), [(inputs, labels)]),
    ):
        exact = dense_gauss_newton(objective)
        torch.testing.assert_close(dense(gauss_newton(objective, method=method)), exact, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(dense(fisher(objective, method=method)), exact, rtol=1e-8, atol=1e-9)
        empirical = dense(fisher(objective, "empirical", method=method))
        torch.testing.assert_close(empirical, dense_empirical(objective), rtol=1e-8, atol=1e-9)


def test_outputs_along_one_axis_are_one_term_each() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    objective = Objective(net, MeanSquaredError(), [(gaussian(7, 3), gaussian(7))])
    torch.testing.assert_close(dense(fisher(objective, "empirical")), dense_empirical(objective))
    torch.testing.assert_close(dense(gauss_newton(objective)), dense_gauss_newton(objective))


def test_the_true_fisher_matrix_ignores_the_labels_and_the_gauss_newton_matrix_sees_their_sum(make_case: Any) -> None:
    net, x = make_case("mlp").net, gaussian(6, 4)
    soft = gaussian(6, 3).softmax(-1)
    plain = dense(fisher(Objective(net, CrossEntropy(), [(x, torch.zeros(6, dtype=torch.long))])))
    assert torch.equal(dense(fisher(Objective(net, CrossEntropy(), [(x, 2 * soft)]))), plain)
    doubled = Objective(net, CrossEntropy(), [(x, 2 * soft)])
    torch.testing.assert_close(dense(gauss_newton(doubled)), 2 * plain)


def test_the_trace_of_the_hessian_of_a_relu_network_is_that_of_its_gauss_newton_matrix() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    objective = Objective(net, CrossEntropy(), [(gaussian(30, 4), torch.arange(30) % 3)])
    H, G = dense(hessian(objective)), dense(gauss_newton(objective))
    assert float(H.trace()) == pytest.approx(float(G.trace()), rel=1e-10)
    assert float((H - G).norm()) > 1e-2


@given(st.integers(0, 10**6), st.sampled_from(["gauss_newton", "true", "empirical"]))
@settings(max_examples=15, deadline=None)
def test_they_are_symmetric_and_positive_semidefinite(seed: int, kind: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3)).double()
    objective = Objective(net, CrossEntropy(), [(gaussian(5, 3, seed=seed), torch.arange(5) % 3)])
    A = dense(gauss_newton(objective) if kind == "gauss_newton" else fisher(objective, kind))
    torch.testing.assert_close(A, A.mT, rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.eigvalsh(A).min()) > -1e-12


class Smoothed(CrossEntropy):
    """A subclass that changes the loss, so that the inherited closed-form Hessian no longer applies."""

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return 3 * F.cross_entropy(outputs, batch[1], label_smoothing=0.2) + outputs.pow(4).mean()


def test_a_loss_that_is_derived_from_another_has_its_own_matrix(make_case: Any) -> None:
    objective = Objective(make_case("mlp").net, Smoothed(), make_case("mlp").pairs)
    found = dense(gauss_newton(objective))
    torch.testing.assert_close(found, dense_gauss_newton(objective), rtol=1e-8, atol=1e-10)
    assert not torch.allclose(found, 3 * dense(fisher(objective)))


class Huber:
    """A custom loss that splits into outputs and a loss of outputs."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"])

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.huber_loss(outputs, batch["y"])


class Mistaken(Huber):
    """A loss whose two parts give another value."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return 2 * super().__call__(model, batch)


def own(loss: Any, net: nn.Module) -> Objective:
    return Objective(net, loss, [{"x": gaussian(6, 4), "y": 2 * gaussian(6, 3, seed=1)}])


def test_a_loss_of_ones_own_needs_its_two_halves(make_case: Any) -> None:
    net = make_case("mlp").net
    objective = own(Huber(), net)
    torch.testing.assert_close(dense(gauss_newton(objective)), dense_gauss_newton(objective), rtol=1e-8, atol=1e-10)
    assert dense(fisher(objective, "empirical")).any()
    with pytest.raises(ProbeError, match=r"needs the method model_fisher\(outputs, batch\), which Huber lacks"):
        fisher(objective)
    with pytest.raises(
        ProbeError,
        match=r"loss_fn must have the methods .+, got <lambda>: add them, or use Cross",
    ):
        gauss_newton(own(lambda m, b: m(b["x"]).square().mean(), net))
    with pytest.raises(ProbeError, match=r"got 3\.\d+ and 1\.\d+ on batch 0 of 1 from Mistaken: make"):
        gauss_newton(own(Mistaken(), net))


def test_kinds_methods_targets_and_models_that_do_not_fit_are_refused(make_case: Any) -> None:
    objective = make_case("mlp").objective()
    with pytest.raises(ProbeError, match=r"kind must be one of .+, got 'exact'"):
        fisher(objective, "exact")  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match=r"method must be one of .*, got 'linearize'"):
        gauss_newton(objective, method="linearize")
    broadcast = Objective(objective.model, MeanSquaredError(), [(gaussian(5, 4), gaussian(5))])
    with pytest.raises(ProbeError, match=r"targets must have the shape of the outputs \(5, 3\), got \(5,\)"):
        gauss_newton(broadcast) @ torch.ones(objective.size)
    other = make_case("mlp").net
    detached = type("Detached", (CrossEntropy,), {"logits": lambda self, m, b: other(b[0]).detach()})()
    with pytest.raises(ProbeError, match="depends on none of the 4 trainable parameters"):
        gauss_newton(Objective(objective.model, detached, make_case("mlp").pairs)) @ torch.ones(objective.size)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_graphs_are_kept_within_the_memory(memory: int, make_case: Any) -> None:
    objective = make_case("mlp").objective()
    G, V = gauss_newton(objective, memory=memory), gaussian(objective.size, 2)
    expected = G @ V
    passes: list[int] = []
    objective.model.register_forward_hook(lambda *_: passes.append(1))
    with G.cached():
        for _ in range(3):
            torch.testing.assert_close(G @ V, expected, rtol=1e-12, atol=1e-14)
        assert len(passes) == (3 if memory else 9)
    assert G.gradient_seconds > 0
    assert (G.is_hessian, G.objective, G.method) == (False, objective, "reverse")


def test_in_frozen_mode_it_goes_through_the_statistics_of_the_batch(make_case: Any) -> None:
    frozen = make_case("batch norm").objective("frozen")
    reverse, forward = (dense(gauss_newton(frozen, method=method)) for method in ("reverse", "forward"))
    torch.testing.assert_close(reverse, forward, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(reverse, dense(gauss_newton(make_case("batch norm").objective())))
    with pytest.raises(ProbeError, match="method='forward' does not support mode='train'"):
        gauss_newton(make_case("batch norm").objective("train"), method="forward") @ torch.ones(len(reverse))
