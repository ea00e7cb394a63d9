"""The instruments of a step: every recorded number equals the one its own function returns."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.optimizer import ARS2Neo, StepRecord, TwoPassOptimizer, create
from lossscope.probes import CrossEntropy, Objective, layer_remainders, newton_schulz_quality

pytestmark = pytest.mark.usefixtures("every_instrument", "few_products")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 6, generator=generator).double(), torch.randint(0, 3, (20,), generator=generator)


def step(model: nn.Module, optimizer: TwoPassOptimizer) -> Tensor:
    x, y = data()
    for p in optimizer.passes(model):
        p.backward(F.cross_entropy(model(x), y))
    loss: Tensor = optimizer.step()
    return loss


def objectives(model: nn.Module) -> tuple[Objective, Objective]:
    x, y = data()
    return (
        Objective(model, CrossEntropy(), [(x, y)]),
        Objective(model, CrossEntropy(), [(x[:10], y[:10]), (x[10:], y[10:])]),
    )


# Instruments of steps are tested here; an evaluation with every measure would be most of the time.
FEW = {"measures": ["lambda_max"], "overhead": 1.0}


def recorded(path: Path, name: str, count: int = 6, *, planned: bool = True, **settings: float) -> Run:
    model = network()
    optimizer = create(name, model, lr=0.02, **settings)
    fixed, pairs = objectives(model)
    with Recorder(
        path, model, optimizer, fixed, "full", minibatches=pairs, steps=count if planned else None, **FEW
    ) as recorder:
        for _ in range(count):
            recorder.step(step(model, optimizer))
    return Run.open(path)


def test_the_remainder_of_each_layer_is_recorded_at_its_period(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", "adamw", planned=False)
    known = run.tensors.dropna(subset=["remainder"])
    assert sorted(set(known["step"])) == [2, 4, 6]
    model = network()
    optimizer = create("adamw", model, lr=0.02)
    fixed, _ = objectives(model)
    for number in range(1, 5):
        before = fixed.parameters()
        step(model, optimizer)
        expected = layer_remainders(fixed, fixed.parameters() - before, at=before)
        if number in (2, 4):
            rows = known[known["step"] == number].set_index("tensor")["remainder"]
            assert rows.to_dict() == pytest.approx(expected.by_name, rel=1e-12)
            steps = run.steps.set_index("step")
            assert steps.loc[number, "remainder_rounding"] == pytest.approx(expected.rounding)
    assert run.steps.loc[run.steps["step"].isin([1, 3, 5]), "remainder_rounding"].isna().all()


def test_the_injection_angle_is_that_between_the_updates_with_and_without_the_shear(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", "ars2-lazy", alpha=0.7, k=3)
    model = network()
    optimizer = create("ars2-lazy", model, lr=0.02, alpha=0.7, k=3)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def see(record: StepRecord) -> None:
        if record.uninjected is not None:
            plain = record.uninjected()
            taken = torch.cat([t.update.flatten() for t in record.tensors])
            found[record.step] = (taken, torch.cat([plain[t.name].flatten() for t in record.tensors]))

    optimizer.observe(see, counterfactual=True)
    for _ in range(6):
        step(model, optimizer)
    assert sorted(found) == [2, 3, 5, 6]
    for row in run.steps.itertuples():
        if row.step not in found:
            assert math.isnan(row.injection_angle)
            continue
        taken, plain = found[row.step]
        expected = float(torch.arccos(taken @ plain / taken.norm() / plain.norm()))
        assert row.injection_angle == pytest.approx(expected, abs=1e-7)
        assert expected > 0.01
        assert run.tensors.loc[run.tensors["step"] == row.step, "injection_angle"].notna().all()


@pytest.mark.parametrize("norm", ["frobenius", "schatten4"])
def test_newton_schulz_is_compared_with_the_polar_factor_of_its_actual_output(norm: str, tmp_path: Path) -> None:
    model = network()
    optimizer = create("ars2-base", model, lr=0.02, ns_norm=norm)
    kept: list[StepRecord] = []
    fixed, _ = objectives(model)
    with Recorder(tmp_path / "run", model, optimizer, fixed, "full", steps=2, **FEW) as recorder:
        optimizer.observe(kept.append)
        for _ in range(2):
            recorder.step(step(model, optimizer))
            if len(kept) == 2:
                outputs = {
                    t.name: (t.whitened.clone(), t.orthogonal.clone()) for t in kept[-1].tensors if t.source is not None
                }
    rows = Run.open(tmp_path / "run").spectra.query("step == 2 and object == 'orthogonal'").set_index("tensor")
    assert set(rows.index) == set(outputs) == {"0.weight", "2.weight"}
    for name, (A, O) in outputs.items():
        U, _, V = torch.linalg.svd(A, full_matrices=False)
        r = min(O.shape)
        real = torch.linalg.svdvals(O)
        assert rows.loc[name, "method"] == "map"
        assert rows.loc[name, "polar_cosine"] == pytest.approx(float((O * (U @ V)).sum() / O.norm() / r**0.5), rel=1e-4)
        assert rows.loc[name, "polar_norm"] == pytest.approx(float(O.norm()) / r**0.5, rel=1e-4)
        outside = float(((real < 0.68) | (real > 1.21)).double().mean())
        assert rows.loc[name, "outside_band"] == pytest.approx(outside)
        assert rows.loc[name, "error"] < 1e-3
    others = Run.open(tmp_path / "run").spectra.query("object != 'orthogonal'")
    assert others[["outside_band", "polar_norm", "polar_cosine"]].isna().all(axis=None)
    assert others["excess_order"].notna().all()
    assert newton_schulz_quality(torch.ones(2), [(1.0, 0.0, 0.0)])["output_condition"] == 1


def test_pairs_are_recorded_at_the_steps_of_their_windows(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", "ars2-sync", count=8)
    rows = run.pairs[run.pairs["object"] == "shear"]
    assert list(zip(rows["step"], rows["lag"], strict=True)) == [(3, 0), (4, 1), (5, 2), (6, 0), (7, 1), (8, 2)]
    assert (run.pairs["object"] == "gradient").sum() == len(rows)
    assert rows["data_hash"].notna().all()
    assert set(run.spectra.loc[run.spectra["object"] == "pair_gradient", "step"]) == {3, 6}


def test_what_decides_on_second_gradients_is_in_the_manifest(tmp_path: Path) -> None:
    assert recorded(tmp_path / "aga", "ars2-aga", count=2).manifest["trigger"] == {
        "mode": "aga",
        "lambda": 2.0,
        "k": 10,
    }
    assert recorded(tmp_path / "timer", "ars2-timer", count=2).manifest["trigger"]["mode"] == "timer"
    assert recorded(tmp_path / "lazy", "ars2-lazy", count=2).manifest["trigger"] is None


def test_a_minibatch_that_fails_is_missing_with_its_reason_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    optimizer = create("adamw", model, lr=0.02)
    _, pairs = objectives(model)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1]) * math.nan

    broken = Objective(model, loss, pairs.data.batches)
    with Recorder(
        tmp_path / "run", model, optimizer, preset="full", minibatches=broken, steps=4, overhead=1
    ) as recorder:
        for _ in range(4):
            recorder.step(step(model, optimizer))
    run = Run.open(tmp_path / "run")
    assert len(run.pairs) == 0
    assert len(run.steps) == 4
    (gap,) = run.manifest["curvature_gaps"]
    assert gap["step"] == 3
    assert gap["instrument"] == "minibatches"
    assert "the loss is nan" in gap["why"]
    assert "; not measured: minibatches at 1 step; first reason: the loss is nan" in capsys.readouterr().err


def test_a_layer_sample_that_fails_is_missing_without_any_evaluation(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=0.1)
    fixed, _ = objectives(model)
    with Recorder(tmp_path / "run", model, optimizer, fixed, "full", steps=3, evaluations=0, overhead=1) as recorder:
        for number in range(3):
            loss = step(model, optimizer)
            if number == 1:
                with torch.no_grad():
                    model[0].weight[0, 0] = math.nan
            recorder.step(loss)
    gaps = Run.open(tmp_path / "run").manifest["curvature_gaps"]
    assert [(gap["step"], gap["instrument"]) for gap in gaps] == [(2, "layers"), (3, "layers")]


class Odd(nn.Module):
    """Network with batch norm, dropout, and parameters that are frozen, unused by the loss, and 3-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.dropout = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.last, self.unused = nn.Linear(8, 3), nn.Parameter(torch.ones(4, 5))
        self.heads = nn.Parameter(torch.randn(2, 4, 8) / 4)
        self.frozen = nn.Parameter(torch.full((8,), 0.5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(torch.tanh(self.norm(self.first(x)))) * self.frozen
        return self.last(torch.einsum("bi,hji,hjk->bk", h, self.heads, self.heads))


def odd() -> Odd:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Odd().double()


@pytest.mark.parametrize(
    "name", ["ars2-lazy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "gsam"))]
)
def test_no_instrument_leaves_a_trace_in_weights_state_buffers_gradients_or_random_numbers(
    name: str, tmp_path: Path
) -> None:
    plain, watched = odd(), odd()
    optimizers = [create(name, model, lr=0.02) for model in (plain, watched)]
    fixed, pairs = objectives(watched)
    generators = []
    with Recorder(
        tmp_path / "run", watched, optimizers[1], fixed, "full", minibatches=pairs, steps=6, evaluations=2, overhead=1
    ) as recorder:
        for model, optimizer in zip((plain, watched), optimizers, strict=True):
            torch.manual_seed(5)
            for _ in range(6):
                loss = step(model, optimizer)
                if model is watched:
                    recorder.step(loss)
            generators.append(torch.get_rng_state())
    assert torch.equal(*generators)
    assert all(module.training for module in watched.modules())
    for ours, theirs in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for p, q in zip(watched.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)
        mine, other = optimizers[1].state.get(p, {}), optimizers[0].state.get(q, {})
        assert mine.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(other[key])) for key in mine)
    run = Run.open(tmp_path / "run")
    assert len(run.pairs) > 0
    assert run.steps["weight_norm"].iloc[-1] == pytest.approx(
        math.sqrt(sum(float(p.detach().square().sum()) for p in watched.parameters() if p.requires_grad))
    )
    assert "unused" not in set(run.spectra.loc[run.spectra["object"] == "batch_gradient", "tensor"])
    assert "heads" in set(run.spectra.loc[run.spectra["object"] == "batch_gradient", "tensor"])


def test_rows_use_the_names_of_the_model_not_those_of_the_optimizer(tmp_path: Path) -> None:
    model = network()
    optimizer = ARS2Neo(model.parameters(), lr=0.02, mode="lazy", k=3)
    fixed, pairs = objectives(model)
    with Recorder(tmp_path / "run", model, optimizer, fixed, "full", minibatches=pairs, steps=4, **FEW) as recorder:
        for _ in range(4):
            recorder.step(step(model, optimizer))
    run = Run.open(tmp_path / "run")
    names = {name for name, _ in model.named_parameters()}
    assert set(run.tensors["tensor"]) == names
    assert set(run.spectra["tensor"]) == {"0.weight", "2.weight"}
    assert run.tensors["remainder"].notna().all()
    assert run.tensors["injection_angle"].notna().any()


def test_a_parameter_of_the_optimizer_that_is_not_in_the_model_is_left_out(tmp_path: Path) -> None:
    model, temperature = network(), nn.Parameter(torch.ones(()).double())
    optimizer = create("adamw", [*model.named_parameters(), ("temperature", temperature)], lr=0.02)
    x, y = data()
    fixed, _ = objectives(model)
    with Recorder(tmp_path / "run", model, optimizer, fixed, "full", steps=2, **FEW) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x) * temperature, y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    assert "temperature" not in set(Run.open(tmp_path / "run").tensors["tensor"])


