"""Forks that take a lost fork's place, from a process that was forked before the exchange had sockets and threads."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from lwpd_lightning.launcher import PARENT_CHECK_S, WorkerProcess, fork_workers, forked, leave_the_end_to_rank_zero

# How long the nursery may take to fork: a moment, where memory is there.
_FORK_S = 30.0


class Nursery:
    """A process that holds the model as it was when the exchange began, and forks workers when it is asked to.

    Rank 0 itself cannot fork any more: it has the exchange's sockets and threads. Costs the memory of one model.

    Args:
        work: what a worker of a rank does.
        leave: lets go of what is rank 0's alone.
    """

    def __init__(self, work: Callable[[int], None], leave: Callable[[], None]) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = forked(_tend, (theirs, work, leave, os.getpid()), "lwpd-nursery")
        theirs.close()

    def start(self, rank: int) -> WorkerProcess | None:
        """Another worker of a rank; None where the nursery is gone."""
        pid = self._ask(("start", rank), _FORK_S)
        return None if pid is None else _Fledgling(self, pid)

    def exit_code(self, pid: int, wait_s: float) -> int | None:
        """How a worker that it forked has ended; None where it lives after ``wait_s`` seconds."""
        if not self._process.is_alive():
            return -signal.SIGKILL  # its workers end with it
        return self._ask(("exit", pid, wait_s), wait_s + _FORK_S)

    def end(self) -> None:
        """End it, and with it whatever still lives of what it has forked."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._ours.close()

    def _ask(self, what: tuple[object, ...], patience_s: float) -> int | None:
        with contextlib.suppress(EOFError, OSError):
            self._ours.send(what)
            if self._ours.poll(patience_s):
                answer: int | None = self._ours.recv()
                return answer
        self._process.kill()  # or an answer that comes late would be taken for another's
        return None


class _Fledgling:
    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self._nursery = pid, nursery
        self._code: int | None = None

    def exit_code(self, wait_s: float) -> int | None:
        if self._code is None:
            self._code = self._nursery.exit_code(self.pid, wait_s)
        return self._code


def _tend(channel: Connection, work: Callable[[int], None], leave: Callable[[], None], parent: int) -> None:
    """Fork when asked, tell how what was forked has ended, and end with rank 0."""
    gc.freeze()
    leave_the_end_to_rank_zero()
    leave()
    forks: dict[int, WorkerProcess] = {}

    def serve(rank: int) -> None:
        channel.close()
        work(rank)

    while os.getppid() == parent:
        if not channel.poll(PARENT_CHECK_S):
            continue
        what, *arguments = channel.recv()
        if what == "start":
            (rank,) = arguments
            (process,) = fork_workers([rank], serve).processes
            forks[process.pid] = process
            channel.send(process.pid)
        else:
            pid, wait_s = arguments
            channel.send(forks[pid].exit_code(wait_s))
    os._exit(1)
