"""The ranks of a machine that rank 0 is not on: its first process starts the others, again where one is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from lwpd_lightning.launcher import rerun_workers
from lwpd_lightning.rule.restarts import Restarts

# How often it is looked whether one has ended.
_LOOK_S = 0.2


class Siblings:
    """Processes that run the job's command beside this one, until `end`.

    One that was killed, or ended with an error, is started again as `Restarts` says: rank 0 lets it in.

    Args:
        ranks: their local ranks.
        environment: what a local rank finds in its environment, beside this process' own.
        again: whether a local rank is to be started again when it is lost.
    """

    def __init__(
        self, ranks: range, environment: Callable[[int], Mapping[str, str]], again: Callable[[int], bool]
    ) -> None:
        self._ranks, self._environment, self._again = ranks, environment, again
        self._workers = rerun_workers(ranks, environment)
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._restart, name="siblings-watch", daemon=True)
        if ranks:
            self._watch.start()

    def end(self) -> None:
        """Wait briefly for all to end, then make them."""
        self._over.set()
        if self._ranks:
            self._watch.join()
        self._workers.end()

    def _restart(self) -> None:
        # Nobody but rank 0 knows whether one that lives has been given up.
        restarts, lost = Restarts(patience_s=float("inf")), set[int]()
        while not self._over.wait(_LOOK_S):
            now = time.monotonic()
            for rank in self._ranks:
                if not self._workers.failed(rank):
                    continue
                if rank not in lost:
                    restarts.lost(rank, now)
                    lost.add(rank)
                if self._again(rank) and restarts.may(rank, now, ended=True):
                    restarts.started(rank, now)
                    lost.discard(rank)
                    (process,) = rerun_workers(range(rank, rank + 1), self._environment).processes
                    self._workers.replace(rank, process)
