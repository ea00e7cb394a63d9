"""PyHessian as a second opinion: agreement with our engine, true residuals, and errors that say what to do."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import nn

from helpers import Vector, gaussian
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.pyhessian_engine import pyhessian_spectrum
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian

DEFAULTS: dict[str, Any] = {"top": 5, "rel": 0.01, "max_products": 200, "quantities": ("top", "trace"), "seed": 0}


def second_opinion(objective: Objective, **options: Any) -> Any:
    return pyhessian_spectrum(objective, hessian(objective), **(DEFAULTS | options))


def network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    data = [(gaussian(n, 6, seed=n), torch.arange(n) % 3) for n in (30, 11)]
    return Objective(net, CrossEntropy(), data)


def test_both_engines_agree() -> None:
    objective = network()
    ours = measure_spectrum(hessian(objective), top=2, rel=1e-3, quantities=("top", "trace"))
    theirs = second_opinion(objective, top=2, rel=1e-3, max_products=400)
    apart = (theirs.top.values - ours.top.values).abs()
    assert (apart <= theirs.top.bounds + ours.top.bounds).all()
    assert theirs.top.converged.all()
    assert abs(theirs.trace.value - ours.trace.value) < 4 * (theirs.trace.stderr + ours.trace.stderr)
    assert theirs.trace.samples == 200
    assert (theirs.engine, theirs.method) == ("pyhessian", "pyhessian")
    assert theirs.bottom is None
    assert theirs.frobenius is None
    assert theirs.density is None


def test_its_residuals_are_the_true_ones_and_its_products_are_counted() -> None:
    objective = network()
    H = hessian(objective)
    found = second_opinion(objective, top=2, max_products=14, quantities=("top",))
    dense = H @ torch.eye(H.size, dtype=torch.float64)
    true = (dense @ found.top.vectors - found.top.vectors * found.top.values).norm(dim=0)
    torch.testing.assert_close(found.top.residuals, true, rtol=1e-8, atol=1e-12)
    assert torch.equal(found.top.bounds, found.top.residuals)  # no spectral gap is known
    assert 4 < found.products <= 14
    trace = second_opinion(objective, max_products=10, quantities=("trace",))
    assert trace.products == trace.trace.samples == 10


def test_what_did_not_meet_its_bound_is_named() -> None:
    assert second_opinion(network(), max_products=20).unmet == ("top", "trace")
    assert second_opinion(network(), top=1, rel=0.5, max_products=100).unmet == ()


def test_the_density_it_lacks_is_ours() -> None:
    panel = Panel(MeasurementTarget(network()), SolverOptions(0.01, 0.01, 200, 0, "pyhessian"))
    rows = panel.with_provenance(
        GROUPS["spectrum"].measure(panel, ["lambda_max", "trace", "density", "effective_rank"]), 3
    )
    engines = {row["measure"]: row["engine"] for row in rows.probes}
    assert engines == {"lambda_max": "pyhessian", "trace": "pyhessian", "effective_rank": "lossscope"}
    assert rows.densities
    assert all(sum(row["weights"]) == pytest.approx(1.0) for row in rows.densities)


class Saddle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(6, dtype=torch.float64))


def test_a_negative_eigenvalue_of_largest_modulus_is_not_reported_as_the_largest() -> None:
    curvature = torch.tensor([-5.0, 2.0, 1.0, 0.5])
    objective = Objective(Vector(torch.ones(4)), lambda m, _: (curvature * m.theta**2).sum() / 2, [torch.zeros(1)])
    for top in (1, 2):
        found = pyhessian_spectrum(
            objective, hessian(objective), top=top, rel=0.01, max_products=200, quantities=("top",), seed=0
        )
        assert bool(found.top.converged[0]) == (top == 2)  # 2 is the first positive one, and so the largest
        assert found.unmet == ("top",)
        assert found.top.estimate(0).low <= 2.0001
        assert found.top.estimate(0).high >= 1.9999


def test_a_negative_trace_does_not_stop_it_early() -> None:
    entries = torch.tensor([-5.0, -1.0, -1.0, 0.5, 0.5, 2.0], dtype=torch.float64)
    objective = Objective(Saddle(), lambda m, _: (entries * m.theta**2).sum() / 2, [torch.zeros(1)])
    found = second_opinion(objective, top=1, rel=1e-3)
    assert found.trace.value == pytest.approx(-4, rel=1e-10)
    assert found.trace.samples == 100
    assert float(found.top.values[0]) == pytest.approx(-5, rel=1e-3)  # power iteration: the largest |lambda|


def test_seeds_repeat() -> None:
    first, again, other = (second_opinion(network(), max_products=20, seed=s) for s in (1, 1, 2))
    assert first.trace.value == again.trace.value != other.trace.value


def test_an_unknown_engine_and_an_unsupported_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"engine must be one of .*, got 'curvlinops'"):
        SolverOptions(0.1, 0.1, 10, 0, "curvlinops")  # type: ignore[arg-type]
    objective = network()
    H = hessian(objective)
    monkeypatch.setattr(H, "device", torch.device("mps"))
    with pytest.raises(ProbeError, match="runs on cpu and cuda only, got mps"):
        pyhessian_spectrum(objective, H, **DEFAULTS)


def test_a_missing_or_broken_library_is_told_with_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any) -> Any:
        if name == "pyhessian":
            raise AttributeError("module 'torch' has no attribute 'eig'")
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "pyhessian", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ProbeError, match=r"has no attribute 'eig'.*run `pip install pyhessian==0.1`"):
        second_opinion(network())
