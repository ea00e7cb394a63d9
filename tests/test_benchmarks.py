"""Curvature benchmark at a tiny size: it runs, and its references and libraries are correct."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import benchmark


@pytest.fixture(scope="module")
def curvature() -> Iterator[object]:
    yield from benchmark("curvature")


@pytest.fixture(scope="module")
def tiny(curvature):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
        batch = (torch.randn(40, 5), torch.randint(4, (40,)))
    return curvature.Problem("tiny", model, batch, relu_only=True)


@pytest.fixture(scope="module")
def spectrum(tiny):
    double = tiny.to(torch.float64)
    names = [name for name, _ in double.model.named_parameters()]

    def loss(flat):
        parts = flat.split([p.numel() for p in double.parameters])
        pieces = {n: v.view_as(p) for n, v, p in zip(names, parts, double.parameters, strict=True)}
        return F.cross_entropy(torch.func.functional_call(double.model, pieces, double.batch[0]), double.batch[1])

    H = torch.autograd.functional.hessian(loss, nn.utils.parameters_to_vector(double.parameters).detach())
    return torch.linalg.eigvalsh(H).numpy()


def test_the_reference_is_the_dense_spectrum(curvature, tiny, spectrum):
    reference = importlib.import_module("curvature_reference").reference
    truth = reference(tiny, curvature.SolverOptions(density_probes=12, density_steps=24))
    assert truth.top == pytest.approx(spectrum[::-1][:5], abs=1e-9 * spectrum[-1])
    assert truth.bottom == pytest.approx(spectrum[0], abs=1e-9 * spectrum[-1])
    assert truth.trace == pytest.approx(spectrum.sum(), rel=1e-9)
    assert truth.agreement < 1e-4
    exact = (spectrum, np.full(len(spectrum), 1 / len(spectrum)))
    assert truth.density[1].sum() == pytest.approx(1)
    assert truth.density_distance(exact) < 3 * truth.density_error < 0.03


def test_a_sampled_trace_is_within_its_error(curvature, tiny, spectrum):
    from dataclasses import replace

    reference = importlib.import_module("curvature_reference").reference
    truth = reference(replace(tiny, relu_only=False), curvature.SolverOptions(trace_error=0.03, steps=8))
    assert 0 < truth.trace_error <= 0.03
    assert truth.trace == pytest.approx(spectrum.sum(), rel=4 * truth.trace_error)


def test_a_remembered_reference_is_the_same(curvature, tiny, monkeypatch, tmp_path):
    module = importlib.import_module("curvature_reference")
    monkeypatch.setattr(module, "gettempdir", lambda: tmp_path)
    effort = curvature.SolverOptions(density_probes=2, density_steps=4)
    first = module.remembered(tiny, effort)
    monkeypatch.setattr(module, "reference", None)
    again = module.remembered(tiny, effort)
    assert (again.trace, again.bottom, again.density_error) == (first.trace, first.bottom, first.density_error)
    np.testing.assert_array_equal(again.top, first.top)
    np.testing.assert_array_equal(again.density, first.density)


def test_group_norm_written_out_is_group_norm(curvature):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3))
    nn.init.normal_(model[1].weight)
    problem = curvature.Problem("norm", model, (torch.randn(7, 1, 4, 4), torch.randint(3, (7,))), relu_only=False)
    for one, other in zip(problem.gradient(), problem.elementary().gradient(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pyhessian_finishes_and_leaves_no_gradient(curvature, tiny, spectrum):
    pytest.importorskip("pyhessian")
    rivals = importlib.import_module("curvature_rivals")
    found = rivals.pyhessian_panel(tiny, 0)
    assert found.products == sum(found.parts) > 100
    assert found.top[0] == pytest.approx(spectrum[-1], rel=0.05)
    assert found.density[1].sum() == pytest.approx(1, abs=1e-3)
    with rivals.pyhessian_product(tiny) as product:
        product()
    assert all(p.grad is None for p in tiny.parameters)


def test_curvlinops_counts_columns(curvature, tiny, spectrum):
    pytest.importorskip("curvlinops")
    rivals = importlib.import_module("curvature_rivals")
    found = rivals.curvlinops_panel(tiny, 0, settings=rivals.Combination(1e-3, 1e-3, 60, 12))
    assert found.products == sum(found.parts)
    assert found.top[0] == pytest.approx(spectrum[-1], rel=1e-4)
    assert found.bottom == pytest.approx(spectrum[0], abs=1e-4 * spectrum[-1])
    assert found.trace == pytest.approx(spectrum.sum(), abs=np.linalg.norm(spectrum))


TITLES = {
    "top": "λ_max to 1 %",
    "panel": "The panel",
    "tracking": "λ_max along a run",
    "product": "One product",
}


def small(curvature):
    """Return the smallest plan that runs every line."""
    once, effort = curvature.Rounds(1, 1), curvature.SolverOptions(0.1, steps=60, density_probes=2, density_steps=6)
    return curvature.Plan(
        ("mlp",), 0.03, 20, 100, once, once, effort, evaluations=2, seeds=1, product_rounds=1, product_repeats=1
    )


@pytest.mark.parametrize("job", [pytest.param(j, marks=pytest.mark.slow if j != "tracking" else ()) for j in TITLES])
def test_a_job_prints_its_table_and_judges_its_aims(curvature, capsys, monkeypatch, tmp_path, job):
    monkeypatch.setattr(importlib.import_module("curvature_reference"), "gettempdir", lambda: tmp_path)
    rivals = importlib.import_module("curvature_rivals")
    # the search for the cheapest settings takes longer than all the rest
    monkeypatch.setattr(curvature, "_combination", lambda *_: rivals.Combination(0.1, 0.1, 20, 10))
    verdicts = curvature.measure(small(curvature), [job], torch.device("cpu"))
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert TITLES[job] in printed
    assert len(lines) >= 5
    assert not any("nan" in line for line in lines)
    assert len({verdict.aim for verdict in verdicts}) == len(verdicts) >= 1


@pytest.mark.parametrize("jobs", [("product",), pytest.param(tuple(TITLES), marks=pytest.mark.slow)], ids="+".join)
def test_without_rivals_our_rows_remain(jobs, curvature, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.import_module("curvature_reference"), "gettempdir", lambda: tmp_path)
    monkeypatch.setattr(importlib.import_module("curvature_rivals"), "installed", lambda _: False)
    curvature.print_circumstances(torch.device("cpu"))
    verdicts = curvature.measure(small(curvature), jobs, torch.device("cpu"))
    printed = capsys.readouterr().out
    assert "Not installed, so without rows: pyhessian, curvlinops" in printed
    assert not any("pyhessian" in line or "curvlinops" in line for line in printed.splitlines() if line[:1] == "|")
    assert {verdict.aim.split(":")[0] for verdict in verdicts} >= {"one product", *(["λ_max"] if "top" in jobs else [])}
