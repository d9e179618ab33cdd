"""Who is in: rank 0's one truth about which process has each worker's row, and which links between workers stand.

Each process of a worker draws an incarnation when it starts, and all that it sends carries it. Only what comes from the
incarnation that has the row has an effect; one that is lost never has again. Neither sockets nor clocks are here: what
happened is told, with the time, and what follows from it is read.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Set
from dataclasses import dataclass, field

from lwpd_lightning.rule.cover import connected, smallest_cover
from lwpd_lightning.rule.doubts import Doubts

# Times that a link between two workers may break and come back in one update, before it is taken for cut.
RETRIES = 3
# Greetings that a broken link is given the time for, however late rank 0 looks.
_GREETINGS = 2
# Who counts is not given up before so many times as long for links to some that do not count yet: those of their older
# processes may end just now.
_NEWCOMERS = 6
# As many workers are named one by one.
_MOST_LISTED = 16


class Standing(enum.IntEnum):  # which are hashed in C, twenty times as fast: they are looked up with each message
    """How far a worker's process has come."""

    VACANT = enum.auto()  # none has come yet
    JOINING = enum.auto()  # it belongs here, and is yet to meet the others
    LIVE = enum.auto()
    LOST = enum.auto()  # an erasure, until another process takes its place


class Refused(RuntimeError):
    """A process that may not have the row that it asks for."""


@dataclass(frozen=True)
class Introduction:
    """Who is told of whom.

    Attributes:
        number: counts introductions from 1.
        newcomers: workers that are told of all that are in.
        elders: workers that are told of the newcomers.
        addresses: incarnation and address of all that are in, by worker.
        joining: elders that do not count yet: a newcomer need not have met them before it does.
    """

    number: int
    newcomers: list[int]
    elders: list[int]
    addresses: dict[int, tuple[int, str]]
    joining: Set[int]


@dataclass
class _Member:
    incarnation: int = 0
    address: str = ""
    since: float = 0.0  # when it began to join
    introduced: int = 0  # the number of the introduction that told of it; 0: none has
    met: int = 0  # the newest introduction of which it has met its neighbours
    unmet: Set[int] = frozenset()  # without these


@dataclass
class _Broken:
    """A link between two workers that ended: when that was told, and how often they were asked to greet since."""

    since: float
    reporter: int  # who said so first
    greetings: int = 0


