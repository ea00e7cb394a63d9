"""Products against independent libraries: curvlinops operators, and the eigenvalues of hessian-eigenthings."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossscope.landscape.measures.pyhessian_engine import pyhessian_spectrum
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import preconditioned, restricted
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import log_fisher_rao, theta_hessian_theta
from lossscope.probes.sharpness.minibatch import batch_sharpness

curvlinops = pytest.importorskip("curvlinops")

NETS = ("mlp", "dictionary", "tied", "frozen parameters", "batch norm", "dropout", "conv and group norm", "attention")


class ClassesSecond(nn.Module):
    """Logits with the classes on axis 1, where torch's loss modules expect them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Tensor:
        z = self.net(x)
        return z.transpose(1, 2) if z.ndim == 3 else z


def theirs(kind: str, net: nn.Module, loss: nn.Module, pairs: list[Any], names: Any = None) -> Any:
    """Return curvlinops' operator of this kind on these pairs, for the named parameters or all that require grad."""
    known = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    parameters = [p for name, p in known if names is None or name in names]
    net = ClassesSecond(net)
    make = getattr(curvlinops, f"{kind}LinearOperator")
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        return make(net, loss, parameters, pairs, batch_size_fn=lambda x: len(x["x"] if isinstance(x, dict) else x))


def block(n: int) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def assert_same(ours: Any, other: Any, *, factor: float = 1.0) -> None:
    """Assert that products with three columns agree to 1e-10 of the block's norm, and are not zero."""
    V = block(ours.size)
    with sdpa_kernel(SDPBackend.MATH):
        expected = other @ V
    assert float(expected.norm()) > 1e-3
    assert float((factor * (ours @ V) - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.parametrize("name", NETS)
def test_the_hessian_is_that_of_curvlinops(name: str, make_case: Any) -> None:
    case = make_case(name)
    assert_same(hessian(case.objective()), theirs("Hessian", case.plain(), nn.CrossEntropyLoss(), case.pairs))


@pytest.mark.parametrize("name", NETS)
def test_the_gauss_newton_matrix_is_that_of_curvlinops(name: str, make_case: Any) -> None:
    case = make_case(name)
    other = theirs("GGN", case.plain(), nn.CrossEntropyLoss(), case.pairs)
    assert_same(gauss_newton(case.objective()), other)
    assert_same(fisher(case.objective(), kind="true"), other)  # the same matrix for a softmax


@pytest.mark.parametrize("name", NETS)
def test_the_empirical_fisher_matrix_is_that_of_curvlinops(name: str, make_case: Any) -> None:
    case = make_case(name)
    other = theirs("EF", case.plain(), nn.CrossEntropyLoss(), case.pairs)
    assert_same(fisher(case.objective(), kind="empirical"), other)


WAYS: list[Any] = [(method, name) for method in ("reverse", "batched", "forward", "differences") for name in NETS]
WAYS += [("linearize", name) for name in ("tied", "batch norm")]
WAYS += [pytest.param("linearize", name, marks=pytest.mark.slow) for name in ("conv and group norm", "attention")]


@pytest.mark.parametrize(("method", "name"), WAYS)
def test_each_way_to_take_products_is_right_or_refuses(method: str, name: str, make_case: Any) -> None:
    case = make_case(name, (7,) if method == "linearize" else (7, 4))
    operator = hessian(case.objective(), method=method)
    V, refused = block(operator.size), 0
    with sdpa_kernel(SDPBackend.MATH):
        expected = theirs("Hessian", case.plain(), nn.CrossEntropyLoss(), case.pairs) @ V
    with operator.cached():
        for columns in (slice(0, 1), slice(0, 3), slice(1, 2)):  # one at a time, as a block, and from cached graphs
            try:
                found = operator @ V[:, columns]
            except (ProbeError, RuntimeError):
                refused += 1
                continue
            error = float((found - expected[:, columns]).norm() / expected[:, columns].norm())
            assert error < (1e-7 if method == "differences" else 1e-10)
    # torch has no forward-mode rule for group norm; all other cases must work
    assert not refused or (name == "conv and group norm" and method in ("batched", "linearize"))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("mlp", ["2.weight", "2.bias"]),
        ("tied", ["first.weight"]),
        ("batch norm", ["1.weight", "0.bias"]),
        ("attention", ["qkv.weight"]),
    ],
)
def test_a_block_of_some_parameters_is_the_operator_of_curvlinops_for_these(
    name: str, names: list[str], make_case: Any
) -> None:
    case = make_case(name)
    made = {
        "Hessian": hessian(case.objective()),
        "GGN": gauss_newton(case.objective()),
        "EF": fisher(case.objective(), kind="empirical"),
    }
    for kind, whole in made.items():
        other = theirs(kind, case.plain(), nn.CrossEntropyLoss(), case.pairs, names)
        assert_same(restricted(whole, names), other)


