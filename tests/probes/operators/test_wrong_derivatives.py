"""Derivatives that torch gets wrong without a word are replaced or refused; right ones are left alone."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import Identity, gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import preconditioned
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import adaptive_trace, log_fisher_rao, theta_hessian_theta
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.norm_ball import norm_sharpness


class PlainNorm(nn.Module):
    """Layer norm in elementary operations, whose third derivative is right."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


def gradient_penalty(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    y = model(x)
    slope = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    return ((slope.square().sum(1) + 1e-12).sqrt() - 1).square().mean() + y.square().mean()


def penalized(*, plain: bool, width: int = 12, spread: float = 0.1, seed: int = 0) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(12, 3).double()
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1)).double()
        for p in net.parameters():
            p.data.add_(spread * torch.randn(p.shape, dtype=p.dtype))
    if plain:
        net[1] = PlainNorm(net[1])
    return Objective(net, gradient_penalty, [(x[:6],), (x[6:],)])


MEASURES: dict[str, Callable[[Objective], float]] = {
    "radial": lambda o: theta_hessian_theta(o).value,
    "norm": lambda o: norm_sharpness(o, "sign", restarts=1, max_products=12).sharpness.value,
    "adaptive trace": lambda o: adaptive_trace(o, max_products=10).value,
    "spectrum": lambda o: float(measure_spectrum(hessian(o), top=1, quantities=("top",)).top.values[0]),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_gradient_penalty_through_layer_norm_is_measured_by_differences(measure: str) -> None:
    assert penalized(plain=True).value() == pytest.approx(penalized(plain=False).value(), rel=1e-12)
    found, expected = (MEASURES[measure](penalized(plain=plain)) for plain in (False, True))
    assert found == pytest.approx(expected, rel=1e-3)
    if measure == "radial":
        assert found == pytest.approx(1.7233, abs=1e-3)  # torch's third derivative gives 2.25


@pytest.mark.parametrize("seed", [1, 2])
def test_differences_in_float64_take_the_step_of_float64(seed: int) -> None:
    """A layer norm of four features changes over a short distance; steps of float32 gave 48.9 for 49.7."""
    found, expected = (
        measure_spectrum(hessian(penalized(plain=plain, width=4, spread=0.5, seed=seed)), top=1)
        for plain in (False, True)
    )
    assert float(found.top.values[0]) == pytest.approx(float(expected.top.values[0]), rel=1e-6)
    assert found.trace.value == pytest.approx(expected.trace.value, rel=1e-6)


@pytest.mark.parametrize("measure", [lambda o: directional_sharpness(o, torch.ones(o.size)), batch_sharpness])
def test_measures_without_differences_refuse_it_by_name(measure: Any) -> None:
    with pytest.raises(ProbeError, match=r"by method='reverse' differs from finite .+ NativeLayerNorm"):
        measure(penalized(plain=False))


def test_a_product_over_several_zeros_is_measured_by_differences() -> None:
    """Reverse mode raises there, and forward mode gives 0."""
    index, theta = torch.tensor([[0, 0, 1, 2]] * 3), gaussian(3, 4)
    theta[0, 0] = theta[0, 1] = theta[1, 2] = 0
    model = nn.Module()
    model.theta = nn.Parameter(theta)

    def products(t: Tensor) -> Tensor:
        return torch.stack([t[:, :2].prod(1), t[:, 2], t[:, 3], torch.ones(3).double()], 1)

    def loss(m: nn.Module, _: Any) -> Tensor:
        found = torch.ones(3, 4).double().scatter_reduce(1, index, m.theta, "prod")
        return found.square().mean() + 0.3 * found.mean()

    H = hessian(Objective(model, loss, [torch.ones(1)]))
    dense = torch.autograd.functional.hessian(lambda t: products(t).square().mean() + 0.3 * products(t).mean(), theta)
    torch.testing.assert_close(H @ torch.eye(12).double(), dense.reshape(12, 12), rtol=1e-6, atol=1e-6)
    assert H.method == "differences"


class Siamese(nn.Module):
    """An encoder and a predictor, whose loss holds the other view's code still."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 5))
        self.predictor = wrap(nn.Linear(5, 5))


def siamese(wrap: Callable[[nn.Module], nn.Module], *, apart: bool, dtype: torch.dtype = torch.float32) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Siamese(wrap).to(dtype)
        x = torch.randn(32, 6).to(dtype)
    target = copy.deepcopy(model) if apart else None

    def loss(m: nn.Module, batch: Any) -> Tensor:
        codes = [m.encoder(view) for view in batch]
        held = codes if target is None else [target.encoder(view) for view in batch]
        pairs = zip(codes, reversed(held), strict=True)
        return -sum(F.cosine_similarity(m.predictor(z), other.detach(), dim=1).mean() for z, other in pairs) / 2

    return Objective(model, loss, [(x, 1.1 * x.flip(1))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_do_not_refute_a_loss_that_stops_gradients(dtype: torch.dtype) -> None:
    """They move the target that is held still: confirmed by forward mode, products are those of a fixed target."""
    found, expected = (hessian(siamese(lambda layer: layer, apart=apart, dtype=dtype)) for apart in (False, True))
    eye = torch.eye(found.size, dtype=dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found @ eye, expected @ eye, rtol=tolerance, atol=tolerance)
    assert (found.method, expected.method) == ("reverse", "reverse")


def test_a_wrong_derivative_behind_a_stopped_gradient_is_refused_with_a_remedy_that_works() -> None:
    wrap = nn.utils.parametrizations.weight_norm
    with pytest.raises(ProbeError, match=r"stops gradients .+ WeightNormInterface: take .+ from a copy of the model"):
        measure_spectrum(hessian(siamese(wrap, apart=False)), top=1)
    H = hessian(siamese(wrap, apart=True))
    measured = measure_spectrum(H, top=1, quantities=("top",)).top.estimate()
    assert H.method == "differences"
    assert measured.converged


@pytest.mark.parametrize("take", [lambda H: H, lambda H: preconditioned(H, torch.ones(H.size))])
def test_differences_of_stopped_gradients_are_no_symmetric_matrix_for_the_true_reason(take: Any) -> None:
    H = take(hessian(siamese(lambda layer: layer, apart=False), method="differences"))
    with pytest.raises(ProbeError, match=r"not symmetric.+ stops gradients .+ copy of the model"):
        measure_spectrum(H, top=1)


def test_the_power_iteration_of_a_spectral_norm_is_named_as_a_stopped_gradient() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        net = nn.Sequential(first, nn.Tanh(), nn.Linear(6, 3))
        batch = torch.randn(20, 4), torch.randint(3, (20,))
    with pytest.raises(ProbeError, match=r"stops gradients .+ copy of the model, or use mode='eval'"):
        measure_spectrum(hessian(Objective(net, CrossEntropy(), [batch], mode="frozen")), top=1)
    assert measure_spectrum(hessian(Objective(net, CrossEntropy(), [batch])), top=1, quantities=("top",)).unmet == ()


def vector(value: Tensor, loss: Callable[[Tensor], Tensor]) -> Objective:
    model = nn.Module()
    model.theta = nn.Parameter(value.double())
    return Objective(model, lambda m, _: loss(m.theta), [torch.ones(1)])


def test_where_a_formula_of_autograd_has_no_value_differences_have_it() -> None:
    H = hessian(vector(torch.tensor([0.0, 0.5, -0.3]), lambda t: t.sinc().square().sum()))
    assert float((H @ torch.tensor([1.0, 0.0, 0.0]))[0]) == pytest.approx(-2 * math.pi**2 / 3, rel=1e-3)
    assert H.method == "differences"
    assert H.fallback_reason == "reverse cannot take products here (ArithmeticError: the product is not finite)"


def test_where_there_is_no_second_derivative_none_is_given() -> None:
    with pytest.raises(ProbeError, match="is not finite"):
        hessian(vector(torch.zeros(3), lambda t: torch.linalg.norm(t) + t.sum())) @ torch.ones(3)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net, self.head = nn.GRU(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][:, -1])


def test_a_linearized_recurrent_network_is_refused() -> None:
    """Its program writes into its own constants: the second product is 2 % wrong."""
    objective = Objective(Recurrent(), CrossEntropy(), [(gaussian(4, 1, 3).float(), torch.arange(4) % 3)])
    with pytest.raises(ProbeError, match=r"method=linearize cannot .+ method='linearize' differs from"):
        hessian(objective, method="linearize") @ torch.ones(objective.size)
    forward, reverse = (hessian(objective, method=m) @ torch.ones(objective.size) for m in ("forward", "reverse"))
    torch.testing.assert_close(forward, reverse)


class Scale(torch.autograd.Function):
    """Twice the input; in the backward pass the incoming gradient is a constant, and forward mode has a factor."""

    factor = 2.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * slope.detach()

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor) -> Tensor:
        return cls.factor * tangent


class WrongScale(Scale):
    """The same with a mistake in forward mode."""

    factor = 3.0


def scaling(scale: Any) -> Objective:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(scale(torch.tanh(self.first(x))))

    return Objective(Net(), CrossEntropy(), [(gaussian(8, 4).float(), torch.arange(8) % 3)])


def test_a_gauss_newton_product_whose_jacobian_is_wrong_is_replaced_or_refused() -> None:
    v = gaussian(43).float()
    expected = gauss_newton(scaling(lambda t: 2 * t)) @ v
    G = gauss_newton(scaling(Scale.apply))
    torch.testing.assert_close(G @ v, expected)
    assert G.method == "forward"
    with pytest.raises(ProbeError, match="derivative of the outputs by reverse differs from that of the backward"):
        gauss_newton(scaling(WrongScale.apply)) @ v


def test_a_fisher_rao_norm_by_a_wrong_forward_derivative_is_refused() -> None:
    expected = log_fisher_rao(scaling(lambda t: 2 * t)).value
    assert log_fisher_rao(scaling(Scale.apply)).value == pytest.approx(expected)
    with pytest.raises(ProbeError, match="derivative of the outputs by forward mode differs from that of the backward"):
        log_fisher_rao(scaling(WrongScale.apply))


def deep(activation: type[nn.Module], dtype: torch.dtype, *, zero: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3))
    if zero:  # the preactivations lie on the junction of the activation
        nn.init.zeros_(net[2].weight)
        nn.init.zeros_(net[2].bias)
    return net.to(dtype)


RIGHT: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "kinks": lambda: (deep(nn.ReLU, torch.float32), CrossEntropy()),
    "junctions": lambda: (deep(nn.ELU, torch.float64, zero=True), CrossEntropy()),
    "kinks at zero": lambda: (deep(nn.ReLU, torch.float64, zero=True), CrossEntropy()),
    "bfloat16": lambda: (deep(nn.Tanh, torch.bfloat16), CrossEntropy()),
    "rounding inside": lambda: (deep(nn.Tanh, torch.float32), lambda m, b: F.cross_entropy(m(b[0]).float(), b[1])),
    "coarse rounding inside": lambda: (
        deep(nn.Tanh, torch.float32), lambda m, b: F.cross_entropy(m(b[0]).bfloat16().float(), b[1])
    ),
    "interpolation": lambda: (
        deep(nn.Tanh, torch.float32), lambda m, b: F.cross_entropy(90 * m(b[0]), m(b[0]).argmax(1))
    ),
    "float32 alone": lambda: (
        deep(nn.ReLU, torch.float32), lambda m, b: F.cross_entropy(m(b[0].float()) + torch.ones(3), b[1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_derivative_is_never_refused(name: str) -> None:
    net, loss = RIGHT[name]()
    data = [(gaussian(200, 4).to(next(net.parameters()).dtype), torch.arange(200) % 3)]
    plain, checked = Objective(net, loss, data), Objective(net, lambda m, b: Identity.apply(loss(m, b)), data)
    v = gaussian(plain.size)
    H = hessian(checked)
    torch.testing.assert_close(H @ v, hessian(plain) @ v, rtol=0, atol=0)
    assert H.method == "reverse"
    assert checked.graph.unverified == ("Identity",)


class Narrow(torch.autograd.Function):
    """A function whose second backward pass knows no float64, in which it would be compared."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: bool) -> Tensor:
        ctx.slope = slope
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        if ctx.slope and slope.dtype == torch.float64:
            raise RuntimeError("out of memory, or no kernel for float64")
        return Narrow.apply(slope, True), None


def test_where_no_comparison_can_be_made_the_method_is_kept() -> None:
    net, data = deep(nn.Tanh, torch.float32), [(gaussian(8, 4).float(), torch.arange(8) % 3)]
    H = hessian(Objective(net, lambda m, b: CrossEntropy()(lambda x: Narrow.apply(m(x), False), b), data))
    v = gaussian(H.size).float()
    torch.testing.assert_close(H @ v, hessian(Objective(net, CrossEntropy(), data)) @ v)
    assert H.method == "reverse"


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = deep(nn.Tanh, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2:](checkpoint(self.net[:2], x, use_reentrant=False))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("method", ["reverse", "differences"])
def test_a_checkpoint_recomputes_with_the_parameters_of_the_evaluation(method: str, wide: bool) -> None:
    model = Checkpointed()
    data = [(gaussian(20, 4).float(), torch.arange(20) % 3)]
    objective, plain = Objective(model, CrossEntropy(), data), Objective(model.net, CrossEntropy(), data)
    if wide:
        objective = objective.in_double()
    v = gaussian(plain.size)
    torch.testing.assert_close((hessian(objective, method=method if not wide else "reverse") @ v).float(),
                               hessian(plain) @ v.float(), rtol=1e-4, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(objective.gradient().float(), plain.gradient())


class Autocast(nn.Module):
    """A network that runs in bfloat16, as accelerate wraps it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


def test_autocast_inside_a_model_shows_in_the_unit_and_the_interval_has_the_truth() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = [(torch.randn(100, 4), torch.randint(0, 3, (100,)))]
        torch.manual_seed(16)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    mixed = Objective(Autocast(net), CrossEntropy(), data)
    truth = hessian(Objective(copy.deepcopy(net), CrossEntropy(), data).in_double())
    true = measure_spectrum(truth, top=1, rel=1e-6, quantities=("top",)).top.estimate().value
    v = gaussian(truth.size)
    for method in ("reverse", "differences"):
        H = hessian(mixed, method=method)
        error = float(((H @ v) - truth @ v).norm() / (truth @ v).norm())
        assert error < 2 * H.unit
        exact = method == "differences"  # in float64, where autocast does nothing
        assert H.unit < 1e-6 if exact else H.unit == torch.finfo(torch.bfloat16).eps
        top = measure_spectrum(H, top=1, quantities=("top",)).top.estimate()
        assert top.low < true < top.high
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hessian(Objective(net, CrossEntropy(), data)).unit == torch.finfo(torch.float32).eps
