"""Loss change by module: closed forms, torch's own Hessian, rescaled neurons, and the zoo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.surfaces.loss_change import loss_change
from lossscope.probes import CrossEntropy, Objective
from lossscope.probes.errors import ProbeError
from zoo import MEMBERS


class _Vectors(nn.Module):
    """Parameters of two modules, and no function of the data."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = nn.Module(), nn.Module()
        self.first.w = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.second.w = nn.Parameter(torch.zeros(2, dtype=dtype))

    def forward(self) -> Tensor:
        return torch.cat([self.first.w, self.second.w])


def polynomial(matrix: Tensor, slope: Tensor, cubic: float, dtype: torch.dtype) -> Objective:
    """Return L(w) = w'Aw / 2 + b'w + c sum w^3."""

    def loss(model: nn.Module, _: Tensor) -> Tensor:
        w = model()
        return w @ matrix.to(w) @ w / 2 + slope.to(w) @ w + cubic * (w**3).sum()

    return Objective(_Vectors(dtype), loss, [torch.ones(1, dtype=dtype)])


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    root, slope, a, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 5), (5,), (5,), (5,)))
    return root + root.T, slope, a, b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quadratic_has_its_parts_and_no_remainder_within_rounding(dtype: torch.dtype) -> None:
    matrix, slope, a, b = problem()
    a, b = a.to(dtype).double(), b.to(dtype).double()
    found = loss_change(polynomial(matrix, slope, 0.0, dtype), a.to(dtype), b.to(dtype))
    delta, g = b - a, matrix @ a + slope
    for part, rows in zip(found.modules, (slice(0, 3), slice(3, 5)), strict=True):
        linear, quadratic = g[rows] @ delta[rows], delta[rows] @ (matrix @ delta)[rows] / 2
        tolerance = 3e-6 if dtype == torch.float32 else 1e-13
        assert abs(part.linear - float(linear)) <= part.linear_error + tolerance
        assert abs(part.quadratic - float(quadratic)) <= part.quadratic_error + tolerance
    assert found.is_exact
    assert found.tells_the_loss
    assert 0 < found.remainder_error < (1e-4 if dtype == torch.float32 else 1e-12)
    assert [one.name for one in found.modules] == ["first", "second"]


def test_a_cubic_leaves_its_cube() -> None:
    matrix, slope, a, b = problem()
    found = loss_change(polynomial(matrix, slope, 2.0, torch.float64), a, b)
    assert found.remainder == pytest.approx(2 * float(((b - a) ** 3).sum()), rel=1e-10)
    assert found.linear + found.quadratic + found.remainder == pytest.approx(found.change)
    assert not found.is_exact


def test_a_remainder_that_shrinks_with_the_cube_of_the_distance() -> None:
    _, objective = _network()
    a = objective.parameters()
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(2), dtype=a.dtype)
    left = [loss_change(objective, a, a + size * direction).remainder for size in (4e-3, 2e-3, 1e-3)]
    assert left[0] / left[1] == pytest.approx(8, rel=0.1)
    assert left[1] / left[2] == pytest.approx(8, rel=0.05)


def _network(activation: type[nn.Module] = nn.Tanh) -> tuple[nn.Sequential, Objective]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    return net, Objective(net, CrossEntropy(), [(x, x[:, :3].argmax(1))])


def test_the_parts_are_those_of_the_hessian_of_torch() -> None:
    net, objective = _network()
    a = objective.parameters()
    b = a + 0.3 * torch.randn_like(a)
    x, y = objective.data.batches[0]
    shapes = [(name, p.shape, p.numel()) for name, p in net.named_parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = dict(
            (name, part.view(shape))
            for (name, shape, _), part in zip(shapes, vector.split([n for *_, n in shapes]), strict=True)
        )
        return nn.functional.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, a)
    gradient = torch.autograd.functional.jacobian(loss, a)
    found, delta = loss_change(objective, a, b), b - a
    first = slice(0, 30)
    assert found.modules[0].size == 30
    assert found.modules[0].linear == pytest.approx(float(gradient[first] @ delta[first]), rel=1e-9)
    assert found.modules[0].quadratic == pytest.approx(float(delta[first] @ (hessian @ delta)[first]) / 2, rel=1e-9)
    assert found.quadratic == pytest.approx(float(delta @ hessian @ delta) / 2, rel=1e-9)


def test_rescaled_neurons_change_no_part() -> None:
    _, objective = _network(nn.ReLU)
    a = objective.parameters()
    b = a + 0.2 * torch.randn(a.shape, generator=torch.Generator().manual_seed(5), dtype=a.dtype)
    alpha = torch.linspace(0.3, 8.0, 6, dtype=a.dtype)

    def rescaled(vector: Tensor) -> Tensor:
        w1, b1, w2, b2 = vector.split([24, 6, 18, 3])
        return torch.cat(
            [(w1.view(6, 4) * alpha[:, None]).flatten(), b1 * alpha, (w2.view(3, 6) / alpha).flatten(), b2]
        )

    plain, other = loss_change(objective, a, b), loss_change(objective, rescaled(a), rescaled(b))
    for one, two in zip(plain.modules, other.modules, strict=True):
        assert two.linear == pytest.approx(one.linear, rel=1e-9)
        assert two.quadratic == pytest.approx(one.quadratic, rel=1e-9)
    assert other.remainder == pytest.approx(plain.remainder, rel=1e-8)


@pytest.mark.parametrize("name", ["regression", "resnet", "gpt", "pinn", "bf16", "tied_by_list"])
def test_the_errors_cover_the_double_twin_of_the_zoo(name: str) -> None:
    member = MEMBERS[name]
    objective = member.objective()
    a = objective.parameters()
    b = a + 0.05 * float(a.norm()) / math.sqrt(len(a)) * torch.randn(
        a.shape, generator=torch.Generator().manual_seed(0)
    )
    found = loss_change(objective, a, b)
    exact = loss_change(member.objective(member.double()), a.double(), b.double())
    for one, two in zip(found.modules, exact.modules, strict=True):
        assert abs(one.linear - two.linear) <= 1.01 * one.linear_error
        assert abs(one.quadratic - two.quadratic) <= 1.01 * one.quadratic_error
    assert abs(found.remainder - exact.remainder) <= 1.01 * found.remainder_error


def test_a_loss_that_is_not_finite_at_a_is_said() -> None:
    matrix, slope, a, b = problem()
    objective = polynomial(matrix, slope, 0.0, torch.float64)
    with pytest.raises(ProbeError, match="the loss is nan"):
        loss_change(objective, a * math.nan, b)
