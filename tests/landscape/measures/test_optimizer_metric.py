from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from helpers import gaussian
from lossscope.landscape.measures.optimizer_metric import StepMetric, step_metric, why_no_metric
from lossscope.optimizer import ARS2Neo, Direction, Rule, RuleOptimizer, TwoPassOptimizer, Update, decay, move, names
from lossscope.optimizer.update.rules import RULES
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import preconditioned
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.stability_thresholds import edge_ratio, frozen_adam, heavy_ball
from required_settings import create

Make = Callable[[nn.Module], Optimizer]


class Point(nn.Module):
    """A matrix and a vector, started at random."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(gaussian(2, 2))
        self.b = nn.Parameter(gaussian(3, seed=1))

    def joined(self) -> Tensor:
        return torch.cat([self.a.flatten(), self.b])


def quadratic(H: Tensor) -> Objective:
    return Objective(Point(), lambda m, _: m.joined() @ H @ m.joined() / 2, [torch.zeros(1)])


def network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(20, 4), torch.arange(20) % 3)])


def step(objective: Objective, optimizer: Optimizer) -> Tensor:
    """One step on the objective's own data; the displacement."""
    before = objective.parameters()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss_fn(objective.model, objective.data.batches[0])
        loss.backward()
        return loss

    if isinstance(optimizer, TwoPassOptimizer) and optimizer.declared.needs:
        x, y = objective.data.batches[0]
        for p in optimizer.passes(objective.model):
            logits = objective.model(x)
            p.backward(F.cross_entropy(logits, p.labels(logits, y)))
        optimizer.step()
    elif isinstance(optimizer, TwoPassOptimizer):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
    return objective.parameters() - before


def metric(optimizer: Optimizer, objective: Objective) -> StepMetric:
    found = step_metric(optimizer, dict(objective.model.named_parameters()), objective)
    assert found is not None
    return found


def joined(objective: Objective, optimizer: Optimizer, key: str) -> Tensor:
    parameters = dict(objective.model.named_parameters())
    return torch.cat([optimizer.state[parameters[name]][key].flatten() for name in objective.names])


# -- the metric is that of the step ---------------------------------------------------------------------------

ADAPTIVE: dict[str, Make] = {
    "adamw": lambda m: create("adamw", m, lr=0.02, weight_decay=0.0),
    "adamw large eps of ours": lambda m: create("adamw", m, lr=0.02, weight_decay=0.0, eps=0.1),
    "muon of vectors": lambda m: RuleOptimizer(
        [{"params": list(m.named_parameters()), "track": "vector"}], "muon", lr=0.02, betas=(0.9, 0.999), eps=1e-8
    ),
    "torch adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.0),
    "adamw amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.0, amsgrad=True),
    "adamw large eps": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.0, eps=0.1),
    "adamw foreach": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.0, foreach=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.02),
    "adamw@rms": lambda m: create("adamw@rms", m, lr=0.02, weight_decay=0.0),
    "adamw@rms rms": lambda m: create("adamw@rms", m, lr=0.02, weight_decay=0.0, energy="rms"),
}


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("steps", [1, 2, 15])
def test_the_last_step_is_minus_lr_times_the_running_mean_over_the_metric(name: str, steps: int) -> None:
    objective = network()
    optimizer = ADAPTIVE[name](objective.model)
    displacements = [step(objective, optimizer) for _ in range(steps)]
    found = metric(optimizer, objective)
    assert found.diagonal is not None
    expected = -0.02 * joined(objective, optimizer, "exp_avg") / found.diagonal
    assert torch.allclose(displacements[-1], expected, rtol=1e-9, atol=1e-14)
    assert found.threshold == pytest.approx(frozen_adam(0.02, 0.9).value, rel=1e-14)
    assert found.quantity == "preconditioned_sharpness"


