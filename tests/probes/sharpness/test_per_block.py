from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.sharpness.per_block import (
    ModuleTable,
    _BlockMeasurement,
    _module_table,
    _WholeMeasurement,
    per_module,
)
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

CLASSES = 3


def seeded(build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


def batches(*counts: int) -> list[tuple[Tensor, Tensor]]:
    def one(n: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(n)
        return torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % CLASSES

    return [one(n) for n in counts]


class Branches(nn.Module):
    """Model with its own parameters, nested modules, and a module tied to another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, 0.5, 1.0]))
        self.body = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh())
        self.again = nn.Linear(9, 9)
        self.again.weight, self.again.bias = self.body[2].weight, self.body[2].bias
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(torch.tanh(self.again(self.body(x))))


@functools.cache
def branches() -> Objective:
    return Objective(seeded(Branches), CrossEntropy(), batches(17, 6))


def dense(operator: SymmetricOperator) -> Tensor:
    return (operator @ torch.eye(operator.size, dtype=torch.float64)).double()


def blocks(objective: Objective, H: Tensor, table: ModuleTable) -> list[Tensor]:
    places = [objective.vector.indices(row.parameters) for row in table.rows]
    return [H[place][:, place] for place in places]


@pytest.mark.parametrize("by", ["tensor", "module"])
@pytest.mark.parametrize("make", [hessian, gauss_newton, fisher], ids=["hessian", "gauss-newton", "fisher"])
def test_rows_are_the_blocks_of_the_dense_matrix(make: Any, by: Any) -> None:
    objective = branches()
    operator = make(objective, method="reverse")
    table = per_module(operator, by=by, rel=0.01)
    assert table.products == operator.products + sum(row.trace.products + 1 for row in table.rows)
    H = dense(operator)
    whole = float(H.square().sum())
    top, vectors = torch.linalg.eigh(H)
    for row, block in zip(table.rows, blocks(objective, H, table), strict=True):
        assert len(block) == row.size
        trace, norm, largest = (float(x) for x in (block.trace(), block.norm(), torch.linalg.eigvalsh(block)[-1]))
        assert row.trace.value == pytest.approx(trace, abs=0.04 * max(trace, norm))
        assert row.frobenius.value == pytest.approx(norm, rel=0.04)
        assert row.lambda_max.value == pytest.approx(largest, rel=0.01)
        assert row.lambda_max.low <= table.lambda_max.high
        v = vectors[objective.vector.indices(row.parameters), -1]
        assert row.top_share.low - 1e-9 <= float(v @ block @ v / top[-1]) <= row.top_share.high + 1e-9
        assert row.frobenius_share.value == pytest.approx(norm**2 / whole, abs=0.04)
        assert row.trace_share.value == pytest.approx(trace / float(H.trace()), abs=0.04)
    assert table.trace.value == pytest.approx(float(H.trace()), rel=0.04)
    assert table.lambda_max.value == pytest.approx(float(top[-1]), rel=0.01)
    assert table.frobenius.value == pytest.approx(math.sqrt(whole), rel=0.04)


@pytest.mark.parametrize("by", ["tensor", "module"])
def test_rows_add_up_to_the_whole(by: Any) -> None:
    table = per_module(branches(), by=by, rel=0.05)
    rows = table.rows
    assert table.trace.value == pytest.approx(math.fsum(row.trace.value for row in rows), rel=1e-14)
    assert table.trace.stderr == pytest.approx(math.hypot(*(row.trace.stderr for row in rows)), rel=1e-12)
    assert math.fsum(row.trace_share.value for row in rows) == pytest.approx(1, abs=1e-12)
    inside = math.fsum(row.frobenius_share.value for row in rows)
    assert inside + table.cross_share.value == pytest.approx(1, abs=1e-12)
    along = math.fsum(row.top_share.value for row in rows)
    assert along + table.top_cross_share.value == pytest.approx(1, abs=1e-12)
    assert 0 < table.top_cross_share.value < 1 - 1 / len(rows)  # the cross share is never negative
    assert sum(row.size for row in rows) == branches().size
    assert table.trace.converged


def test_rows_are_tensors_or_the_modules_that_own_them_and_tied_ones_come_once() -> None:
    objective = branches()
    assert tuple(row.name for row in per_module(objective, rel=0.5).rows) == objective.names
    table = per_module(objective, by="module", rel=0.5)
    assert {row.name: row.parameters for row in table.rows} == {
        "(root)": ("scale",),
        "body.0": ("body.0.weight", "body.0.bias"),
        "body.2": ("body.2.weight", "body.2.bias"),
        "head": ("head.weight", "head.bias"),
    }


def test_a_frozen_parameter_has_no_row() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)))
    net[0].weight.requires_grad_(False)
    objective = Objective(net, CrossEntropy(), batches(20))
    table = per_module(objective)
    assert [row.name for row in table.rows] == ["0.bias", "2.weight", "2.bias"]
    H = dense(hessian(objective))
    assert table.trace.value == pytest.approx(float(H.trace()), rel=1e-12)
    own = sum(float(block.square().sum()) for block in blocks(objective, H, table))
    assert table.cross_share.value == pytest.approx(1 - own / float(H.square().sum()), abs=1e-12)
    assert table.cross_share.stderr == 0.0


class Factors(nn.Module):
    def __init__(self, w: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(1 / w, dtype=torch.float64))


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorisation_has_its_closed_forms(w: float) -> None:
    # H = [[w^-2, 1], [1, w^2]], lambda_max = w^2 + w^-2 with the eigenvector (1/w, w)
    a, b = w**-2, w**2
    table = per_module(Objective(Factors(w), lambda m, _: (m.first * m.second - 1) ** 2 / 2, [torch.zeros(1)]))
    first, second = table.rows
    assert (first.trace.value, second.trace.value, table.trace.value) == pytest.approx((a, b, a + b), rel=1e-12)
    assert (first.lambda_max.value, table.lambda_max.value) == pytest.approx((a, a + b), rel=1e-12)
    assert table.orbit_minimal_trace.value == pytest.approx(2, rel=1e-12)
    assert table.cross_share.value == pytest.approx(2 / (a + b) ** 2, rel=1e-9)
    assert (first.top_share.value, second.top_share.value) == pytest.approx([x**2 / (a + b) ** 2 for x in (a, b)])
    assert table.top_cross_share.value == pytest.approx(2 / (a + b) ** 2, rel=1e-9)
    assert table.orbit_minimal_trace.bound == table.trace.bound == "exact"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steep = nn.Parameter(torch.ones(40, dtype=torch.float64))
        self.shallow = nn.Parameter(torch.ones(50, dtype=torch.float64))


def bowls(model: Any, scales: tuple[Tensor, Tensor]) -> Tensor:
    return ((scales[0] * model.steep**2).sum() + (scales[1] * model.shallow**2).sum()) / 2


def test_blocks_that_do_not_see_each_other_share_nothing() -> None:
    scales = torch.linspace(1, 4, 40, dtype=torch.float64), torch.linspace(0, 1, 50, dtype=torch.float64)
    table = per_module(Objective(Two(), bowls, [scales], count=lambda _: 1), rel=0.01)
    assert table.cross_share.low == 0.0
    assert 0 <= table.cross_share.value < 0.02
    steep, shallow = table.rows
    assert steep.top_share.value == pytest.approx(1, abs=1e-3)
    assert shallow.top_share.value == pytest.approx(0, abs=1e-3)
    assert table.top_cross_share.value == pytest.approx(0, abs=1e-3)
    assert steep.lambda_max.value == pytest.approx(table.lambda_max.value, rel=0.01)
    assert (steep.trace.value, shallow.trace.value) == pytest.approx((100, 25), rel=0.03)


@pytest.mark.parametrize("alpha", [1 / 3, 3.0])
def test_a_rescaling_moves_the_traces_and_leaves_the_least_one(alpha: float) -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, CLASSES, bias=False)))
    plain = per_module(Objective(net, CrossEntropy(), batches(30)))
    with torch.no_grad():
        net[0].weight *= alpha
        net[2].weight /= alpha
    moved = per_module(Objective(net, CrossEntropy(), batches(30)))
    assert moved.rows[0].trace.value == pytest.approx(plain.rows[0].trace.value / alpha**2, rel=1e-9)
    assert not 0.7 < moved.trace.value / plain.trace.value < 1.4
    assert moved.orbit_minimal_trace.value == pytest.approx(plain.orbit_minimal_trace.value, rel=1e-9)
    assert moved.orbit_minimal_trace.value <= min(moved.trace.value, plain.trace.value)


def test_each_block_of_a_relu_net_has_the_trace_of_its_gauss_newton_block() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES)))
    objective = Objective(net, CrossEntropy(), batches(30))
    for one, other in zip(per_module(objective).rows, per_module(gauss_newton(objective)).rows, strict=True):
        assert one.trace.value == pytest.approx(other.trace.value, rel=1e-9)


def test_a_flat_loss_has_traces_and_no_shares() -> None:
    objective = Objective(Two(), lambda m, _: m.steep.sum() + 2 * m.shallow.sum(), [torch.zeros(1)])
    table = per_module(objective)
    assert (table.trace.value, table.lambda_max.value, table.frobenius.value) == (0.0, 0.0, 0.0)
    gaps = [table.cross_share, table.top_cross_share, table.orbit_minimal_trace]
    gaps += [share for row in table.rows for share in (row.trace_share, row.frobenius_share, row.top_share)]
    assert all(math.isnan(gap.value) and not gap.converged for gap in gaps)


def coupled(sizes: tuple[int, ...], rank: int) -> tuple[Tensor, Objective]:
    """Return a matrix with some outliers that couple the blocks and a bulk that hardly does."""
    n = sum(sizes)
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.concatenate([np.linspace(10, 4, rank), rng.uniform(-0.3, 1, n - rank)])
    A = torch.from_numpy((Q * values) @ Q.T)
    A = (A + A.mT) / 2 + torch.diag(torch.linspace(0, 3, n, dtype=torch.float64))
    model = nn.ParameterDict({f"p{i}": torch.zeros(size, dtype=torch.float64) for i, size in enumerate(sizes)})
    return A, Objective(model, lambda m, _: sum(p.sum() for p in m.parameters()), [torch.zeros(1)])


@pytest.mark.parametrize("seeds", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_intervals_of_shares_cover_the_truth(seeds: int) -> None:
    A, objective = coupled((50, 36), 5)

    def block(names: tuple[str, ...]) -> SymmetricOperator:
        places = objective.vector.indices(names)
        return from_matrix(A[places][:, places])

    operator = ObjectiveOperator(objective, A.matmul, restrict=block)
    own = [float(A[place][:, place].square().sum()) for place in (slice(0, 50), slice(50, 86))]
    share = 1 - sum(own) / float(A.square().sum())
    v = torch.linalg.eigh(A)[1][:, -1]
    along = float(v[:50] @ A[:50, :50] @ v[:50] / (v @ A @ v))
    covered = np.zeros(4)
    for seed in range(seeds):
        table = per_module(operator, rel=0.03, max_products=60, seed=seed)
        row = table.rows[0]
        covered += [
            table.cross_share.low <= share <= table.cross_share.high,
            row.frobenius_share.low <= own[0] / float(A.square().sum()) <= row.frobenius_share.high,
            row.trace_share.low <= float(A[:50, :50].trace() / A.trace()) <= row.trace_share.high,
            row.top_share.low <= along <= row.top_share.high,
        ]
    least, most = binom.ppf([0.001, 0.999], seeds, [0.95, 0.98])  # margins of rounding make them a little wide
    assert all(least <= count <= most for count in covered[:3]), covered
    assert covered[3] >= least


def test_equal_seeds_give_equal_tables_and_blocks_have_probes_of_their_own() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, CLASSES)))
    objective = Objective(net, CrossEntropy(), batches(25))
    one, same, other = (per_module(hessian(objective, method="reverse"), rel=0.1, seed=seed) for seed in (1, 1, 2))
    first, again, second = ([row.trace.value for row in table.rows] for table in (one, same, other))
    assert first == again
    assert first[2] != second[2]  # 144 parameters: sampled
    assert one.frobenius.value != other.frobenius.value


def test_an_operator_without_names_and_an_unknown_grouping_are_refused() -> None:
    with pytest.raises(
        ProbeError, match=r"requires an operator of an objective, which names its coordinates: pass an objective"
    ):
        per_module(from_matrix(torch.eye(3)))
    with pytest.raises(ProbeError, match=r"by must be one of .*, got 'layer'"):
        per_module(branches(), by="layer")  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match=r"rel must be between 0 and 1, got 2"):
        per_module(branches(), rel=2.0)


def pairs(values: list[float], residual: float) -> EigenPairs:
    k = len(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    residuals = torch.full((k,), residual, dtype=torch.float64)
    return EigenPairs(numbers, torch.eye(4, k, dtype=torch.float64), residuals, residuals, residuals < 1)


def block(largest: float, frobenius: Estimate, part: float = 1.0) -> _BlockMeasurement:
    top = Estimate(largest, math.nan, largest, largest, 0, "residual", residual=0.0)
    return _BlockMeasurement("b", ("b.weight",), 2, exact_estimate(3.0), top, frobenius, part, 0.5, 10)


def sampled(value: float, error: float) -> Estimate:
    return Estimate(value, error / 2, value - error, value + error, 8, "standard error")


def table(whole: EigenPairs, frobenius: Estimate, *blocks: _BlockMeasurement) -> ModuleTable:
    return _module_table(_WholeMeasurement(whole, frobenius, 20), blocks, 0.01, 0.0)


def test_a_block_that_is_sharper_than_the_whole_proves_that_the_whole_was_missed() -> None:
    found = table(pairs([2.0, 1.0], 0.1), sampled(5, 0.1), block(3.0, sampled(2, 0.1)), block(1.0, sampled(2, 0.1)))
    assert (found.lambda_max.value, found.lambda_max.high, found.lambda_max.converged) == (2.0, 3.0, False)
    fine = table(pairs([2.0, 1.0], 0.1), sampled(5, 0.1), block(2.05, sampled(2, 0.1)))
    assert (fine.lambda_max.high, fine.lambda_max.converged) == (2.1, True)


def test_blocks_that_chance_makes_larger_than_the_whole_are_all_of_it() -> None:
    found = table(pairs([2.0, 1.0], 0.1), sampled(5, 0.4), block(1.0, sampled(4, 0.2)), block(1.0, sampled(3.5, 0.2)))
    assert (found.cross_share.value, found.cross_share.low) == (0.0, 0.0)
    assert 0.05 < found.cross_share.high < 0.4
    assert sum(row.frobenius_share.value for row in found.rows) == pytest.approx(1, abs=1e-12)


def test_the_cross_share_has_the_errors_of_the_whole_and_of_the_blocks() -> None:
    # 1 - 2 * 9 / 25 with |A|_F = 5 and blocks of norm 3: dx = -2 * 3 / 25 dF_l twice, and 18 / 25^2 * 2 * 5 dF
    found = table(pairs([2.0, 1.0], 0.1), sampled(5, 2e-4), *[block(1.0, sampled(3, 2e-4))] * 2)
    assert found.cross_share.value == pytest.approx(7 / 25)
    expected = math.hypot(6 / 25, 6 / 25, 180 / 625) * 1e-4
    assert found.cross_share.stderr == pytest.approx(expected, rel=1e-6)
    assert found.cross_share.high - found.cross_share.low == pytest.approx(4 * expected, rel=1e-3)


def test_an_eigenvector_that_no_gap_settles_has_shares_that_are_not_known() -> None:
    clear, close = (
        table(pairs([2.0, other], 0.01), sampled(5, 0.1), block(1.0, sampled(2, 0.1), 1.5)) for other in (1.0, 1.995)
    )
    for found in (clear, close):
        assert (found.rows[0].top_share.value, found.top_cross_share.value) == (0.75, 0.25)
    assert clear.rows[0].top_share.high - 0.75 == pytest.approx(2 * (0.01 / 0.99) * 0.5 / 2, rel=0.05)
    assert clear.top_cross_share.converged
    assert close.rows[0].top_share.low < 0.25
    assert not close.top_cross_share.converged


def test_the_bound_of_a_top_share_holds_for_vectors_that_are_off() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    A = A @ A.mT + torch.diag(torch.linspace(0, 40, 60, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(A)
    v = vectors[:, -1]
    truth = float(v[:25] @ A[:25, :25] @ v[:25] / values[-1])
    missed = 0
    for seed in range(30):
        top = measure_spectrum(from_matrix(A), top=2, rel=0.1, quantities=("top",), seed=seed).top
        u = top.vectors[:25, 0].double()
        along = A[:25, :25] @ u
        one = _BlockMeasurement(
            "b",
            ("b",),
            25,
            exact_estimate(float(A[:25, :25].trace())),
            Estimate(1.0, math.nan, 1.0, 1.0, 0, "residual"),
            exact_estimate(float(A[:25, :25].norm())),
            float(u @ along),
            float(along.norm()),
            0,
        )
        share = (
            _module_table(_WholeMeasurement(top, exact_estimate(float(A.norm())), 0), [one], 0.1, 0.0).rows[0].top_share
        )
        missed += not share.low <= truth <= share.high
        assert abs(share.value - truth) > 1e-6  # the vectors have an error
    assert missed == 0
