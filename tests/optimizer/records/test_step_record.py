"""Step records: they hold what they say, and nobody pays for them who does not look."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import draw
from lossscope.optimizer import ARS2Neo, OptimizerError, StepRecord, create
from lossscope.optimizer.ascent.shear import residual
from lossscope.optimizer.records import observers
from lossscope.optimizer.update import newton_schulz as ns

FLOAT64 = torch.float64
MODES = {
    "base": {"mode": "base"},
    "sync": {"mode": "sync"},
    "lazy": {"mode": "lazy", "k": 3},
    "aga": {"mode": "aga", "k": 4, "aga_lambda": 0.5},
    "placebo": {"mode": "lazy", "k": 3, "shear": "placebo"},
    "adamw@rms": {"mode": "base", "orthogonalize": False},
}
USUAL = {"lr": 0.02, "betas": (0.9, 0.98), "weight_decay": 0.3}


class Problem:
    """Three tensors, a loss and an optimizer."""

    def __init__(self, **options: object) -> None:
        self.w = {
            "W": nn.Parameter(draw(0, 4, 6)),
            "heads": nn.Parameter(draw(1, 2, 3, 4)),
            "b": nn.Parameter(draw(2, 4)),
        }
        self.optimizer = ARS2Neo(self.w.items(), **{**USUAL, **options})

    def loss(self) -> Tensor:
        W, heads, b = self.w.values()
        x = torch.tanh(W @ draw(3, 6, 5) + b[:, None])
        return (heads @ x).square().sum() + (W**4).sum() / 10

    def backward(self) -> None:
        for p in self.optimizer.passes():
            p.backward(self.loss())

    def run(self, steps: int) -> Problem:
        for _ in range(steps):
            self.backward()
            self.optimizer.step()
        return self

    def tensors(self) -> list[Tensor]:
        states = [self.optimizer.state[p] for p in self.w.values()]
        return [*self.w.values(), *(s[key] for s in states for key in sorted(s))]


class CountedOperators(TorchDispatchMode):
    """The names of all operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_being_observed_changes_no_bit(options):
    silent = Problem(**options).run(8)
    watched = Problem(**options)
    watched.optimizer.observe(lambda record: [t.update.sum() + t.m_hat.sum() + t.v_hat.sum() for t in record.tensors])
    watched.run(8)
    for a, b in zip(silent.tensors(), watched.tensors(), strict=True):
        assert torch.equal(a, b)
    assert silent.optimizer.trigger_state == watched.optimizer.trigger_state


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_without_an_observer_no_record_is_made_and_no_operator_is_added(options, monkeypatch):
    def operators(problem: Problem) -> list[str]:
        with CountedOperators() as counted:
            problem.run(5)
        return counted.names

    never = operators(Problem(**options))
    removed = Problem(**options)
    removed.optimizer.observe(lambda record: None).remove()
    monkeypatch.setattr(observers, "TensorRecord", lambda **_: pytest.fail("a record was made"))
    monkeypatch.setattr(observers, "StepRecord", lambda **_: pytest.fail("a record was made"))
    assert operators(removed) == never
    assert len(never) > 100


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_even_an_observed_step_computes_nothing_more_itself(options):
    """A record holds references: what is derived is computed when asked."""
    quiet, watched = Problem(**options), Problem(**options)
    with CountedOperators() as silent:
        quiet.run(5)
    watched.optimizer.observe(lambda record: None)
    with CountedOperators() as counted:
        watched.run(5)
    # but for the step counters, numbers on the CPU, that the corrections are read from
    reads = "aten._local_scalar_dense.default"
    assert [name for name in counted.names if name != reads] == [name for name in silent.names if name != reads]


