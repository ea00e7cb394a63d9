from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import gaussian
from lossscope.probes.objective.autograd_guards import graph_nodes
from lossscope.probes.objective.verified_functions import VERIFIED

X = gaussian(5, 3, seed=1)
LABELS = torch.tensor([0, 1, 2, 3, 0])
IMAGE = (1, 1, 3, 4)

# theta (3, 4) in general position -> any tensor
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda t: (t + t.sin() * t.cos() - t / (t.square() + 1) + (-t).exp() - t.expm1() + t.erf()) ** 3,
    "roots": lambda t: (t.square() + 1).sqrt() + (t.square() + 1).rsqrt() + 1 / (t.square() + 2).reciprocal(),
    "logs": lambda t: (t.square() + 0.3).log() + (t.square() + 0.3).log1p() + torch.logaddexp(t, t.flip(1)),
    "matrices": lambda t: (
        t[:, :3] @ torch.addmm(t[:, :3], X[:3], t[:, :3]) + torch.tril(t[:, :3]) - torch.triu(t[:, :3])
    ),
    "vectors": lambda t: torch.dot(t[0], t[1].tanh()) + t.mv(t[0]) + torch.addmv(t[:, 0], t, t[1]) + t.diagonal(),
    "batches": lambda t: (
        torch.bmm(t[None], t.T[None])
        + torch.baddbmm(t[None, :, :3], t[None], t.T[None])
        + torch.addbmm(t[:, :3], t[None], t.T[None])
    ),
    "shapes": lambda t: (
        torch.cat(
            [
                torch.stack([t.reshape(4, 3).T, t.reshape(-1).view(3, 4)]).permute(0, 2, 1).reshape(-1),
                t.repeat(1, 2).reshape(-1),
                t.unsqueeze(0).squeeze(0).expand(2, 3, 4).reshape(-1),
                t.roll(1, 0).reshape(-1),
                t.as_strided((2, 2), (1, 2)).reshape(-1),
            ]
        )
        ** 3
    ),
    "pieces": lambda t: torch.cat(
        [
            a.square()
            for a in (
                *t.split(2, 1),
                *t.split([1, 3], 1),
                *t.unsafe_split(2, 1),
                *torch.unsafe_split_with_sizes(t, [1, 3], 1),
                *t.unbind(0),
                t[:, 1],
                t[1:],
            )
            for a in [a.reshape(-1)]
        ]
    ),
    "indices": lambda t: (
        (t**3)[torch.tensor([0, 0, 2])]
        + (t**3).index_select(0, torch.tensor([1, 2, 2]))
        + F.embedding(LABELS[:3], t**3)
        + (t**3).gather(1, LABELS[:4].expand(3, 4))
        + torch.zeros(3, 4).double().scatter_add(1, LABELS[:4].expand(3, 4), t**3)
        + t.clone().index_put((torch.tensor([0]),), (t**3)[1:2])
    ),
    "writing into a view": lambda t: (lambda u: (u[:, 0].mul_(2), u.add_(t.sin()))[1])(t.clone()) ** 3,
    "choices": lambda t: torch.cat(
        [
            u.reshape(-1)
            for s in [t**3]
            for u in (
                torch.where(t > 0, s, t**2),
                s.masked_fill(t > 0.5, 0.0),
                s.abs(),
                s.clamp(-1, 1),
                s.clamp(max=1),
                s.clamp(min=-1),
                torch.maximum(s, t),
                torch.minimum(s, t),
                s.amax(1),
                s.max(1)[0],
                s.min(1)[0],
                s.sort(1)[0],
                s.topk(2, 1)[0],
                s.max(),
                s.min(),
                s.clamp_min(0.1),
                s.clamp_max(0.1),
            )
        ]
    ),
    "sums": lambda t: torch.cat(
        [
            u.reshape(-1)
            for s in [t**3]
            for u in (
                s.sum(),
                s.sum(1),
                s.mean(),
                s.mean(1),
                s.cumsum(1),
                s.var(1),
                torch.var_mean(s, 1)[0],
                s.logsumexp(1),
            )
        ]
    ),
    "smooth activations": lambda t: sum(
        f(t)
        for f in (
            torch.tanh,
            torch.sigmoid,
            F.silu,
            F.mish,
            F.gelu,
            F.logsigmoid,
            F.softplus,
            lambda t: F.gelu(t, approximate="tanh"),
        )
    ),
    "pieced activations": lambda t: (
        sum(
            f(t)
            for f in (
                F.relu,
                F.leaky_relu,
                F.elu,
                F.celu,
                F.selu,
                F.hardswish,
                F.hardtanh,
                lambda t: F.threshold(t, 0.1, 0.0),
                lambda t: F.prelu(t, t[0, :1]),
                lambda t: F.glu(torch.cat([t, t.sin()], 1)),
            )
        )
        ** 2
    ),
    "softmax": lambda t: F.softmax(t, 1) + F.log_softmax(t, 1),
    "losses": lambda t: sum(
        f((X @ t).sin())
        for f in (
            lambda z: F.cross_entropy(z, LABELS, weight=z.new_tensor([1.0, 2, 3, 4]), label_smoothing=0.1),
            lambda z: F.binary_cross_entropy_with_logits(z, torch.full_like(z, 0.3)),
            lambda z: F.mse_loss(z, z.cos()),
            lambda z: F.smooth_l1_loss(3 * z, torch.zeros_like(z)),
            lambda z: F.huber_loss(z, torch.zeros_like(z), delta=0.7),
        )
    ),
    "norm layers": lambda t: (
        F.layer_norm(X @ t, (4,), t[0], t[1])
        + F.group_norm(X @ t, 2, t[0], t[1])
        + F.rms_norm(X @ t, (4,), t[0])
        + F.batch_norm(X @ t, None, None, t[0], t[1], training=True)
    ),
    "attention": lambda t: F.scaled_dot_product_attention(
        (X @ t)[None], (X @ t)[None].sin(), (X @ t)[None].cos(), is_causal=True
    ),
    "linear": lambda t: F.linear(torch.tanh(F.linear(X, t.T, t[0])), t, t[:, 0]),
    "convolution": lambda t: F.conv2d(t.sin().view(IMAGE), t.view(-1)[:9].view(1, 1, 3, 3), padding=1),
    "images": lambda t: torch.cat(
        [
            u.reshape(-1)
            for s in [(t**3).view(IMAGE)]
            for u in (
                F.max_pool2d(s, 2),
                F.avg_pool2d(s, 2),
                F.adaptive_avg_pool2d(s, (2, 2)),
                F.interpolate(s, scale_factor=2),
                F.interpolate(s, scale_factor=2, mode="bilinear"),
                F.unfold(s, 2),
                F.pad(s, (1, 1)),
                F.pixel_shuffle(s.view(1, 4, 1, 3), 2),
            )
        ]
    ),
    "other dtypes": lambda t: t.float().double() + t.lerp(t.sin(), t.cos()) + torch.addcmul(t, t, t.sin()),
}

