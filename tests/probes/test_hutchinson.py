from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate
from lossscope.probes.hutchinson import trace_and_frobenius
from lossscope.probes.operator import SymmetricOperator, from_matrix


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    n = len(eigenvalues)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64))
    A = (Q * eigenvalues.double()) @ Q.mT
    return (A + A.mT) / 2


def estimated(A: Tensor, seed: int = 0, rel: float = 0.01, samples: int = 32, **options) -> tuple[Estimate, Estimate]:
    return trace_and_frobenius(from_matrix(A), rel=rel, max_samples=samples, generator=seeded(seed), **options)


def test_the_trace_of_a_diagonal_is_exact() -> None:
    trace, _ = estimated(torch.diag(torch.arange(100.0) - 30))
    assert (trace.value, trace.stderr, trace.low, trace.high) == (1950.0, 0.0, 1950.0, 1950.0)
    assert trace.converged
    assert trace.samples == trace.products == 32


def test_trace_and_norm_of_a_small_matrix_are_exact() -> None:
    A = rotated(torch.tensor([4.0, 1.0, -1.0]))
    trace, frobenius = estimated(A)
    assert (trace.value, frobenius.value) == pytest.approx((4.0, 18**0.5), rel=1e-14)
    assert trace.bound == frobenius.bound == "exact"
    assert trace.products == 3
    sampled, _ = estimated(A, samples=2)  # too small a budget to multiply it out
    assert sampled.bound == "standard error"


def test_the_variance_is_the_one_in_the_docstring() -> None:
    A = rotated(torch.linspace(-1, 2, 40))
    trace, _ = estimated(A, samples=20000, rel=1e-6)
    expected = 2 * float(A.square().sum() - A.diagonal().square().sum())
    assert trace.stderr**2 * trace.samples == pytest.approx(expected, rel=0.05)
    assert abs(trace.value - 20) < 4 * trace.stderr


def test_the_error_falls_with_the_root_of_the_budget() -> None:
    A = rotated(torch.linspace(0, 1, 60))
    few, many = (estimated(A, samples=m, rel=1e-6)[0] for m in (256, 4096))
    assert many.stderr == pytest.approx(few.stderr / 4, rel=0.15)
    assert (few.samples, many.samples) == (256, 4096)
    assert not few.converged


def test_one_stops_at_a_few_looks_only_and_at_the_budget() -> None:
    A = rotated(torch.linspace(0.5, 1, 80))
    rels = (0.1, 0.0045, 0.003, 0.002, 1e-4)
    counts = {estimated(A, seed, rel, samples=300)[0].samples for seed in range(20) for rel in rels}
    assert counts == {32, 64, 128, 256, 300}
    loose, tight = (estimated(A, rel=rel, samples=5000) for rel in (0.03, 0.003))
    assert loose[0].samples < tight[0].samples
    for trace, frobenius in (loose, tight):
        assert trace.converged
        assert frobenius.converged
    assert tight[0].stderr <= 0.003 * tight[0].value


def test_only_what_decides_is_waited_for() -> None:
    A = rotated(torch.cat([torch.linspace(1, 2, 90), torch.tensor([30.0])]))
    samples = [
        estimated(A, rel=0.05, samples=2048, decide=decide)[0].samples
        for decide in (("trace",), ("frobenius",), ("trace", "frobenius"))
    ]
    assert samples[0] < samples[1] == samples[2]


def test_a_traceless_matrix_is_measured_relative_to_its_norm() -> None:
    A = rotated(torch.cat([torch.ones(50), -torch.ones(50)]))
    trace, frobenius = estimated(A, rel=0.1, samples=1024)
    assert trace.converged
    assert trace.stderr <= 0.1 * frobenius.value
    assert abs(trace.value) < 4 * trace.stderr


SPECTRA = {
    "identity": torch.ones(100),
    "power law": 1 / torch.arange(1.0, 101) ** 1.5,
    "outlier and bulk": torch.cat([torch.tensor([30.0]), 0.2 + 0.1 * torch.linspace(0, 1, 99)]),
    "indefinite": torch.linspace(-1, 1, 100) ** 3 + 0.1,
}


@pytest.mark.parametrize("rel", [0.2, 0.1])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_covers_the_truth_with_the_stopping_rule_on(name: str, rel: float) -> None:
    A = rotated(SPECTRA[name])
    true_trace, true_norm = float(A.trace()), float(torch.linalg.matrix_norm(A))
    covered = [0, 0]
    counts = set()
    for seed in range(1000):
        trace, frobenius = estimated(A, seed, rel, samples=256)
        covered[0] += trace.low - 1e-9 <= true_trace <= trace.high + 1e-9
        covered[1] += frobenius.low - 1e-9 <= true_norm <= frobenius.high + 1e-9
        counts.add(trace.samples)
    if name == "identity":
        assert covered == [1000, 1000]
    else:
        assert 930 <= covered[0] <= 980
        assert 930 <= covered[1] <= 980


def test_probes_do_not_depend_on_how_they_are_cut_into_blocks() -> None:
    A = rotated(torch.linspace(0, 1, 50))
    short, long = (estimated(A, rel=1e-6, samples=m)[0] for m in (40, 33))
    seen: list[Tensor] = []

    def product(V: Tensor) -> Tensor:
        seen.append(V)
        return A @ V

    operator = SymmetricOperator(50, product, dtype=torch.float64, device=torch.device("cpu"))
    again, _ = trace_and_frobenius(operator, rel=1e-6, max_samples=40, generator=seeded())
    assert again.value == pytest.approx(short.value, rel=1e-13)
    assert short.value != long.value
    assert sorted({float(x) for x in torch.cat(seen, 1).unique()}) == [-1.0, 1.0]
    assert [V.shape[1] for V in seen] == [32, 8]


def test_a_budget_of_one_is_refused() -> None:
    with pytest.raises(ProbeError, match="1 random probes give no standard error, need at least 2"):
        estimated(torch.eye(40), samples=1)
