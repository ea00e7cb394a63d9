"""Share of the recorder in whole trainings, and disk per 1000 steps, beside Weights & Biases and TensorBoard.

Run it with `python benchmarks/overhead.py [--networks digits,convnet,gpt,resnet18] [--steps 1000]`. Each arm is a
training of its own from the same start, between two that are not recorded, whose mean it is divided by: the cap of the
recorder is a share of its own wall time, so arms cannot take turns step by step. The other tools log histograms of all
weights and gradients every hundredth step, their usual period: `wandb.watch(model, log="all")` offline, and
`SummaryWriter.add_histogram`. An arm whose package is missing says so. The output is markdown, ready for
`benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from scale_networks import Gpt, resnet18
from torch import Tensor, nn

from lossscope import Objective, Recorder
from lossscope.landscape.training.workloads import batch_at, digits, digits_mlp
from lossscope.probes import CrossEntropy

Examples = tuple[Tensor, Tensor]
Logger = Callable[[int, Tensor], None]  # step and loss
PERIOD = 100  # steps between histograms of the other tools
CAPS = {"economy": 2.0, "standard": 10.0}  # per cent, the aims
PACKAGES = ("lossscope", "torch", "tensorboard", "wandb")


@dataclass(frozen=True)
class Network:
    """A network with data, the size of its batches, and the samples on which curvature is measured."""

    make: Callable[[], nn.Module]
    data: Examples
    batch: int
    curvature: int

    @property
    def words(self) -> str:
        """Size and batch in words."""
        size = sum(p.numel() for p in self.make().parameters())
        return f"{size / 1e6:.3g}M parameters, batches of {self.batch}"


@dataclass(frozen=True)
class Cost:
    """Wall time of a training, what its recorder counts for itself, and bytes on disk without checkpoints."""

    seconds: float
    share: float | None
    size: int


def convnet() -> nn.Module:
    """Return two convolutions and two dense layers for images of 28 by 28: 421,642 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def networks(names: Sequence[str]) -> Iterator[tuple[str, Network]]:
    """Yield the networks of these names."""
    torch.manual_seed(0)
    for name in names:
        match name:
            case "digits":
                yield name, Network(digits_mlp, digits(flat=True), 128, 512)
            case "convnet":
                images = torch.randn(512, 1, 28, 28), torch.randint(10, (512,))
                yield name, Network(convnet, images, 64, 256)
            case "gpt":
                ids = torch.randint(1024, (64, 65))
                texts = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
                yield name, Network(lambda: Gpt(6, 384, 6, 1024), texts, 4, 4)
            case "resnet18":
                images = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
                yield name, Network(resnet18, images, 16, 16)
            case _:
                sys.exit(f"unknown network {name}: choose of digits, convnet, gpt, resnet18")


def main(names: Sequence[str], steps: int) -> None:
    """Print a table for each network."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    print(f"Written by `benchmarks/overhead.py --steps {steps}`, {date.today()}, {platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads; {versions}.\n")
    for name, network in networks(names):
        print(f"{name}, {network.words}, {steps} steps:\n")
        print("| arm | s | / not recorded | the recorder's own share, % | MB on disk per 1000 steps |")
        print("|---|---|---|---|---|")
        for line in lines(network, steps):
            print(line, flush=True)
        print()


def lines(network: Network, steps: int) -> Iterator[str]:
    """Yield the rows of a table."""
    arms = {**{preset: recorded(preset, steps) for preset in ("economy", "standard", "full")}, **others()}
    before = _cost(network, steps, nothing).seconds
    for label, arm in arms.items():
        try:
            found = _cost(network, steps, arm)
        except ImportError as error:
            yield f"| {label} | {error} | | | |"
            continue
        after = _cost(network, steps, nothing).seconds
        plain, before = (before + after) / 2, after
        own = "" if found.share is None else f"{found.share:.1f}"
        missed = found.share is not None and found.share > CAPS.get(label, 100.0)
        own += f" (aim {CAPS[label]:g}: missed)" if missed else ""
        megabytes = found.size / 1e6 / steps * 1000
        yield f"| {label} | {found.seconds:.1f} | {found.seconds / plain:.2f} | {own} | {megabytes:.2f} |"


Arm = Callable[[Path, Network, nn.Module, torch.optim.Optimizer], Logger]


def nothing(folder: Path, network: Network, model: nn.Module, optimizer: torch.optim.Optimizer) -> Logger:
    """Record nothing."""
    return lambda step, loss: None


def recorded(preset: str, steps: int) -> Arm:
    """Return the arm of a preset, with its own cap."""

    def begin(folder: Path, network: Network, model: nn.Module, optimizer: torch.optim.Optimizer) -> Logger:
        inputs, labels = network.data
        fixed = Objective(model, CrossEntropy(), [(inputs[: network.curvature], labels[: network.curvature])])
        recorder = Recorder(folder / "run", model, optimizer, fixed, preset, steps=steps, checkpoints=0)

        def log(step: int, loss: Tensor) -> None:
            recorder.step(loss)
            if step == steps:
                recorder.close(quiet=True)
                (folder / "share").write_text(str(100 * recorder.overhead["share"]))

        return log

    return begin


def others() -> dict[str, Arm]:
    """Return the arms of the other tools."""
    return {"wandb.watch, offline": _wandb, "TensorBoard histograms": _tensorboard}


def _wandb(folder: Path, network: Network, model: nn.Module, optimizer: torch.optim.Optimizer) -> Logger:
    """Watch a model with Weights & Biases."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(folder)}
    import wandb

    run = wandb.init(project="overhead", dir=str(folder))
    run.watch(model, log="all", log_freq=PERIOD)

    def log(step: int, loss: Tensor) -> None:
        run.log({"loss": float(loss)})

    return log


def _tensorboard(folder: Path, network: Network, model: nn.Module, optimizer: torch.optim.Optimizer) -> Logger:
    """Write histograms of weights and gradients for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def log(step: int, loss: Tensor) -> None:
        writer.add_scalar("loss", float(loss), step)  # type: ignore[no-untyped-call]
        if step % PERIOD == 0:
            for name, p in model.named_parameters():
                writer.add_histogram(name, p, step)  # type: ignore[no-untyped-call]
                writer.add_histogram(f"{name}.grad", p.grad, step)  # type: ignore[no-untyped-call]

    return log


def _cost(network: Network, steps: int, arm: Arm) -> Cost:
    """Train once and return what it took."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name, _quiet():  # TensorBoard goes on writing
        folder = Path(name)
        torch.manual_seed(0)
        model = network.make()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        begun = time.perf_counter()
        log = arm(folder, network, model, optimizer)
        for step in range(steps):
            inputs, labels = batch_at(network.data, network.batch, step, 0)
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log(step + 1, loss.detach())
        seconds = time.perf_counter() - begun
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        share = folder / "share"
        return Cost(seconds, float(share.read_text()) if share.exists() else None, size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what recorders say about their price."""
    with open(os.devnull, "w") as sink:
        kept, sys.stderr = sys.stderr, sink
        try:
            yield
        finally:
            sys.stderr = kept


def _version(name: str) -> str:
    """Return the version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the share of the recorder in whole trainings.")
    parser.add_argument("--networks", default="digits,convnet,gpt,resnet18")
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    main(asked.networks.split(","), asked.steps)