def test_two_groups_step_by_the_metric_of_the_first_in_their_own_units() -> None:
    objective = network()
    first, *others = objective.model.parameters()
    groups = [{"params": others, "lr": 0.01, "betas": (0.8, 0.99)}, {"params": [first], "lr": 0.03}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(4):
        moved = step(objective, optimizer)
    found = metric(optimizer, objective)
    assert found.diagonal is not None
    assert found.threshold == pytest.approx(frozen_adam(0.03, 0.9).value, rel=1e-14)
    size = first.numel()
    m = joined(objective, optimizer, "exp_avg")
    assert torch.allclose(moved[:size], -0.03 * m[:size] / found.diagonal[:size], rtol=1e-9)
    other = frozen_adam(0.01, 0.8).value / found.threshold
    assert torch.allclose(moved[size:], -0.01 * m[size:] / (found.diagonal[size:] / other), rtol=1e-9)


# -- the threshold is that of the frozen iteration ------------------------------------------------------------


def halves(m: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    return [{"params": [m.a]}, {"params": [m.b], **settings}]


FROZEN: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "sgd ignores dampening without momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, dampening=0.5),
    "sgd with decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=3.0),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.8),
    "dampened": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.8, dampening=0.5),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.8, nesterov=True),
    "nesterov, two lr": lambda m: torch.optim.SGD(halves(m, lr=0.02), lr=0.1, momentum=0.8, nesterov=True),
    "two momenta": lambda m: torch.optim.SGD(halves(m, lr=0.02, momentum=0.0), lr=0.1, momentum=0.8),
    "two decays": lambda m: torch.optim.SGD(halves(m, weight_decay=4.0), lr=0.1, momentum=0.8, dampening=0.2),
    "sgd of ours": lambda m: create("sgd", m, lr=0.1),
    "sgd of ours with decay": lambda m: create("sgd", m, lr=0.1, weight_decay=3.0, momentum=0.8),
    "nesterov of ours, two lr": lambda m: RuleOptimizer(halves(m, lr=0.02), "sgd", lr=0.1, momentum=0.8, nesterov=True),
    "an ascent of radius 0": lambda m: create("sam", m, lr=0.1, momentum=0.8, rho=0.0),
    "adamw of ours": lambda m: create("adamw", m, lr=0.1, weight_decay=2.0),
    "three settings of ours": lambda m: RuleOptimizer(
        halves(m, lr=0.02, betas=(0.5, 0.9), weight_decay=5.0), "adamw", lr=0.1
    ),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=2.0),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1, weight_decay=20.0, betas=(0.6, 0.9)),
    "three settings": lambda m: torch.optim.AdamW(halves(m, lr=0.02, betas=(0.5, 0.9), weight_decay=5.0), lr=0.1),
}


def freeze(optimizer: Optimizer) -> None:
    """Stop the second moment where it is: beta2 one unit below 1, bias corrections at their limit."""
    for group in optimizer.param_groups:
        for index, p in enumerate(group["params"] if "betas" in group else []):
            group["betas"] = (group["betas"][0], 1 - 2.0**-53)
            second = gaussian(*p.shape, seed=10 + index).square() + 0.1
            optimizer.state[p] = {"step": torch.tensor(1e18), "exp_avg": torch.zeros_like(p), "exp_avg_sq": second}
            if group.get("momentum"):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def edge_in(found: StepMetric, H: Tensor) -> float:
    """The edge ratio, from dense eigenvalues."""
    assert found.threshold is not None
    root = torch.ones(7).double() if found.diagonal is None else found.diagonal.rsqrt()
    return float(torch.linalg.eigvalsh(root[:, None] * H * root)[-1]) / found.threshold


def frozen_run(make: Make, H: Tensor) -> list[float]:
    """Distances from the minimum of a quadratic, until it is a thousand times farther away."""
    point = Point()
    optimizer = make(point)
    freeze(optimizer)
    distances = [float(point.joined().detach().norm())]
    while len(distances) < 400 and distances[-1] < 1e3 * distances[0]:
        g = H @ point.joined().detach()
        point.a.grad, point.b.grad = g[:4].reshape(2, 2), g[4:]
        optimizer.step()
        distances.append(float(point.joined().detach().norm()))
    return distances


@pytest.mark.parametrize("name", FROZEN)
def test_the_optimizer_itself_converges_below_the_edge_and_diverges_above(name: str) -> None:
    A = gaussian(7, 7, seed=5)
    H = A @ A.mT / 7 + 0.3 * torch.eye(7, dtype=torch.float64)
    objective = quadratic(H)
    optimizer = FROZEN[name](objective.model)
    freeze(optimizer)
    found = metric(optimizer, objective)
    assert (found.diagonal is None) is (found.quantity == "lambda_max")
    H = H / edge_in(found, H)
    below, above = (frozen_run(FROZEN[name], edge * H) for edge in (0.95, 1.05))
    assert len(below) == 400
    assert max(below[-20:]) < 0.1 * below[0]
    assert len(above) < 400


