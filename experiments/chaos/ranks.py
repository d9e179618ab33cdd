"""The processes of a run: rank 0 with the workers that it forks, or each rank on a host of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lwpd_lightning.testing.job import processes_of

from ..bench.forked import work_and_end
from ..bench.race.testbed import Host
from .job import Settings, become
from .log import Log

_PORT = 29400


class Ranks:
    """Starts and ends the processes, and says which is whose.

    Ranks on hosts of their own are started again when they end while rank 0 lives, as a scheduler would. Workers that
    rank 0 forked are its own to start again.

    Args:
        settings: of the run.
        directory: for what ranks print.
        log: is told who started and who ended.
        hosts: of the ranks, in their order; empty: rank 0 forks the others.
    """

    def __init__(self, settings: Settings, directory: Path, log: Log, hosts: list[Host]) -> None:
        self._settings, self._directory, self._log, self._hosts = settings, directory, log, hosts
        self._key = secrets.token_hex(32)
        self._pids: dict[int, int] = {}
        self._sessions: set[int] = set()
        self.code: int | None = None  # rank 0's, once it has ended

    def start(self) -> None:
        """Start all that are to be started from here."""
        for rank in range(len(self._hosts) or 1):
            self._start(rank)

    def pid(self, rank: int) -> int | None:
        """Of a rank's process; None while there is none."""
        if self._hosts or rank == 0:
            return self._pids.get(rank)
        of_rank = [pid for pid, name in processes_of(self._pids.get(0, 0)).items() if name == f"lwpd-rank-{rank}"]
        return of_rank[0] if of_rank else None

    def look(self) -> None:
        """See who has ended, and start again who is to be."""
        for rank, pid in list(self._pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self._pids[rank]
            code = os.waitstatus_to_exitcode(status)
            self._log.write("ended", rank=rank, pid=pid, code=code)
            if rank == 0:
                self.code = code
            elif self.code is None and code:
                self._start(rank)

    @property
    def left(self) -> dict[int, str]:
        """Processes of the run that live: pid -> name."""
        return {pid: name for session in self._sessions for pid, name in processes_of(session).items()}

    def end(self) -> None:
        """Kill all that is left."""
        for pid in self.left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)
        self._pids.clear()

    def _start(self, rank: int) -> None:
        def work() -> None:
            if self._hosts:
                self._hosts[rank].enter()
                os.environ |= {
                    "NODE_RANK": str(rank), "MASTER_ADDR": self._hosts[0].address, "MASTER_PORT": str(_PORT),
                    "LWPD_RUN_KEY": self._key,
                }  # fmt: skip
            become(self._settings, self._directory, self._log, rank)

        pid = fork(work)
        self._pids[rank] = pid
        self._sessions.add(pid)
        self._log.write("started", rank=rank, pid=pid)


def fork(work: Callable[[], None]) -> int:
    """The pid of a child, in a session of its own, that does its work and ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    begins, begin = os.pipe()
    pid = os.fork()
    if pid:
        os.close(begin)
        os.read(begins, 1)  # until it has its session, by which it is found
        os.close(begins)
        return pid

    def begun() -> None:
        os.setsid()
        os.close(begin)
        os.close(begins)
        work()

    work_and_end(begun)
