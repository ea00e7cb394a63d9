"""The recorder: the rows it writes, and that it does not change the training."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.recording.cadence import PRESETS
from lossscope.landscape.recording.checkpoints import save_weights
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.landscape.training.modular_addition import ModularTransformer, modular_addition
from lossscope.optimizer import ARS2Neo, OptimizerError, StepRecord, TwoPassOptimizer, names
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from lossscope.probes.objective.objective import Objective
from required_settings import create


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 6, generator=generator), torch.randint(0, 3, (20,), generator=generator)


def objective(model: nn.Module) -> Objective:
    return Objective(model, CrossEntropy(), [batch()])


def pairs(model: nn.Module) -> Objective:
    x, y = batch()
    return Objective(model, CrossEntropy(), [(x[:10], y[:10]), (x[10:], y[10:])])


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, recorder: Recorder | None = None) -> None:
    x, y = batch()
    for _ in range(count):
        if isinstance(optimizer, TwoPassOptimizer):
            for p in optimizer.passes(model):
                logits = model(x)
                p.backward(F.cross_entropy(logits, p.labels(logits, y)))
            loss = optimizer.step()
        else:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        if recorder is not None:
            recorder.step(loss)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("preset", ["economy", "full"])
def test_recording_changes_no_bit_of_the_parameters(
    name: str, preset: str, few_products: None, every_instrument: None, tmp_path: Path
) -> None:
    recorded, plain = network(), network()
    optimizer = create(name, recorded, lr=1e-2)
    others = {"minibatches": pairs(recorded), "train": pairs(recorded), "test": objective(recorded)}
    more = {**others, "steps": 6, "weights_at_evaluations": True}
    with Recorder(tmp_path / "run", recorded, optimizer, objective(recorded), preset, **more) as recorder:
        steps(recorded, optimizer, 6, recorder)
    steps(plain, create(name, plain, lr=1e-2), 6)
    for p, q in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", names())
def test_every_step_has_its_row(name: str, tmp_path: Path) -> None:
    model = network()
    optimizer = create(name, model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        steps(model, optimizer, 7, recorder)
    run = Run.open(tmp_path / "run")
    assert run.status == "finished"
    assert run.steps["step"].tolist() == list(range(1, 8))
    assert run.steps["loss"].notna().all()
    second = run.steps["synced"].eq(True).fillna(False)
    beside = {"sophia-g": [1, 0, 0, 0, 0, 0, 0], "zo-gd": [1] * 7, "kfac": [1] * 7}.get(name, 0)  # no ascent
    assert (run.steps["passes"] == 1 + second + beside).all()
    assert not isinstance(optimizer, TwoPassOptimizer) or run.steps["synced"].notna().all()
    assert run.steps["gradient_norm"].notna().all()
    assert set(run.tensors["tensor"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(run.spectra["tensor"]) == {"0.weight", "2.weight"}
    assert {"gradient", "weight", "update"} <= set(run.spectra["object"])


def test_the_rows_hold_the_numbers_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], spectra_every=1))
    model = network().double()
    x, y = batch()
    optimizer = ARS2Neo(model.named_parameters(), lr=1e-2, mode="sync", rho=0.05)
    kept: list[StepRecord] = []
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        for _ in range(3):
            before = [p.detach().clone() for p in model.parameters()]
            for p in optimizer.passes(model):
                p.backward(F.cross_entropy(model(x.double()), y))
            handle = optimizer.observe(kept.append)
            loss = optimizer.step()
            handle.remove()
            recorder.step(loss)
    run = Run.open(tmp_path / "run")
    record, row = kept[-1], run.steps.iloc[-1]
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    assert row["update_norm"] == pytest.approx(float(moved.norm()))
    assert row["loss"] == pytest.approx(float(loss))
    assert row["surrogate_gap"] == pytest.approx(float(record.adversarial_loss - record.loss))
    assert row["passes"] == 2
    assert bool(row["synced"])
    g = torch.cat([t.gradient.flatten() for t in record.tensors])
    ga = torch.cat([t.adversarial.flatten() for t in record.tensors])
    e = torch.cat([t.perturbation.flatten() for t in record.tensors])
    assert row["gradient_norm"] == pytest.approx(float(g.norm()))
    assert row["adversarial_angle"] == pytest.approx(float(torch.arccos(g @ ga / g.norm() / ga.norm())), rel=1e-6)
    assert row["secant_gradient"] == pytest.approx(float((ga - g) @ e / (e @ e)))
    weight = record.tensors[0]
    spectra = run.spectra.query("step == 3 and tensor == '0.weight'").set_index("object")
    for name, tensor in (
        ("whitened", weight.whitened),
        ("orthogonal", weight.orthogonal),
        ("momentum", weight.m_hat),
        ("gradient", weight.gradient),
        ("weight", weight.parameter.detach()),
        ("update", weight.update),
    ):
        expected = torch.linalg.svdvals(tensor)
        np.testing.assert_allclose(spectra.loc[name, "values"], expected, rtol=1e-6, atol=1e-7 * float(expected[0]))
    energy = run.tensors.query("step == 3 and tensor == '0.weight'").iloc[0]["energy"]
    assert energy == pytest.approx(float(weight.whitened.norm()))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sgd", set()),
        ("adamw", {"momentum", "whitened"}),
        ("muon", {"momentum", "source", "orthogonal"}),
        ("normuon", {"momentum", "source", "orthogonal"}),
        ("adamuon", {"momentum", "source", "orthogonal"}),
        ("rmsuon", {"momentum", "whitened", "source", "orthogonal"}),
    ],
)
def test_the_spectra_of_a_rule_are_those_of_its_own_tensors(
    name: str, more: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], spectra_every=1))
    model = network().double()
    start = model[0].weight.detach().clone()
    x, y = batch()
    optimizer = create(name, model)
    assert isinstance(optimizer, TwoPassOptimizer)
    kept: list[StepRecord] = []
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        for _ in range(2):
            for p in optimizer.passes(model):
                p.backward(F.cross_entropy(model(x.double()), y))
            handle = optimizer.observe(kept.append)
            recorder.step(optimizer.step())
            handle.remove()
    (record,) = (t for t in kept[-1].tensors if t.name == "0.weight")
    spectra = Run.open(tmp_path / "run").spectra.query("step == 2 and tensor == '0.weight'").set_index("object")
    weight = record.parameter.detach()
    tensors = {"weight": weight, "gradient": record.gradient, "update": record.update, "movement": weight - start}
    tensors |= {"momentum": record.m_hat, "whitened": record.whitened}
    tensors |= {"source": record.source, "orthogonal": record.orthogonal}
    assert set(spectra.index) == {"weight", "gradient", "update", "movement"} | more
    for kind, values in spectra["values"].items():
        expected = torch.linalg.svdvals(tensors[str(kind)])
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * float(expected[0]))


def test_curvature_is_measured_at_log_spaced_steps_and_along_the_step_taken(tmp_path: Path) -> None:
    model = network()
    optimizer = create("ars2-base", model, lr=1e-2)
    with Recorder(
        tmp_path / "run", model, optimizer, objective(model), steps=30, evaluations=6, overhead=1
    ) as recorder:
        steps(model, optimizer, 30, recorder)
    probes = Run.open(tmp_path / "run").probes
    top = probes[probes["measure"] == "lambda_max"]
    assert len(top) == 6
    assert (top["step"].iloc[0], top["step"].iloc[-1]) == (0, 30)
    ratio = probes[probes["measure"] == "directional_edge_ratio"]
    assert 0 not in set(ratio["step"])  # no step was taken yet
    assert ratio["value"].notna().all()
    for column in ("seed", "mode", "loss_kind", "additivity", "dtype", "data_hash", "engine", "products", "converged"):
        assert probes[column].notna().all(), column
    assert set(probes["measure"]) >= {"lambda_max", "lambda_min", "trace", "adaptive_trace", "log_fisher_rao"}


def test_the_row_of_a_tensor_is_what_the_definitions_say(tmp_path: Path) -> None:
    model = network().double()
    x, y = batch()[0].double(), batch()[1]
    optimizer = ARS2Neo(model.named_parameters(), lr=1e-2, mode="lazy", k=2, rho=0.05)
    kept: list[dict[str, float]] = []

    def keep(record: StepRecord) -> None:
        t = record.tensors[0]
        found = {"phi": cosine(t.gradient, t.stale_shear)} if t.stale_shear is not None else {}
        if t.perturbation is not None:
            found["relative_radius"] = float(t.perturbation.norm() / before[0].norm())
            found["shear_norm"] = float(t.shear.norm())
            along = cosine(t.gradient, t.adversarial)
            found["adversarial_angle"] = float(torch.arccos(torch.tensor(along, dtype=torch.float64)))
        if t.injected is not None:
            found["injected_norm"] = float((t.injected - t.gradient).norm())
        if t.stale_shear is not None and t.shear is not None:
            found["freshness"] = cosine(t.stale_shear, t.shear)
        found["energy"] = float((t.m_hat / (t.v_hat.sqrt() + t.eps)).norm())
        found["second_moment_sum"] = float(t.v_hat.sum())
        found["update_norm"] = float((t.parameter - before[0]).norm())
        kept.append(found)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / a.norm() / b.norm())

    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        for _ in range(4):
            before = [p.detach().clone() for p in model.parameters()]
            for p in optimizer.passes(model):
                p.backward(F.cross_entropy(model(x), y))
            with_observer = optimizer.observe(keep)
            loss = optimizer.step()
            with_observer.remove()
            recorder.step(loss)
    run = Run.open(tmp_path / "run")
    rows = run.tensors[run.tensors["tensor"] == "0.weight"]
    for expected, (_, row) in zip(kept, rows.iterrows(), strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name
    assert run.steps["phi"].notna().tolist() == [False, True, True, True]  # lazy: from the first stored shear on
    assert run.steps["alpha"].notna().tolist() == [False, True, False, True]  # only where something was injected


def test_without_shear_no_injection_is_claimed(tmp_path: Path) -> None:
    model = network()
    optimizer = ARS2Neo(model.named_parameters(), lr=1e-2, mode="aga", k=3, shear="off")
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        steps(model, optimizer, 6, recorder)
    assert Run.open(tmp_path / "run").steps["alpha"].isna().all()


def test_every_spectrum_lies_within_the_error_it_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], spectra_every=1))
    torch.manual_seed(0)
    model = ModularTransformer(11)
    tokens, labels = modular_addition(11)
    optimizer = ARS2Neo(model.named_parameters(), lr=1e-3, mode="base")
    real: dict[tuple[int, str, int], Tensor] = {}

    def keep(record: StepRecord) -> None:
        for t in record.tensors:
            if t.orthogonal is not None:
                cut = t.orthogonal.reshape(t.matrix_shape).double()
                for index, part in enumerate(cut if cut.ndim == 3 else cut[None]):
                    real[record.step, t.name, index] = torch.linalg.svdvals(part)

    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        for _ in range(6):
            for p in optimizer.passes(model):
                p.backward(F.cross_entropy(model(tokens), labels))
            handle = optimizer.observe(keep)
            loss = optimizer.step()
            handle.remove()
            recorder.step(loss)
    spectra = Run.open(tmp_path / "run").spectra
    assert spectra["error"].notna().all()
    rows = spectra[spectra["object"] == "orthogonal"]
    assert len(rows) == len(real)
    for _, row in rows.iterrows():
        index = 0 if row["slice"] is pd.NA else int(row["slice"])
        true = real[row["step"], row["tensor"], index].numpy()
        assert np.abs(np.asarray(row["values"]) - true).max() <= row["error"] + 1e-7


def test_an_objective_that_cannot_be_measured_is_refused_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    goal = Objective(model, CrossEntropy(), [batch()], mode="train")
    with pytest.raises(ProbeError, match=r"Dropout|dropout"):
        Recorder(tmp_path / "run", model, create("sgd", model, lr=1e-2), goal)
    assert not (tmp_path / "run").exists()


def test_a_resumed_recorder_continues_to_count_time_and_missing_values(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        steps(model, optimizer, 5, recorder)
    first = Run.open(tmp_path / "run")
    with Recorder(tmp_path / "run", model, optimizer, preset="full", resume_at=5) as recorder:
        steps(model, optimizer, 5, recorder)
    both = Run.open(tmp_path / "run")
    assert both.manifest["overhead"]["wall_seconds"] > first.manifest["overhead"]["wall_seconds"]
    assert both.manifest["overhead"]["instruments_seconds"] > first.manifest["overhead"]["instruments_seconds"]
    assert both.steps["seconds"].is_monotonic_increasing


def test_missing_values_beyond_the_step_of_resumption_are_dropped(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, objective(model), "full", steps=4, overhead=1) as recorder:
        recorder.note(curvature_gaps=[{"step": 1, "why": "early"}, {"step": 4, "why": "late"}])
        steps(model, optimizer, 2, recorder)
    settings = {"steps": 4, "resume_at": 2}
    with Recorder(tmp_path / "run", model, optimizer, objective(model), "full", **settings, overhead=1) as recorder:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        steps(model, optimizer, 1, recorder)
    gaps = Run.open(tmp_path / "run").manifest["curvature_gaps"]
    assert {gap["step"] for gap in gaps} == {1, 3}


def mean_loss(model: nn.Module, examples: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(examples[0]), examples[1])


class Bits(CrossEntropy):
    """A cross-entropy in bits."""

    unit = "bits"

    def of_outputs(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().of_outputs(outputs, batch) / math.log(2)


@pytest.mark.parametrize(
    ("loss", "unit"),
    [
        (CrossEntropy(), "nats"),
        (partial(CrossEntropy()), "nats"),
        (Bits(), "bits"),
        (mean_loss, ""),
        (MeanSquaredError(), ""),
        (None, ""),
    ],
)
@pytest.mark.parametrize("argument", ["objective", "minibatches"])
def test_the_unit_of_the_loss_is_what_the_loss_function_declares(
    loss: Any, unit: str, argument: str, tmp_path: Path
) -> None:
    model = network()
    x, y = batch()
    targets = F.one_hot(y, 3).float() if isinstance(loss, MeanSquaredError) else y
    data = [(x[:10], targets[:10]), (x[10:], targets[10:])]
    measured = {argument: None if loss is None else Objective(model, loss, data)}
    recorder = Recorder(tmp_path / "a", model, create("sgd", model), evaluations=0, **measured)
    recorder.close(quiet=True)
    assert Run.open(tmp_path / "a").loss_unit == unit
    assert Run.open(tmp_path / "a").manifest["loss_unit"] == (unit or None)


def test_a_unit_noted_by_the_user_is_that_of_the_run(tmp_path: Path) -> None:
    model = network()
    recorder = Recorder(tmp_path / "a", model, create("sgd", model))
    recorder.note(loss_unit="bits")
    recorder.close(quiet=True)
    assert Run.open(tmp_path / "a").loss_unit == "bits"


def test_a_loss_of_shape_one_is_a_number(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        steps(model, optimizer, 1)
        recorder.step(torch.tensor([0.5], requires_grad=True))
    assert Run.open(tmp_path / "run").steps["loss"].tolist() == [0.5]


def test_the_last_eigenvalue_is_that_of_the_final_parameters(tmp_path: Path) -> None:
    model = network().double()
    x, y = (t.double() if t.is_floating_point() else t for t in batch())
    goal = Objective(model, CrossEntropy(), [(x, y)])
    optimizer = create("adamw", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, goal, "full", steps=3, overhead=1) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            recorder.step(0.0)
    names_of = list(dict(model.named_parameters()))
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        weights = {n: part.reshape(s) for n, part, s in zip(names_of, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    dense = torch.autograd.functional.hessian(loss, flat)
    probes = Run.open(tmp_path / "run").probes
    row = probes[(probes["measure"] == "lambda_max") & (probes["step"] == 3)].iloc[0]
    true = float(torch.linalg.eigvalsh(dense)[-1])
    assert row["low"] <= true <= row["high"] + 1e-12
    assert row["value"] == pytest.approx(true, rel=0.02)


def test_without_an_objective_there_is_no_curvature(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        steps(model, optimizer, 3, recorder)
    run = Run.open(tmp_path / "run")
    assert len(run.probes) == 0
    assert run.manifest["data_hash"] is None


def test_the_cost_of_each_instrument_is_measured_recorded_and_printed(
    few_products: None, every_instrument: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    optimizer = create("ars2-lazy", model, lr=1e-2)
    with Recorder(
        tmp_path / "run", model, optimizer, objective(model), "full", minibatches=pairs(model), steps=10, overhead=1
    ) as recorder:
        steps(model, optimizer, 10, recorder)
    overhead = Run.open(tmp_path / "run").manifest["overhead"]
    assert 0 < overhead["curvature_share"] < overhead["share"] < 1
    kinds = {"instruments", "ring", "spectra", "counterfactual", "minibatches", "layers", "curvature", "checkpoints"}
    assert {key.removesuffix("_seconds") for key in overhead if key.endswith("_seconds")} - {"wall"} == kinds
    assert overhead["seconds"] == pytest.approx(sum(overhead[f"{kind}_seconds"] for kind in kinds))
    assert all(overhead[f"{kind}_seconds"] > 0 for kind in kinds)
    told = capsys.readouterr()
    assert "10 steps in" in told.err
    for words in ("of which recording took", "curvature ", "pairs of minibatches ", "updates without injection "):
        assert words in told.err
    assert told.out == ""


def test_an_instrument_that_took_no_time_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, preset="economy") as recorder:
        steps(model, optimizer, 2, recorder)
    told = capsys.readouterr().err
    assert "rows and norms" in told
    assert "minibatches" not in told


def test_a_loop_without_close_reads_as_a_crashed_run_and_an_exception_as_a_failed_one(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with contextlib.suppress(ZeroDivisionError), Recorder(tmp_path / "run", model, optimizer) as recorder:
        steps(model, optimizer, 2, recorder)
        raise ZeroDivisionError("a reason")
    run = Run.open(tmp_path / "run")
    assert run.status == "failed"
    assert "ZeroDivisionError: a reason" in run.manifest["how_it_ended"]
    assert len(run.steps) == 2


def test_hooks_fire_once_even_where_a_step_calls_its_parents_step(tmp_path: Path) -> None:
    class Child(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = network()
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # installs the hooks on the parent's step too
    optimizer = Child(model.parameters(), lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        steps(model, optimizer, 4, recorder)
    assert Run.open(tmp_path / "run").steps["step"].tolist() == [1, 2, 3, 4]


def test_an_optimizer_that_overwrites_its_gradients_is_recorded_with_the_true_ones(tmp_path: Path) -> None:
    class Overwriting(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=group["lr"])
                    p.grad.mul_(0)

    model = network()
    optimizer = Overwriting(model.parameters(), lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        steps(model, optimizer, 2, recorder)
    assert (Run.open(tmp_path / "run").steps["gradient_norm"] > 1e-3).all()


def test_a_step_that_was_not_taken_has_no_row(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        steps(model, optimizer, 2, recorder)
        recorder.step(0.5)  # as in a loop whose gradient scaler skips a step
        steps(model, optimizer, 1, recorder)
    assert Run.open(tmp_path / "run").steps["step"].tolist() == [1, 2, 3]


def test_weights_that_are_not_finite_give_missing_curvature_and_stop_nothing(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer, objective(model), "full", steps=3, overhead=1) as recorder:
        steps(model, optimizer, 1, recorder)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        steps(model, optimizer, 2, recorder)
    run = Run.open(tmp_path / "run")
    assert run.steps["step"].tolist() == [1, 2, 3]
    assert run.steps["loss"].isna().tolist() == [False, True, True]
    assert {gap["step"] for gap in run.manifest["curvature_gaps"]} == {2, 3}
    assert set(run.probes["step"]) == {0, 1}


def test_an_existing_run_is_not_changed_without_force(tmp_path: Path) -> None:
    model = network()
    optimizer = create("sgd", model, lr=1e-2)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        steps(model, optimizer, 2, recorder)
    with pytest.raises(RunError, match=r"force=True.*resume_at="):
        Recorder(tmp_path / "run", model, optimizer)
    assert len(Run.open(tmp_path / "run").steps) == 2


def test_an_unknown_preset_suggests_the_nearest(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ConfigError, match="unknown preset 'standart'; did you mean standard"):
        Recorder(tmp_path / "run", model, create("sgd", model, lr=1e-2), preset="standart")


def test_steps_are_recorded_after_a_step_that_raised(tmp_path: Path) -> None:
    model = network()
    optimizer = ARS2Neo(model.named_parameters(), lr=1e-2, mode="sync")
    with Recorder(tmp_path / "run", model, optimizer, preset="full") as recorder:
        steps(model, optimizer, 2, recorder)
        F.cross_entropy(model(batch()[0]), batch()[1]).backward()
        with pytest.raises(OptimizerError, match="step 3 of mode='sync' needs a second gradient"):
            optimizer.step()
        recorder.step(0.0)
        steps(model, optimizer, 2, recorder)
    run = Run.open(tmp_path / "run")
    assert run.steps["step"].tolist() == [1, 2, 3, 4]
    assert sorted(set(run.tensors["step"])) == [1, 2, 3, 4]


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_resumed_run_knows_the_weights_before_its_first_step_from_the_checkpoint(
    checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "full", replace(PRESETS["full"], spectra_every=1))
    model = network()
    start = model[0].weight.detach().clone()
    optimizer = create("sgd", model, lr=0.1)
    path = tmp_path / "run"
    with Recorder(path, model, optimizer, preset="full") as recorder:
        if checkpoint:
            save_weights(path, 0, model)
        steps(model, optimizer, 2, recorder)
    with Recorder(path, model, optimizer, preset="full", resume_at=2) as recorder:
        steps(model, optimizer, 1, recorder)
    found = Run.open(path).spectra.query("object == 'movement' and tensor == '0.weight'").set_index("step")["values"]
    assert list(found.index) == ([1, 2, 3] if checkpoint else [1, 2])
    if checkpoint:
        expected = torch.linalg.svdvals((model[0].weight.detach() - start).double())
        np.testing.assert_allclose(found[3], expected, rtol=1e-5, atol=1e-7)
