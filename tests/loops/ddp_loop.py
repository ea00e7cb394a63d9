"""Two ranks of DistributedDataParallel on gloo, with a recorder on rank 0, on both ranks, or on none.

    python ddp_loop.py FOLDER none|first|all|sharded

Each rank writes the bits of its parameters to FOLDER/rank<N>.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_loops import descend, loss_of, rank_batches  # a script finds what lies beside it

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.recording.recorder import Recorder
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


def run(rank: int, folder: str, who: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{who}-store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    if who == "sharded":
        sharded(model, folder, rank)
        return
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), 1e-2)
    data = rank_batches(rank)
    recorder = None
    if who == "all" or (who == "first" and rank == 0):
        objective = Objective(model, CrossEntropy(), rank_batches(0)[:1])
        time.sleep(1 - rank)  # rank 0 comes later
        settings = {"steps": 8, "evaluations": 2, "overhead": 1, "config": {"rank": rank}}
        recorder = Recorder(f"{folder}/{who}", model, optimizer, objective, "economy", **settings)
    step = (lambda _: None) if recorder is None else recorder.step
    descend(parallel, optimizer, step, data, loss_of)
    if recorder is not None:
        recorder.close(quiet=True)
    Path(folder, f"{who}-rank{rank}").write_bytes(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    dist.destroy_process_group()


def sharded(model: nn.Module, folder: str, rank: int) -> None:
    """Write the words with which a model of sharded parameters is refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    try:
        Recorder(f"{folder}/sharded", model, torch.optim.SGD(model.parameters(), 0.1))
    except LandscapeError as error:
        Path(folder, f"sharded-rank{rank}").write_text(str(error))


if __name__ == "__main__":
    torch.multiprocessing.spawn(run, args=(sys.argv[1], sys.argv[2]), nprocs=2)