@pytest.mark.parametrize("which", ["objective", "minibatches"])
def test_an_objective_of_another_model_is_refused(which: str, tmp_path: Path) -> None:
    model, (fixed, pairs) = network(), objectives(network())
    given = {"objective": fixed} if which == "objective" else {"minibatches": pairs}
    with pytest.raises(LandscapeError, match=r"^the objective's parameter '0.weight' is not one of the 4 trainable"):
        Recorder(tmp_path / "run", model, create("adamw", model), **given)
    assert not (tmp_path / "run").exists()


def test_an_objective_in_double_precision_is_measured(tmp_path: Path) -> None:
    model = odd().float()
    optimizer = create("adamw", model, lr=0.02)
    x, y = data()
    fixed = Objective(model, CrossEntropy(), [(x.float(), y)]).in_double()
    with Recorder(tmp_path / "run", model, optimizer, fixed, "full", steps=2, evaluations=1, overhead=1) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.float()), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    run = Run.open(tmp_path / "run")
    gaps = run.manifest["curvature_gaps"]
    known = ("no balanced point is known for this network", "unused has no second moment")
    assert all(any(words in gap["why"] for words in known) for gap in gaps), gaps
    assert {"log_fisher_rao", "logit_norm", "trust_ratio", "top_share"} <= set(run.probes["measure"])


