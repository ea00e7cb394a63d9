"""Training loops as people write them, each with the two lines of a recorder or without them.

A loop takes `start(model, optimizer, loss_fn, batches)`, which makes the recorder and returns its `step`, and returns
the trained modules. Everything else is what the loop would be without a recorder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

Step = Callable[..., None]
Start = Callable[..., Step]
STEPS = 6


def rank_batches(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches of a rank of `ddp_loop.py`."""
    g = torch.Generator().manual_seed(rank)
    return [(torch.randn(8, 6, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(8)]


def batches(count: int = STEPS, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 6, generator=g), torch.randint(0, 3, (size,), generator=g)) for _ in range(count)]


def tokens(count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    found = torch.randint(0, 11, (count, 4, 7), generator=g)
    return [(one[:, :-1], one[:, 1:]) for one in found]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def loss_of(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def token_loss(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


class Attention(nn.Module):
    """A block of a small GPT; the embedding is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(h + self.drop(self.out(mixed)))


def nano_gpt(start: Start) -> list[nn.Module]:
    """Accumulate two micro-batches, clip, decay some groups, schedule; `recorder.step` once for each micro-batch."""
    model = Attention()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    step = start(model, optimizer, token_loss, tokens(2))
    for index, batch in enumerate(tokens(2 * STEPS)):
        loss = token_loss(model, batch)
        (loss / 2).backward()
        if index % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        step(loss)
    return [model]


def mnist(start: Start) -> list[nn.Module]:
    """Train a convolution with batch norm and dropout on a shuffled loader, and evaluate on the way."""
    model = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2))
    model.extend([nn.Flatten(), nn.Linear(16, 3)])
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    step = start(model, optimizer, loss_of, batches(2))
    for inputs, labels in DataLoader(TensorDataset(x, y), 8, shuffle=True):
        optimizer.zero_grad()
        loss = loss_of(model, (inputs, labels))
        loss.backward()
        optimizer.step()
        step(loss.item())
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()
    return [model]


def lbfgs(start: Start) -> list[nn.Module]:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    step = start(model, optimizer, loss_of, batches(2))
    for batch in batches():

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        step(optimizer.step(closure))
    return [model]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(11, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(x))[0])


def lstm(start: Start) -> list[nn.Module]:
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    step = start(model, optimizer, token_loss, tokens(2))
    for batch in tokens():
        loss = token_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        step(loss)
    return [model]


class LowRank(nn.Module):
    """A frozen layer with a trainable update of low rank."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


def lora(start: Start) -> list[nn.Module]:
    model = mlp()
    model[0] = LowRank(model[0], 2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    return plain(start, model, optimizer)


def descend(model: Any, optimizer: Any, step: Any, data: Any, loss_fn: Any, cast: Any = nullcontext) -> None:
    """Take a step of the optimizer for each batch, then call `step` with its loss."""
    for batch in data:
        with cast():
            loss = loss_fn(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)


def plain(
    start: Start, model: nn.Module, optimizer: Any, *, forward: Any = None, data: Any = None, cast: Any = nullcontext
) -> list[nn.Module]:
    """Run the loop of the documentation."""
    step = start(model, optimizer, loss_of, batches(2))
    descend(forward or model, optimizer, step, data or batches(), loss_of, cast)
    return [model]


def compiled(start: Start) -> list[nn.Module]:
    model = mlp()
    forward = torch.compile(model, backend="eager")
    return plain(start, model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), forward=forward)


def bfloat16(start: Start) -> list[nn.Module]:
    model = mlp()
    cast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    return plain(start, model, torch.optim.AdamW(model.parameters(), 1e-2), cast=cast)


def grad_scaler(start: Start, *, fused: bool = False) -> list[nn.Module]:
    """Scale the loss; the fourth step has an infinite gradient, and the scaler skips it."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    step = start(model, optimizer, loss_of, batches(2))
    for index, batch in enumerate(batches(STEPS + 1)):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        scaler.scale(loss * torch.inf if index == 3 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        step(loss)
    return [model]


def fused_grad_scaler(start: Start) -> list[nn.Module]:
    return grad_scaler(start, fused=True)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def checkpointed(start: Start) -> list[nn.Module]:
    model = Checkpointed()
    return plain(start, model, torch.optim.RMSprop(model.parameters(), 1e-2))


def workers(start: Start) -> list[nn.Module]:
    model = mlp()
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, num_workers=1)
    return plain(start, model, torch.optim.AdamW(model.parameters(), 1e-2), data=loader)


def two_optimizers(start: Start) -> list[nn.Module]:
    """Step matrices by Muon and vectors by AdamW, both handed to the recorder as a list."""
    model = mlp()
    matrices = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02)
    vectors = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=1e-2)
    step = start(model, [matrices, vectors], loss_of, batches(2))
    for batch in batches():
        loss = loss_of(model, batch)
        matrices.zero_grad()
        vectors.zero_grad()
        loss.backward()
        matrices.step()
        vectors.step()
        step(loss)
    return [model]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization in two halves, as several packages write it."""

    def __init__(self, params: Any, rho: float = 0.05, **settings: Any) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def moved(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        size = torch.stack([p.grad.norm() for p in self.moved()]).norm()
        for p in self.moved():
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * (0.05 / (size + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for p in self.moved():
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is None:
            raise RuntimeError("call first_step() and second_step(), or step(closure)")
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()


def two_step_sam(start: Start) -> list[nn.Module]:
    model = mlp()
    optimizer = SAM(model.parameters(), lr=0.1, momentum=0.9)
    step = start(model, optimizer, loss_of, batches(2))
    for batch in batches():
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.first_step(zero_grad=True)
        loss_of(model, batch).backward()
        optimizer.second_step(zero_grad=True)
        step(loss)
    return [model]


def sam_with_closure(start: Start) -> list[nn.Module]:
    model = mlp()
    optimizer = SAM(model.parameters(), lr=0.1, momentum=0.9)
    step = start(model, optimizer, loss_of, batches(2))
    for batch in batches():

        def closure(batch: Any = batch) -> Tensor:
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        loss = closure()
        optimizer.step(closure)
        optimizer.zero_grad()
        step(loss)
    return [model]


def unfreezing(start: Start) -> list[nn.Module]:
    """Train the head first, and the body from the fourth step on."""
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters(), 1e-2)
    step = start(model, optimizer, loss_of, batches(2))
    for index, batch in enumerate(batches()):
        if index == 3:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)
    return [model]


def gan(start: Start) -> list[nn.Module]:
    """Train two networks in turn, each with its own recorder, whose objectives call the other network."""
    generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
    critic = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 1))
    og, oc = torch.optim.Adam(generator.parameters(), 2e-3), torch.optim.Adam(critic.parameters(), 2e-3)

    def fake(model: nn.Module, noise: Tensor) -> Tensor:
        return F.softplus(-critic(model(noise))).mean()

    def both(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.softplus(-model(batch[0])).mean() + F.softplus(model(batch[1])).mean()

    fixed = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    step_g = start(generator, og, fake, [fixed])
    step_c = start(critic, oc, both, [(batches(1)[0][0], batches(2)[1][0])])
    for real, _ in batches():
        noise = torch.randn(8, 4)
        loss = both(critic, (real, generator(noise).detach()))
        oc.zero_grad()
        loss.backward()
        oc.step()
        step_c(loss)
        loss = fake(generator, noise)
        og.zero_grad()
        loss.backward()
        og.step()
        step_g(loss)
    return [generator, critic]


class Wrapper(torch.optim.Optimizer):
    """A wrapper as Accelerate makes it: an Optimizer whose constructor is not called, so that it has no hooks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def wrapped(start: Start) -> list[nn.Module]:
    model = mlp()
    return plain(start, model, Wrapper(torch.optim.AdamW(model.parameters(), 1e-2)))


class Scheduled:
    """A wrapper that is no Optimizer, with a schedule of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._count = optimizer, 0

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def step(self) -> None:
        self._count += 1
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-2 / self._count
        self._optimizer.step()


def scheduled(start: Start) -> list[nn.Module]:
    model = mlp()
    return plain(start, model, Scheduled(torch.optim.SGD(model.parameters(), 1e-2)))


class View:
    """A wrapper as Lightning makes it: it shares the attributes of the optimizer, its hooks included."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__class__ = type("View" + type(optimizer).__name__, (View, type(optimizer)), {})
        self.__dict__ = {**vars(optimizer), "_optimizer": optimizer}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return vars(self)["_optimizer"]

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def manual_lightning(start: Start) -> list[nn.Module]:
    """Step in a closure that runs the whole training step, as Lightning does; the recorder is called afterwards."""
    model = mlp()
    inner = torch.optim.AdamW(model.parameters(), 1e-2)
    optimizer = View(inner)
    step = start(model, optimizer, loss_of, batches(2))
    for batch in batches():
        kept = []

        def closure(batch: Any = batch, kept: list[Tensor] = kept) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            kept.append(loss.detach())
            return loss

        optimizer.step(closure)
        step(kept[0])
    return [model]


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4, sparse=True), nn.Linear(4, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def sparse_embedding(start: Start) -> list[nn.Module]:
    model = Sparse()
    sparse = torch.optim.SparseAdam(model.embed.parameters(), 1e-2)
    dense = torch.optim.Adam(model.head.parameters(), 1e-2)
    step = start(model, {"sparse": sparse, "dense": dense}, token_loss, tokens(2))
    for batch in tokens():
        loss = token_loss(model, batch)
        for one in (sparse, dense):
            one.zero_grad()
        loss.backward()
        for one in (sparse, dense):
            one.step()
        step(loss)
    return [model]


class Odd(nn.Module):
    """Parameters without entries, without dimensions, complex, transposed, and one that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.tensor(1.5))
        self.empty, self.unused = nn.Parameter(torch.zeros(0, 5)), nn.Parameter(torch.randn(2, 2))
        self.turned = nn.Parameter(torch.randn(3, 6).t())
        self.wave = nn.Parameter(torch.randn(6, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x) + x @ self.turned + (x.cfloat() @ self.wave).abs() + self.empty.sum()


def odd_parameters(start: Start) -> list[nn.Module]:
    model = Odd()
    optimizer = torch.optim.SGD([{"params": []}, {"params": list(model.parameters()), "weight_decay": 0.0}], lr=0.1)
    return plain(start, model, optimizer)


class Unnamed(torch.optim.Optimizer):
    """An optimizer without a setting `lr`, and with a weight decay of None."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"alpha": 0.1, "weight_decay": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["alpha"])


def without_lr(start: Start) -> list[nn.Module]:
    model = mlp()
    return plain(start, model, Unnamed(model.parameters()))


def replaced_module(start: Start) -> list[nn.Module]:
    """Put another head in place of the first one, in model and optimizer, in the middle of the training."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = start(model, optimizer, loss_of, batches(2))
    for index, batch in enumerate(batches()):
        if index == 3:
            model[2] = nn.Linear(8, 3)
            optimizer.add_param_group({"params": list(model[2].parameters())})
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(loss)
    return [model]


LOOPS: dict[str, Callable[[Start], list[nn.Module]]] = {
    loop.__name__: loop
    for loop in (
        nano_gpt,
        mnist,
        lbfgs,
        lstm,
        lora,
        compiled,
        bfloat16,
        grad_scaler,
        fused_grad_scaler,
        checkpointed,
        workers,
        two_optimizers,
        two_step_sam,
        sam_with_closure,
        unfreezing,
        gan,
        wrapped,
        scheduled,
        manual_lightning,
        sparse_embedding,
        odd_parameters,
        without_lr,
        replaced_module,
    )
}
