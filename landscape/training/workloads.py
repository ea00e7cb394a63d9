"""Workloads: networks with data, usual settings, and reproducible splits, weights and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.cifar import augmented, cifar10
from lossscope.landscape.training.modular_addition import ModularTransformer, modular_addition
from lossscope.landscape.training.prose import NextCharacter, next_characters
from lossscope.landscape.training.resnet import resnet18
from lossscope.landscape.training.rotary_transformer import RotaryTransformer
from lossscope.landscape.training.wikitext import wikitext2

__all__ = [
    "FOLDER_WORKLOADS",
    "WORKLOADS",
    "FolderData",
    "Split",
    "Workload",
    "batch_at",
    "built",
    "chunks",
    "digits",
    "digits_conv",
    "digits_mlp",
    "workload",
]

Examples = tuple[Tensor, Tensor]  # inputs and labels


@dataclass(frozen=True)
class Split:
    """Train and test examples."""

    train: Examples
    test: Examples


@dataclass(frozen=True)
class FolderData:
    """Examples in a folder of the user's, the network for them, and size and SHA-256 of the files."""

    split: Split
    network: Callable[[], nn.Module]
    files: dict[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Workload:
    """A network and its data, with their usual settings."""

    name: str
    description: str
    network: Callable[[], nn.Module]
    examples: Callable[[], Examples]
    size: int  # number of examples
    train_share: float
    batch_size: int
    steps: int
    eval_every: int  # period in steps of the evaluation on the test set
    options: dict[str, Any] = field(default_factory=dict)  # usual optimizer settings of this workload
    rates: dict[str, float] = field(default_factory=dict)  # learning rates by rule, where the default is too small
    source: str = ""  # SHA-256 of the user's file that made it; "" for those that ship
    read: Callable[[Path], FolderData] | None = None  # makes examples and network from the folder of `data`
    given: FolderData | None = None  # what it has read
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None  # changes the inputs of each batch at random
    at_once: int | None = None  # examples in one pass of an evaluation; None: all of them
    curvature_samples: int | None = None  # usual number; None: all training examples

    @property
    def usual(self) -> str:
        """The usual settings, as text."""
        words = [f"{self.steps} steps of {self.batch_size}"]
        words += [f"{key}={value}" for key, value in self.options.items()]
        words += [f"lr={rate} for {rule}" for rule, rate in self.rates.items()]
        return ", ".join(words)

    @property
    def train_size(self) -> int:
        """The number of training examples."""
        return int(self.train_share * self.size) if self.given is None else len(self.given.split.train[1])

    @property
    def curvature_count(self) -> int:
        """The usual number of training examples over which curvature is averaged."""
        return min(self.curvature_samples or self.train_size, self.train_size)

    def split(self, seed: int) -> Split:
        """Return train and test examples: shuffled with the split seed, or those of the folder as they are."""
        if self.given is not None:
            return self.given.split
        inputs, labels = self.examples()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        cut = self.train_size
        train, test = order[:cut], order[cut:]
        return Split((inputs[train], labels[train]), (inputs[test], labels[test]))


def digits(*, flat: bool) -> tuple[Tensor, Tensor]:
    """Return 8 by 8 scans of digits with pixels in [0, 1], and their labels 0 to 9.

    Args:
        flat: True for scans of shape `(1797, 64)`, False for `(1797, 1, 8, 8)`.

    Source:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = torch.tensor(scans.data, dtype=torch.float32) / 16
    return (pixels if flat else pixels.reshape(-1, 1, 8, 8)), torch.tensor(scans.target)


def digits_mlp() -> nn.Module:
    """Return a 64-64-32-10 ReLU network: 6570 parameters, no norm layers, so it has the rescaling symmetry."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits_conv() -> nn.Module:
    """Return two 3 by 3 convolutions with group norm and a linear head: 10 042 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def _digits(name: str, network: Callable[[], nn.Module], words: str, *, flat: bool) -> Workload:
    """Return a workload of handwritten digits."""
    return Workload(
        name,
        f"{words} on 1797 handwritten digits",
        network,
        lambda: digits(flat=flat),
        size=1797,
        train_share=0.8,
        batch_size=128,
        steps=400,
        eval_every=20,
        # With their default learning rates the loss has hardly decreased after the default number of steps.
        rates={"sgd": 0.1, "muoneq": 0.01},
    )


def _modular(prime: int, train_share: float) -> Workload:
    """Return a workload of modular addition."""
    return Workload(
        f"modadd-{prime}",
        f"a one-layer transformer on (x + y) mod {prime}, {100 * train_share:.0f} % of the pairs: grokking",
        lambda: ModularTransformer(prime),
        lambda: modular_addition(prime),
        size=prime**2,
        train_share=train_share,
        batch_size=512,
        steps=2000,
        eval_every=8,
        options={"betas": (0.9, 0.98), "weight_decay": 1.0},
    )


_PROSE: Final = Workload(
    "prose-mlp",
    "the next character of English prose, from the documentation inside Python",
    NextCharacter,
    lambda: next_characters(8000),
    size=8000,
    train_share=0.75,
    batch_size=128,
    steps=400,
    eval_every=20,
    rates={"sgd": 0.1, "muoneq": 0.01},
)


def _from_folder() -> Any:
    """Stand for examples and network of a workload whose folder has not been read."""
    raise ConfigError("this workload needs data, a folder with its files")


def _wikitext2(folder: Path) -> FolderData:
    """Read WikiText-2."""
    train, test, vocabulary, files = wikitext2(folder)
    return FolderData(Split(train, test), partial(RotaryTransformer, vocabulary), files)


def _cifar10(folder: Path) -> FolderData:
    """Read CIFAR-10."""
    train, test, files = cifar10(folder)
    return FolderData(Split(train, test), resnet18, files)


@lru_cache(maxsize=1)
def _read(name: str, folder: Path) -> FolderData:
    """Return the data of a workload in a folder."""
    read = FOLDER_WORKLOADS[name].read
    assert read is not None
    return read(folder)


def _opened(task: Workload, data: str | None) -> Workload:
    """Return a workload with the data of a folder."""
    if data is None:
        raise ConfigError(f"workload {task.name} needs --data FOLDER, a folder with its files (or data = in a file)")
    found = _read(task.name, Path(data).absolute())
    return replace(task, given=found, network=found.network, size=len(found.split.train[1]) + len(found.split.test[1]))


WORKLOADS: Final[dict[str, Workload]] = {
    w.name: w
    for w in (
        _digits("digits-mlp", digits_mlp, "a 64-64-32-10 ReLU network", flat=True),
        _digits("digits-conv", digits_conv, "two convolutions with group norm", flat=False),
        _modular(113, 0.3),
        _modular(59, 0.4),
        _PROSE,
    )
}


# The founding experiments, whose data are files of the user's.
FOLDER_WORKLOADS: Final[dict[str, Workload]] = {
    w.name: w
    for w in (
        Workload(
            "wikitext-2",
            "a rotary transformer of 3 blocks (Qwen3) on windows of 255 words; needs --data",
            _from_folder,
            _from_folder,
            size=0,
            train_share=1.0,
            batch_size=8,
            steps=10_190,  # ten epochs
            eval_every=1019,
            options={"betas": (0.9, 0.95), "weight_decay": 0.1},
            read=_wikitext2,
            at_once=8,
            curvature_samples=32,
        ),
        Workload(
            "cifar10-resnet18",
            "ResNet-18 on CIFAR-10 with crops, flips and cutouts; needs --data",
            _from_folder,
            _from_folder,
            size=0,
            train_share=1.0,
            batch_size=256,
            steps=3920,  # twenty epochs
            eval_every=196,
            options={"weight_decay": 5e-4},
            read=_cifar10,
            augment=augmented,
            at_once=500,
            curvature_samples=512,
        ),
    )
}


def workload(name: str, data: str | None = None) -> Workload:
    """Return the workload of that name.

    Args:
        name: Its name.
        data: Folder of its files, if it needs one. They are read once in a process.

    Raises:
        ConfigError: The name is unknown (the message suggests the nearest ones), the folder is missing, or the workload
            takes none.
    """
    if name in FOLDER_WORKLOADS:
        return _opened(FOLDER_WORKLOADS[name], data)
    if data is not None:
        raise ConfigError(f"workload {name} has its data: omit data, which is for {' and '.join(FOLDER_WORKLOADS)}")
    if name in WORKLOADS:
        return WORKLOADS[name]
    known = [*WORKLOADS, *FOLDER_WORKLOADS]
    close = get_close_matches(name, known, n=2, cutoff=0.4) or known
    raise ConfigError(f"unknown workload {name!r}; did you mean {' or '.join(close)}? See `lossscope list workloads`")


def built(network: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network with weights drawn from the init seed. The global random generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network()


def batch_at(train: Examples, batch_size: int, step: int, seed: int) -> Examples:
    """Return the batch of optimizer step `step` (from 0). It is a pure function, so a run can resume at any step.

    Each epoch is shuffled with its own seed; its last batch may be smaller.

    Args:
        train: The training examples.
        batch_size: Number of examples per batch.
        step: Number of steps taken before.
        seed: The order seed.
    """
    count = len(train[1])
    epoch, index = divmod(step, -(-count // batch_size))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    chosen = torch.randperm(count, generator=generator)[index * batch_size : (index + 1) * batch_size]
    return train[0][chosen], train[1][chosen]


def chunks(examples: Examples, size: int | None) -> list[Examples]:
    """Return examples in pieces of at most `size`, in their order; in one piece if it is None.

    Args:
        examples: Inputs and labels.
        size: Examples in a piece.
    """
    if size is None:
        return [examples]
    return list(zip(*(torch.split(part, size) for part in examples), strict=True))
