"""The event log of a run: lines of JSON, from which alone all its figures are derived.

Every line has ``t``, seconds since the run's start on one clock for all processes, and ``event``:

========= ====================================================================================================
event     further fields
========= ====================================================================================================
run       workers (n), wait_for (K), heartbeat_s, place ("hosts" or "forks"), seed (of the schedule; null: no faults)
started   rank, pid: a process of the rank was started by the command (forked workers by rank 0 are not told of)
update    update (optimizer steps so far), version (that it steps from), arrived (workers that counted), refused
          (workers whose codeword was not finite), live: rank 0 has made an update
lost      worker, update, reason: rank 0 has given a worker up; told with the update after
fault     number, kind, workers, lasts_s, suspects (workers that may be an erasure for it)
spoilt    worker: a gradient was made NaN
undone    number: the fault is over (SIGCONT, the link mended ...), but workers may still be away
recovered number: all of the fault's suspects count again
ended     rank, pid, code: a process of the rank ended, negative by a signal
stalled   seconds: the command itself was not run for so long by a busy machine, and ranks may not have been
wish      update: where rank 0 is to end
trained   metric: validation accuracy at the end, of rank 0
done      code (rank 0's; null: it did not end in time), left (names of processes that did not end with it)
========= ====================================================================================================

Lines are appended whole, so that several processes write into one file, in an order that may differ a little from t's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Log:
    """Appends to an event log; may be handed on to other processes of this machine.

    Args:
        path: of the file.
        began: what `time.monotonic` was at the run's start.
    """

    def __init__(self, path: Path, began: float) -> None:
        self.path, self._began = path, began

    def now(self) -> float:
        """Seconds since the run's start."""
        return time.monotonic() - self._began

    def write(self, event: str, **fields: Any) -> None:
        """Append one line, with the time now."""
        line = json.dumps({"t": round(self.now(), 4), "event": event, **fields})
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode() + b"\n")  # one call: lines of two processes do not mix
        finally:
            os.close(file)


class Tail:
    """Reads what has been appended since the last time."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def read(self) -> list[Event]:
        """New events, as they were written."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def read(path: Path) -> list[Event]:
    """All events of a log, by their times."""
    return sorted(Tail(path).read(), key=lambda event: float(event["t"]))
