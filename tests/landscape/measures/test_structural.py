"""Structural measures as `probe` takes them: right numbers with their cost, and a reason where there is none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.measure_group import Evaluation
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.structural_entries import STRUCTURAL
from lossscope.landscape.storage.row_codec import cells
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.rescale import rescaled
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.relative_flatness import relative_flatness

X, Y = gaussian(31, 4), torch.arange(31) % 3
OPTIONS = SolverOptions(1e-6, 1e-6, 200)


def network(bend: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), bend, nn.Linear(6, 3)).double()


def panel(model: nn.Module, options: SolverOptions = OPTIONS, **more: Objective) -> Panel:
    data = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    return Panel(MeasurementTarget(Objective(model, CrossEntropy(), data), **more), options)


def measured(group: str, at: Panel, *names: str) -> dict[str, dict[str, object]]:
    rows = at.with_provenance(GROUPS[group].measure(at, names or GROUPS[group].names), 1)
    for table, row in rows.by_table():
        cells(table, row)  # raises where a row does not fit its table
    return {row["measure"]: row for row in rows.probes}


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return Hessian, Gauss-Newton and Fisher matrices of the mean loss by torch.func, without an operator of ours."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def logits(theta: Tensor, x: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(theta.split(sizes), named.values(), strict=True)]
        return torch.func.functional_call(model, dict(zip(named, parts, strict=True)), (x,))

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    J = torch.func.jacrev(logits)(theta, X)
    p = logits(theta, X).softmax(-1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    gradients = torch.einsum("nc,nci->ni", p - F.one_hot(Y, 3), J)
    return {
        "hessian": torch.func.hessian(lambda t: F.cross_entropy(logits(t, X), Y))(theta),
        "gauss_newton": torch.einsum("nci,ncd,ndj->ij", J, S, J) / len(X),
        "empirical": gradients.mT @ gradients / len(X),
    }


def assert_holds(row: dict[str, object], truth: float) -> None:
    assert row["low"] - 1e-9 <= truth <= row["high"] + 1e-9, row
    assert row["value"] == pytest.approx(truth, rel=1e-4)
    assert row["converged"] is True


@pytest.mark.parametrize("bend", [nn.Tanh(), nn.ReLU()])
def test_the_parts_of_the_hessian_are_those_of_dense_matrices_and_add_up(bend: nn.Module) -> None:
    at, right = panel(network(bend)), matrices(network(bend))
    parts = measured("gauss_newton", at) | measured("residual", at)
    rest = torch.linalg.eigvalsh(right["hessian"] - right["gauss_newton"])
    assert_holds(parts["gauss_newton_lambda_max"], float(torch.linalg.eigvalsh(right["gauss_newton"])[-1]))
    assert_holds(parts["residual_lambda_max"], float(rest[-1]))
    assert_holds(parts["residual_lambda_min"], float(rest[0]))
    total = measured("spectrum", at, "trace")["trace"]["value"]
    assert parts["gauss_newton_trace"]["value"] + parts["residual_trace"]["value"] == pytest.approx(total, rel=1e-5)
    assert (abs(parts["residual_trace"]["value"]) < 1e-9) is isinstance(bend, nn.ReLU)  # a zero diagonal
    assert float(rest[-1]) > 0.05
    assert parts["residual_trace"]["method"] == "reverse"
    assert parts["residual_trace"]["products"] == parts["residual_lambda_max"]["products"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_linear_model_has_no_residual_part_beyond_rounding(dtype: torch.dtype) -> None:
    net = nn.Linear(4, 3).to(dtype)
    data = [(X.to(dtype), Y)]
    at = Panel(MeasurementTarget(Objective(net, CrossEntropy(), data)), OPTIONS)
    digits = torch.finfo(dtype).eps * measured("gauss_newton", at)["gauss_newton_trace"]["value"]
    for name, row in measured("residual", at).items():
        assert row["low"] <= 0 <= row["high"], name
        assert abs(row["value"]) < 10 * digits
        assert row["converged"] is False  # relative to zero nothing is accurate
        assert "are off by" in str(row["cause"])


def test_fisher_traces_are_those_of_dense_matrices_and_differ() -> None:
    model = network(nn.Tanh())
    right = matrices(model)
    true, empirical = (measured(name, panel(model))[name] for name in ("fisher_trace", "empirical_fisher_trace"))
    assert_holds(true, float(right["gauss_newton"].trace()))
    assert_holds(empirical, float(right["empirical"].trace()))
    assert abs(empirical["value"] / true["value"] - 1) > 0.05


def test_a_rescaling_moves_them_but_not_the_residual_part_of_two_layers() -> None:
    model = network(nn.ReLU())
    other = rescaled(model, seed=1)
    assert torch.allclose(other(X), model(X))
    for group in ("gauss_newton", "fisher_trace", "empirical_fisher_trace"):
        before, after = measured(group, panel(model)), measured(group, panel(other))
        for name in before:
            assert abs(after[name]["value"] / before[name]["value"] - 1) > 0.15, name
    # it couples the weights into a neuron with those out of it, whose factors cancel
    before, after = measured("residual", panel(model)), measured("residual", panel(other))
    assert after["residual_lambda_max"]["value"] == pytest.approx(before["residual_lambda_max"]["value"], rel=1e-9)
    deep = nn.Sequential(model[0], nn.ReLU(), *network(nn.ReLU())[2:], nn.ReLU(), nn.Linear(3, 3).double())
    ends = [measured("residual", panel(one))["residual_lambda_max"]["value"] for one in (deep, rescaled(deep, seed=1))]
    assert abs(ends[1] / ends[0] - 1) > 0.05


def test_a_loss_without_outputs_has_no_parts_and_says_why() -> None:
    plain = Objective(network(nn.Tanh()), lambda net, x: net(x).square().mean(), [X])
    at = Panel(MeasurementTarget(plain), OPTIONS)
    for group in ("gauss_newton", "residual", "fisher_trace", "empirical_fisher_trace"):
        with pytest.raises(ProbeError, match=r"outputs\(model, batch\)|model_fisher"):
            GROUPS[group].measure(at, GROUPS[group].names)


def test_they_are_taken_on_request_only() -> None:
    long = Evaluation(long=True, stepped=True, eigenvalues=5, tracked=False, full=True, named=True)
    assert not any(one.usual or (one.recorded and one.recorded.names(long)) for one in STRUCTURAL)


def test_relative_flatness_is_taken_with_its_cost() -> None:
    row = measured("relative_flatness", panel(network(nn.ReLU())))["relative_flatness"]
    assert row["low"] <= relative_flatness(panel(network(nn.ReLU())).objective, rel=1e-9).value <= row["high"]
    assert row["products"] > 0
    assert row["seconds"] > 0


def test_the_test_loss_in_few_bits_is_of_test_data_and_missing_without_them() -> None:
    model = network(nn.ReLU())
    test = Objective(model, CrossEntropy(), [(2 * X, Y)])
    at = panel(model, test=test)
    rows = measured("quantization", at)
    assert list(rows) == [f"test_loss_{bits}_bits" for bits in range(2, 9)]
    assert {row["data_hash"] for row in rows.values()} == {test.data_hash} != {at.objective.data_hash}
    off = [abs(row["value"] - test.value()) for row in rows.values()]
    assert off[-1] < 0.05 * off[0]
    without = panel(model)
    assert measured("quantization", without) == {}
    assert set(without.absent.values()) == {"no test data are known here"}


def test_of_bits_that_break_the_loss_alone_the_row_is_missing() -> None:
    weight = torch.nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        weight.weight.copy_(torch.tensor([[0.1, 0.2], [1.0, 1.0]]))
    jump = Objective(weight, lambda net, _: 1 / (net.weight[0, 0] - net.weight[0, 1]) ** 2, [torch.zeros(1)])
    at = panel(network(nn.ReLU()), test=jump)
    assert "test_loss_8_bits" in measured("quantization", at)
    assert "is inf after rounding to 2 bits" in at.failed["test_loss_2_bits"]


def test_the_least_trace_is_that_of_the_balanced_point_and_missing_where_there_is_none() -> None:
    model = network(nn.ReLU())
    before, after = (measured("orbit_trace", panel(one))["orbit_trace"] for one in (model, rescaled(model, seed=1)))
    assert after["value"] == pytest.approx(before["value"], rel=1e-6)
    assert before["gauge"] == "least trace"
    assert before["value"] < measured("balanced", panel(model), "balanced_trace")["balanced_trace"]["value"]
    normed = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    with pytest.raises(ProbeError, match="no balanced point is known for this network"):
        measured("orbit_trace", panel(normed))
    narrow = Objective(network(nn.ReLU()).bfloat16(), CrossEntropy(), [(X.bfloat16(), Y)])
    with pytest.raises(ProbeError, match="to which rescaled weights cannot be rounded"):
        measured("orbit_trace", Panel(MeasurementTarget(narrow), OPTIONS))


def test_the_learning_coefficient_is_missing_where_the_sampler_fails() -> None:
    one = Objective(network(nn.ReLU()), CrossEntropy(), [(X[:1], Y[:1])])
    with pytest.raises(ProbeError, match="needs more than one term"):
        measured("learning_coefficient", Panel(MeasurementTarget(one), OPTIONS))


@pytest.mark.slow
def test_the_learning_coefficient_is_taken_with_its_interval() -> None:
    net = nn.Linear(4, 3).double()
    fit = torch.optim.LBFGS(net.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fit.zero_grad()
        found = F.cross_entropy(net(X), Y)
        found.backward()
        return found

    fit.step(loss)
    row = measured("learning_coefficient", panel(net))["learning_coefficient"]
    assert 0 < row["low"] < row["value"] < row["high"] < 7.5  # half of 15 parameters
    assert row["samples"] >= 100
