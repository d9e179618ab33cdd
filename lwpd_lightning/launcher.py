"""Starting and ending the worker processes of one fit.

Two ways. *Fork*, on one machine without CUDA: workers are forked from rank 0 when its fit is ready to train, so torch
is imported once, and model, data and checkpoint are already there. *Rerun*, with CUDA or over several machines: the
job's own command runs once more for each worker, which turns off into the worker loop when it reaches ``fit``.
A worker that dies does not take the others along; all of them end when rank 0 does. What ends the whole job (Ctrl-C,
a scheduler's SIGTERM) is rank 0's to answer: workers go on meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from lwpd_lightning.command import job_command
from lwpd_lightning.descriptors import own_offsets
from lwpd_lightning.worker_callback import WorkerCallback

if TYPE_CHECKING:
    import lightning.pytorch as pl

PARENT_CHECK_S = 0.5
# A stopped worker may have a batch to finish before it reads the message; what it computes is of no use any more.
_STOP_GRACE_S = 1.0
_TERMINATE_GRACE_S = 5.0
# What ends a worker: nobody else sends it, least of all to a whole job.
_END = getattr(signal, "SIGRTMIN", signal.SIGKILL)
# Linux: of a process that closes its files, after which how it ended is told.
_PF_EXITING = 0x4


def stays_dead(trainer: pl.Trainer, worker: int) -> bool:
    """Whether one of the trainer's callbacks wants nothing started in the place of a lost ``worker``."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, WorkerCallback) and callback.stays_dead(worker) for callback in callbacks)


class WorkerProcess(Protocol):
    """A started worker: enough to see it end and to end it."""

    pid: int

    def exit_code(self, wait_s: float) -> int | None:
        """Its exit code (negative: the signal that killed it), or None where it lives after ``wait_s`` seconds."""


class _Forked:
    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        assert process.pid is not None
        self.pid, self._process = process.pid, process

    def exit_code(self, wait_s: float) -> int | None:
        self._process.join(wait_s)
        return self._process.exitcode


class _Rerun:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid, self._process = process.pid, process

    def exit_code(self, wait_s: float) -> int | None:
        try:
            return self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None


class Workers:
    """The worker processes that this process started, by rank."""

    def __init__(self, processes: Mapping[int, WorkerProcess]) -> None:
        self._processes = dict(processes)

    @property
    def processes(self) -> list[WorkerProcess]:
        """All of them."""
        return list(self._processes.values())

    def replace(self, rank: int, process: WorkerProcess) -> None:
        """Another process has the place of the one of ``rank``, which has ended."""
        self._processes[rank] = process

    def exited(self, rank: int, wait_s: float) -> str | None:
        """How the process of ``rank`` ended, in words; None where it lives or runs on another machine."""
        process = self._processes.get(rank)
        code = process.exit_code(wait_s) if process is not None else None
        if code is None:
            return None
        return f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"

    def failed(self, rank: int) -> bool:
        """Whether the process of ``rank`` has ended, and not because its work was done."""
        return self._processes[rank].exit_code(0.0) not in (None, 0)

    def ending(self, rank: int) -> bool:
        """Whether the process of ``rank`` has begun to end, and it can soon be told how; True where nobody says."""
        process = self._processes.get(rank)
        if process is None:
            return False
        try:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        except OSError:
            return True
        return stat[0] in "ZX" or bool(int(stat[6]) & _PF_EXITING)

    def kill(self, rank: int) -> None:
        """Kill the process of ``rank`` at once, and wait until it is gone; none that runs on another machine."""
        process = self._processes.get(rank)
        if process is not None and process.exit_code(0.0) is None:
            os.kill(process.pid, signal.SIGKILL)
            process.exit_code(_TERMINATE_GRACE_S)

    def end(self) -> None:
        """Wait briefly for all to end, then tell those that do not to, and at last kill them."""
        for patience, signum in ((_STOP_GRACE_S, _END), (_TERMINATE_GRACE_S, signal.SIGKILL)):
            for process in self._alive(patience):
                os.kill(process.pid, signum)
        for process in self._processes.values():
            process.exit_code(_TERMINATE_GRACE_S)
        self._processes.clear()

    def _alive(self, patience_s: float) -> list[WorkerProcess]:
        deadline = time.monotonic() + patience_s
        waiting = self._processes.values()
        return [p for p in waiting if p.exit_code(max(0.0, deadline - time.monotonic())) is None]


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # most real-time signals have none
        return f"signal {signum}"


