"""Who comes in and who is given up, over real links: what the membership decides is told to all whom it concerns."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Set

from torch import Tensor

from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import digest
from lwpd_lightning.exchange.update import Failure, TooFewWorkers, WorkerFailed
from lwpd_lightning.links.header import NO_BATCH, Header, Op, ProtocolError
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import EMPTY, Messages, text, words
from lwpd_lightning.links.transport import Message
from lwpd_lightning.reduction.sums import Ranks
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.rule.membership import Introduction, Membership, Refused, listed
from lwpd_lightning.rule.restarts import Restarts

log = logging.getLogger(__name__)

# How often workers whose link broke are asked to try it.
_GREET_S = 0.2
# How long too few workers may be live where others may come back, as after a link to all of them was down.
_RETURN_S = 60.0
# A killed process' sockets close a moment before its exit status can be read.
_EXIT_S = 0.5
_DIGEST_BYTES = 32
_ADDRESS = re.compile(r"(tcp://[0-9A-Za-z.:%\[\]-]+:\d{1,5})?")
# How often it is looked whether the process of a lost worker has ended.
_RESTART_LOOK_S = 0.05


class Admission:
    """Rank 0's doorkeeper.

    Args:
        hub: links to the workers.
        members: decides who is in.
        publication: what is sent over the links.
        rule: which codewords count; is told who lives.
        ranks: among whom codewords are added up; is told the same.
        messages: packs this fit's messages.
        fingerprint: 32 bytes that all ranks of the fit must share: its model, code, batches and seed.
        min_workers: fewer live workers than this, rank 0's own included, end the run.
        returns: whether a worker that was given up may come back by itself.
        exited: how a worker's process ended, None where it lives or is not known; waits up to the given seconds
            for one that has begun to end.
        fence: keeps a lost worker's process from touching memory that it shares with others.
        start_again: starts another process of a lost worker, and tells whether it did; None: none is to be started.

    Attributes:
        members: as given.
        failures: workers that became erasures, in the order in which they were lost.
    """

    def __init__(
        self,
        hub: Hub,
        members: Membership,
        publication: Publication,
        rule: ArrivalRule,
        ranks: Ranks,
        *,
        messages: Messages,
        fingerprint: bytes,
        min_workers: int,
        returns: bool,
        exited: Callable[[int, float], str | None],
        fence: Callable[[int], None],
        start_again: Callable[[int], bool] | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self.members = members
        self._hub, self._publication, self._rule, self._ranks = hub, publication, rule, ranks
        self._messages, self._fingerprint = messages, fingerprint
        self._min_workers, self._returns, self._exited, self._fence = min_workers, returns, exited, fence
        self._first_state: tuple[int, Tensor, bytes] | None = None  # that workers begin with: version, bytes, digest
        self._too_few_since: float | None = None
        self._greeted_at = 0.0
        self._start_again, self._restarts, self._looked_at = start_again, Restarts(members.join_s), 0.0

    @property
    def present(self) -> list[int]:
        """Workers that are told what happens."""
        return sorted(self.members.present)

    # Coming in.

    def start(self, version: int) -> None:
        """Workers that come get rank 0's state as it is now, at ``version``; none has a batch yet."""
        state = self._publication.state()
        self._first_state = version, state, digest(state)

    def started(self) -> bool:
        """Whether all workers that were not lost are in, upon which those that come later get what is current then."""
        if self.members.expected:
            return False
        self._first_state = None
        return True

    def refuse_ended(self) -> None:
        """Raise WorkerFailed where the process of a worker that the start waits for has ended."""
        for worker in sorted(self.members.expected):
            if (reason := self._exited(worker, 0.0)) is not None:
                raise WorkerFailed(f"worker {worker} {reason} before it joined; its output is above.")

    @property
    def awaited(self) -> str:
        """Who is still to do what before all can start, in words."""
        if vacant := self.members.vacant:
            return f"workers {listed(vacant)} to join"
        return f"workers {listed(self.members.expected)} to reach each other"

    def join(self, event: Message, header: Header, payload: Tensor, rest: Tensor) -> bool:
        """A process proves that it belongs to this fit.

        Returns whether it is to get rank 0's state as it is now; at the start it has got one.

        Raises:
            WorkerFailed: at the start, where it came to another fit.
            ProtocolError: its inbox is nowhere.
        """
        worker, joined, address = event.worker, bytes(payload.tolist()), words(rest)
        if not _ADDRESS.fullmatch(address):  # others would be told of it
            raise ProtocolError(f"{Op.JOIN.name} with an inbox at {address[:60]!r}")
        fingerprint, its = joined[:-_DIGEST_BYTES], joined[-_DIGEST_BYTES:]
        other = (
            f"worker {worker} came to another fit than rank 0: its model's shapes, its code, its batches or its seed "
            "differ."
        )
        if fingerprint != self._fingerprint and self._first_state is not None:
            raise WorkerFailed(other)
        try:
            if fingerprint != self._fingerprint:
                raise Refused(other)
            self.members.join(worker, header.incarnation, address, time.monotonic())
        except Refused as refused:
            log.warning("A process is not let in: %s", refused)
            self.refuse(event.link, header.incarnation, str(refused))
            return False
        self._hub.adopt(worker, event.link)
        self._ranks.workers.add(worker)
        if self._first_state is None:
            self.introduce()
            return True
        version, state, digested = self._first_state
        at = self._publication.header(Op.STATE, version)._replace(batch_index=NO_BATCH)
        # Ranks of one seed have built the same model already.
        self._publication.send([worker], at, EMPTY if its == digested else state)
        return False

    def refuse(self, link: int, incarnation: int, reason: str) -> None:
        """Tell a process that it has no say, on the link that it spoke on."""
        self._hub.answer(link, self._messages.pack(self._publication.header(Op.REFUSED, incarnation), text(reason)))

    def introduce(self) -> None:
        """Tell workers of each other, at the start once all have joined."""
        introduction = self.members.introduce()
        if introduction is not None:
            first = introduction.addresses.keys() - introduction.joining
            self._tell_of(introduction, introduction.newcomers, introduction.addresses, first)
            self._tell_of(introduction, introduction.elders, introduction.newcomers, frozenset())

    def _tell_of(
        self, introduction: Introduction, recipients: list[int], workers: Iterable[int], first: Set[int]
    ) -> None:
        """``first``: whom they are to meet before they count."""
        named = ((worker, worker in first, *introduction.addresses[worker]) for worker in workers)
        lines = "\n".join(f"{worker} {inc} {before:d} {address}" for worker, before, inc, address in named)
        self._publication.send(recipients, self._publication.header(Op.PEERS, introduction.number), text(lines))

    def met(self, header: Header, unmet: str) -> None:
        """A worker has met all that it was told of, but for some; raises ProtocolError where these are no workers."""
        self._welcome(self.members.meets(header.worker, header.version, _numbers(header, unmet)))

    def _welcome(self, workers: set[int]) -> None:
        for worker in sorted(workers - self._rule.live):
            self._rule.join(worker)
            log.warning("Worker %d is back after update %d", worker, self._rule.updates)

    # Being given up.

    def lose(self, worker: int, reason: str | None = None) -> bool:
        """A worker is an erasure from now on; returns whether it was none before.

        ``reason``: in words; None: how its process ended, or that its link did.
        """
        if worker not in self.members.present | self.members.vacant:
            return False
        reason = reason or self._exited(worker, _EXIT_S) or "its link ended"
        self._fence(worker)
        given_up = text(f"worker {worker} has been given up: {reason}")
        refused = self._publication.header(Op.REFUSED, self.members.incarnation(worker))
        self._publication.send([worker], refused, given_up)
        returned = self.members.lose(worker)
        self._rule.lose(worker)
        self._ranks.workers.discard(worker)
        self._publication.forget(worker)
        self._restarts.lost(worker, time.monotonic())
        self.failures.append(Failure(worker, self._rule.updates, reason))
        log.warning(
            "Worker %d is lost after update %d (%s): an erasure from now on", worker, self._rule.updates, reason
        )
        self._publication.send(self.present, self._publication.header(Op.LOST, worker))
        self._welcome(returned)
        return True

    def restart(self, now: float) -> None:
        """Start another process for each lost worker whose own has ended, or hangs, as soon and as often as may be."""
        if self._start_again is None or not self.members.lost or now - self._looked_at < _RESTART_LOOK_S:
            return
        self._looked_at = now
        for worker in sorted(self.members.lost):
            if self._restarts.may(worker, now, ended=self._exited(worker, 0.0) is not None):
                self._restarts.started(worker, now)
                if self._start_again(worker):
                    log.warning("Worker %d is started again", worker)
                else:
                    self._restarts.give_up(worker)

    def enough_live(self) -> bool:
        """Whether enough live; raises TooFewWorkers where not, a while later where some of the lost may come back."""
        if len(self._rule.live) >= self._min_workers:
            self._too_few_since = None
            return True
        now = time.monotonic()
        self._too_few_since = self._too_few_since or now
        away = sorted({failure.worker for failure in self.failures} - self._rule.live)
        may_return = any(self._may_return(worker) for worker in away)
        if not may_return or now - self._too_few_since > _RETURN_S:
            raise TooFewWorkers(
                f"{len(self._rule.live)} live workers are fewer than min_workers={self._min_workers}; lost: "
                f"{listed(away)}."
            )
        return False

    def _may_return(self, worker: int) -> bool:
        if self._start_again is not None and not self._restarts.hopeless(worker):
            return True
        return self._returns and self._exited(worker, 0.0) is None

    # Links between workers.

    def living(self, worker: int) -> bool:
        """Whether a worker counts, and its process is not known to have ended."""
        return worker in self._rule.live and self._exited(worker, 0.0) is None

    def unlinked(self, header: Header, reason: str, now: float) -> tuple[int, str] | None:
        """A worker says that its link from another ended, or of what came on it that it does not fit.

        Returns who is to be given up for it at once, and why; None: nobody, and the update is to be decided again.
        """
        reporter, worker = header.worker, header.version
        if worker == self._rule.own:
            return reporter, f"{reason}, says it of rank 0"  # which is the truth
        if reason:
            return worker, f"{reason}, says worker {reporter}"
        self.members.unlinked(reporter, worker, now, stands=header.elements > 0)
        self._greeted_at = 0.0
        return None

    def lacks(self, header: Header, others: str) -> None:
        """A worker says from whom it lacks what it was asked about; raises ProtocolError where these are no workers."""
        self.members.lacks(header.worker, header.version, _numbers(header, others))

    def linked(self, header: Header) -> None:
        """A worker says that another has greeted, whose link had ended or from whom it lacked something."""
        self.members.linked(header.worker, header.version)

    def cut_off(self, now: float) -> dict[int, str]:
        """Let workers between whom a link broke try it again; gives who is to be given up for good, each with why."""
        if now - self._greeted_at >= _GREET_S:
            self._greeted_at = now
            for one, other in self.members.greetings():
                self._publication.send([one], self._publication.header(Op.GREET, other))
        gone = dict.fromkeys(self.members.late(now), "it came back and did not reach the others")
        for worker, others in self.members.cut_off(now).items():
            named = f"worker {others[0]}" if len(others) == 1 else f"workers {listed(others)}"
            gone[worker] = f"its link to {named} ended"
        return gone


def _numbers(header: Header, workers: str) -> set[int]:
    try:
        return {int(worker) for worker in workers.split()}
    except ValueError as error:
        raise ProtocolError(f"{header.op.name} with {workers[:60]!r}") from error
