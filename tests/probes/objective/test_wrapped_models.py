"""Models in wrappers: compiled, parallel, averaged and distributed ones have the numbers of the plain model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loops.training_loops import descend
from torch import nn

from helpers import gaussian
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.invariant import log_fisher_rao

DATA = [(gaussian(8, 4), torch.arange(8) % 3), (gaussian(5, 4, seed=1), torch.arange(5) % 3)]


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()


def in_place(backend: str) -> Callable[[nn.Module], nn.Module]:
    def compiled(model: nn.Module) -> nn.Module:
        model.compile(backend=backend)
        return model

    return compiled


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
}
COMPILED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled eagerly": lambda m: torch.compile(m, backend="eager"),
    "compiled with autograd": lambda m: torch.compile(m, backend="aot_eager"),
    "compiled in place": in_place("eager"),
}


def check(wrap: Callable[[nn.Module], nn.Module], fisher: bool = True) -> None:
    model = wrap(net())
    wrapped, plain = Objective(model, CrossEntropy(), DATA), Objective(net(), CrossEntropy(), DATA)
    v = gaussian(plain.size)
    assert wrapped.value() == pytest.approx(plain.value(), rel=1e-12)
    torch.testing.assert_close(wrapped.gradient(), plain.gradient())
    torch.testing.assert_close(hessian(wrapped) @ v, hessian(plain) @ v, rtol=1e-5, atol=1e-7)
    if fisher:
        torch.testing.assert_close(gauss_newton(wrapped) @ v, gauss_newton(plain) @ v, rtol=1e-5, atol=1e-7)
        assert log_fisher_rao(wrapped).value == pytest.approx(log_fisher_rao(plain).value)
    F.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()  # and training goes on
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_has_the_numbers_of_the_plain_one(name: str) -> None:
    check(WRAPPERS[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer reads it
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_has_the_numbers_of_the_plain_one(name: str) -> None:
    check(COMPILED[name], fisher=name != "compiled with autograd")


@pytest.fixture(name="group")
def process_group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_distributed_model_neither_waits_for_other_processes_nor_for_a_backward_pass(group: Any) -> None:
    check(nn.parallel.DistributedDataParallel)


@pytest.mark.slow
def test_a_model_of_which_each_process_has_a_part_is_refused(group: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ProbeError, match=r"must be whole on this process, got 0\.weight \(DTensor\)"):
        Objective(model, CrossEntropy(), DATA)


def pinn(model: nn.Module, batch: Any) -> torch.Tensor:
    x = batch.clone().requires_grad_()
    u = model(x)
    return (torch.autograd.grad(u.sum(), x, create_graph=True)[0] + u).square().mean()


def trained(path: Path | None) -> tuple[nn.Module, nn.Module]:
    """Train a network by its derivatives against a critic with batch norm, recorded or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
        critic = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = gaussian(10, 2).float()

    def loss_fn(m: nn.Module, b: Any) -> torch.Tensor:
        return pinn(m, b) + 0.1 * F.softplus(-critic(m(b))).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = None if path is None else Recorder(
        path, model, optimizer, Objective(model, loss_fn, [x]), steps=4, evaluations=2, preset="economy"
    )  # fmt: skip
    descend(model, optimizer, (lambda _: None) if recorder is None else recorder.step, [x] * 4, loss_fn)
    if recorder is not None:
        recorder.close()
    return model, critic


def test_a_recorder_measures_a_loss_with_derivatives_and_a_second_network_and_changes_neither(tmp_path: Path) -> None:
    recorded, plain = trained(tmp_path / "run"), trained(None)
    for found, expected in zip(recorded, plain, strict=True):
        pairs = zip(found.state_dict().items(), expected.state_dict().items(), strict=True)
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    probes = Run.open(tmp_path / "run").probes
    assert set(probes[probes.measure == "lambda_max"].step) >= {0}
    assert probes[probes.measure == "lambda_max"].value.notna().all()
