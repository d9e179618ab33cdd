"""Which faults befall a run, and when: drawn from a seed, with nothing of a run in it.

A fault that can cost a worker's codewords takes one of the n - K places that a run can spare, from its begin until its
workers are expected to count again. A link that is cut takes one too, since one of its ends is enough.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

SIGNALS = ("kill", "stop", "strangers", "nan")
LINKS = ("cut", "one_way", "isolate", "shun", "throttle")  # need a host for each rank
KINDS = (*SIGNALS, *LINKS)
_PAIRS = ("cut", "one_way")
# A lost worker is expected to count again so many seconds after its fault is over; the run waits for what is so.
_RETURN_S = 4.0
# And a codeword that is spoilt is refused so soon.
_REFUSED_S = 0.5
_DURATIONS_S = {
    "kill": (0.0, 0.0),
    "stop": (0.5, 5.0),  # shorter and longer than a heartbeat
    "strangers": (0.5, 3.0),
    "nan": (0.0, 0.0),
    "cut": (0.3, 6.0),
    "one_way": (0.3, 6.0),
    "isolate": (0.3, 6.0),
    "shun": (0.3, 6.0),
    "throttle": (1.0, 6.0),
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        number: counts a schedule's faults from 0.
        kind: of `KINDS`: a SIGKILL; SIGSTOP and SIGCONT; strangers at rank 0's ports; one gradient that is NaN; the
            link of a pair cut, or cut from the first to the second alone; a worker cut off from all, or from all but
            rank 0; a worker's link throttled to 1 Mbit/s.
        at_s: when it begins, in seconds after the schedule's begin.
        lasts_s: how long it lasts.
        workers: whom it befalls; empty for strangers.
    """

    number: int
    kind: str
    at_s: float
    lasts_s: float
    workers: tuple[int, ...]

    @property
    def suspects(self) -> tuple[int, ...]:
        """Who may be an erasure for it: never rank 0."""
        return () if self.kind in ("nan", "strangers") else tuple(worker for worker in self.workers if worker)

    @property
    def places(self) -> int:
        """How many codewords of an update it can cost."""
        return 0 if self.kind == "strangers" else 1

    @property
    def over_s(self) -> float:
        """When its workers are expected to count again."""
        return self.at_s + self.lasts_s + (_RETURN_S if self.suspects else _REFUSED_S if self.places else 0.0)


def schedule(
    seed: int, workers: int, spare: int, seconds: float, count: int, kinds: Sequence[str] = KINDS
) -> list[Fault]:
    """``count`` faults in ``seconds``, at random moments, of random kinds, of which ``spare`` at most overlap.

    A fault for which there is no place at its moment comes when there is one, perhaps after ``seconds``.

    Args:
        seed: of all choices.
        workers: n, rank 0's included, which can be spoilt and an end of a cut, and no more.
        spare: n - K.
        seconds: moments are drawn from 0 to this.
        count: of faults.
        kinds: that are drawn from.

    Raises:
        ValueError: no worker can be spared, or there are fewer than two beside rank 0.
    """
    if spare < 1 or workers < 3:
        raise ValueError(f"workers={workers} with {spare} to spare: use 3 workers or more, and K below n.")
    draw = random.Random(seed)
    faults: list[Fault] = []
    now = 0.0
    for number, moment in enumerate(sorted(draw.uniform(0, seconds) for _ in range(count))):
        kind = draw.choice(list(kinds))
        lasts_s = draw.uniform(*_DURATIONS_S[kind])
        now = max(now, moment)
        while (found := _begun(faults, number, kind, now, lasts_s, workers, spare, draw)) is None:
            now = min(fault.over_s for fault in faults if fault.over_s > now)
        faults.append(found)
    return faults


def _begun(
    faults: Sequence[Fault],
    number: int,
    kind: str,
    at_s: float,
    lasts_s: float,
    workers: int,
    spare: int,
    draw: random.Random,
) -> Fault | None:
    """The fault, where there is a place for it at this moment and there are workers that nothing else befalls."""
    under_way = [fault for fault in faults if fault.over_s > at_s]
    taken = {worker for fault in under_way for worker in fault.workers}
    fresh = [worker for worker in range(workers) if worker not in taken]
    if kind == "strangers":
        return Fault(number, kind, at_s, lasts_s, ())
    if sum(fault.places for fault in under_way) >= spare:
        return None
    if kind not in (*_PAIRS, "nan"):
        fresh = [worker for worker in fresh if worker]
    needed = 2 if kind in _PAIRS else 1
    if len(fresh) < needed:
        return None
    return Fault(number, kind, at_s, lasts_s, tuple(draw.sample(fresh, needed)))
