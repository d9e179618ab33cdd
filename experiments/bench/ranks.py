"""What many ranks cost that only exchange: ``python -m experiments.bench.ranks [--ranks 512] [--updates 20]``.

Rank 0 and its workers, each a process of its own, over encrypted TCP links on this machine, without shared memory: they
open their links and meet, exchange updates of a tiny model in which the first three quarters count, and close. Workers
are forks of a process that has imported everything, so that memory is what a rank needs beside its program.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import nn

from lwpd_lightning.coding import uncoded
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.receiver import LinearReceiver
from lwpd_lightning.coding.wire import wire_format
from lwpd_lightning.exchange.admission import Admission
from lwpd_lightning.exchange.coordinator import Coordinator
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksums
from lwpd_lightning.exchange.update import Contribution, How, Step
from lwpd_lightning.exchange.worker import Assignment, Worker
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.keys import RunKey
from lwpd_lightning.links.mesh import WorkerLinks
from lwpd_lightning.links.message import EMPTY, Messages
from lwpd_lightning.links.rendezvous import LOOPBACK, endpoint
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.reduction.sums import MessageSums, Ranks
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.rule.membership import Membership
from lwpd_lightning.rule.patience import Patience

_MAX_BYTES, _QUEUED, _RUN_ID, _FINGERPRINT = 1 << 20, 4096, bytes(16), bytes(32)
_LEARNING_RATE = 0.1


class Figures(NamedTuple):
    """Seconds until all have met, of the median update, and until all have ended; files of links; bytes of memory."""

    start_s: float
    update_s: float
    close_s: float
    files_of_rank_0: int
    files_of_a_worker: int
    memory: int


class _Rank:
    """A tiny model and a rank's share in adding up; as a worker's replica, it computes nothing."""

    changed = False

    def __init__(self, worker: int, ranks: int, send: Callable[..., None]) -> None:
        torch.manual_seed(0)
        code, wire = uncoded(ranks), wire_format("float32")
        self.model = nn.Linear(8, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=_LEARNING_RATE)
        self.precision = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
        self.messages = Messages(_RUN_ID, arena=None)
        self.blocks = BlockMap(list(self.model.parameters()), code.blocks)
        among = Ranks(worker, 0, set(range(ranks)))
        parts = MessageSums(among, self.blocks.block_size, wire, wire, self.messages, send)
        self.reduction = Reduction(self.blocks, parts, None, LinearReceiver(code, self.blocks, one_version=False))
        values = torch.zeros(self.blocks.block_size)
        self._codeword = Codeword(values, wire.pack(values))

    def compute(self, assignment: Assignment, settle: Callable[[], None]) -> tuple[Codeword, Contribution]:
        settle()
        return self.codeword(assignment.version)

    def codeword(self, version: int) -> tuple[Codeword, Contribution]:
        return self._codeword, Contribution(version, [True, True], 0.0, 1, 0.0, EMPTY)

    def step(self, at: Assignment) -> None:
        self.optimizer.step()

    def enter(self, assignment: Assignment) -> None: ...

    def skip(self, at: Assignment) -> None: ...

    def steer(self, attributes: dict[str, object]) -> None: ...


def _work(worker: int, ranks: int, key: RunKey, told: Connection, heartbeat_s: float) -> None:
    """A worker's process; tells how many files it had open when training was over."""
    torch.set_num_threads(1)
    port, files = told.recv(), _open_files()  # some of which the fork has inherited
    links = WorkerLinks(
        key, worker, endpoint(LOOPBACK, port), peers=[w for w in range(1, ranks) if w != worker],
        heartbeat_s=heartbeat_s, max_message_bytes=_MAX_BYTES, queued=_QUEUED,
    )  # fmt: skip
    rank = _Rank(worker, ranks, links.send)
    Worker(
        links=links, reduction=rank.reduction, model=rank.model, optimizer=rank.optimizer, precision=rank.precision,
        replica=rank, messages=rank.messages, fingerprint=_FINGERPRINT, timeout_s=heartbeat_s,
    ).run()  # fmt: skip
    told.send(_open_files() - files)
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
    rank = _Rank(0, ranks, hub.send)
    coordinator = _coordinator(hub, rank, ArrivalRule(uncoded(ranks), wait_for, own=0), heartbeat_s)
    coordinator.admit()
    start_s = time.perf_counter() - started

    times = _exchange(coordinator, rank, updates)
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


def _exchange(coordinator: Coordinator, rank: _Rank, updates: int) -> list[float]:
    """Seconds of each update."""
    checksums, times, step = Checksums(rank.model, rank.blocks.parameters), [], None
    for index in range(updates):
        begun = time.perf_counter()
        coordinator.publish(0, index, index, How.AHEAD if step else How.FIRST, step=step)
        coordinator.arrived(checksums.take())
        coordinator.contribute(*rank.codeword(coordinator.version))
        coordinator.collect()
        coordinator.deliver()
        rank.optimizer.step()
        step = Step(coordinator.decided, [{"lr": _LEARNING_RATE}])
        times.append(time.perf_counter() - begun)
    return times


def _coordinator(hub: Hub, rank: _Rank, rule: ArrivalRule, timeout_s: float) -> Coordinator:
    publication = Publication(hub, rank.messages, rank.model, torch.device("cpu"), rank.optimizer, rank.precision)
    members = Membership(range(1, rule.code.n), own=0, grace_s=timeout_s / 6, join_s=timeout_s)
    settings: dict[str, Any] = {"messages": rank.messages}
    admission = Admission(
        hub, members, publication, rule, rank.reduction.ranks, fingerprint=_FINGERPRINT, min_workers=2, returns=False,
        exited=lambda worker, wait_s: None, fence=lambda worker: None, **settings,
    )  # fmt: skip
    return Coordinator(
        hub=hub, admission=admission, publication=publication, rule=rule, reduction=rank.reduction, model=rank.model,
        first_version=0, timeout_s=timeout_s, patience=Patience(None, timeout_s), **settings,
    )  # fmt: skip


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


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
    print(f"files of links: rank 0 {figures.files_of_rank_0}, a worker {figures.files_of_a_worker}")
    print(f"memory {figures.memory / 2**30:.1f} GiB, {figures.memory / 2**20 / options.ranks:.0f} MiB a rank")


if __name__ == "__main__":
    main()
