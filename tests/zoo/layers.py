"""Networks with one kind of layer or operation each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.objective.losses import CrossEntropy
from zoo.member import Parts, seeded
from zoo.vision import net, vectors

__all__ = ["LAYERS", "plain_wrapped"]


class Body(nn.Module):
    """Layers with a function of the features between them."""

    def __init__(self, function: Callable[[Tensor], Tensor], inputs: int = 4, outputs: int | None = None) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(4, inputs), function
        self.head = nn.Linear(outputs or inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x)))


def body(function: Callable[[Tensor], Tensor], inputs: int = 4, outputs: int | None = None) -> Callable[[], Parts]:
    """Return the builder of a network around a function of its features."""
    return seeded(lambda: Parts(Body(function, inputs, outputs), CrossEntropy(), vectors()))


def sequential(*layers: Callable[[], nn.Module]) -> Callable[[], Parts]:
    """Return the builder of a network of layers."""
    return seeded(lambda: Parts(nn.Sequential(*(layer() for layer in layers)), CrossEntropy(), vectors()))


def mixture(x: Tensor) -> Tensor:
    """Return the features mixed by the two largest of them, as a router does."""
    top, where = x.topk(2, -1)
    share = top.softmax(-1)
    return torch.zeros_like(x).scatter(-1, where, share * torch.tanh(top)) + 0.1 * x


def spectral(x: Tensor) -> Tensor:
    """Return moduli and phases' parts of a Fourier transform, complex in between."""
    z = torch.fft.rfft(x, dim=-1)
    z = z * torch.exp(1j * x[:, : z.shape[-1]])
    return torch.cat([z.abs(), z.real], -1)


def solved(x: Tensor) -> Tensor:
    """Return the solution of a linear system made of the features."""
    A = torch.eye(2, dtype=x.dtype) * 3 + x.reshape(-1, 2, 2)
    return torch.cat([torch.linalg.solve(A, x[:, :2, None])[..., 0], torch.linalg.inv(A).reshape(-1, 4)], -1)


def sorted_parts(x: Tensor) -> Tensor:
    """Return sorted features, running products and running maxima."""
    return torch.cat(
        [x.sort(-1)[0], (1 + 0.3 * x).cumprod(-1), x.cummax(-1)[0], x.cumsum(-1).logsumexp(-1)[:, None]], -1
    )


def smooth(x: Tensor) -> Tensor:
    """Return features through several activations."""
    return torch.cat([F.gelu(x), F.silu(x), F.softplus(x), F.mish(x), F.elu(x), F.celu(x), F.selu(x)], -1)


class Masked(nn.Module):
    """Attention with a mask of keys that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.1)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x.reshape(len(x), 2, 2))
        mask = torch.stack([torch.zeros(len(x), dtype=torch.bool), x[:, 1] > 0], 1)
        return self.head(self.attention(e, e, e, key_padding_mask=mask)[0].mean(1))


def channels_last() -> Parts:
    """Return a convolution whose weight lies in another memory order."""
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    batches = [(torch.randn(n, 2, 3, 3), torch.randint(0, 3, (n,))) for n in (5, 4, 3)]
    ordered = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    return Parts(model.to(memory_format=torch.channels_last), CrossEntropy(), ordered)


class Experts(nn.Module):
    """Mixture of experts with one expert for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 3), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, where = self.router(x).softmax(-1).max(-1)
        out = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            rows = (where == i).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return self.head(out)


class Twice(nn.Module):
    """One module called twice, and one parameter used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))) @ self.inner.weight)


class Mixed(nn.Module):
    """Body in float32, head in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.to(self.body.weight.dtype))).double())


class Cube(torch.autograd.Function):
    """Cube with a right first and second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Once(torch.autograd.Function):
    """Sine whose backward pass cannot be differentiated: it computes with detached numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return ctx.saved_tensors[0].detach().cos() * slope


def orthogonal() -> nn.Module:
    """Return a layer with an orthogonal weight."""
    return nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))


def spectral_norm() -> nn.Module:
    """Return a layer divided by its spectral norm, whose buffers move in train mode."""
    return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))


