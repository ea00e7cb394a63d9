from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues import extreme_pairs
from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.spectrum_request import QUANTITIES
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.hessian import hessian


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    Q, _ = torch.linalg.qr(gaussian(len(eigenvalues), len(eigenvalues), seed=seed))
    A = (Q * eigenvalues.double()) @ Q.mT
    return (A + A.mT) / 2


class Vector(nn.Module):
    """A module with one parameter, for a loss in closed form."""

    def __init__(self, *theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))


def formula(loss, *theta: float) -> Objective:
    return Objective(Vector(*theta), lambda model, _: loss(model.theta), [torch.zeros(1)])


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorisation_has_one_curvature_which_is_its_trace(w: float) -> None:
    objective = formula(lambda t: (t[0] * t[1] - 1) ** 2 / 2, w, 1 / w)
    found = measure_spectrum(hessian(objective), top=2, bottom=2)
    expected = w**2 + w**-2
    assert found.top.values.tolist() == pytest.approx([expected, 0], abs=1e-9)
    assert found.bottom.values.tolist() == pytest.approx([0, expected], abs=1e-9)
    assert found.trace.value == pytest.approx(expected, rel=1e-12)
    assert found.frobenius.value == pytest.approx(expected, rel=1e-12)
    assert found.trace.stderr == 0.0


def test_a_diagonal_quadratic_gives_its_entries() -> None:
    entries = torch.tensor([10.0, 9.0, *[1.0] * 60, -2.0], dtype=torch.float64)
    objective = formula(lambda t: (entries * t**2).sum() / 2, *[0.3] * 63)
    found = measure_spectrum(hessian(objective), top=2, rel=1e-3)
    assert found.top.values.tolist() == pytest.approx([10, 9], rel=1e-5)
    assert float(found.bottom.values[0]) == pytest.approx(-2, rel=1e-5)
    assert (found.trace.value, found.trace.stderr) == pytest.approx((77.0, 0.0), rel=1e-12)
    assert found.trace.converged


