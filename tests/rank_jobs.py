"""Jobs for two processes of a group, and the function that starts them; a fork server imports torch once."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import preconditioned, restricted
from lossscope.probes.operators.distributed import over_ranks
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.invariant import adaptive_lambda_max, log_fisher_rao, theta_hessian_theta

__all__ = ["JOBS", "TIMEOUT", "data", "few", "measured", "net", "on_ranks"]

TIMEOUT = 3.0  # seconds of the process group of a job with a rank that is silent
Job = Callable[[int], Any]
JOBS: dict[str, Job] = {}


def on_ranks(folder: Path, *jobs: str, timeout: float = 60.0) -> list[dict[str, Any]]:
    """Run jobs on two ranks, one after the other in the same processes; return the results of each rank by job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ranks = [context.Process(target=_rank, args=(rank, str(folder), jobs, timeout)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert not process.is_alive(), "a rank hangs"
    files = [folder / f"rank{rank}" for rank in (0, 1)]
    return [torch.load(path, weights_only=False) if path.exists() else {} for path in files]


def _rank(rank: int, folder: str, jobs: tuple[str, ...], timeout: float) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=timeout))
    found = {}
    for name in jobs:
        try:
            found[name] = JOBS[name](rank)
        except Exception as error:  # the words are what is tested
            words = name.startswith("refused")
            found[name] = f"{type(error).__name__}: {error}" if words else traceback.format_exc()
        torch.save(found, f"{folder}/rank{rank}")  # a later job may end the process


def job(function: Job) -> Job:
    JOBS[function.__name__] = function
    return function


def net(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(8) if norm else nn.Identity()
        return nn.Sequential(nn.Linear(6, 8), middle, nn.Tanh(), nn.Linear(8, 3)).double()


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    sizes = (5, 7, 4)
    return [(torch.randn(n, 6, generator=g).double(), torch.randint(0, 3, (n,), generator=g)) for n in sizes]


def mine(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return data()[:2] if rank == 0 else data()[2:]


def measured(objective: Objective) -> dict[str, Any]:
    """Return numbers of an objective of every kind that works over ranks."""
    n = objective.size
    v = torch.linspace(-1, 1, n, dtype=torch.float64)
    spectrum = measure_spectrum(hessian(objective), top=2, max_products=60)
    assert spectrum.top
    assert spectrum.bottom
    assert spectrum.trace
    assert spectrum.frobenius
    assert spectrum.density
    tracker = EigenTracker(rel=0.01)
    tracked = tracker.measure(hessian(objective)).top
    assert tracked
    form = theta_hessian_theta(objective)
    return {
        "value": objective.value(),
        "value_at": objective.value_at(objective.parameters() + 0.1 * v),
        "gradient": objective.gradient(),
        "hessian": hessian(objective) @ torch.stack([v, v.square()], 1),
        "differences": hessian(objective, method="differences") @ v,
        "gauss_newton": gauss_newton(objective) @ v,
        "fisher": fisher(objective, "empirical") @ v,
        "restricted": restricted(hessian(objective), ["3.weight"]) @ v[:24],
        "preconditioned": preconditioned(hessian(objective), v.square() + 1) @ v,
        "top": spectrum.top.values,
        "bounds": spectrum.top.bounds,
        "vectors": spectrum.top.vectors,
        "bottom": spectrum.bottom.values,
        "trace": [spectrum.trace.value, spectrum.trace.low, spectrum.trace.high],
        "frobenius": spectrum.frobenius.value,
        "density": torch.as_tensor(spectrum.density.nodes),
        "tracked": tracked.values,
        "form": [form.value, form.low, form.high],
        "adaptive": adaptive_lambda_max(objective).value,
        "samples": objective.samples,
    }


def few(objective: Objective) -> dict[str, Any]:
    """Return the numbers that take little time."""
    v = torch.linspace(-1, 1, objective.size, dtype=torch.float64)
    top = measure_spectrum(hessian(objective), top=1, quantities=["top"], rel=0.1).top
    assert top
    return {
        "value": objective.value(),
        "gradient": objective.gradient(),
        "hessian": hessian(objective) @ torch.stack([v, v.square()], 1),
        "gauss_newton": gauss_newton(objective) @ v,
        "top": top.values,
        "bounds": top.bounds,
        "vectors": top.vectors,
        "samples": objective.samples,
    }


@job
def numbers(rank: int) -> dict[str, Any]:
    return few(over_ranks(Objective(net(), CrossEntropy(), mine(rank))))


@job
def everything(rank: int) -> dict[str, Any]:
    return measured(over_ranks(Objective(net(), CrossEntropy(), mine(rank))))


@job
def wrapped(rank: int) -> dict[str, Any]:
    model = nn.parallel.DistributedDataParallel(net())
    found = over_ranks(Objective(model, CrossEntropy(), mine(rank)))
    result = {"hessian": hessian(found) @ torch.ones(found.size).double(), "value": found.value()}
    CrossEntropy()(model, mine(rank)[0]).backward()  # and training goes on
    return result | {"gradient": torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])}


