from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.curvature import QUANTITIES, measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.loss import CrossEntropy
from lossscope.probes.objective import Objective
from lossscope.probes.operator import from_matrix, hessian


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    Q, _ = torch.linalg.qr(gaussian(len(eigenvalues), len(eigenvalues), seed=seed))
    A = (Q * eigenvalues.double()) @ Q.mT
    return (A + A.mT) / 2


class Vector(nn.Module):
    """A parameter and nothing else: the loss is a formula in it."""

    def __init__(self, *theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))


def formula(loss, *theta: float) -> Objective:
    return Objective(Vector(*theta), lambda model, _: loss(model.theta), [torch.zeros(1)])


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorisation_has_one_curvature_which_is_its_trace(w: float) -> None:
    objective = formula(lambda t: (t[0] * t[1] - 1) ** 2 / 2, w, 1 / w)
    found = measure_spectrum(hessian(objective), top=2)
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
    found = measure_spectrum(hessian(Objective(net, CrossEntropy(), [(x[:30], y[:30]), (x[30:], y[30:])])), rel=1e-8)
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


def test_only_what_is_asked_for_is_measured() -> None:
    A = from_matrix(rotated(torch.linspace(-1, 3, 120)))
    for name in QUANTITIES:
        found = measure_spectrum(A, quantities=(name,), rel=0.05)
        assert [key for key in QUANTITIES if getattr(found, key) is not None] == [name]
    ends = measure_spectrum(A, quantities=("top", "bottom"), rel=0.05, top=1)
    assert ends.products < 40  # no random probes were spent
    everything = measure_spectrum(A, rel=0.05)
    assert all(getattr(everything, key) is not None for key in QUANTITIES)


def test_the_budget_is_kept_and_what_is_left_over_is_said_not_to_have_converged() -> None:
    A = from_matrix(rotated(torch.linspace(0, 1, 300)))
    found = measure_spectrum(A, rel=1e-6, max_products=50)
    assert found.products == A.products == 50
    assert found.trace.products == 25
    assert not found.top.converged.any()
    assert not found.trace.converged
    assert found.seconds > 0
    assert found.engine == "lossscope"
    assert abs(found.trace.value - 150) < 5 * found.trace.stderr


@pytest.mark.parametrize("rel", [0.05, 0.01])
def test_what_converged_is_as_accurate_as_asked(rel: float) -> None:
    values = torch.cat([torch.linspace(-0.5, 1, 290), torch.linspace(5, 20, 10)])
    found = measure_spectrum(from_matrix(rotated(values)), rel=rel, top=3, max_products=4000)
    assert found.top.converged.all()
    assert found.bottom.converged.all()
    assert found.trace.converged
    assert found.frobenius.converged
    assert float((found.top.values - values.flip(0)[:3]).abs().max()) <= rel * 20
    assert float((found.bottom.values - values[:3]).abs().max()) <= rel * 20
    assert found.frobenius.stderr <= rel * found.frobenius.value
    assert abs(found.trace.value - float(values.sum())) <= 4 * found.trace.stderr


def test_equal_seeds_repeat_and_probes_are_common_to_calls_with_other_quantities() -> None:
    A = from_matrix(rotated(torch.linspace(0, 1, 80)))
    first, again, other = (measure_spectrum(A, seed=seed) for seed in (4, 4, 5))
    assert first.trace.value == again.trace.value != other.trace.value
    assert torch.equal(first.top.values, again.top.values)
    alone = measure_spectrum(A, seed=4, quantities=("trace",), max_products=first.trace.samples)
    assert alone.trace.value == pytest.approx(first.trace.value, rel=1e-12)


def test_scipy_agrees_on_a_network_in_float32() -> None:
    from scipy.sparse.linalg import eigsh

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    H = hessian(Objective(net, CrossEntropy(), [(gaussian(64, 8).float(), torch.arange(64) % 4)]))
    found = measure_spectrum(H, top=3, rel=1e-3)
    for pairs, which in ((found.top, "LA"), (found.bottom, "SA")):
        expected = sorted(eigsh(H.to_scipy(), k=3, which=which, return_eigenvectors=False), reverse=which == "LA")
        assert pairs.values.tolist() == pytest.approx(expected, abs=1e-3 * float(found.top.values[0]))


def test_arguments_out_of_range_are_told() -> None:
    A = from_matrix(torch.eye(3))
    with pytest.raises(ProbeError, match="top=0 eigenpairs, need at least 1"):
        measure_spectrum(A, top=0)
    with pytest.raises(ProbeError, match="rel=1 is out of range, need 0 < rel < 1"):
        measure_spectrum(A, rel=1)
    with pytest.raises(ProbeError, match="max_products=3 is too few, need at least 4"):
        measure_spectrum(A, max_products=3)
    with pytest.raises(ProbeError, match=r"quantities \['density'\] are unknown: choose from top, bottom"):
        measure_spectrum(A, quantities=("top", "density"))
    with pytest.raises(ProbeError, match=r"quantities=\(\): pass None for all"):
        measure_spectrum(A, quantities=())
    with pytest.raises(ProbeError, match="engine='curvlinops' is unknown: use one of lossscope, pyhessian"):
        measure_spectrum(A, engine="curvlinops")  # type: ignore[arg-type]


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
        asked = {"top": 1, "rel": 2e-5, "quantities": ("top",), "max_products": 150}
        found = measure_spectrum(hessian(single), **asked).top
        double = Objective(copy.deepcopy(model).double(), CrossEntropy(), [(x.double(), y)])
        true = measure_spectrum(hessian(double), **{**asked, "rel": 1e-12, "max_products": 400}).top
        assert abs(float(found.values[0] - true.values[0])) <= float(found.residuals[0])
        assert float(found.residuals[0]) < 4e-5 * float(true.values[0])  # not met by being huge