def test_plain_sgd_needs_no_metric_and_no_state() -> None:
    objective = network()
    theirs = torch.optim.SGD(objective.model.parameters(), lr=0.1, momentum=0.9)
    for name, optimizer in (("sgd", create("sgd", objective.model, lr=0.1, momentum=0.9)), ("SGD", theirs)):
        found = metric(optimizer, objective)
        assert found == StepMetric(name, "lambda_max", None, heavy_ball(0.1, 0.9).value)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.05)  # as a scheduler may leave it
        assert metric(optimizer, objective).threshold == pytest.approx(heavy_ball(0.05, 0.9).value, rel=1e-6)


def test_full_batch_training_of_a_network_settles_at_the_edge() -> None:
    """Sharpness rises until it reaches the threshold in the optimizer's metric (Cohen et al., 2022)."""
    digits = load_digits()
    x, y = torch.tensor(digits.data[:100] / 6 - 0.8), F.one_hot(torch.tensor(digits.target[:100])).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    slow = {"params": net[0].parameters(), "lr": 0.003, "betas": (0.8, 0.999)}
    optimizer = torch.optim.AdamW([slow, {"params": net[2:].parameters()}], lr=0.012)
    objective = Objective(net, lambda m, b: (m(b[0]) - b[1]).square().sum(1).mean() / 2, [(x, y)])
    edges = []
    for count in range(1, 701):
        step(objective, optimizer)
        if count in (5, 500, 600, 700):
            found = metric(optimizer, objective)
            assert found.diagonal is not None
            assert found.threshold is not None
            operator = preconditioned(hessian(objective), found.diagonal)
            top = measure_spectrum(operator, top=1, rel=0.03, quantities=("top",)).top
            assert top is not None
            edges.append(edge_ratio(top.estimate(), found.threshold).value)
    assert edges[0] < 0.5
    assert all(0.8 < edge < 1.2 for edge in edges[1:]), edges


# -- ARS2-Neo -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in names() if n.startswith("ars2")])
def test_orthogonalized_steps_have_a_whitening_and_no_threshold(name: str) -> None:
    objective = network()
    optimizer = create(name, objective.model)
    for _ in range(3):
        step(objective, optimizer)
    found = metric(optimizer, objective)
    assert (found.threshold, found.quantity, found.name) == (None, "preconditioned_sharpness", "ARS2Neo")
    corrected = joined(objective, optimizer, "exp_avg_sq") / (1 - 0.999**3)
    assert found.diagonal is not None
    assert torch.allclose(found.diagonal, corrected.sqrt() + 1e-8, rtol=1e-12)


def test_an_ascent_has_no_threshold_even_without_orthogonalization() -> None:
    objective = network()
    for rho, known in ((0.1, False), (0.0, True)):
        optimizer = ARS2Neo(objective.model.named_parameters(), mode="sync", rho=rho, orthogonalize=False)
        step(objective, optimizer)
        assert (metric(optimizer, objective).threshold is not None) is known


# -- relatives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rmsuon", "muon@rms"])
@pytest.mark.parametrize("track", ["matrix", "vector"])
def test_a_rule_with_adams_moments_has_a_threshold_for_vectors_only(name: str, track: str) -> None:
    objective = network()
    if track == "vector":
        objective.model[0].weight.requires_grad_(False)
        objective.model[2].weight.requires_grad_(False)
        objective = Objective(objective.model, CrossEntropy(), objective.data.batches)
    optimizer = create(name, objective.model)
    for _ in range(3):
        step(objective, optimizer)
    found = metric(optimizer, objective)
    assert found.diagonal is not None
    whitening = (joined(objective, optimizer, "exp_avg_sq") / (1 - 0.999**3)).sqrt() + 1e-8
    if track == "matrix":
        assert (found.threshold, found.name) == (None, name)
        assert torch.allclose(found.diagonal, whitening, rtol=1e-12)
    else:
        assert found.threshold == pytest.approx(frozen_adam(1e-3, 0.9).value * (1 - 1e-3 * 0.01 / 2), rel=1e-12)