@job
def buffers(rank: int) -> dict[str, Any]:
    """Measure with running statistics that differ, as they do after a step of DistributedDataParallel."""
    model = net(norm=True)
    model.train()
    model(data()[2 * rank][0])
    before = [buffer.clone() for buffer in model.buffers()]
    objective = over_ranks(Objective(model, CrossEntropy(), mine(rank)))
    result = {"value": objective.value(), "hessian": hessian(objective) @ torch.ones(objective.size).double()}
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert model.training
    return result | {"buffers": before}


@job
def refused_values(rank: int) -> None:
    over_ranks(Objective(net(rank), CrossEntropy(), mine(rank)))


@job
def refused_names(rank: int) -> None:
    model = net()
    if rank:
        model[0].bias.requires_grad_(False)
    over_ranks(Objective(model, CrossEntropy(), mine(rank)))


@job
def refused_shapes(rank: int) -> None:
    model = net() if rank == 0 else nn.Sequential(nn.Linear(6, 9), nn.Identity(), nn.Tanh(), nn.Linear(9, 3)).double()
    over_ranks(Objective(model, CrossEntropy(), mine(rank)))


@job
def refused_modes(rank: int) -> None:
    over_ranks(Objective(net(), CrossEntropy(), mine(rank), mode="frozen" if rank else "eval"))


@job
def refused_train(rank: int) -> None:
    over_ranks(Objective(net(), CrossEntropy(), mine(rank), mode="train"))


@job
def refused_twice(rank: int) -> None:
    over_ranks(over_ranks(Objective(net(), CrossEntropy(), mine(rank))))


@job
def refused_vectors(rank: int) -> None:
    objective = over_ranks(Objective(net(), CrossEntropy(), mine(rank)))
    measure_spectrum(hessian(objective), top=1, seed=rank)


@job
def refused_drift(rank: int) -> None:
    model = net()
    objective = over_ranks(Objective(model, CrossEntropy(), mine(rank)))
    if rank:
        with torch.no_grad():
            model[0].weight.add_(1e-9)
    objective.gradient()


@job
def refused_batches(rank: int) -> None:
    log_fisher_rao(over_ranks(Objective(net(), CrossEntropy(), mine(rank))))


@job
def refused_failure(rank: int) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if rank:
            raise KeyError("labels")
        return CrossEntropy()(model, batch)

    over_ranks(Objective(net(), loss, mine(rank))).value()


@job
def refused_death(rank: int) -> None:
    objective = over_ranks(Objective(net(), CrossEntropy(), mine(rank)))
    objective.value()
    if rank:
        os._exit(1)
    measure_spectrum(hessian(objective), top=1)


@job
def refused_silence(rank: int) -> None:
    objective = over_ranks(Objective(net(), CrossEntropy(), mine(rank)))
    if rank:
        time.sleep(2 * TIMEOUT)
    objective.value()