def test_a_preconditioned_hessian_is_that_of_curvlinops_between_two_roots(make_case: Any) -> None:
    case = make_case("mlp")
    H = hessian(case.objective())
    P = torch.linspace(0.1, 7.0, H.size, dtype=torch.float64)
    V, other = block(H.size), theirs("Hessian", case.plain(), nn.CrossEntropyLoss(), case.pairs)
    expected = (other @ (V / P.sqrt()[:, None])) / P.sqrt()[:, None]
    torch.testing.assert_close(preconditioned(H, P) @ V, expected, rtol=1e-10, atol=1e-13)


def test_the_squared_error_agrees_with_curvlinops_too(make_case: Any) -> None:
    case = make_case("mlp", loss=MeanSquaredError())
    objective, net, loss = case.objective(), case.plain(), nn.MSELoss()
    assert_same(hessian(objective), theirs("Hessian", net, loss, case.pairs))
    assert_same(gauss_newton(objective), theirs("GGN", net, loss, case.pairs))
    # A term of their mean is one number of an output, its gradient that of the whole output: C = 3 times ours,
    # whose terms are the outputs themselves.
    assert_same(fisher(objective, kind="empirical"), theirs("EF", net, loss, case.pairs), factor=3.0)


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_with_the_statistics_of_the_batch_the_products_are_those_of_curvlinops(mode: str, make_case: Any) -> None:
    # curvlinops cannot differentiate a batch norm that updates its buffers; the plain one has none and is the same
    # function of the parameters.
    case = make_case("batch norm", (8, 5))
    net, objective = case.plain(training=True), case.objective(mode)
    made = {
        "Hessian": hessian(objective),
        "GGN": gauss_newton(objective),
        "EF": fisher(objective, kind="empirical"),
    }
    for kind, ours in made.items():
        assert_same(ours, theirs(kind, net, nn.CrossEntropyLoss(), case.pairs))


class WeightNorm(nn.Module):
    """Linear layer whose rows have the lengths g and the directions v, written explicitly."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        W = layer.weight.detach()
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.g, self.v = nn.Parameter(W.norm(dim=1, keepdim=True)), nn.Parameter(W.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.v * self.g / self.v.square().sum(1, keepdim=True).sqrt()).mT + self.bias


def weight_normed(kind: str, make_case: Any, mode: Any = "eval") -> tuple[Objective, Objective]:
    """Return one function of the same parameters, with torch's weight norm and written explicitly."""
    case, written = make_case("mlp", (7, 4)), make_case("mlp", (7, 4))
    wrap = nn.utils.weight_norm if kind == "hook" else nn.utils.parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the hook
        wrap(case.net[0])
    written.net[0] = WeightNorm(written.net[0])
    return case.objective(mode), written.objective(mode)


@pytest.mark.parametrize("kind", ["hook", "parametrization"])
def test_torchs_weight_norm_whose_second_derivative_is_wrong_does_not_go_into_a_result(
    kind: str, make_case: Any
) -> None:
    torchs, written = weight_normed(kind, make_case)
    v = block(torchs.size)[:, 0]
    torch.testing.assert_close(torchs.gradient(), written.gradient(), rtol=1e-10, atol=1e-12)
    for operator in (hessian(torchs), hessian(torchs, method="differences")):
        error = operator @ torch.eye(torchs.size) - hessian(written) @ torch.eye(torchs.size)
        assert float(error.norm()) < 1e-8
        assert operator.method == "differences"
    for kinds in (gauss_newton, partial(fisher, kind="empirical")):  # first derivatives only
        torch.testing.assert_close(kinds(torchs) @ v, kinds(written) @ v, rtol=1e-10, atol=1e-12)
    expected = theta_hessian_theta(written).value
    assert theta_hessian_theta(torchs).value == pytest.approx(expected, rel=1e-6)
    for refused in (
        lambda of: directional_sharpness(of, v),
        batch_sharpness,
        lambda of: hessian(of, method="batched") @ v,
        lambda of: pyhessian_spectrum(
            of, hessian(of), top=1, rel=0.01, max_products=20, quantities=("top", "trace"), seed=0
        ),
    ):
        refused(written)
        with pytest.raises(ProbeError, match="WeightNormInterface"):
            refused(torchs)
    assert log_fisher_rao(torchs).value == pytest.approx(log_fisher_rao(written).value, rel=1e-6)