def test_softmax_regression_has_the_hessian_of_its_closed_form() -> None:
    net, x, y = nn.Linear(5, 3, bias=False).double(), gaussian(40, 5), torch.arange(40) % 3
    p = (x @ net.weight.detach().mT).softmax(-1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    H = torch.einsum("ncd,ni,nj->cidj", S, x, x).reshape(15, 15) / 40
    found = measure_spectrum(hessian(Objective(net, CrossEntropy(), [(x[:30], y[:30]), (x[30:], y[30:])])), bottom=5)
    true = torch.linalg.eigvalsh(H)
    torch.testing.assert_close(found.top.values, true.flip(0)[:5], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.bottom.values, true[:5], rtol=1e-9, atol=1e-12)  # five zeros: shifts of classes
    assert found.trace.value == pytest.approx(float(H.trace()), rel=1e-12)
    assert found.frobenius.value == pytest.approx(float(H.norm()), rel=1e-12)


def test_without_norm_layers_a_relu_net_has_the_trace_of_its_gauss_newton_matrix() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = gaussian(20, 3), torch.arange(20) % 3
    params = {name: p.detach() for name, p in net.named_parameters()}
    J = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, (x,)))(params)
    J = torch.cat([part.reshape(20, 3, -1) for part in J.values()], -1)
    p = net(x).detach().softmax(-1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("nca,ncd,nda->", J, S, J) / 20
    found = measure_spectrum(hessian(Objective(net, CrossEntropy(), [(x, y)])), quantities=("trace",))
    assert found.trace.value == pytest.approx(float(gauss_newton), rel=1e-10)


def diagonal(values: Tensor, dtype: torch.dtype = torch.float64) -> SymmetricOperator:
    """Return a diagonal operator; as the start is Gaussian, it represents all matrices with its eigenvalues."""
    d = values.to(dtype)[:, None]
    return SymmetricOperator(len(d), lambda V: d * V, dtype=dtype, device=torch.device("cpu"))


def test_only_what_is_requested_is_measured() -> None:
    A = from_matrix(rotated(torch.linspace(-1, 3, 120)))
    alone = {}
    for name in QUANTITIES:
        found = measure_spectrum(A, quantities=(name,), rel=0.05, top=1)
        assert [key for key in QUANTITIES if getattr(found, key) is not None] == [name]
        assert (found.negative_mass is None) == (found.effective_rank is None) == (name != "density")
        alone[name] = found.products
    ends = measure_spectrum(A, quantities=("top", "bottom"), rel=0.05, top=1)
    assert max(alone["top"], alone["bottom"]) <= ends.products < 40  # no random probes were spent
    everything = measure_spectrum(A, rel=0.05)
    assert all(getattr(everything, key) is not None for key in QUANTITIES)
    assert everything.products > max(alone.values())
    both = measure_spectrum(A, quantities=("trace", "top"), rel=0.05, top=1)
    assert both.products < alone["trace"] + alone["top"] + 16  # what the ends have cost is used for the trace


def test_the_budget_is_kept_and_what_is_left_over_is_said_not_to_have_converged() -> None:
    A = from_matrix(rotated(torch.linspace(0, 1, 300)))
    found = measure_spectrum(A, rel=1e-6, max_products=50)
    assert found.products == A.products == 50
    assert found.trace.products == 50
    assert found.trace.samples == 16  # a third is kept for the probes
    assert not found.top.converged.any()
    assert not found.bottom.converged.any()
    assert not found.trace.converged
    assert found.unmet == ("top", "bottom", "trace", "frobenius", "density")
    assert found.seconds > 0
    assert (found.engine, found.method) == ("lossscope", "matrix")
    assert math.isnan(found.gradients)  # there is no objective
    assert abs(found.trace.value - 150) < 5 * found.trace.stderr


@given(
    n=st.integers(1, 60),
    budget=st.integers(1, 80),
    top=st.integers(1, 4),
    bottom=st.integers(1, 3),
    quantities=st.sets(st.sampled_from(QUANTITIES), min_size=1),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_a_budget_is_kept_or_refused_and_unmet_says_what_has_not_converged(
    n: int, budget: int, top: int, bottom: int, quantities: set[str], seed: int
) -> None:
    values = gaussian(n, seed=seed)
    operator = diagonal(values)
    options = {"top": top, "bottom": bottom, "quantities": tuple(quantities), "seed": seed}
    try:
        found = measure_spectrum(operator, max_products=budget, **options)
    except ProbeError as error:
        least = int(str(error).split("must be at least ")[1].split(" ")[0])
        assert least > budget
        assert operator.products == 0
        found = measure_spectrum(operator, max_products=least, **options)
        budget = least
    assert found.products == operator.products <= budget
    unmet = []
    for name in ("top", "bottom", "trace", "frobenius"):
        part = getattr(found, name)
        assert (part is not None) == (name in quantities)
        if part is not None and not (part.converged.all() if name in ("top", "bottom") else part.converged):
            unmet.append(name)
    unmet += ["density"] if found.density is not None and not found.density.converged else []
    assert found.unmet == tuple(unmet)
    for pairs, count in ((found.top, top), (found.bottom, bottom)):
        assert pairs is None or len(pairs.values) == pairs.vectors.shape[1] == min(count, n)
    if n <= min(32, budget):
        assert not unmet
        for pairs, true in ((found.top, values.sort(descending=True).values), (found.bottom, values.sort().values)):
            if pairs is not None:
                torch.testing.assert_close(pairs.values, true[: len(pairs.values)])


@pytest.mark.parametrize("rel", [0.05, 0.01])
def test_what_converged_is_as_accurate_as_requested(rel: float) -> None:
    values = torch.cat([torch.linspace(-0.5, 1, 290), torch.linspace(5, 20, 10)])
    for seed in range(5):
        found = measure_spectrum(diagonal(values), rel=rel, top=3, bottom=3, max_products=290, seed=seed)
        assert set(found.unmet) <= {"density"}
        assert float((found.top.values - values.flip(0)[:3]).abs().max()) <= rel * 20
        assert float((found.bottom.values - values[:3]).abs().max()) <= rel * 20
        assert float(found.top.bounds.max()) <= rel * 20
        assert abs(found.trace.value - float(values.sum())) <= max(rel * found.trace.value, 4 * found.trace.stderr)
        assert found.trace.stderr <= rel * max(found.trace.value, found.frobenius.value)
        assert found.frobenius.stderr <= rel * found.frobenius.value
        estimate = found.top.estimate(1)
        bound, residual = float(found.top.bounds[1]), float(found.top.residuals[1])
        assert (estimate.low, estimate.high) == (estimate.value - bound, estimate.value + bound)
        assert (estimate.residual, estimate.bound, estimate.converged) == (residual, "residual", True)


def test_equal_seeds_repeat_bit_for_bit() -> None:
    A = rotated(torch.linspace(0, 1, 200))
    first, again, other = (measure_spectrum(from_matrix(A), seed=seed, max_products=90, rel=0.03) for seed in (4, 4, 5))
    assert (first.trace.value, first.trace.low) == (again.trace.value, again.trace.low)
    assert first.frobenius.value == again.frobenius.value
    assert torch.equal(first.top.vectors, again.top.vectors)
    assert torch.equal(first.bottom.bounds, again.bottom.bounds)
    assert (first.density.nodes == again.density.nodes).all()
    assert (first.density.weights == again.density.weights).all()
    assert first.trace.value != other.trace.value
    assert not torch.equal(first.top.vectors, other.top.vectors)


def first_product(scale: float, quantities: tuple[str, ...]) -> Tensor:
    """Return the first vectors that an operator multiplies."""
    multiplied: list[Tensor] = []

    def watched(V: Tensor) -> Tensor:
        multiplied.append(V.clone())
        return V * torch.linspace(1, scale, 200, dtype=torch.float64)[:, None]

    operator = SymmetricOperator(200, watched, dtype=torch.float64, device=torch.device("cpu"))
    measure_spectrum(operator, seed=4, quantities=quantities, top=1, max_products=40, rel=0.1)
    return multiplied[0]


@pytest.mark.parametrize("quantities", [("top",), ("trace",), ("density",)])
def test_equal_seeds_give_equal_random_vectors_to_all_operators_of_a_size(quantities: tuple[str, ...]) -> None:
    assert torch.equal(first_product(2, quantities), first_product(30, quantities))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_double_eigenvalue_is_found_twice(dtype: torch.dtype) -> None:
    tolerance = {"rtol": 0, "atol": 1e-4}

    def top_of(values: Tensor, top: int) -> Tensor:
        found = measure_spectrum(diagonal(values, dtype), top=top, rel=1e-3, quantities=("top",)).top
        assert found.converged.all()
        overlaps = found.vectors.mT @ found.vectors
        torch.testing.assert_close(overlaps, torch.eye(top, dtype=dtype), rtol=0, atol=1e-5)
        return found.values

    double = torch.tensor([5.0, 5.0], dtype=torch.float64)
    small = torch.tensor([5.0, 5.0, 1.0])
    torch.testing.assert_close(top_of(small, 3), small.double(), **tolerance)
    one = torch.cat([small, torch.ones(97)])
    for top in (2, 3):
        torch.testing.assert_close(top_of(one, top), one[:top].double(), **tolerance)
    bulk = torch.cat([double, torch.linspace(0, 1, 398)])
    torch.testing.assert_close(top_of(bulk, 2), double, **tolerance)
    three = top_of(bulk, 3)
    torch.testing.assert_close(three[:2], double, **tolerance)
    assert 0.99 < float(three[2]) <= 1 + 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_of_rank_three_has_three_eigenvalues_and_then_zeros(dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(97)])).to(dtype)
    found = measure_spectrum(from_matrix(A), top=5, bottom=5, rel=1e-4)
    torch.testing.assert_close(
        found.top.values, torch.tensor([3.0, 2, 1, 0, 0], dtype=torch.float64), rtol=1e-6, atol=1e-5
    )
    assert float(found.bottom.values.abs().max()) < 1e-5
    assert found.unmet == ()
    assert found.trace.value == pytest.approx(6, rel=1e-5)
    assert found.frobenius.value == pytest.approx(14**0.5, rel=1e-5)
    assert found.products < 30