def sharded(rank: int, dtype: torch.dtype, **more: Any) -> Any:
    """Return the objective of a model under FSDP2; its import takes seconds, so it stands here."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from lossscope.probes.operators.sharded import ShardedObjective

    model = net().to(dtype)
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    own = [(x.to(dtype), y) for x, y in mine(rank)]
    if more.get("hook"):
        model[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    return ShardedObjective(more.get("model", model), more.get("loss", CrossEntropy()), own)


def whole(objective: Any, vector: torch.Tensor) -> torch.Tensor:
    """Return a sharded vector as one in the order of the parameters."""
    from torch.distributed.tensor import DTensor

    found = []
    for p, part in zip(objective._parameters, objective._split(vector), strict=True):
        found.append(
            DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
        )
    return torch.cat([part.reshape(-1) for part in found])


def sharded_numbers(rank: int, dtype: torch.dtype) -> dict[str, Any]:
    objective = sharded(rank, dtype)
    model, parameters = objective.model, list(objective.model.parameters())
    CrossEntropy()(model, (mine(rank)[0][0].to(dtype), mine(rank)[0][1])).backward()
    before = [(p.to_local().clone(), p.grad, p.grad.to_local().clone()) for p in parameters]
    H = objective.hessian()
    v = H.normal(torch.Generator().manual_seed(1)).to(dtype)
    found = measure_spectrum(H, top=2, max_products=70)
    tracker = EigenTracker(rel=0.01)
    tracked = [tracker.measure(H).top for _ in range(2)]
    assert model.training
    assert all(torch.equal(p.to_local(), old) for p, (old, _, _) in zip(parameters, before, strict=True))
    assert all(p.grad is kept for p, (_, kept, _) in zip(parameters, before, strict=True))
    assert all(torch.equal(p.grad.to_local(), old) for p, (_, _, old) in zip(parameters, before, strict=True))
    assert found.top
    assert found.bottom
    assert found.trace
    assert found.frobenius
    return {
        "size": objective.size,
        "value": objective.value(),
        "gradient": whole(objective, objective.gradient()),
        "direction": whole(objective, v),
        "product": whole(objective, H @ v),
        "unit": H.unit,
        "top": found.top.values,
        "bounds": found.top.bounds,
        "vector": whole(objective, found.top.vectors[:, 0]),
        "bottom": [found.bottom.values[0], found.bottom.bounds[0]],
        "trace": [found.trace.low, found.trace.high],
        "frobenius": [found.frobenius.low, found.frobenius.high],
        "tracked": [float(one.values[0]) for one in tracked if one],
        "bounded": [float(one.bounds[0]) for one in tracked if one],
        "method": found.method,
    }


@job
def sharded_double(rank: int) -> dict[str, Any]:
    return sharded_numbers(rank, torch.float64)


@job
def sharded_single(rank: int) -> dict[str, Any]:
    return sharded_numbers(rank, torch.float32)


@job
def refused_reverse(rank: int) -> None:
    sharded(rank, torch.float32).hessian(method="reverse")


@job
def refused_plain(rank: int) -> None:
    sharded(rank, torch.float32, model=net())


@job
def refused_scale(rank: int) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        found = CrossEntropy()(model, batch)
        return 2 * found - found.detach()

    sharded(rank, torch.float32, loss=loss).value()


@job
def refused_hook(rank: int) -> None:
    sharded(rank, torch.float32, hook=True)


@job
def refused_columns(rank: int) -> None:
    H = sharded(rank, torch.float32).hessian()
    _ = H @ torch.ones(H.length, 1 + rank)


@job
def refused_sharded_failure(rank: int) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if rank:
            raise KeyError("labels")
        return CrossEntropy()(model, batch)

    sharded(rank, torch.float32, loss=loss).value()


@job
def refused_sharded_death(rank: int) -> None:
    objective = sharded(rank, torch.float32)
    objective.value()
    if rank:
        os._exit(1)
    measure_spectrum(objective.hessian(), top=1)
