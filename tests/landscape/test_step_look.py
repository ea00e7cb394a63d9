"""The step instruments as they are recorded: each number is the one its own function gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.optimizer import Ascending, StepRecord, create
from lossscope.probes import CrossEntropy, Objective, layer_remainders, newton_schulz_quality

pytestmark = pytest.mark.usefixtures("every_instrument", "few_products")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 6, generator=generator).double(), torch.randint(0, 3, (20,), generator=generator)


def step(model: nn.Module, optimizer: Ascending) -> Tensor:
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


def recorded(path: Path, name: str, count: int = 6, *, planned: bool = True, **settings: float) -> Run:
    model = network()
    optimizer = create(name, model, lr=0.02, **settings)
    fixed, pairs = objectives(model)
    with Recorder(
        path, model, optimizer, fixed, "full", minibatches=pairs, steps=count if planned else None
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
def test_newton_schulz_is_held_against_the_polar_factor_of_its_real_output(norm: str, tmp_path: Path) -> None:
    model = network()
    optimizer = create("ars2-base", model, lr=0.02, ns_norm=norm)
    kept: list[StepRecord] = []
    fixed, _ = objectives(model)
    with Recorder(tmp_path / "run", model, optimizer, fixed, "full", steps=2) as recorder:
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


def test_pairs_stand_at_the_steps_of_their_windows(tmp_path: Path) -> None:
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


def test_a_minibatch_that_cannot_be_measured_is_a_gap_with_its_reason_and_stops_nothing(tmp_path: Path) -> None:
    model = network()
    optimizer = create("adamw", model, lr=0.02)
    _, pairs = objectives(model)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1]) * math.nan

    broken = Objective(model, loss, pairs.data.batches)
    with Recorder(tmp_path / "run", model, optimizer, preset="full", minibatches=broken, steps=4) as recorder:
        for _ in range(4):
            recorder.step(step(model, optimizer))
    run = Run.open(tmp_path / "run")
    assert len(run.pairs) == 0
    assert len(run.steps) == 4
    (gap,) = run.manifest["curvature_gaps"]
    assert gap["step"] == 3
    assert gap["why"].startswith("minibatches: ")