@pytest.mark.parametrize("A", [torch.eye(50), torch.eye(50).double(), torch.zeros(50, 50), 4 * torch.eye(1)])
def test_multiples_of_the_identity_are_found_whole(A: Tensor) -> None:
    found = measure_spectrum(from_matrix(A), top=3, bottom=2)
    value, count = float(A[0, 0]), min(3, len(A))
    torch.testing.assert_close(found.top.values, torch.full((count,), value, dtype=torch.float64))
    torch.testing.assert_close(found.bottom.values, torch.full((min(2, len(A)),), value, dtype=torch.float64))
    assert found.unmet == ()
    assert abs(found.trace.value - float(A.trace())) <= max(4 * found.trace.stderr, 1e-5)
    assert found.frobenius.value == pytest.approx(float(A.norm()), rel=0.05)


def test_a_warm_start_finds_the_same_and_what_has_overtaken_it() -> None:
    values = torch.cat([torch.tensor([10.0, 9.0]), torch.linspace(0, 1, 498)])
    basis = torch.eye(500)
    for warm in (None, basis[:, 0], basis[:, 1], basis[:, :2], torch.zeros(500), basis[:, :2].double() * 1e-3):
        for top in (1, 2):
            found = measure_spectrum(diagonal(values), top=top, quantities=("top",), warm_start=warm).top
            assert found.converged.all()
            torch.testing.assert_close(found.values, values[:top].double(), rtol=0, atol=0.01)
    zero, cold = (
        measure_spectrum(diagonal(values), top=1, quantities=("top",), warm_start=w) for w in (torch.zeros(500), None)
    )
    assert torch.equal(zero.top.values, cold.top.values)
    for bad, text in ((torch.ones(499), r"\(499,\)"), (torch.full((500,), torch.nan), r"\(500,\)")):
        with pytest.raises(ProbeError, match=f"warm_start must be finite, of shape .*, got shape {text}"):
            measure_spectrum(diagonal(values), warm_start=bad)


