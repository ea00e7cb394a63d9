"""Checks of `lossscope doctor`: all pass here, and each fails when the code it tests is broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.selfcheck import (
    gauge as self_check_gauge,
    oracles as self_check_oracles,
    products as self_check_products,
    spectra as self_check_spectra,
)
from lossscope.probes.selfcheck.check import Check, InconclusiveError, Place, check
from lossscope.probes.selfcheck.problems import NETWORKS, network
from lossscope.probes.selfcheck.suite import CHECKS, self_check
from lossscope.probes.statistics.estimate import Estimate

CPU = torch.device("cpu")
SINGLE, DOUBLE = Place(torch.float32, CPU), Place(torch.float64, CPU)
BY_NAME = {one.name: one for one in CHECKS}
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def fewer_seeds(monkeypatch: Patch) -> None:
    monkeypatch.setattr(self_check_spectra, "_SEEDS", 24)


@pytest.mark.parametrize("place", [SINGLE, DOUBLE], ids=["float32", "float64"])
def test_every_check_passes_here_with_a_margin(place: Place) -> None:
    for found in self_check(place):
        if found.passed is None:
            assert "pip install" in found.detail  # an oracle that this environment does not have
            continue
        assert found.passed, found
        probabilistic = found.name in ("eigenvalue bounds", "intervals", "PyHessian: trace")
        assert found.error <= (1.0 if probabilistic else 0.2) * found.bound, found
        assert found.detail


def test_names_are_unique_and_statements_are_there() -> None:
    assert len(BY_NAME) == len(CHECKS) >= 20
    assert all(one.statement for one in CHECKS)


def off_by(share: float) -> Callable[[Patch], None]:
    """Return a defect that changes every product by this share of itself."""

    def inject(monkeypatch: Patch) -> None:
        true = SymmetricOperator.__matmul__
        monkeypatch.setattr(SymmetricOperator, "__matmul__", lambda self, V: true(self, V) * (1 + share))

    return inject


def not_symmetric(monkeypatch: Patch) -> None:
    true = SymmetricOperator.__matmul__
    monkeypatch.setattr(SymmetricOperator, "__matmul__", lambda self, V: true(self, V) + 1e-3 * V.roll(1, 0).to(V))


def gauss_newton_off(monkeypatch: Patch) -> None:
    true = self_check_products.gauss_newton

    def off(objective: Any) -> SymmetricOperator:
        G = true(objective)
        return SymmetricOperator(G.size, lambda V: 1.001 * (G @ V), dtype=G.dtype, device=G.device)

    monkeypatch.setattr(self_check_products, "gauss_newton", off)


def random_numbers_used(monkeypatch: Patch) -> None:
    monkeypatch.setattr(self_check_products, "measure_spectrum", lambda *_, **__: torch.rand(1))


def spectrum(change: Callable[[SpectrumEstimate], SpectrumEstimate], module: Any = self_check_spectra) -> Any:
    """Return a defect that changes every measured spectrum."""

    def inject(monkeypatch: Patch) -> None:
        true = module.measure_spectrum
        monkeypatch.setattr(module, "measure_spectrum", lambda *a, **k: change(true(*a, **k)))

    return inject


def biased(share: float) -> Callable[[SpectrumEstimate], SpectrumEstimate]:
    def moved(one: Estimate) -> Estimate:
        return replace(one, value=one.value + share, low=one.low + share, high=one.high + share)

    return lambda found: replace(found, trace=moved(found.trace))


def too_narrow(found: SpectrumEstimate) -> SpectrumEstimate:
    def halved(one: Estimate) -> Estimate:
        return replace(one, low=(one.low + one.value) / 2, high=(one.high + one.value) / 2)

    return replace(found, trace=halved(found.trace), frobenius=halved(found.frobenius))


def top_values(change: Callable[[Tensor], Tensor]) -> Any:
    return spectrum(lambda found: replace(found, top=replace(found.top, values=change(found.top.values))))


def ghost(values: Tensor) -> Tensor:
    return torch.cat([values[:1], values[:-1]])


def one_copy(values: Tensor) -> Tensor:
    return torch.cat([values[1:], values[-1:]])


def bounds_too_small(found: SpectrumEstimate) -> SpectrumEstimate:
    return replace(found, top=replace(found.top, bounds=found.top.bounds / 1000))


def weights_ignored(monkeypatch: Patch) -> None:
    true = self_check_spectra.ritz

    def equal(*arguments: Any) -> Any:
        found = true(*arguments)
        return replace(found, weights=found.weights * 0 + 1 / found.weights.shape[1])

    monkeypatch.setattr(self_check_spectra, "ritz", equal)


def singular_values_off(monkeypatch: Patch) -> None:
    true = self_check_spectra.singular_spectrum
    monkeypatch.setattr(
        self_check_spectra, "singular_spectrum", lambda M: SimpleNamespace(values=1.001 * true(M).values, error=1e-8)
    )


def not_rescaled(monkeypatch: Patch) -> None:
    """Leave the balanced point where the network is."""
    monkeypatch.setattr(self_check_gauge, "balance", lambda model, **_: SimpleNamespace(model=model))


DEFECTS: dict[str, Callable[[Patch], None]] = {
    "linear regression": off_by(1e-3),
    "logistic regression": off_by(1e-3),
    "softmax regression": off_by(1e-3),
    "empirical Fisher": off_by(1e-3),
    "no residual": gauss_newton_off,
    "scalar factorization": off_by(1e-3),
    "preconditioned": off_by(1e-3),
    "symmetry": not_symmetric,
    "finite differences": off_by(1e-3),
    "trace of a ReLU network": gauss_newton_off,
    "nothing left behind": random_numbers_used,
    "diagonal quadratic": off_by(1e-3),
    "eigenvalue bounds": spectrum(bounds_too_small),
    "no ghosts": top_values(ghost),
    "multiplicity": top_values(one_copy),
    "quadrature": weights_ignored,
    "identity": spectrum(biased(1.0)),
    "intervals": spectrum(too_narrow),
    "singular values": singular_values_off,
    "rescaled neurons": not_rescaled,
    "PyHessian: lambda_max": off_by(1e-3),
    "PyHessian: trace": spectrum(biased(1.0), self_check_oracles),
    "curvlinops: Hessian": off_by(1e-3),
    "curvlinops: Gauss-Newton": off_by(1e-3),
    "curvlinops: empirical Fisher": off_by(1e-3),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_each_check_fails_when_the_code_it_tests_is_broken(name: str, monkeypatch: Patch) -> None:
    DEFECTS[name](monkeypatch)
    found = BY_NAME[name](SINGLE)
    if found.passed is None:
        pytest.skip(found.detail)
    assert found.passed is False, found
    assert found.error > found.bound, found  # and not because it raised


def test_the_intervals_fail_when_the_trace_is_biased(monkeypatch: Patch) -> None:
    spectrum(biased(2.0))(monkeypatch)
    assert BY_NAME["intervals"](SINGLE).passed is False


@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_a_product_that_is_not_a_number_fails(share: float, monkeypatch: Patch) -> None:
    off_by(share)(monkeypatch)
    for name in ("linear regression", "symmetry", "diagonal quadratic", "eigenvalue bounds", "identity"):
        assert BY_NAME[name](SINGLE).passed is False, name


def left(what: str) -> Callable[..., None]:
    def leave(operator: SymmetricOperator, **_: Any) -> None:
        net = operator.objective.model
        first = next(net.parameters())
        if what == "a parameter":
            first.data[0] += 1e-7
        elif what == "a gradient":
            first.grad = None
        elif what == "a mode":
            net.eval()
        elif what == "a buffer":
            net[1].running_mean += 1e-7
        else:
            first.requires_grad_(False)

    return leave


@pytest.mark.parametrize("what", ["a parameter", "a gradient", "a mode", "a buffer", "requires_grad"])
def test_anything_left_behind_is_seen(what: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(self_check_products, "measure_spectrum", left(what))
    found = BY_NAME["nothing left behind"](SINGLE)
    assert found.passed is False
    assert found.error >= 1


def test_a_reading_that_raises_has_failed_and_stops_no_other(monkeypatch: Patch) -> None:
    @check("broken", "this raises")
    def broken(place: Place) -> tuple[float, float, str]:
        raise RuntimeError("no kernel\nfor this dtype")

    @check("fine", "this holds")
    def fine(place: Place) -> tuple[float, float, str]:
        return 0.0, 0.0, "nothing"

    monkeypatch.setattr("lossscope.probes.selfcheck.suite.CHECKS", (broken, fine))
    first, second = self_check(SINGLE)
    assert (first.passed, first.detail) == (False, "it raised RuntimeError: no kernel for this dtype")
    assert math.isnan(first.error)
    assert second.passed is True


def test_an_error_of_nan_fails() -> None:
    assert Check("missing", "a missing value", lambda place: (math.nan, 1.0, "nothing"))(SINGLE).passed is False


def test_an_inconclusive_check_has_neither_passed_nor_failed() -> None:
    def read(place: Place) -> tuple[float, float, str]:
        raise InconclusiveError("x is not installed: run `pip install x`")

    found = Check("x", "x agrees", read)(SINGLE)
    assert (found.passed, found.detail) == (None, "x is not installed: run `pip install x`")


ORACLES = [name for name in BY_NAME if name.startswith(("PyHessian", "curvlinops"))]


@pytest.mark.parametrize("name", ["PyHessian: lambda_max", "curvlinops: Gauss-Newton"])
def test_a_missing_library_is_inconclusive_and_the_message_has_the_command(name: str, monkeypatch: Patch) -> None:
    def nowhere(distribution: str) -> str:
        raise self_check_oracles.PackageNotFoundError(distribution)

    monkeypatch.setattr(self_check_oracles, "version", nowhere)
    found = BY_NAME[name](SINGLE)
    assert found.passed is None
    assert "is not installed: run `pip install" in found.detail


def test_another_release_of_a_library_is_inconclusive(monkeypatch: Patch) -> None:
    monkeypatch.setattr(self_check_oracles, "version", lambda _: "9.9")
    for name in ORACLES:
        found = BY_NAME[name](SINGLE)
        assert found.passed is None
        assert "9.9 is installed, the check needs" in found.detail


def test_a_library_that_raises_says_nothing_about_us(monkeypatch: Patch) -> None:
    def broken(name: str) -> Any:
        raise AttributeError("module 'torch' has no attribute 'eig'")

    monkeypatch.setattr(self_check_oracles.importlib, "import_module", broken)
    monkeypatch.setattr(self_check_oracles, "version", lambda name: self_check_oracles.ORACLES[name])
    for name in ORACLES:
        found = BY_NAME[name](SINGLE)
        assert found.passed is None
        assert "itself raised AttributeError: module 'torch' has no attribute 'eig'" in found.detail


def test_pyhessian_is_not_run_on_a_device_it_does_not_support(monkeypatch: Patch) -> None:
    elsewhere = SimpleNamespace(device=torch.device("mps"))
    with (
        pytest.raises(InconclusiveError, match="runs on cpu and cuda only, not on mps"),
        self_check_oracles._pyhessian(elsewhere),
    ):
        pass


def test_checking_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    for name in ("softmax regression", "symmetry", "diagonal quadratic", "PyHessian: lambda_max"):
        BY_NAME[name](SINGLE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_are_the_same_each_time(name: str) -> None:
    assert torch.equal(network(name, DOUBLE).parameters(), network(name, DOUBLE).parameters())
    torch.testing.assert_close(network(name, SINGLE).parameters().double(), network(name, DOUBLE).parameters())
