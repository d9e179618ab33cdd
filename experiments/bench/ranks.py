"""What many ranks cost that only exchange: ``python -m experiments.bench.ranks [--ranks 512] [--updates 20]``.

Rank 0 and its workers, each a process of its own, over encrypted TCP links on this machine, without shared memory: they
open their links and meet, exchange updates of a tiny model in which the first three quarters count, and close. Workers
are forks of a process that has imported everything, so that memory is what a rank needs beside its program.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from lwpd_lightning.exchange.worker import Assignment
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.mesh import WorkerLinks
from lwpd_lightning.links.rendezvous import LOOPBACK, endpoint
from lwpd_lightning.rule.patience import Patience

from .tiny import TinyRank

_MAX_BYTES, _QUEUED = 1 << 20, 4096


class Figures(NamedTuple):
    """Seconds until all have met, of the median update, until all have ended; most files of links; bytes of memory."""

    start_s: float
    update_s: float
    close_s: float
    files_of_rank_0: int
    files_of_a_worker: int
    memory: int


class _Counting(TinyRank):
    """Notes how many files are open at the first step: all links stand, and nobody has begun to close any."""

    files = 0

    def step(self, at: Assignment) -> None:
        """The optimizer's."""
        self.files = self.files or _open_files()
        super().step(at)


def _work(worker: int, ranks: int, key: RunKey, told: Connection, heartbeat_s: float) -> None:
    """A worker's process; tells how many files it has opened by its first step."""
    torch.set_num_threads(1)
    port, files = told.recv(), _open_files()  # some of which the fork has inherited
    links = WorkerLinks(
        key, worker, endpoint(LOOPBACK, port), peers=[w for w in range(1, ranks) if w != worker],
        heartbeat_s=heartbeat_s, max_message_bytes=_MAX_BYTES, queued=_QUEUED,
    )  # fmt: skip
    rank = _Counting(worker, ranks, links.send)
    rank.worker(links, heartbeat_s).run()
    told.send(rank.files - files)
    links.close()


def measured(ranks: int, updates: int, heartbeat_s: float = 600.0) -> Figures:
    """Start, exchange and close; a worker that says nothing for ``heartbeat_s`` seconds is lost."""
    key, forks, wait_for = RunKey.generate(), multiprocessing.get_context("fork"), max(2, 3 * ranks // 4)
    for worker in range(ranks):
        key.worker(worker)  # once, and not in every process
    started = time.perf_counter()
    processes, pipes = [], []
    for worker in range(1, ranks):
        ours, theirs = forks.Pipe()
        process = forks.Process(target=_work, args=(worker, ranks, key, theirs, heartbeat_s), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    files = _open_files()
    hub = Hub(
        key, range(1, ranks), host=LOOPBACK, heartbeat_s=heartbeat_s, max_message_bytes=_MAX_BYTES, queued=_QUEUED
    )
    for pipe in pipes:
        pipe.send(hub.port)
    rank = TinyRank(0, ranks, hub.send)
    coordinator = rank.coordinator(
        hub, wait_for, grace_s=heartbeat_s / 6, join_s=heartbeat_s, min_workers=2, returns=False,
        timeout_s=heartbeat_s, patience=Patience(None, heartbeat_s),
    )  # fmt: skip
    coordinator.admit()
    start_s = time.perf_counter() - started

    times = []
    for _ in range(updates):
        begun = time.perf_counter()
        rank.update(coordinator)
        times.append(time.perf_counter() - begun)
    files, memory = (
        _open_files() - files,
        _memory([os.getpid(), *(process.pid for process in processes if process.pid)]),
    )
    ending = time.perf_counter()
    coordinator.stop(0, updates, await_farewell=True)
    files_of_a_worker = max(pipe.recv() for pipe in pipes)
    for process in processes:
        process.join()
    return Figures(start_s, statistics.median(times), time.perf_counter() - ending, files, files_of_a_worker, memory)


def _open_files() -> int:
    """Without the list of them itself, which the watch of a link's door may have open too."""
    count, folder = 0, f"/proc/{os.getpid()}/fd"
    for file in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"{folder}/{file}") != folder
    return count


def _memory(processes: Sequence[int]) -> int:
    """Bytes of these processes together, each page that several share counted once."""
    total = 0
    for process in processes:
        with open(f"/proc/{process}/smaps_rollup") as told:
            total += next(1024 * int(line.split()[1]) for line in told if line.startswith("Pss:"))
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--updates", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # also of rank 0, as of workers: all share this machine's cores
    figures = measured(options.ranks, options.updates)
    print(f"{options.ranks} ranks, {options.updates} updates, {os.cpu_count()} cores")
    print(f"start {figures.start_s:.1f} s, update {1e3 * figures.update_s:.0f} ms, close {figures.close_s:.1f} s")
    print(f"files of links: rank 0 {figures.files_of_rank_0}, the worker that adds up {figures.files_of_a_worker}")
    print(f"memory {figures.memory / 2**30:.1f} GiB, {figures.memory / 2**20 / options.ranks:.0f} MiB a rank")


if __name__ == "__main__":
    main()
