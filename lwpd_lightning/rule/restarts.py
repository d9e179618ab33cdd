"""How soon, and how often, another process is started for a worker that was lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Seconds between two starts of one worker; doubled each time, up to the longest.
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# Starts in a row that may come to nothing.
LIMIT = 6
# A worker that has stayed for so long since its last start was lost for another reason than before.
_STEADY_S = 60.0


@dataclass
class _Starts:
    count: int = 0
    last: float = 0.0


class Restarts:
    """When the process of a lost worker may be started again: at once, then after 1, 2, 4 ... 60 s; six times in a row.

    Whoever has lived for a minute since begins anew.

    Args:
        patience_s: seconds in which a process that was given up, and lives, may come back by itself.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._starts: dict[int, _Starts] = {}
        self._lost: dict[int, float] = {}  # when it was, last

    def may(self, worker: int, now: float, *, ended: bool) -> bool:
        """Whether a lost worker is to be started again at ``now`` (seconds).

        ``ended``: its process has; one that lives on, as it hangs, is waited for.
        """
        starts = self._starts.get(worker, _Starts())
        if starts.count >= LIMIT or not (ended or now - self._lost.get(worker, now) >= self._patience_s):
            return False
        return not starts.count or now - starts.last >= min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (starts.count - 1))

    def hopeless(self, worker: int) -> bool:
        """Whether it is not started any more."""
        return self._starts.get(worker, _Starts()).count >= LIMIT

    def give_up(self, worker: int) -> None:
        """It cannot be started."""
        self._starts[worker] = _Starts(LIMIT, math.inf)

    def started(self, worker: int, now: float) -> None:
        """It has been."""
        starts = self._starts.setdefault(worker, _Starts())
        starts.count, starts.last = starts.count + 1, now

    def lost(self, worker: int, now: float) -> None:
        """It is lost, perhaps again."""
        self._lost[worker] = now
        starts = self._starts.get(worker)
        if starts is not None and now - starts.last >= _STEADY_S:
            del self._starts[worker]
