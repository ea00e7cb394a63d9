"""Server of trainings that end in many ways, each in a forked process: torch is imported once for all of them.

Reads lines `mode path` from stdin; writes the process id of each training, then its exit status once it has ended.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.storage.run_store import RunStore

PLANNED = 100_000


def flush_often(self: RunStore) -> bool:
    return self._journal.due(0.01)


def loop(path: str, mode: str) -> None:
    """Train until a signal, or for as long as the mode says."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    count = PLANNED if mode in ("endless", "block", "own_handler") else 5
    if mode == "own_handler":
        signal.signal(signal.SIGTERM, own_handler)
    planned = {"planned": 9, "complete": 5}.get(mode)
    recorder = Recorder(path, model, optimizer, preset="full", steps=planned)
    if mode == "late_handler":
        signal.signal(signal.SIGTERM, own_handler)
        recorder.close()
        assert signal.getsignal(signal.SIGTERM) is own_handler
        return
    if mode in ("block", "block_5"):
        with recorder:
            train(recorder, model, optimizer, count)
        return
    train(recorder, model, optimizer, count)
    if mode == "raise":
        raise ZeroDivisionError("a reason")
    if mode == "exit":
        sys.exit(0)
    if mode == "caught":
        del recorder  # as a function that returns drops it


STOP: list[int] = []


def own_handler(number: int, frame: Any) -> None:
    STOP.append(number)


def train(recorder: Recorder, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    x = torch.randn(8, 4)
    for _ in range(count):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
        if STOP:
            break


def warm_up() -> None:
    """Load what a training loads on its way, once for all processes."""
    with TemporaryDirectory() as folder:
        loop(f"{folder}/run", "block_5")


def serve() -> None:
    for line in sys.stdin:
        mode, path = line.rstrip("\n").split(" ", 1)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            errors = os.open(Path(path).with_suffix(".err"), os.O_CREAT | os.O_WRONLY)
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            loop(path, mode)
            return  # through the end of the interpreter
        print(child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    RunStore.flush_due = flush_often  # type: ignore[method-assign]
    warm_up()
    gc.collect()
    gc.freeze()  # the end of an interpreter need not visit what was there before the fork
    serve()
