"""The other workers, as one worker knows them: which process of each is in, who has greeted, whose link has ended."""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import Protocol

from torch import Tensor

from lwpd_lightning.links.header import Header, Op, ProtocolError
from lwpd_lightning.links.mesh import WorkerLinks
from lwpd_lightning.links.message import EMPTY, Messages, text
from lwpd_lightning.links.transport import LinkLost
from lwpd_lightning.reduction.reduction import Reduction

# Whom a worker meets before it counts: so many on either side by number, the last next to the first. A worker that no
# other reaches is found out so, at a cost that does not grow with the square of their number.
_NEIGHBOURS = 16


class Post(Protocol):
    """Sends rank 0 a message of this worker's."""

    def __call__(
        self, op: Op, payload: Tensor = EMPTY, rest: Tensor = EMPTY, *, version: int = 0, elements: int = 0
    ) -> None:
        """Queue it; ``version`` is whom it concerns, where it concerns a worker."""


class Peers:
    """What a worker knows of the others, and what it tells rank 0 of them.

    Rank 0 tells who is in, by (worker, incarnation). Neighbours by number greet each other, which are all where ranks
    are few; a worker says MET when those have greeted that counted when it came, and computes nothing before. It says
    it again when others have: who does not count yet may never reach it, and keeps nobody waiting. Links that end, or
    never stand when something is to come on them, are reported: rank 0 gives somebody up.

    Args:
        worker: who knows them.
        links: to the others; there are none where memory is shared.
        reduction: what is under way with them.
        messages: packs this fit's messages.
        post: to rank 0.
    """

    def __init__(self, worker: int, links: WorkerLinks, reduction: Reduction, messages: Messages, post: Post) -> None:
        self._worker, self._links, self._reduction, self._messages = worker, links, reduction, messages
        self._post = post
        ring = sorted({worker, *links.peers})
        here = ring.index(worker)
        near = {ring[(here + step) % len(ring)] for step in range(-_NEIGHBOURS, _NEIGHBOURS + 1)}
        self._neighbours = near - {worker}
        self._greeted: dict[int, int] = {}  # incarnation that has greeted last
        self.forget()

    def forget(self) -> None:
        """Rank 0 is to tell anew who is in."""
        self._introduction = 0
        self._incarnations: dict[int, int] = {}
        self._unmet: set[int] = set()  # who is yet to greet
        self._first: set[int] = set()  # who of these before this worker counts
        self._met: tuple[int, Set[int]] | None = None  # what rank 0 was told last: introduction, and who was unmet
        self._unlinked: set[int] = set()  # workers whose link to this one ended, or from whom something is missing

    @property
    def met(self) -> bool:
        """Whether all neighbours have greeted that counted when this worker came."""
        return self._met is not None

    def is_in(self, header: Header) -> bool:
        """Whether a message comes from the process that rank 0 told of."""
        return self._incarnations.get(header.worker) == header.incarnation

    def introduced(self, introduction: int, peers: str) -> None:
        """Rank 0 tells of others: at first of all that are in, later of those that come.

        Raises:
            ProtocolError: the list is none.
        """
        told = dict[int, str]()
        try:
            named = [line.split(" ", 3) for line in peers.splitlines()]
            incarnations = {int(number): int(incarnation) for number, incarnation, _, _ in named}
            first = {int(number) for number, _, before, _ in named if int(before)}
        except ValueError as error:
            raise ProtocolError(f"a list of workers: {error}") from error
        for number, _, _, address in named:
            if int(number) != self._worker:
                self._incarnations[int(number)], told[int(number)] = incarnations[int(number)], address
        ranks = self._reduction.ranks
        if not self._introduction:
            ranks.workers &= told.keys() | {self._worker} | ({ranks.coordinator} - {None})  # others are lost by now
        ranks.workers |= told.keys()
        newcomers = told.keys() & self._neighbours
        self._introduction, self._unmet = introduction, self._unmet | newcomers
        self._first |= newcomers & first
        self._links.introduce({worker: told[worker] for worker in told.keys() & set(self._links.peers)})
        for worker in newcomers:
            self.greet(worker)
        self._meet(set(self._greeted))

    def counted(self, workers: Collection[int]) -> None:
        """These count in a decision: where this one adds up, something comes from each."""
        if self._reduction.adds_up:
            self._links.expect(set(workers) - {self._worker})

    def greet(self, worker: int) -> None:
        """Say that the link to a worker stands."""
        self._links.send(worker, self._messages.pack(Header(Op.MEET, self._messages.run_id, self._worker)))

    def greeted(self, header: Header) -> None:
        """A worker's process greets, perhaps before rank 0 has told of it."""
        if self.is_in(header) and header.worker in self._unlinked:
            self._unlinked.discard(header.worker)
            self._post(Op.LINKED, version=header.worker)
        self._greeted[header.worker] = header.incarnation
        self._meet({header.worker})

    def lost(self, worker: int) -> None:
        """Rank 0 has given a worker up."""
        self._reduction.ranks.workers.discard(worker)
        self._incarnations.pop(worker, None)
        self._unlinked.discard(worker)
        self._links.disconnect(worker)
        self._unmet.discard(worker)
        self._first.discard(worker)
        self._meet(set())

    def link_ended(self, event: LinkLost) -> None:
        """Tell rank 0, which lets both ends greet until the link is back, or gives one of the two up."""
        self._reduction.unlinked(event.worker)
        if event.worker not in self._reduction.ranks.workers:
            return
        if not event.stands:
            self._unlinked.add(event.worker)
        self._post(Op.UNLINKED, version=event.worker, elements=int(event.stands))

    def asked(self, decision: int) -> None:
        """Tell rank 0 from whom this rank still lacks something of a decision; later, when such a worker greets."""
        lacks = self._reduction.lacking(decision)
        self._unlinked |= lacks & self._reduction.ranks.workers
        self._post(Op.LACKING, text(" ".join(map(str, sorted(lacks)))), version=decision)

    def has_missed(self, worker: int) -> None:
        """Tell a worker that read nothing for long, and rank 0 where the worker lacks what it was to add up."""
        header = Header(Op.MISSED, self._messages.run_id, self._worker, decision=self._reduction.sent)
        self._links.send(worker, self._messages.pack(header))
        if self._reduction.depends_on(worker):
            self._post(Op.UNLINKED, version=worker, elements=1)

    def _meet(self, greeted: Set[int]) -> None:
        """These have greeted; tell rank 0 when all neighbours have that are to before, and later who else has."""
        self._unmet -= {w for w in greeted & self._unmet if self._greeted[w] == self._incarnations[w]}
        if not self._introduction or (self._met is None and self._unmet & self._first):
            return
        met = self._introduction, frozenset(self._unmet)
        if met != self._met:
            self._met = met
            self._post(Op.MET, text(" ".join(map(str, sorted(self._unmet)))), version=self._introduction)
