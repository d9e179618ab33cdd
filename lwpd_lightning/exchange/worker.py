"""A worker's side of the exchange: step as rank 0 steps, compute a codeword of the newest version, help to add up.

A worker holds model and optimizer as rank 0 does and makes the same steps from the same decoded gradients, at the same
time, so that no parameters travel. Rank 0's are the truth: a worker tells a checksum of those that its codeword was
computed at, and where they were others, or where it missed what it needed, it takes over rank 0's state.

Long because each kind of message that a worker gets is dealt with here.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.follower import Assignment, Follower, Replica
from lwpd_lightning.exchange.peers import Peers
from lwpd_lightning.exchange.state import Checksum, Stateful
from lwpd_lightning.exchange.update import Contribution
from lwpd_lightning.links.header import COORDINATOR, UNMEASURED, Header, Op, ProtocolError
from lwpd_lightning.links.mesh import CoordinatorLost, Missed, ToldToEnd, WorkerLinks
from lwpd_lightning.links.message import EMPTY, Messages, text, words
from lwpd_lightning.links.transport import LinkLost
from lwpd_lightning.reduction.decision import Decision
from lwpd_lightning.reduction.received import BadPeer
from lwpd_lightning.reduction.reduction import Reduction
from lwpd_lightning.rule.membership import Refused
from lwpd_lightning.rule.outage import outage_of

log = logging.getLogger(__name__)

# Between two tries to be let in; doubled each time that a worker is given up again.
_AGAIN_S, _LONGEST_PAUSE_S = 0.5, 30.0
# How long a process asks for a row that another one has: longer than it takes to notice that it is dead.
_INSIST_S = 15.0
# How long a worker tries to reach rank 0 again whose link has ended.
_RETURN_S = 60.0


@dataclass
class _Fate:
    """Of the codeword that was computed last: at which version it was, and what became of it."""

    version: int
    counted: bool = False


class Worker:
    """Follows rank 0 from version to version and computes one codeword for each that it is free for.

    Args:
        links: to the coordinator and, without shared memory, to the other workers.
        reduction: this rank's share in adding up.
        model: the module that is trained.
        optimizer: its optimizer.
        precision: holds the scale of the loss, where there is one.
        replica: computes codewords and makes optimizer steps.
        messages: packs and reads this fit's messages.
        fingerprint: 32 bytes that all ranks of the fit must share: its model, code, batches and seed.
        timeout_s: longest wait for the coordinator's answer when joining; later only the link's heartbeat ends it.
        dispensable: whether the others are to go on without it where its code raises an exception.
        while_away: called now and then while rank 0 is away; may raise ToldToEnd.
    """

    def __init__(
        self,
        *,
        links: WorkerLinks,
        reduction: Reduction,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Stateful,
        replica: Replica,
        messages: Messages,
        fingerprint: bytes,
        timeout_s: float,
        dispensable: bool = False,
        while_away: Callable[[], None] | None = None,
    ) -> None:
        self._links, self._reduction, self._replica = links, reduction, replica
        self._messages, self._fingerprint, self._timeout_s = messages, fingerprint, timeout_s
        assert reduction.ranks.me is not None
        self._worker = reduction.ranks.me
        self._model = Follower(
            reduction=reduction, model=model, optimizer=optimizer, precision=precision, replica=replica,
            ask_for_state=lambda: self._post(Op.RESYNC),
            tell_memory=lambda version, memory: self._post(Op.MEMORY, memory, version=version),
            tell_share=self._tell_share,
        )  # fmt: skip
        self._peers = Peers(self._worker, links, reduction, messages, self._post)
        self._codeword: _Fate | None = None
        self._end: Assignment | None = None
        self._proof: Tensor | None = None  # that it belongs to this fit, and of the state that it came with
        self._entered = False  # whether rank 0 has given its state to this incarnation
        self._pause_s, self._dispensable, self._while_away = _AGAIN_S, dispensable, while_away

    def run(self) -> Assignment:
        """Join, then compute until the coordinator stops the fit; an exception is reported to it and raised.

        Returns where training ended.

        Raises:
            CoordinatorLost: the link ended without a word.
            Refused: rank 0 does not let this process in.
            ToldToEnd: while rank 0 was away, this process was.
        """
        try:
            self._enter(self._timeout_s)
            while self._end is None:
                try:
                    self._follow()
                except (CoordinatorLost, Refused) as error:
                    self._links.look = self._while_away
                    self._come_back(error)
                    self._links.look = None
            return self._end
        except (CoordinatorLost, Refused, ToldToEnd):
            raise  # a report would open the link anew, and reach a rank 0 that has gone on without this worker
        except BaseException as error:
            if (outage := outage_of(error, dispensable=self._dispensable)) is not None:
                reason = f"{outage}: {error}".strip().removesuffix(":")
                self._post(Op.LEAVING, text(reason), text(traceback.format_exc()))  # upon which it may be ended
                raise
            self._post(Op.FAILURE, text(f"worker {self._worker} failed:\n{traceback.format_exc()}"))
            raise

    def _follow(self) -> None:
        try:
            caught_up = self._model.catch_up()
        except ProtocolError as error:
            raise _nonsense(error) from error
        # Whoever is yet to meet the others does that first: nobody waits for its codeword until it has.
        if caught_up and self._codeword is None and self._model.has_batch and self._peers.met:
            self._compute()
            return
        if caught_up:
            self._reduction.prepare()
        self._receive(None)

    # Coming in, and back.

    def _enter(self, patience_s: float) -> None:
        """Ask to be let in, again and again while the row is taken: the process that has it may be dying.

        Raises:
            CoordinatorLost: rank 0 does not answer in time.
            Refused: rank 0 goes on refusing.
        """
        started, self._entered = time.monotonic(), False
        self._ask_in()
        while not self._entered and self._end is None:
            try:
                self._receive(patience_s - (time.monotonic() - started))
            except Refused:
                if time.monotonic() + _AGAIN_S > started + min(patience_s, _INSIST_S):
                    raise
                time.sleep(_AGAIN_S)
                self._ask_in()

    def _ask_in(self) -> None:
        self._messages.incarnation = 1 + secrets.randbits(62)  # each try anew: one that was given up never comes in
        if self._proof is None:  # once: later its own state is asked of nobody
            self._proof = torch.tensor(list(self._fingerprint + self._model.digest()), dtype=torch.uint8)
        self._post(Op.JOIN, self._proof, text(self._links.address))

    def _come_back(self, reason: CoordinatorLost | Refused) -> None:
        """Begin anew, as another process would: the link broke, or this worker was silent for too long.

        Raises:
            CoordinatorLost: rank 0 is not to be reached any more.
            Refused: it does not let this worker in.
        """
        if self._reduction.shares_memory:
            raise reason  # rank 0 ends a fork that it gives up
        started = time.monotonic()
        log.warning("Worker %d tries to come back: %s", self._worker, reason)
        while self._end is None:
            if isinstance(reason, Refused):
                self._pause(self._pause_s)
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
                if self._end is not None:
                    return
            self._forget()
            try:
                # Rank 0 may take the old link, or one on which it was let in since, for alive for a heartbeat yet.
                self._post(Op.LEAVING, text("its link ended"))
                self._enter(_RETURN_S - (time.monotonic() - started))
            except (CoordinatorLost, Refused):
                if time.monotonic() - started > _RETURN_S:
                    raise
                time.sleep(_AGAIN_S)
            else:
                return

    def _pause(self, seconds: float) -> None:
        """Wait, and hear when the fit ends meanwhile."""
        until = time.monotonic() + seconds
        while self._end is None and (left := until - time.monotonic()) > 0:
            try:
                self._receive(left)
            except CoordinatorLost:
                time.sleep(max(0.0, min(_AGAIN_S, until - time.monotonic())))
            except Refused:
                pass  # said again

    def _forget(self) -> None:
        """What was going on when the link ended."""
        self._links.renew()
        self._codeword = None
        self._reduction.abandon()
        self._model.forget()
        self._peers.forget()

    def _compute(self) -> None:
        computed = self._replica.compute(self._model.assignment, self._model.settle)
        self._model.computed()
        if computed is None:
            if self._replica.changed:  # rank 0 will find the same and end the exchange; else it reads this
                self._post(
                    Op.FAILURE,
                    text(
                        f"worker {self._worker} no longer consists of the parameters and buffers that rank 0 does: "
                        "change them on every rank, in a hook of the module or of a callback that acts on workers."
                    ),
                )
            return
        codeword, contribution = computed
        if not contribution.finite:
            self._say(Op.VOID, contribution)
            return
        self._codeword = _Fate(self._model.at)
        self._reduction.offer(codeword)
        # It may have come too late meanwhile: then it never leaves.
        while self._links.waiting and self._end is None:
            self._receive(None)
        self._say(Op.LATE if self._codeword is None else Op.READY, contribution)

    # What comes in.

    def _receive(self, timeout_s: float | None) -> None:
        """Take one message."""
        event = self._links.receive(timeout_s)
        if isinstance(event, LinkLost):
            self._peers.link_ended(event)
            return
        if isinstance(event, Missed):
            self._peers.has_missed(event.worker)
            return
        try:
            header, payload, rest = self._messages.read(event.frames)
            if event.worker == COORDINATOR and header.worker == COORDINATOR:
                self._told(header, payload, rest)
            elif event.worker in (header.worker, COORDINATOR):  # rank 0 may be a worker too
                if header.op is Op.MEET:
                    self._peers.greeted(header)
                elif event.worker == COORDINATOR or self._peers.is_in(header):
                    self._asked(header, payload)
        except BadPeer as error:
            self._post(Op.UNLINKED, text(str(error)), version=error.worker)
        except ProtocolError as error:
            if event.worker == COORDINATOR:
                raise _nonsense(error) from error
            self._post(Op.UNLINKED, text(f"worker {event.worker} sent {error}"), version=event.worker)

    def _asked(self, header: Header, payload: Tensor) -> None:
        if header.op is Op.SLICE:
            self._reduction.slice_arrived(header, payload)
        elif header.op is Op.SUM:
            self._reduction.sum_arrived(header, payload)
        elif header.op is Op.MISSED:
            self._reduction.heard(header.worker, header.decision)

    def _told(self, header: Header, payload: Tensor, rest: Tensor) -> None:
        if header.op is Op.STOP:
            self._end = Assignment(self._model.at, header.epoch, header.batch_index, header.global_step)
        elif header.op is Op.STATE:
            self._model.take_over(header, payload)
            self._entered = True
            self._forget_older(header.oldest)
        elif header.op is Op.MISSED:
            self._model.ask_for_state(again=True)  # what it asked for may be what is lost
        elif header.op is Op.MEMORY:
            self._model.remember(header.version, payload)
        elif header.op is Op.PEERS:
            self._peers.introduced(header.version, words(payload))
        elif header.op is Op.GREET:
            self._peers.greet(header.version)
        elif header.op is Op.LACKING:
            self._peers.asked(header.decision)
        elif header.op is Op.REFUSED:
            if header.version == self._messages.incarnation:  # an older try's may come late, and is over
                raise Refused(words(payload))
        elif header.op is Op.VERSION:
            self._published(header, payload, rest)
        elif header.op is Op.DECISION:
            decision = Decision.unpack(header, payload, rest, self._reduction.receiver.rows)
            if len(rest) != len(self._reduction.blocks.parameters):
                raise ProtocolError(f"a decision on {len(rest)} parameters")
            if self._codeword is not None:  # an update that is decided again may do without it
                self._codeword.counted = self._worker in decision.workers
            elif self._worker in decision.workers:
                raise ProtocolError("a decision on a codeword that there is none of")
            self._reduction.begin(decision)
            self._peers.counted(decision.workers)
        elif header.op is Op.VOID:
            self._refused(header.version)
        elif header.op is Op.LOST:
            self._peers.lost(header.version)

    def _published(self, header: Header, buffers: Tensor, told: Tensor) -> None:
        # Not where a version comes again behind a state: its update is open, and a codeword counts once.
        is_new = header.version > self._model.newest
        self._model.published(header, buffers, told)
        if is_new and self._codeword is not None and self._codeword.counted:
            self._withdraw()
        self._forget_older(header.oldest)

    def _forget_older(self, oldest: int) -> None:
        if self._codeword is not None and self._codeword.version < oldest:
            self._withdraw()

    def _refused(self, version: int) -> None:
        """Rank 0 found the codeword of a version too large: nothing of it may come with a later one."""
        if self._codeword is not None and self._codeword.version == version:
            self._reduction.forget()
            self._withdraw()

    def _withdraw(self) -> None:
        self._codeword = None
        self._reduction.withdraw()

    # What goes out.

    def _say(self, op: Op, contribution: Contribution) -> None:
        header = Header(
            op, self._messages.run_id, self._worker, contribution.version, loss=contribution.loss,
            compute_s=contribution.compute_s, samples=contribution.samples, batch_index=self._model.skipped,
            checksum=self._model.computed_at.trainable, rest=self._model.computed_at.rest,
            norm=UNMEASURED if contribution.norm is None else contribution.norm,
        )  # fmt: skip
        self._links.send(COORDINATOR, self._messages.pack(header, contribution.statistics, contribution.told))

    def _tell_share(self, version: int, checksum: Checksum, share: Tensor) -> None:
        header = Header(Op.VALIDATED, self._messages.run_id, self._worker, version)
        header = header._replace(checksum=checksum.trainable, rest=checksum.rest)
        self._links.send(COORDINATOR, self._messages.pack(header, share))

    def _post(
        self, op: Op, payload: Tensor = EMPTY, rest: Tensor = EMPTY, *, version: int = 0, elements: int = 0
    ) -> None:
        header = Header(op, self._messages.run_id, self._worker, version, elements=elements)
        self._links.send(COORDINATOR, self._messages.pack(header, payload, rest))


def _nonsense(error: ProtocolError) -> CoordinatorLost:
    return CoordinatorLost(f"what rank 0 says makes no sense: {error}")