def test_in_train_mode_weight_norm_is_refused_with_the_mode_that_can_take_it(make_case: Any) -> None:
    torchs, written = weight_normed("parametrization", make_case, "train")
    v = block(torchs.size)[:, 0]
    with pytest.raises(ProbeError, match=r"WeightNormInterface.*mode='frozen' and hessian\(objective\)"):
        hessian(torchs) @ v
    frozen = hessian(weight_normed("parametrization", make_case, "frozen")[0])
    torch.testing.assert_close(frozen @ v, hessian(written) @ v, rtol=1e-6, atol=1e-8)


class SmoothImages(nn.Module):
    """SiLU's derivative has no forward-mode rule, so curvlinops' forward-over-reverse products fail."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 2, padding=1), nn.Linear(27, 3)
        self.unused = nn.Parameter(torch.ones(2))  # curvlinops rejects a parameter that the loss does not depend on

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.silu(self.conv(x.reshape(-1, 1, 2, 2))).flatten(1))


def penalized(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Loss that depends on the weights; curvlinops' losses depend on outputs and labels only."""
    return ((model(batch["x"]) - batch["y"]) ** 2).mean() + 0.1 * sum(p.pow(4).sum() for p in model.parameters())


def smooth(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.smooth_l1_loss(model(batch["x"]), batch["y"])


@pytest.mark.parametrize("loss", [penalized, smooth])
@pytest.mark.parametrize("counts", [(9,), (6, 3, 1)])
def test_what_curvlinops_cannot_take_is_torchs_dense_hessian(loss: Any, counts: tuple[int, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = SmoothImages().double()
        batches = [{"x": torch.randn(n, 4).double(), "y": torch.randn(n, 3).double()} for n in counts]
    names, values = zip(*[(name, p.detach()) for name, p in net.named_parameters()], strict=True)

    def mean_loss(theta: Tensor) -> Tensor:
        parts = [
            part.reshape(p.shape) for part, p in zip(theta.split([p.numel() for p in values]), values, strict=True)
        ]
        called = nn.Module()
        called.net, called.forward = net, lambda batch: loss(net, batch)
        given = {f"net.{name}": part for name, part in zip(names, parts, strict=True)}
        losses = [torch.func.functional_call(called, given, (batch,)) for batch in batches]
        return sum(n * each for n, each in zip(counts, losses, strict=True)) / sum(counts)

    # twice in reverse: forward mode over jacrev is wrong for some layers, see PlainNorm
    dense = torch.func.jacrev(torch.func.jacrev(mean_loss))(torch.cat([p.reshape(-1) for p in values]))
    H = hessian(Objective(net, loss, batches))
    torch.testing.assert_close(H @ torch.eye(H.size), dense, rtol=1e-8, atol=1e-10)


def test_the_largest_eigenvalues_are_those_of_hessian_eigenthings(make_case: Any) -> None:
    eigenthings = pytest.importorskip("hessian_eigenthings")
    case = make_case("mlp", (6, 6))  # it weights unequal batches equally
    objective, net = case.objective(), case.plain()
    operator = eigenthings.HessianOperator(
        net, case.pairs, eigenthings.supervised_loss(nn.functional.cross_entropy), full_dataset=True
    )
    found = measure_spectrum(hessian(objective), top=3, rel=1e-6, quantities=("top",))
    expected = eigenthings.lanczos(operator, k=3, max_iter=40, which="LA", seed=0)
    torch.testing.assert_close(found.top.values, expected.eigenvalues.double().cpu(), rtol=1e-6, atol=0)