def fork_workers(ranks: Iterable[int], work: Callable[[int], None]) -> Workers:
    """Fork one process for each rank, which runs ``work(rank)`` and exits.

    Raises:
        ValueError: on platforms that cannot fork.
    """
    parent = os.getpid()
    processes: dict[int, WorkerProcess] = {}
    with _all_or_none(processes):
        for rank in ranks:
            processes[rank] = _Forked(forked(_forked_main, (rank, work, parent), f"lwpd-rank-{rank}"))
    return Workers(processes)


def forked(main: Callable[..., None], arguments: tuple[object, ...], name: str) -> multiprocessing.process.BaseProcess:
    """A fork of this process that runs ``main(*arguments)`` under a name of its own; raises ValueError as above."""

    def named() -> None:
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
            comm.write(name)
        main(*arguments)

    with warnings.catch_warnings(), _allowed_children():
        # Python warns that locks of other threads stay locked in the child; it runs none of their code.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=named, name=name)
        process.start()
    return process


@contextlib.contextmanager
def _allowed_children() -> Iterator[None]:
    """Let a daemonic process (of a pool, say) fork, which Python forbids for what would outlive it: workers do not."""
    process = multiprocessing.current_process()
    daemonic = process.daemon
    if daemonic:
        process.daemon = False
    try:
        yield
    finally:
        if daemonic:
            process.daemon = True


def _forked_main(rank: int, work: Callable[[int], None], parent: int) -> None:
    # What rank 0 left as garbage must not be collected here: a destructor may join a thread that only rank 0 has.
    gc.freeze()
    own_offsets()
    # While rich shows a live display, as Lightning's default progress bar does, prints go through its lock, which may
    # have been held by a thread that is not there in a fork.
    sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    leave_the_end_to_rank_zero()
    if _END is not signal.SIGKILL:
        signal.signal(_END, lambda signum, frame: sys.exit(128 + signum))
    faulthandler.register(signal.SIGUSR1)  # prints all threads' stacks, for whoever asks why a rank hangs
    failed: list[BaseException] = []

    def body() -> None:
        torch.get_num_threads()  # a thread takes over what torch was told only here, and computes on all cores before
        try:
            work(rank)
        except BaseException as error:
            failed.append(error)

    # A fresh thread, because the OpenMP team of the forked thread is gone and would be waited for for ever.
    thread = threading.Thread(target=body, name="worker", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(PARENT_CHECK_S)
        if os.getppid() != parent:
            sys.exit(1)
    if failed:
        sys.exit(1)


def rerun_workers(ranks: Sequence[int], environment: Callable[[int], Mapping[str, str]]) -> Workers:
    """Run this job's command again for each rank, with ``environment(rank)`` added to the environment.

    Raises:
        ValueError: there is none that could be run again, as in a notebook.
    """
    if not ranks:  # nor need there be a command
        return Workers({})
    command, cwd = job_command()
    processes: dict[int, WorkerProcess] = {}
    with _all_or_none(processes):
        for rank in ranks:
            processes[rank] = _Rerun(subprocess.Popen(command, cwd=cwd, env={**os.environ, **environment(rank)}))
    return Workers(processes)


@contextlib.contextmanager
def _all_or_none(processes: Mapping[int, WorkerProcess]) -> Iterator[None]:
    """End the processes that were started when starting the next one fails or is interrupted."""
    try:
        yield
    except BaseException:
        Workers(processes).end()
        raise


def leave_the_end_to_rank_zero() -> None:
    """Ignore what reaches the whole job: rank 0 ends its workers. What this process forks is ended as ever."""
    worker = os.getpid()

    def outlive(signum: int, frame: object) -> None:
        if os.getpid() != worker:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    if threading.current_thread() is threading.main_thread():  # no other may set it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, outlive)


def watch_parent(parent: int, *, deaf: bool = True) -> None:
    """Live as long as ``parent``, which started this process: end, from a thread, when it is gone.

    ``deaf``: and not before; Ctrl-C and SIGTERM, which reach the whole job, are left to it.
    """
    if deaf:
        leave_the_end_to_rank_zero()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@functools.cache
def live_with_agent() -> None:
    """End when torchrun's agent, which started this process, is killed; else nobody would end its ranks."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        watch_parent(os.getppid(), deaf=False)


def suggested_threads(local_ranks: int) -> int:
    """How many intra-op threads each of ``local_ranks`` processes should use on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), cores // local_ranks))
