"""Runs a function on several real ranks over Gloo and collects what each returned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lwpd_lightning.launcher import fork_workers


def on_ranks(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)`` returned (tensors and plain values) on each of ``count`` ranks of a process group."""

    def main(rank: int) -> None:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        torch.save(work(rank), folder / f"{rank}.pt")
        dist.barrier()

    workers = fork_workers(range(count), main)
    try:
        assert [workers.exited(rank, 60) for rank in range(count)] == ["exited with code 0"] * count
    finally:
        workers.end()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