@dataclass
class Membership:
    """Decides who is in.

    Args:
        workers: rows that other processes than rank 0 have.
        own: the row that rank 0 has itself, which is always live; None: a dedicated coordinator.
        grace_s: seconds that a link between two workers may take to come back.
        join_s: seconds that a process may take to meet the others, once training goes on without it.
        doubts: who holds decisions up.
    """

    workers: Collection[int]
    own: int | None
    grace_s: float
    join_s: float
    doubts: Doubts

    _members: dict[int, _Member] = field(init=False)
    _standing: dict[Standing, set[int]] = field(init=False)
    _introductions: int = field(init=False, default=0)
    _broken: dict[frozenset[int], _Broken] = field(init=False, default_factory=dict)
    _losses: Counter[int] = field(init=False, default_factory=Counter)
    _flaps: Counter[frozenset[int]] = field(init=False, default_factory=Counter)  # in the open update

    def __post_init__(self) -> None:
        self._members = {worker: _Member() for worker in self.workers}
        self._standing = {standing: set() for standing in Standing} | {Standing.VACANT: set(self.workers)}

    # Who is in.

    @property
    def live(self) -> set[int]:
        """Workers that count, rank 0's own included."""
        own = set() if self.own is None else {self.own}
        return own | self._standing[Standing.LIVE]

    @property
    def present(self) -> set[int]:
        """Workers that are told what happens: live ones and those that join, without rank 0's own."""
        return self._standing[Standing.LIVE] | self._standing[Standing.JOINING]

    @property
    def expected(self) -> set[int]:
        """Workers that the start waits for."""
        return self._standing[Standing.VACANT] | self._standing[Standing.JOINING]

    @property
    def vacant(self) -> set[int]:
        """Workers of whom no process has come yet."""
        return set(self._standing[Standing.VACANT])

    @property
    def lost(self) -> set[int]:
        """Erasures, until another process takes their place."""
        return set(self._standing[Standing.LOST])

    def holds(self, worker: int, incarnation: int) -> bool:
        """Whether what this incarnation says has an effect."""
        return self._is_in(worker) and self._members[worker].incarnation == incarnation

    def incarnation(self, worker: int) -> int:
        """Of the process that has or had a worker's row; 0: there was none."""
        return self._members[worker].incarnation

    def join(self, worker: int, incarnation: int, address: str, now: float) -> None:
        """A process asks for a worker's row.

        Args:
            worker: the row.
            incarnation: of the process.
            address: of its inbox; empty where it has none.
            now: the time.

        Raises:
            Refused: another process has the row, or this one has lost it.
        """
        same = self._members[worker].incarnation == incarnation
        if same and worker in self._standing[Standing.LOST]:
            raise Refused(f"worker {worker} has been given up: training goes on without this process")
        if not same and self._is_in(worker):
            raise Refused(f"worker {worker} is in this run already: another process with its rank answers")
        self._members[worker] = _Member(incarnation, address, now)
        self._place(worker, Standing.JOINING)

    def introduce(self) -> Introduction | None:
        """Who is to be told of whom now; None: nobody, as while any worker is still to come at the start."""
        if self._standing[Standing.VACANT]:
            return None
        newcomers = sorted(w for w in self._standing[Standing.JOINING] if not self._members[w].introduced)
        if not newcomers:
            return None
        self._introductions += 1
        elders, joining = sorted(self.present - set(newcomers)), self._standing[Standing.JOINING] - set(newcomers)
        for worker in newcomers:
            self._members[worker].introduced = self._introductions
        addresses = {w: (self._members[w].incarnation, self._members[w].address) for w in sorted(self.present)}
        return Introduction(self._introductions, newcomers, elders, addresses, joining)

    def meets(self, worker: int, number: int, unmet: Set[int] = frozenset()) -> set[int]:
        """A worker has met its neighbours among those of introductions up to ``number``, but for those that are unmet.

        Gives who is live now.
        """
        member = self._members[worker]
        member.met, member.unmet = max(number, member.met), unmet
        return self._promote()

    def lose(self, worker: int) -> set[int]:
        """A worker is an erasure from now on; gives who is live now, since nobody waits to meet it any more."""
        self._place(worker, Standing.LOST)
        self._losses[worker] += 1
        self._broken = {pair: broken for pair, broken in self._broken.items() if worker not in pair}
        self.doubts.lose(worker)
        return self._promote()

    def late(self, now: float) -> set[int]:
        """Who has not met the others in time, while training goes on."""
        joining = self._standing[Standing.JOINING]
        return {w for w in joining if self._members[w].introduced and now - self._members[w].since > self.join_s}

    # Links between workers.

    def update_begins(self) -> None:
        """Links that broke and came back are counted anew."""
        self._flaps.clear()

    def unlinked(self, reporter: int, worker: int, now: float, *, stands: bool) -> bool:
        """A worker says that its link from another ended; gives whether that concerns two that are in.

        ``stands``: another link has taken its place, so that only what was on it is lost.
        """
        if not {reporter, worker} <= self.present:
            return False
        pair = frozenset((reporter, worker))
        self._flaps[pair] += 1
        if self._flaps[pair] > RETRIES:
            self._broken[pair] = _Broken(now - self.grace_s, reporter, _GREETINGS)
        elif not stands:
            self._broken.setdefault(pair, _Broken(now, reporter))
        return True

    def linked(self, reporter: int, worker: int) -> None:
        """A worker says that another's greeting has come."""
        self.doubts.linked(reporter, worker)
        pair = frozenset((reporter, worker))
        if self._flaps[pair] <= RETRIES:
            self._broken.pop(pair, None)

    def lacks(self, worker: int, decision: int, others: Set[int]) -> None:
        """A worker that was asked about a decision lacks something of others; what rank 0 sent came before it asked."""
        self.doubts.answered(worker, decision, others & self.present)

    def broken(self, workers: Set[int]) -> bool:
        """Whether a link between two of these workers has ended and not come back."""
        return any(pair <= workers for pair in self._broken)

    def greetings(self) -> list[tuple[int, int]]:
        """Who is to greet whom, so that a link that has come back is known; to be asked for now and then."""
        asked = []
        for pair, broken in self._broken.items():
            broken.greetings += 1
            one, two = sorted(pair)
            asked += [(one, two), (two, one)]
        # What a silent worker is asked for waits for it, and must not fill its queue.
        return asked + [(two, one) for one, two in self.doubts.lacking if two not in self.doubts.silent]

    def in_doubt(self) -> set[int]:
        """The fewest live workers without whom no update is held up by links that broke, or over which nothing came."""
        if not self.doubts.silent and not self.doubts.lacking and not self._broken:
            return set()
        live, silent = self.live, self.doubts.silent.keys()
        left = {pair for pair in self._lacking | self._broken.keys() if pair <= live - silent}
        return live & silent | smallest_cover(left, self._doubts(left))

    def cut_off(self, now: float) -> dict[int, list[int]]:
        """The fewest workers without whom all links that count stand, each with those that it is cut off from.

        A worker that nobody reaches loses its links one after another: those that hang together are judged together,
        when the first has had its time, where they have one worker in common, or else when the last has had it, or the
        first has had it twice. Where something is missing between two whose link stands, that is a pair like any other.
        Of two, it is one that does not count yet, is silent, was lost more often, or was slower to speak.
        """
        gone, live = {}, self.live
        for pairs in connected(self._broken.keys() | self._lacking):
            ages = {pair: now - self._broken[pair].since for pair in pairs & self._broken.keys()}
            if not ages:
                continue
            plain = len(pairs) > 1 and frozenset.intersection(*pairs)
            if min(ages.values()) < self.grace_s and not plain and max(ages.values()) < 2 * self.grace_s:
                continue
            late = {p for p, age in ages.items() if age >= self.grace_s and self._broken[p].greetings >= _GREETINGS}
            later = {pair for pair in late if pair <= live or ages[pair] >= _NEWCOMERS * self.grace_s}
            for worker in smallest_cover(pairs, self._doubts(pairs)):
                if any(worker in pair for pair in (later if worker in live else late)):
                    gone[worker] = sorted(other for pair in ages if worker in pair for other in pair - {worker})
        return gone

    @property
    def _lacking(self) -> set[frozenset[int]]:
        return {frozenset(pair) for pair in self.doubts.lacking}

    def _doubts(self, pairs: Set[frozenset[int]]) -> dict[int, tuple[int, ...]]:
        """How little is to be said for each worker that has a link that ended."""
        told = pairs & self._broken.keys()
        quiet = Counter(worker for pair in told for worker in pair - {self._broken[pair].reporter})
        live, lost, silent = self.live, self._losses, self.doubts.silent
        return {w: (w not in live, w in silent, lost[w], quiet[w]) for pair in pairs for w in pair}

    def _is_in(self, worker: int) -> bool:
        return worker in self._standing[Standing.LIVE] or worker in self._standing[Standing.JOINING]

    def _place(self, worker: int, standing: Standing) -> None:
        for workers in self._standing.values():
            workers.discard(worker)
        self._standing[standing].add(worker)

    def _promote(self) -> set[int]:
        """Who joins is live once it and all that are live have met each other."""
        live = self._standing[Standing.LIVE]
        counts = [self._members[worker] for worker in live]
        met_by_all = min((member.met for member in counts), default=self._introductions)
        newest = max((member.introduced for member in counts), default=0)
        unmet = {worker for member in counts for worker in member.unmet}
        promoted = set()
        for worker in sorted(self._standing[Standing.JOINING]):
            member = self._members[worker]
            met = 0 < member.introduced <= min(member.met, met_by_all) and newest <= member.met
            if met and worker not in unmet and live.isdisjoint(member.unmet):
                self._place(worker, Standing.LIVE)
                promoted.add(worker)
                met_by_all, newest = min(met_by_all, member.met), max(newest, member.introduced)
                unmet |= member.unmet
        return promoted


def listed(workers: Collection[int]) -> str:
    """Workers as messages name them: all of a few, the first and the last of many.

    >>> listed({3, 1})
    '[1, 3]'
    >>> listed(range(1, 512))
    '[1, 2, 3, 4, 5, 6, 7, 8, ... 511] (511 of them)'
    """
    numbers = sorted(workers)
    if len(numbers) <= _MOST_LISTED:
        return str(numbers)
    return f"[{', '.join(map(str, numbers[: _MOST_LISTED // 2]))}, ... {numbers[-1]}] ({len(numbers)} of them)"