covered: set[str] = set()


def loss(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    out = function(theta).double().reshape(-1)
    return (torch.linspace(0.5, 1.5, len(out), dtype=torch.float64) * out * out + 0.3 * out).mean()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_second_derivative_of_each_verified_function_is_that_of_differences(name: str) -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        function, theta, v = FUNCTIONS[name], gaussian(3, 4, seed=2), gaussian(3, 4, seed=3)

        def slope(shift: float) -> Tensor:
            leaf = (theta + shift * v).requires_grad_()
            return torch.autograd.grad(loss(function, leaf), leaf)[0]

        leaf = theta.clone().requires_grad_()
        end = loss(function, leaf)
        covered.update(type(node).__name__.rstrip("0123456789").removesuffix("Backward") for node in graph_nodes([end]))
        found = torch.autograd.grad((torch.autograd.grad(end, leaf, create_graph=True)[0] * v).sum(), leaf)[0]
    step = 1e-3 if name == "other dtypes" else 1e-6
    expected = (slope(step) - slope(-step)) / (2 * step)
    assert float((found - expected).norm() / expected.norm()) < (1e-3 if name == "other dtypes" else 1e-6)


def test_no_function_counts_as_verified_without_a_test() -> None:
    if len(covered) < 50:
        pytest.skip("needs the tests above, in the same process")
    assert VERIFIED - covered == set()