def allocated(problem: Problem) -> int:
    problem.run(3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        problem.backward()
        problem.optimizer.step()
    return sum(event.self_cpu_memory_usage for event in profiler.events() if event.self_cpu_memory_usage > 0)


@pytest.mark.parametrize("mode", ["base", "lazy"])
def test_a_step_allocates_the_same_memory_observed_or_not(mode):
    watched = Problem(**MODES[mode])
    watched.optimizer.observe(lambda record: None)
    silent = allocated(Problem(**MODES[mode]))
    assert allocated(watched) == silent > 0


def test_nothing_of_a_step_is_kept_without_an_observer():
    problem = Problem(mode="sync").run(2)
    assert problem.optimizer._plan is None
    assert problem.optimizer.last.base == {}
    assert problem.optimizer.last.moves == {}


def collected(steps: int, **options: object):
    problem, rows = Problem(**options), []

    def keep(record) -> None:
        clones = {}
        for t in record.tensors:
            clones[t.name] = {
                f: (v.detach().clone() if isinstance(v := getattr(t, f), Tensor) else v)
                for f in (*t.__slots__, "m_hat", "v_hat", "update")
            }
        rows.append((record, clones))

    problem.optimizer.observe(keep)
    before = []
    for _ in range(steps):
        before.append({n: p.detach().clone() for n, p in problem.w.items()})
        problem.run(1)
    return problem, rows, before


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_the_fields_hold_what_they_say(options):
    _, rows, before = collected(7, **options)
    triples = ns.coefficients("keller", 5)
    for (record, tensors), start in zip(rows, before, strict=True):
        assert record.newton_schulz == triples
        for name, t in tensors.items():
            A = t["m_hat"] / (t["v_hat"].sqrt() + t["eps"])
            torch.testing.assert_close(t["whitened"], A, rtol=1e-10, atol=1e-12)
            # the displacement is minus the update and the decay
            moved = t["parameter"] - start[name]
            torch.testing.assert_close(moved, -t["update"] - 0.02 * 0.3 * start[name], rtol=0, atol=1e-14)
            torch.testing.assert_close(t["update"], 0.02 * t["scale"] * t["direction"], rtol=1e-14, atol=0)
            if name == "b":
                assert (t["track"], t["orthogonal"], t["matrix_shape"], t["scale"]) == ("vector", None, None, 1.0)
                assert torch.equal(t["direction"], t["whitened"])
                continue
            assert t["track"] == "matrix"
            assert t["matrix_shape"] == ((2, 3, 4) if name == "heads" else (4, 6))
            O = ns.orthogonal_factor(t["whitened"], triples, FLOAT64)
            torch.testing.assert_close(t["orthogonal"], O, rtol=0, atol=1e-12)
            follows = "whitened" if options.get("orthogonalize") is False else "orthogonal"
            assert torch.equal(t["direction"], t[follows])
            size = t["scale"] * t["direction"].norm()
            torch.testing.assert_close(size, t["whitened"].norm() * O.norm(), rtol=1e-12, atol=0)
        assert record.mode == options["mode"]
    assert [record.step for record, _ in rows] == list(range(1, 8))


@pytest.mark.parametrize("perturbation", ["ars2", "paper", "sam", "asam"])
def test_the_perturbation_has_the_norm_of_its_mode(perturbation):
    _, rows, before = collected(3, mode="sync", perturbation=perturbation, rho=0.3)
    for (_, tensors), start in zip(rows, before, strict=True):
        norms = {n: float(t["perturbation"].norm()) for n, t in tensors.items()}
        total = math.sqrt(sum(x**2 for x in norms.values()))
        if perturbation == "ars2":
            assert list(norms.values()) == pytest.approx([0.3] * 3, rel=1e-8)
        elif perturbation == "asam":
            relative = sum(float((t["perturbation"] / start[n]).square().sum()) for n, t in tensors.items())
            assert math.sqrt(relative) == pytest.approx(0.3, rel=1e-8)
        else:
            assert total == pytest.approx(0.3, rel=1e-8)


def test_a_sync_record_holds_both_gradients_and_the_shear_old_and_new():
    _, rows, _ = collected(7, mode="lazy", k=3)
    for step, (record, tensors) in enumerate(rows):
        assert record.synced == (step % 3 == 0)
        for name, t in tensors.items():
            if record.synced:
                assert t["injected"] is None
                torch.testing.assert_close(t["shear"], residual(t["adversarial"], t["gradient"]), rtol=0, atol=1e-14)
                assert not torch.equal(t["adversarial"], t["gradient"])
                if step == 0:
                    assert t["stale_shear"] is None
                else:
                    assert torch.equal(t["stale_shear"], rows[step - 3][1][name]["shear"])
            else:
                assert t["adversarial"] is t["perturbation"] is t["shear"] is None
                assert torch.equal(t["stale_shear"], rows[step - step % 3][1][name]["shear"])
                assert not torch.equal(t["injected"], t["gradient"])
        assert record.alpha == (None if record.synced else 0.1)
        assert (record.adversarial_loss is None) != record.synced
        assert float(record.loss) > 0


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_the_moments_are_fed_by_the_injected_the_adversarial_or_the_plain_gradient(options):
    _, rows, _ = collected(7, **options)
    means = {name: torch.zeros_like(t["exp_avg"]) for name, t in rows[0][1].items()}
    for record, tensors in rows:
        for name, t in tensors.items():
            fed = t["adversarial"] if record.synced else t["gradient"] if t["injected"] is None else t["injected"]
            means[name] = 0.9 * means[name] + 0.1 * fed
            torch.testing.assert_close(t["exp_avg"], means[name], rtol=1e-10, atol=1e-12)


def test_phi_and_its_threshold_are_gaps_where_they_are_not_measured():
    for mode in ("base", "sync", "lazy"):
        for record, _ in collected(3, **MODES[mode])[1]:
            assert record.phi is None
            assert record.threshold is None
    rows = collected(4, **MODES["aga"])[1]
    assert rows[0][0].phi is None
    assert all(-1 <= record.phi <= 1 for record, _ in rows[1:])
    assert all(record.threshold <= 0 for record, _ in rows)


def test_records_are_frozen():
    _, rows, _ = collected(1)
    record = rows[0][0]
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'step'"):
        record.step = 3
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'lr'"):
        record.tensors[0].lr = 3


def test_a_record_refers_to_the_tensors_of_the_step_and_does_not_copy_them():
    problem = Problem()
    seen = []
    problem.optimizer.observe(lambda record: seen.extend(record.tensors))
    problem.run(1)
    for row, p in zip(seen, problem.w.values(), strict=True):
        assert row.parameter is p
        assert row.gradient is p.grad
        assert row.exp_avg is problem.optimizer.state[p]["exp_avg"]


def test_a_handle_removes_its_observer_and_no_other():
    problem, first, second = Problem(), [], []
    handle = problem.optimizer.observe(lambda record: first.append(record.step))
    problem.optimizer.observe(lambda record: second.append(record.step))
    problem.run(2)
    handle.remove()
    problem.run(1)
    assert (first, second) == ([1, 2], [1, 2, 3])


@pytest.mark.parametrize("mode", ["base", "sync", "lazy"])
def test_an_observer_that_comes_between_the_passes_and_the_step_gets_the_whole_record(mode):
    problem, seen = Problem(**MODES[mode]), []
    problem.backward()
    problem.optimizer.observe(lambda record: seen.append(record))
    problem.optimizer.step()
    (record,) = seen
    assert record.loss is not None
    assert all(t.gradient is not None for t in record.tensors)
    assert record.synced == (mode != "base")
    assert all((t.perturbation is None) != record.synced for t in record.tensors)


def test_a_step_hook_and_an_observer_fire_once_a_step():
    problem, hooks, seen = Problem(mode="sync"), [], []
    problem.optimizer.register_step_post_hook(lambda *_: hooks.append(1))
    problem.optimizer.observe(lambda record: seen.append(1))
    problem.run(3)
    assert (len(hooks), len(seen)) == (3, 3)


def test_names_are_unique_where_parameters_have_none():
    groups = [{"params": [nn.Parameter(draw(i, 2, 2)), nn.Parameter(draw(i, 2))]} for i in range(2)]
    optimizer, seen = ARS2Neo(groups), []
    optimizer.observe(lambda record: seen.extend(t.name for t in record.tensors))
    for group in groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    assert seen == [f"parameter {i}" for i in range(4)]


def test_loading_a_state_keeps_the_observers():
    problem, seen = Problem(), []
    handle = problem.optimizer.observe(lambda record: seen.append(record.step))
    problem.run(1)
    problem.optimizer.load_state_dict(problem.optimizer.state_dict())
    problem.run(1)
    handle.remove()
    problem.run(1)
    assert seen == [1, 2]


@pytest.mark.parametrize(("name", "norm"), [("muon", "frobenius"), ("muon", "schatten4"), ("ars2-base", "schatten4")])
def test_a_record_names_the_polynomials_and_what_they_start_from(name, norm):
    """So that the output of Newton-Schulz can be told from its input, by singular values alone."""
    W = nn.Parameter(draw(0, 4, 6))
    optimizer = create(name, [("W", W)], ns_norm=norm, newton_schulz="you")
    seen: list[float] = []

    def look(record: StepRecord) -> None:
        assert record.ns_norm == norm
        (t,) = record.tensors
        values = torch.linalg.svdvals(t.source)
        image = values / torch.linalg.vector_norm(values, ord={"frobenius": 2, "schatten4": 4}[record.ns_norm])
        for a, b, c in record.newton_schulz:
            image = a * image + b * image**3 + c * image**5
        seen.append(float((image.sort().values - torch.linalg.svdvals(t.orthogonal).sort().values).abs().max()))

    optimizer.observe(look)
    W.grad = draw(1, 4, 6)
    optimizer.step()
    assert 0 <= seen[0] < 1e-5  # the floor that is added to the norm


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_method_without_newton_schulz_names_neither_polynomials_nor_a_norm(name):
    W = nn.Parameter(draw(0, 4, 6))
    optimizer = create(name, [("W", W)])
    seen: list[object] = []
    optimizer.observe(lambda record: seen.append((record.newton_schulz, record.ns_norm)))
    W.grad = draw(1, 4, 6)
    optimizer.step()
    assert seen == [((), None)]


def test_the_norm_of_newton_schulz_is_one_for_all_groups():
    optimizer = create("muon", [("W", nn.Parameter(draw(0, 4, 6)))])
    with pytest.raises(OptimizerError, match="ns_norm must be equal in all groups, got 'schatten4' and 'frobenius'"):
        optimizer.add_param_group({"params": [("V", nn.Parameter(draw(1, 4, 6)))], "ns_norm": "schatten4"})


def test_a_record_shows_a_shear_only_where_the_step_has_stored_one():
    """A mode may be changed between two steps: what an earlier one has stored is then no longer this step's."""
    problem = Problem(mode="lazy", k=5)
    rows: list[list[bool]] = []
    problem.optimizer.observe(lambda record: rows.append([t.shear is not None for t in record.tensors]))
    problem.run(1)
    problem.optimizer.param_groups[0]["mode"] = "sync"
    problem.run(1)
    assert all(rows[0])
    assert not any(rows[1])
    assert all("shear" in state for state in problem.optimizer.state.values())
