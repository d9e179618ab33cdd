"""Faults for real: what begins one, and what ends it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..bench.race.testbed import ShapedHosts
from .job import flag
from .ranks import Ranks, fork
from .schedule import Fault
from .strangers import crowd, ports

_THROTTLED_MBIT = 1.0
_STRANGERS = 300


class Faults:
    """Begins and ends faults of one run.

    Args:
        ranks: the run's processes.
        directory: its directory.
        bed: its hosts; None: ranks share this machine's, and no link can be cut.
    """

    def __init__(self, ranks: Ranks, directory: Path, bed: ShapedHosts | None) -> None:
        self._ranks, self._directory, self._bed = ranks, directory, bed
        self._cut = Counter[tuple[int, int]]()  # by how many faults, from one to another
        self._stopped: dict[int, int] = {}
        self._strangers: dict[int, int] = {}

    def begin(self, fault: Fault) -> bool:
        """Let a fault happen; False: its worker has no process at the moment, and it is to be tried again."""
        if fault.kind == "strangers":
            self._strangers[fault.number] = self._come(fault)
            return True
        if fault.kind in ("kill", "stop"):
            pid = self._ranks.pid(fault.workers[0])
            if pid is None:
                return False
            self._stopped[fault.number] = pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
        elif fault.kind == "nan":
            flag(self._directory, fault.workers[0]).touch()
        elif fault.kind == "throttle":
            assert self._bed is not None
            self._bed.throttle(fault.workers[0], _THROTTLED_MBIT)
        else:
            for pair in self._pairs(fault):
                self._cut[pair] += 1
                if self._cut[pair] == 1:
                    assert self._bed is not None
                    self._bed.cut(*pair)
        return True

    def end(self, fault: Fault) -> None:
        """Let it be over."""
        if fault.kind == "strangers":
            os.waitpid(self._strangers.pop(fault.number), 0)
        elif fault.kind == "stop":
            with contextlib.suppress(ProcessLookupError):  # a fork that was given up is killed
                os.kill(self._stopped.pop(fault.number), signal.SIGCONT)
        elif fault.kind == "throttle":
            assert self._bed is not None
            self._bed.unthrottle(fault.workers[0])
        elif fault.kind not in ("kill", "nan"):
            for pair in self._pairs(fault):
                self._cut[pair] -= 1
                if not self._cut[pair]:
                    assert self._bed is not None
                    self._bed.mend(*pair)

    def close(self) -> None:
        """Send the strangers away."""
        for pid in self._strangers.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _pairs(self, fault: Fault) -> Iterable[tuple[int, int]]:
        """From whom to whom nothing passes."""
        one, *other = fault.workers
        if fault.kind == "one_way":
            return [(one, other[0])]
        if fault.kind == "cut":
            return [(one, other[0]), (other[0], one)]
        assert self._bed is not None
        others = [rank for rank in range(len(self._bed.hosts)) if rank != one and (rank or fault.kind == "isolate")]
        return [pair for rank in others for pair in ((one, rank), (rank, one))]

    def _come(self, fault: Fault) -> int:
        pid = self._ranks.pid(0)
        addresses = ports(pid) if pid is not None else []

        def work() -> None:
            if self._bed is not None:
                self._bed.hosts[0].enter()
            if addresses:
                crowd(addresses, _STRANGERS, holds=fault.number % 2 == 0, lasts_s=fault.lasts_s)

        return fork(work)
