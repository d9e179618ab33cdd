"""Whom updates do without for the moment: who holds a decision up, found long before its link counts as ended.

Neither sockets nor clocks are here: what happened is told, with the time, and what follows from it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Set

# A decision that takes so many times as long as any of the last ones is held up; the longest few of these are left out,
# such as the first ones, which warm up.
_TIMES, _REMEMBERED, _LEFT_OUT = 4, 64, 3
# An answer is short, and may take less.
_ANSWER = 0.5
# Before so many nobody can tell how long one takes.
_LEAST_DECISIONS = 16
# A rank that the machine does not run for so long is not held against anybody.
_LEAST_S = 0.2


class Doubts:
    """What rank 0 finds out about a decision that is not carried out in time.

    Who counts in a decision waits for it and has nothing else to do, so that it is carried out in a fraction of a
    heartbeat. One that takes several times as long as the last ones has lost somebody: rank 0 asks those that count
    what they lack of it. Who does not answer either is silent. Who answers tells from whom nothing came: the two are
    in doubt until the one has heard of the other. Doubt erases nobody. Updates leave a worker in doubt out while enough
    others are there, and the links' heartbeats decide about it meanwhile.

    Args:
        longest_s: a decision is held up after so many seconds at the latest: of the heartbeat.

    Attributes:
        lacking: (worker, another), where nothing came to the one from the other.
        silent: workers that have not answered, each with the first decision of the update that it holds up: it may yet
            carry out that one and those after it.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._times = deque[float](maxlen=_REMEMBERED)
        self.lacking: set[tuple[int, int]] = set()
        self.silent: dict[int, int] = {}
        self._decision: int | None = None  # that is to be carried out, while nobody is found to hold it up
        self._first: int | None = None  # of the decisions on the same update
        self._since = self._looked_at = 0.0  # it was decided, and asked or judged about last
        self._asked: set[int] | None = None  # who is yet to answer; None: nobody has been asked
        self._named: set[tuple[int, int]] = set()  # what those lack that have answered

    @property
    def patience_s(self) -> float:
        """How long a decision may take before it is held up."""
        if len(self._times) < _LEAST_DECISIONS:
            return self._longest_s
        return min(self._longest_s, max(_LEAST_S, _TIMES * sorted(self._times)[-1 - _LEFT_OUT]))

    @property
    def oldest(self) -> int | None:
        """The oldest decision that a silent worker may yet carry out."""
        return min(self.silent.values(), default=None)

    def decided(self, number: int, now: float) -> None:
        """A decision is to be carried out from now on, and none before it."""
        self._decision, self._asked, self._since, self._looked_at = number, None, now, now
        self._first = number if self._first is None else self._first

    def void(self) -> None:
        """The decision is not to be carried out: another on the same update comes."""
        self._decision = None

    def carried_out(self, now: float) -> None:
        """It has been, and with it the update is over."""
        if self._decision is not None:
            self._times.append(now - self._since)
        self._decision = self._first = None

    def left_s(self, now: float) -> float | None:
        """Seconds until there is something to ask or to judge; None: there is no decision to be carried out."""
        if self._decision is None:
            return None
        if self._asked is not None and not self._asked:
            return 0.0
        patience_s = self.patience_s if self._asked is None else _ANSWER * self.patience_s
        return max(0.0, self._looked_at + patience_s - now)

    def ask(self, workers: Collection[int], now: float) -> set[int]:
        """Whom to ask now what they lack of the decision that is to be carried out; nobody while it is not held up.

        Args:
            workers: that count in it, without rank 0's own.
            now: the time, at which all that has come is known.
        """
        if self._asked is not None or self.left_s(now) != 0.0:
            return set()
        self._asked, self._looked_at, self._named = set(workers) - self.silent.keys(), now, set()
        return set(self._asked)

    def answered(self, worker: int, number: int, lacks: Set[int]) -> None:
        """A worker that was asked about a decision lacks something of these others, which may be none."""
        if number >= self.silent.get(worker, number):
            self.silent.pop(worker, None)
        if self._asked is not None and number == self._decision and worker in self._asked:
            self._asked.discard(worker)
            self._named |= {(worker, other) for other in lacks - {worker}}

    def linked(self, worker: int, other: int) -> None:
        """Something came to a worker from another."""
        self.lacking.discard((worker, other))

    def lose(self, worker: int) -> None:
        """A worker is an erasure: there is no doubt any more."""
        self.silent.pop(worker, None)
        self.lacking = {pair for pair in self.lacking if worker not in pair}
        self._named = {pair for pair in self._named if worker not in pair}
        if self._asked is not None:
            self._asked.discard(worker)

    def judge(self, missing: Collection[int], now: float) -> bool:
        """Whether somebody is in doubt by what was asked last; where nobody is, it is asked again later.

        Args:
            missing: workers whose sum of the decision has not come.
            now: the time, at which all that has come is known.
        """
        if self._asked is None or self.left_s(now) != 0.0:
            return False
        assert self._first is not None
        silent = self._asked & ({other for _, other in self._named} | set(missing))
        found = bool(silent or self._named)
        self.silent |= dict.fromkeys(silent, self._first)
        self.lacking |= self._named
        self._decision = None if found else self._decision
        self._asked, self._looked_at = None, now
        return found