def test_a_closure_gives_the_gradient_of_its_first_call_and_the_number_of_calls(tmp_path: Path) -> None:
    x, y = data()
    for make in (partial(torch.optim.SGD, lr=0.5), partial(torch.optim.LBFGS, max_iter=4)):
        model = network()
        optimizer = make(model.parameters())
        norms, calls = [], 0

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        path = tmp_path / type(optimizer).__name__
        passes = []
        with Recorder(path, model, optimizer, preset="full") as recorder:
            for _ in range(3):
                g = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
                norms.append(math.sqrt(sum(float(one.square().sum()) for one in g)))
                before = calls
                recorder.step(optimizer.step(closure))
                passes.append(calls - before)
        steps = Run.open(path).steps
        assert steps["gradient_norm"].tolist() == pytest.approx(norms)
        assert steps["passes"].tolist() == passes


def test_the_learning_rate_is_that_of_the_step_though_a_schedule_has_moved_on(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1.0, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with Recorder(tmp_path / "run", model, optimizer, preset="economy") as recorder:
        for _ in range(3):
            loss = step(model, optimizer)
            schedule.step()
            recorder.step(loss)
    steps = Run.open(tmp_path / "run").steps
    assert steps["lr"].tolist() == [1.0, 0.5, 0.25]
    assert steps["weight_decay"].tolist() == [0.1] * 3