@pytest.mark.parametrize("name", ["muon", "adamuon", "normuon", "muoneq"])
def test_a_rule_without_a_second_moment_of_matrices_has_no_metric(name: str) -> None:
    objective = network()
    optimizer = create(name, objective.model)
    for _ in range(2):
        assert step_metric(optimizer, dict(objective.model.named_parameters()), objective) is None
        step(objective, optimizer)


@pytest.mark.parametrize("name", ["sam", "asam", "gsam", "looksam"])
def test_an_ascent_has_the_whitening_of_its_base_or_no_metric(name: str) -> None:
    objective = network()
    parameters = dict(objective.model.named_parameters())
    plain = create(name, objective.model)
    step(objective, plain)
    assert step_metric(plain, parameters, objective) is None
    whitening = create(name, objective.model, base="adamw")
    step(objective, whitening)
    found = metric(whitening, objective)
    assert (found.threshold, found.quantity) == (None, "preconditioned_sharpness")
    still = create(name, objective.model, base="adamw", rho=0.0)
    step(objective, still)
    assert metric(still, objective).threshold is not None


# -- around it ------------------------------------------------------------------------------------------------


def test_the_spectrum_in_the_metric_is_that_of_the_dense_matrix() -> None:
    objective = network()
    optimizer = create("adamw", objective.model)
    for _ in range(5):
        step(objective, optimizer)
    found = metric(optimizer, objective)
    assert found.diagonal is not None
    H = hessian(objective) @ torch.eye(objective.size, dtype=torch.float64)
    expected = torch.linalg.eigvals(H / found.diagonal[:, None]).real.max()
    top = measure_spectrum(
        preconditioned(hessian(objective), found.diagonal), top=1, rel=1e-6, max_products=500, quantities=("top",)
    ).top
    assert top is not None
    assert float(top.values[0]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", names())
def test_asking_changes_nothing_and_a_restored_state_answers_the_same(name: str) -> None:
    objective = network()
    optimizer = create(name, objective.model)
    step(objective, optimizer)
    before = copy.deepcopy(optimizer.state_dict()), objective.parameters()
    parameters = dict(objective.model.named_parameters())
    found = step_metric(optimizer, parameters, objective)
    after = optimizer.state_dict()
    for old, new in zip(before[0]["state"].values(), after["state"].values(), strict=True):
        for key, value in old.items():
            assert value is None or torch.equal(value, new[key])
    assert torch.equal(objective.parameters(), before[1])
    rebuilt = create(name, objective.model)
    rebuilt.load_state_dict(before[0])
    again = step_metric(rebuilt, parameters, objective)
    assert (again is None) is (found is None)
    if again is None or found is None:
        return
    assert (again.name, again.quantity, again.threshold) == (found.name, found.quantity, found.threshold)
    assert (again.diagonal is None) is (found.diagonal is None)
    assert found.diagonal is None or torch.equal(again.diagonal, found.diagonal)


def test_frozen_parameters_of_the_model_are_no_coordinates() -> None:
    objective = network()
    objective.model[0].weight.requires_grad_(False)
    part = Objective(objective.model, CrossEntropy(), objective.data.batches)
    optimizer = torch.optim.AdamW([p for p in objective.model.parameters() if p.requires_grad])
    step(part, optimizer)
    found = metric(optimizer, part)
    assert found.diagonal is not None
    assert len(found.diagonal) == part.size == objective.size - 20


def test_other_optimizers_are_not_guessed_at() -> None:
    objective = network()

    class Mine(torch.optim.AdamW):
        pass

    parameters = dict(objective.model.named_parameters())
    for optimizer in (
        torch.optim.RMSprop(objective.model.parameters()),
        Mine(objective.model.parameters()),
        torch.optim.SGD(objective.model.parameters(), lr=0.1, maximize=True),
    ):
        assert step_metric(optimizer, parameters, objective) is None


def test_a_step_with_a_learning_rate_of_0_has_its_metric_and_no_threshold() -> None:
    objective = network()
    model = objective.model
    still = metric(torch.optim.SGD(model.parameters(), lr=0.0), objective)
    assert still is not None
    assert (still.quantity, still.threshold) == ("lambda_max", None)
    assert "learning rate of the SGD is 0" in still.no_threshold
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    adam.step()
    moving = metric(adam, objective)
    for group in adam.param_groups:
        group["lr"] = 0.0
    resting = metric(adam, objective)
    assert moving is not None
    assert resting is not None
    assert resting.threshold is None
    ratio = moving.diagonal / resting.diagonal  # the decay of the moving one enters its metric as one factor
    assert torch.allclose(ratio, ratio[0].expand_as(ratio))


def test_a_weight_decay_of_none_is_none() -> None:
    objective = network()
    groups = [{"params": list(objective.model.parameters()), "weight_decay": None}]
    assert metric(torch.optim.SGD(groups, lr=0.1), objective).threshold == pytest.approx(20.0)


def test_what_has_no_metric_is_told_by_name() -> None:
    objective = network()
    model = objective.model
    for name, called in (("adamw", "adamw"), ("rmsuon", "rmsuon"), ("ars2-base", "ARS2Neo"), ("adamw@rms", "ARS2Neo")):
        optimizer = create(name, model)
        with pytest.raises(ProbeError, match=rf"0.weight has no second moment in the {called} yet"):
            metric(optimizer, objective)
    partly = torch.optim.AdamW(model.parameters())
    model[2].bias.grad = None
    for p in (model[0].weight, model[0].bias, model[2].weight):
        p.grad = torch.ones_like(p)
    partly.step()
    with pytest.raises(ProbeError, match=r"parameter 2.bias has no second moment"):
        metric(partly, objective)
    with pytest.raises(ProbeError, match=r"parameter 2.weight is in no group of the SGD"):
        metric(torch.optim.SGD(model[0].parameters(), lr=0.1), objective)
    with pytest.raises(ProbeError, match="lr must be finite and above 0, got -1"):
        metric(torch.optim.SGD([{"params": list(model.parameters()), "lr": torch.tensor(-1.0)}]), objective)
    with pytest.raises(ProbeError, match="the metric of the SGD must be finite and above 0, got values from -5 to -5"):
        metric(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=25.0), objective)
    blind = torch.optim.AdamW(model.parameters(), eps=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    blind.step()
    with pytest.raises(ProbeError, match="the metric of the AdamW must be finite and above 0, got values from 0 to 0"):
        metric(blind, objective)


# -- sign steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), [("lion", {}), ("signsgd", {}), ("lion", {"betas": (0.0, 0.9)})])
def test_a_sign_step_has_no_metric_and_the_reason_names_its_known_threshold(name: str, settings: dict) -> None:
    objective = network()
    optimizer = create(name, objective.model, **settings)
    step(objective, optimizer)
    assert step_metric(optimizer, dict(objective.model.named_parameters()), objective) is None
    why = why_no_metric(optimizer)
    assert why.startswith(f"the {name} takes sign steps, which no diagonal metric describes")
    assert "2 / lr on the sharpness in the maximum norm over the 1-norm of the gradient" in why


def test_where_nothing_is_known_of_a_step_the_reason_says_so() -> None:
    objective = network()
    clion = create("clion", objective.model)  # sign steps or momentum steps, by the size of the momentum's elements
    step(objective, clion)
    assert step_metric(clion, dict(objective.model.named_parameters()), objective) is None
    assert why_no_metric(clion) == "the metric of the clion is not known"
    uphill = torch.optim.SGD(objective.model.parameters(), lr=0.1, maximize=True)
    assert why_no_metric(uphill) == "the SGD maximizes, and no metric of ascent is known"


def test_the_declared_direction_of_a_rule_gives_its_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of the user's own along the gradient, with decoupled decay: the threshold is that of its iteration."""

    def plain(group: dict[str, Any], moments: Any) -> Any:
        decay(group, moments)
        return [move(group, moment, Update(moment.gradient, 1.0)) for moment in moments]

    rule = Rule(step=plain, words="plain", source="a test", lr=0.1, weight_decay=2.0, direction=Direction.GRADIENT)
    monkeypatch.setitem(RULES, "plain", rule)
    H = torch.diag(gaussian(7).abs() + 0.1)
    objective = quadratic(H)
    found = metric(RuleOptimizer(objective.model.named_parameters(), "plain"), objective)
    assert (found.quantity, found.diagonal) == ("lambda_max", None)
    assert found.threshold == pytest.approx(2 / 0.1 - 2.0, rel=1e-12)
    H = H / edge_in(found, H)
    below, above = (
        frozen_run(lambda m: RuleOptimizer(m.named_parameters(), "plain"), edge * H) for edge in (0.95, 1.05)
    )
    assert max(below[-20:]) < 0.1 * below[0]
    assert len(above) < 400
