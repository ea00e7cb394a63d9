from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.spectrum.measure import measure_spectrum


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    data = [(gaussian(n, 6, seed=n), torch.arange(n) % 3) for n in (30, 11)]
    return Objective(net, CrossEntropy(), data)


def test_both_engines_agree() -> None:
    H = hessian(network())
    ours = measure_spectrum(H, top=2, rel=1e-3, quantities=("top", "trace"))
    theirs = measure_spectrum(H, top=2, rel=1e-3, max_products=400, engine="pyhessian", quantities=("top", "trace"))
    assert theirs.top is not None
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
    H = hessian(network())
    found = measure_spectrum(H, top=2, max_products=14, quantities=("top",), engine="pyhessian")
    dense = H @ torch.eye(H.size, dtype=torch.float64)
    true = (dense @ found.top.vectors - found.top.vectors * found.top.values).norm(dim=0)
    torch.testing.assert_close(found.top.residuals, true, rtol=1e-8, atol=1e-12)
    assert torch.equal(found.top.bounds, found.top.residuals)  # it knows of no gap
    assert 4 < found.products <= 14
    trace = measure_spectrum(H, max_products=10, quantities=("trace",), engine="pyhessian")
    assert trace.products == trace.trace.samples == 10


def test_what_did_not_meet_its_bound_is_named() -> None:
    H = hessian(network())
    assert measure_spectrum(H, max_products=20, engine="pyhessian", quantities=("top", "trace")).unmet == (
        "top",
        "trace",
    )
    loose = measure_spectrum(H, top=1, rel=0.5, max_products=100, engine="pyhessian", quantities=("top", "trace"))
    assert loose.unmet == ()


def test_the_density_it_lacks_is_ours() -> None:
    H = hessian(network())
    found = measure_spectrum(H, top=1, engine="pyhessian")
    assert found.engine == "pyhessian"
    assert found.density is not None
    assert float(found.density.weights.sum()) == pytest.approx(len(found.density.weights))
    assert found.trace.samples + len(found.density.nodes) <= found.products <= 200


class Saddle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(6, dtype=torch.float64))


def test_a_negative_trace_does_not_stop_it_early() -> None:
    entries = torch.tensor([-5.0, -1.0, -1.0, 0.5, 0.5, 2.0], dtype=torch.float64)
    objective = Objective(Saddle(), lambda m, _: (entries * m.theta**2).sum() / 2, [torch.zeros(1)])
    found = measure_spectrum(
        hessian(objective), top=1, rel=1e-3, max_products=200, quantities=("top", "trace"), engine="pyhessian"
    )
    assert found.trace.value == pytest.approx(-4, rel=1e-10)
    assert found.trace.samples == 100
    assert float(found.top.values[0]) == pytest.approx(-5, rel=1e-3)  # power iteration: the largest |lambda|


def test_seeds_repeat() -> None:
    H = hessian(network())
    first, again, other = (measure_spectrum(H, engine="pyhessian", max_products=20, seed=s) for s in (1, 1, 2))
    assert first.trace.value == again.trace.value != other.trace.value


def test_what_it_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    H = hessian(network())
    with pytest.raises(ProbeError, match=r"engine='pyhessian' has no \['bottom'\]: ask for top, trace, density"):
        measure_spectrum(H, engine="pyhessian", quantities=("top", "bottom"))
    with pytest.raises(ProbeError, match=r"quantities=\(\): pass None for all"):
        measure_spectrum(H, engine="pyhessian", quantities=())
    with pytest.raises(ProbeError, match="knows Hessians only"):
        measure_spectrum(from_matrix(torch.eye(3)), engine="pyhessian")
    with pytest.raises(ProbeError, match="takes no warm_start"):
        measure_spectrum(H, engine="pyhessian", warm_start=torch.ones(H.size))
    monkeypatch.setattr(H, "device", torch.device("mps"))
    with pytest.raises(ProbeError, match="runs on cpu and cuda only, not on mps"):
        measure_spectrum(H, engine="pyhessian", quantities=("top",))


def test_a_missing_or_broken_library_is_told_with_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any) -> Any:
        if name == "pyhessian":
            raise AttributeError("module 'torch' has no attribute 'eig'")
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "pyhessian", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ProbeError, match=r"has no attribute 'eig'.*run `pip install pyhessian==0.1`"):
        measure_spectrum(hessian(network()), engine="pyhessian")