def encoder() -> nn.Module:
    """Return a transformer layer with dropout."""
    return nn.TransformerEncoderLayer(2, 1, 3, dropout=0.1, batch_first=True)


def images(*layers: Callable[[], nn.Module], features: int) -> Callable[[], Parts]:
    """Return the builder of a network whose layers see the vectors as signals of one channel."""
    return sequential(lambda: nn.Unflatten(1, (1, 4)), *layers, nn.Flatten, lambda: nn.Linear(features, 3))


def sampled_grid(x: Tensor) -> Tensor:
    """Return a grid sampled at places given by the features; it has no second derivative in torch."""
    image = x.reshape(-1, 1, 2, 2)
    return F.grid_sample(image, torch.tanh(x.reshape(-1, 1, 2, 2)) * 0.6, align_corners=True).flatten(1)


def packed() -> Parts:
    """An LSTM of packed sequences of several lengths, two layers, both directions."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.LSTM(2, 2, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, batch: Any) -> Tensor:
            x, lengths = batch
            series = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(nn.utils.rnn.pad_packed_sequence(self.core(series)[0], batch_first=True)[0].sum(1))

    sizes = ([4, 2, 3, 1, 4], [3, 3, 2], [2, 4])
    batches = [((torch.randn(len(n), max(n), 2), torch.tensor(n)), torch.randint(0, 3, (len(n),))) for n in sizes]
    return Parts(Packed(), CrossEntropy(), batches)


@seeded
def plain_wrapped() -> Parts:
    """The network of `LAYERS["data_parallel"]` without the wrapper."""
    return Parts(net(), CrossEntropy(), vectors())


LAYERS: dict[str, Callable[[], Parts]] = {
    "encoder": sequential(lambda: nn.Unflatten(1, (2, 2)), encoder, nn.Flatten, lambda: nn.Linear(4, 3)),
    "group_norm": images(lambda: nn.Conv1d(1, 4, 2, padding=1), lambda: nn.GroupNorm(2, 4), nn.SiLU, features=20),
    "transposed": images(
        lambda: nn.ConvTranspose1d(1, 2, 3, stride=2),
        lambda: nn.InstanceNorm1d(2, affine=True),
        nn.Hardswish,
        features=18,
    ),
    "pooled": images(
        lambda: nn.Conv1d(1, 3, 2),
        lambda: nn.PReLU(3),
        lambda: nn.MaxPool1d(2, 1),
        lambda: nn.LocalResponseNorm(2),
        features=6,
    ),
    "rms_norm": sequential(lambda: nn.Linear(4, 5), lambda: nn.RMSNorm(5), nn.Tanh, lambda: nn.Linear(5, 3)),
    "inplace": sequential(lambda: nn.Linear(4, 5), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(5, 3)),
    "experts": seeded(lambda: Parts(Experts(), CrossEntropy(), vectors())),
    "router": body(mixture),
    "fourier": body(spectral, 4, 6),
    "solve": body(solved, 4, 6),
    "sorted": body(sorted_parts, 4, 13),
    "activations": body(smooth, 2, 14),
    "custom_right": body(Cube.apply),
    "custom_once": body(Once.apply),
    "grid_sample": body(sampled_grid, 4, 2),
    "twice": seeded(lambda: Parts(Twice(), CrossEntropy(), vectors())),
    "mixed_dtypes": seeded(lambda: Parts(Mixed(), CrossEntropy(), vectors())),
    "orthogonal": sequential(orthogonal, nn.Tanh, lambda: nn.Linear(4, 3)),
    "spectral_norm": sequential(spectral_norm, nn.Tanh, lambda: nn.Linear(4, 3)),
    "data_parallel": seeded(lambda: Parts(nn.DataParallel(net()), CrossEntropy(), vectors())),
    "packed": seeded(packed),
    "batch_norm_without_statistics": sequential(
        lambda: nn.Linear(4, 4),
        lambda: nn.BatchNorm1d(4, track_running_stats=False),
        nn.Tanh,
        lambda: nn.Linear(4, 3),
    ),
    "masked_attention": seeded(lambda: Parts(Masked(), CrossEntropy(), vectors())),
    "channels_last": seeded(channels_last),
}