def test_scipy_agrees_on_a_network_in_float32() -> None:
    from scipy.sparse.linalg import eigsh

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    H = hessian(Objective(net, CrossEntropy(), [(gaussian(64, 8).float(), torch.arange(64) % 4)]))
    found = measure_spectrum(H, top=3, bottom=3, rel=1e-3)
    for pairs, which in ((found.top, "LA"), (found.bottom, "SA")):
        expected = sorted(eigsh(H.to_scipy(), k=3, which=which, return_eigenvectors=False), reverse=which == "LA")
        assert pairs.values.tolist() == pytest.approx(expected, abs=1e-3 * float(found.top.values[0]))
        assert pairs.converged.all()
    assert found.gradients > 0


def test_an_operator_that_is_not_symmetric_is_refused() -> None:
    A = rotated(torch.linspace(0, 1, 100))
    A[0, 1:] += 0.1
    operator = SymmetricOperator(100, lambda V: A @ V, dtype=torch.float64, device=torch.device("cpu"))
    for quantities in (None, ("top",), ("density",)):
        with pytest.raises(ProbeError, match=r"the operator is not symmetric: .* differ by .* is allowed"):
            measure_spectrum(operator, quantities=quantities)


def test_arguments_out_of_range_are_refused() -> None:
    A = from_matrix(torch.eye(3))
    with pytest.raises(ProbeError, match="top must be at least 1 eigenpair, got 0"):
        measure_spectrum(A, top=0)
    with pytest.raises(ProbeError, match="bottom must be at least 1 eigenpair, got -1"):
        measure_spectrum(A, bottom=-1)
    for rel in (0, 1, float("nan")):
        with pytest.raises(ProbeError, match=f"rel must be between 0 and 1, got {rel:g}"):
            measure_spectrum(A, rel=rel)
    with pytest.raises(ProbeError, match=r"unknown quantities \['entropy'\]: use some of"):
        measure_spectrum(A, quantities=("top", "entropy"))
    for nothing in ((), "top"):
        with pytest.raises(ProbeError, match=r"quantities must be None for all, or .*, got"):
            measure_spectrum(A, quantities=nothing)


def test_a_budget_that_cannot_hold_what_is_requested_is_refused_with_the_number() -> None:
    A = from_matrix(rotated(torch.linspace(0, 1, 50)))
    with pytest.raises(ProbeError, match=r"max_products must be at least 9 for .*\(top=5, bottom=1\), got 8"):
        measure_spectrum(A, max_products=8)
    with pytest.raises(ProbeError, match=r"max_products must be at least 2 for trace .*, got 1: raise it or request"):
        measure_spectrum(A, max_products=1, quantities=("trace",))
    assert A.products == 0
    assert measure_spectrum(A, max_products=9).products == 9


def test_the_bound_of_float32_products_covers_the_float64_eigenvalue_where_the_loss_is_saturated():
    torch.manual_seed(0)
    x, y = torch.randn(200, 20), torch.randint(0, 5, (200,))
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        single = Objective(model, CrossEntropy(), [(x, y)])
        options = {"top": 1, "rel": 2e-5, "quantities": ("top",), "max_products": 150}
        found = measure_spectrum(hessian(single), **options).top
        double = Objective(copy.deepcopy(model).double(), CrossEntropy(), [(x.double(), y)])
        true = measure_spectrum(hessian(double), **{**options, "rel": 1e-12, "max_products": 400}).top
        assert abs(float(found.values[0] - true.values[0])) <= float(found.residuals[0])
        assert float(found.residuals[0]) < 4e-5 * float(true.values[0])  # not met by being huge


@pytest.mark.parametrize("quantities", [("top",), ("top", "bottom"), ("top", "trace")])
def test_a_space_stays_short_where_eigenpairs_alone_are_requested(
    quantities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extreme_pairs, "_SMALL", 0)
    values = torch.cos(torch.linspace(0, torch.pi, 3000, dtype=torch.float64))
    dimensions: list[int] = []
    step = BlockKrylov.step

    def watched(space: BlockKrylov, at_most: int) -> None:
        step(space, at_most)
        dimensions.append(space.dimension)

    monkeypatch.setattr(BlockKrylov, "step", watched)
    operator = SymmetricOperator(3000, lambda V: values[:, None] * V, dtype=torch.float64, device=torch.device("cpu"))
    found = measure_spectrum(operator, top=1, rel=0.005, trace_rel=0.5, quantities=quantities)
    assert found.top.converged.all()
    assert abs(float(found.top.values[0]) - 1) <= float(found.top.bounds[0]) <= 0.005
    assert found.products > 60
    assert (max(dimensions) <= 28) == ("trace" not in quantities)
