"""One run with a schedule of faults, or without: real processes, real signals, real links."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ..bench.race.testbed import ShapedHosts
from .faults import Faults
from .job import Settings, wish
from .log import Event, Log, Tail
from .ranks import Ranks
from .schedule import Fault

# Faults begin after so many updates, and the run ends so many after the last of them.
BEGINS, FURTHER = 20, 25
_LOOK_S = 0.02
# Heartbeats after which it is known whether who was silent is lost.
_SETTLED = 1.5
_ENDING_S = 30.0
# The command itself is never late by so much on a machine that has time for it.
_STALL_S = 0.1


class _Progress:
    """What a run has logged so far, as far as it steers the faults."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self.update, self.began_at = 0, 0.0  # began_at: time of the update at which faults may begin
        self.counted: dict[int, float] = {}  # when each worker counted last
        self.lost: dict[int, float] = {}  # and was lost last
        self.spoilt: dict[int, float] = {}

    def read(self) -> None:
        """What has come since the last time."""
        for event in self._tail.read():
            if event["event"] == "update":
                self._updated(event)
            elif event["event"] in ("lost", "spoilt"):
                getattr(self, event["event"])[event["worker"]] = event["t"]

    def _updated(self, event: Event) -> None:
        self.update = event["update"]
        if self.update >= BEGINS:
            self.began_at = self.began_at or event["t"]
        self.counted |= dict.fromkeys(event["arrived"], event["t"])

    def recovered(self, fault: Fault, began: float, undone: float, settled_s: float) -> bool:
        """Whether nothing of a fault is left: its suspects have counted since it is known whether they were lost."""
        if fault.kind == "nan" and not self.spoilt.get(fault.workers[0], -1.0) >= began:
            return False
        if fault.kind == "kill" and not self.lost.get(fault.workers[0], -1.0) >= began:
            return False
        since = undone + settled_s
        return all(self.counted.get(w, -1.0) > max(since, self.lost.get(w, -1.0)) for w in fault.suspects)


def run(
    settings: Settings,
    faults: Sequence[Fault],
    directory: Path,
    *,
    seed: int | None = None,
    seconds: float = 0.0,
    limit_s: float,
) -> Path:
    """Train, let faults happen, and give the path of the event log.

    A fault waits until there is a place for it among the n - K that can be spared: whether workers have come back is
    seen in the log. The run ends some updates after all have, and after ``seconds``, or at ``settings.updates``.

    Args:
        settings: of the run.
        faults: its schedule.
        directory: a new one; an older one of that name is removed.
        seed: of the schedule, for the log.
        seconds: the least time from the first fault's moment on.
        limit_s: a run that takes longer hangs.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    began = time.monotonic()
    log = Log(directory / "events.jsonl", began)
    log.write(
        "run", workers=settings.workers, wait_for=settings.wait_for, heartbeat_s=settings.heartbeat_s, seed=seed,
        place="hosts" if settings.hosts else "forks",
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        bed = stack.enter_context(ShapedHosts(settings.workers)) if settings.hosts else None
        ranks = Ranks(settings, directory, log, bed.hosts if bed is not None else [])
        stack.callback(ranks.end)
        under = Faults(ranks, directory, bed)
        stack.callback(under.close)
        ranks.start()
        _Conductor(settings, log, ranks, under, faults).conduct(directory, seconds, began + limit_s)
        left = _ended(ranks, time.monotonic() + _ENDING_S)
        log.write("done", code=ranks.code, left=left)
    return log.path


class _Conductor:
    """Lets faults begin and end while a run goes on."""

    def __init__(self, settings: Settings, log: Log, ranks: Ranks, under: Faults, faults: Sequence[Fault]) -> None:
        self._settings, self._log, self._ranks, self._under = settings, log, ranks, under
        self._waiting = list(faults)
        self._begun: dict[Fault, float] = {}  # that have an effect, and since when
        self._undone: dict[Fault, float] = {}

    def conduct(self, directory: Path, seconds: float, deadline: float) -> None:
        """Until rank 0 has ended, or the deadline is over."""
        progress = _Progress(self._log.path)
        wished = self._settings.updates is not None
        looked = time.monotonic()
        while self._ranks.code is None and time.monotonic() < deadline:
            if (late := time.monotonic() - looked - _LOOK_S) > _STALL_S:
                self._log.write("stalled", seconds=round(late, 3))
            self._ranks.look()
            progress.read()
            if progress.began_at:
                now = self._log.now()
                self._end_and_begin(progress, now)
                over = not self._waiting and not self._begun and now - progress.began_at >= seconds
                if over and not wished:
                    wished, end = True, progress.update + FURTHER
                    self._log.write("wish", update=end)
                    passing = directory / "wish-to-be"
                    passing.write_text(str(end))
                    passing.rename(wish(directory))  # whole when it is read
            looked = time.monotonic()
            time.sleep(_LOOK_S)

    def _end_and_begin(self, progress: _Progress, now: float) -> None:
        for fault, since in list(self._begun.items()):
            if fault not in self._undone and now - since >= fault.lasts_s:
                self._under.end(fault)
                self._undone[fault] = self._log.now()
                self._log.write("undone", number=fault.number)
            settled_s = _SETTLED * self._settings.heartbeat_s
            if fault in self._undone and progress.recovered(fault, since, self._undone[fault], settled_s):
                del self._begun[fault]
                self._log.write("recovered", number=fault.number)
        if not self._waiting or now - progress.began_at < self._waiting[0].at_s:
            return
        fault = self._waiting[0]
        spare = self._settings.workers - self._settings.wait_for
        befallen = {worker for other in self._begun for worker in other.workers}
        taken = sum(other.places for other in self._begun)
        if (fault.places and taken + fault.places > spare) or befallen & set(fault.workers):
            return
        since = self._log.now()
        self._log.write("fault", suspects=fault.suspects, **_told(fault))
        if self._under.begin(fault):
            del self._waiting[0]
            self._begun[fault] = since


def _told(fault: Fault) -> Event:
    return {"number": fault.number, "kind": fault.kind, "workers": fault.workers, "lasts_s": round(fault.lasts_s, 3)}


def _ended(ranks: Ranks, deadline: float) -> list[str]:
    """Wait for all processes to end; the names of those that did not."""
    while (left := ranks.left) and time.monotonic() < deadline and ranks.code is not None:
        ranks.look()
        time.sleep(_LOOK_S)
    ranks.look()
    return sorted(left.values())
