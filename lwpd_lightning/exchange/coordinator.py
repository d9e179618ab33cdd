"""The coordinator's side of the exchange: publish a version, count codewords as they become ready, decide after K of n.

An update runs `publish` -> `contribute` (the coordinator's own codeword, if it computes one) -> `collect` -> `publish`
of the version that it leads to, so that workers step while the coordinator does -> `deliver` -> `arrived`. Everything
happens in the caller's thread: messages queue in ZeroMQ while it computes. The coordinator decides who counts and keeps
the one true state; the adding up is shared among those who count (`reduction`).

Long because each kind of message, and each that is waited for, is dealt with here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torch import Tensor, nn

from lwpd_lightning.exchange.admission import Admission
from lwpd_lightning.exchange.beside import Memories, Shares
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksum
from lwpd_lightning.exchange.tally import Agreement, Tally
from lwpd_lightning.exchange.update import Contribution, Failure, How, Step, Update, WorkerFailed
from lwpd_lightning.links.header import NO_BATCH, Header, Op, ProtocolError
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import Messages, words
from lwpd_lightning.links.transport import LinkLost, Message
from lwpd_lightning.reduction.decision import Decision
from lwpd_lightning.reduction.received import BadPeer
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.rule.arrivals import ArrivalRule
from lwpd_lightning.rule.membership import listed
from lwpd_lightning.rule.norms import NormGuard
from lwpd_lightning.rule.patience import Patience

log = logging.getLogger(__name__)

# How often a waiting coordinator looks whether processes died before they joined, and says whom it waits for.
_LOOK_S = 0.2
_REPORT_S = 60.0
_START_REPORT_S = 10.0
# How long workers on other machines may take to hear that the fit is over and hang up.
_FAREWELL_S = 10.0


class Coordinator:
    """Owns the hub, the K-of-n rule and the true state of model and optimizer.

    Args:
        hub: links to the workers.
        admission: lets them in, and gives them up.
        publication: what is sent over them.
        rule: which codewords count.
        reduction: rank 0's share in adding up.
        model: the module that is trained.
        messages: packs and reads this fit's messages.
        first_version: number of the first version that is published.
        timeout_s: longest wait for one update, or for all to start.
        patience: how long an update may be held up before who holds it up is given up.
        guard: which codewords are too large to count; None: none are.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        admission: Admission,
        publication: Publication,
        rule: ArrivalRule,
        reduction: Reduction,
        model: nn.Module,
        messages: Messages,
        first_version: int,
        timeout_s: float,
        patience: Patience,
        guard: NormGuard | None = None,
    ) -> None:
        self.version = first_version - 1
        self._hub, self._publication, self._rule, self._reduction = hub, publication, rule, reduction
        self._admission, self._members = admission, admission.members
        self.memories = Memories(hub, self._members, publication, messages)
        self.shares = Shares(hub, messages, self._members)
        self._messages, self._timeout_s, self._patience = messages, timeout_s, patience
        self._tally = Tally(rule, reduction, model, guard)
        self._heard_at = 0.0  # when all that had come was read
        self._bytes_told = 0
        self.decided = 0  # the decision of the update that was closed last

    @property
    def failures(self) -> list[Failure]:
        """Workers that became erasures, in the order in which they were lost."""
        return self._admission.failures

    @property
    def updates(self) -> int:
        """Updates that were closed."""
        return self._rule.updates

    def admit(self, remind: Callable[[], None] = lambda: None) -> None:
        """Start-up barrier: wait until every live worker has rank 0's state and has met those it will talk to.

        ``remind`` is called now and then: it tells those who are still to come where rank 0 is.
        """
        self._admission.start(self.version)
        deadline, report = time.monotonic() + self._timeout_s, time.monotonic() + _START_REPORT_S
        while not self._admission.started():
            self._admission.refuse_ended()
            self._check_deadline(deadline, self._admission.awaited)
            if time.monotonic() > report:
                report += _START_REPORT_S
                log.warning("Waiting for %s", self._admission.awaited)
                remind()
            for event in self._hub.events(_LOOK_S):
                self._handle(event, time.monotonic())
            self._admission.introduce()
            self._admission.enough_live()

    # One update.

    def publish(
        self,
        epoch: int,
        batch_index: int,
        global_step: int,
        how: How,
        *,
        step: Step | None = None,
        attributes: dict[str, object] | None = None,
        validates: bool = False,
    ) -> None:
        """Open the next update: tell every worker how to reach the next state and which batch comes next.

        `arrived` tells when the model is there.

        Args:
            epoch: epoch of the update's batch.
            batch_index: its index in the epoch; NO_BATCH: training ends here.
            global_step: optimizer steps taken so far.
            how: what is new, and what workers need of it.
            step: the optimizer step that leads here from the version before; None: there was none.
            attributes: of the module that validation has changed.
            validates: this rank is about to validate the version, and workers their shares of that.
        """
        self.version += 1
        self._members.update_begins()
        self._tally.begin(self.version, epoch, batch_index, void_older=how.voids_older)
        self._do_without_doubted()
        position = self._publication.header(Op.VERSION, self.version)._replace(
            epoch=epoch,
            batch_index=batch_index,
            global_step=global_step,
            decision=step.decision if step is not None else 0,
            oldest=self._rule.oldest,
        )
        self._tell_who_missed()
        self._publication.publish(
            self._admission.present,
            position,
            step,
            attributes,
            decided=self.decided,
            moved=how is How.WHOLE,
            validates=validates,
        )
        self._tally.published(set(self._admission.present))

    def arrived(self, checksum: Checksum) -> None:
        """The model is at the version that was published last: what it is computed at has this checksum."""
        self._publication.arrived()
        self._tally.arrived(checksum)

    def contribute(self, codeword: Codeword, contribution: Contribution) -> None:
        """Count the coordinator's own codeword, which stays as it is until the update is closed."""
        self._tally.contribute(codeword, contribution)

    def collect(self, while_it_waits: Callable[[bool], None] = lambda enough: None) -> Update:
        """Wait until the update's gradient has been decoded; `deliver` hands it out.

        ``while_it_waits`` is called now and then, with whether enough workers live; what it raises ends the wait.

        Raises:
            WorkerFailed: a worker raised an exception.
            NotFinite: too few codewords of this update are finite, and not too large.
            TooFewWorkers: fewer than ``min_workers`` live.
            TimeoutError: the update did not close in ``timeout_s``; names the workers that it waited for.
        """
        started = time.monotonic()
        deadline, report = started + self._timeout_s, started + _REPORT_S
        waits = False
        while True:
            for event in self._hub.events(self._look_s(self._heard_at) if waits else 0.0):
                self._handle(event, time.monotonic() if waits else self._heard_at)
            self._heard_at = time.monotonic()
            self._tell_who_missed()
            for worker, reason in self._admission.cut_off(self._heard_at).items():
                self._lose(worker, reason)
            self._admission.restart(self._heard_at)
            enough = self._admission.enough_live()
            self._ask_who_holds_up()
            if enough and self._may_decide:
                self._decide()
            decision = self._tally.decision
            if decision is not None and self._reduction.complete(decision.number):
                return self._close(decision, started)
            if waits:
                self._give_up_who_holds_up()
                while_it_waits(enough)
            waits = True
            if time.monotonic() > min(report, deadline):
                self._check_deadline(deadline, self._tally.awaited)
                report += _REPORT_S
                log.warning("Update %d still waits for %s", self.version, self._tally.awaited)

    def deliver(self) -> None:
        """Leave the gradient of the update that was closed last in the parameters' ``.grad``."""
        self._reduction.scatter(self.decided)
        self._reduction.commit(self.decided)

    def stop(self, epoch: int, global_step: int, batch_index: int = NO_BATCH, *, await_farewell: bool) -> None:
        """Tell every worker that the exchange is over and close the links.

        Args:
            epoch: epochs that are over.
            global_step: optimizer steps taken.
            batch_index: with which batch another exchange begins; NO_BATCH: none does, the fit is over.
            await_farewell: first read on until the workers have hung up, but not for ever. A socket that is closed with
                codewords unread takes back what it has sent, and a worker behind a slow link would not hear the end.
        """
        end = self._publication.header(Op.STOP, self.version)
        end = end._replace(epoch=epoch, batch_index=batch_index, global_step=global_step)
        staying, patience_s = self._admission.present, _FAREWELL_S if await_farewell else 0.0
        self._publication.farewell(end, self._members.workers, staying, patience_s)
        self._hub.close()

    # What workers send.

    def _handle(self, event: Message | LinkLost, now: float) -> None:
        if isinstance(event, LinkLost):
            if event.used:
                self._lose(event.worker)
            return
        try:
            header, payload, rest = self._messages.read(event.frames)
            if header.worker != event.worker:
                raise ProtocolError(f"a message in the name of worker {header.worker}")
            if header.op is Op.JOIN:
                if self._admission.join(event, header, payload, rest):
                    self._take_over(event.worker)
            elif self._members.holds(event.worker, header.incarnation):
                self._take(header, payload, rest, now)
            else:
                self._admission.refuse(event.link, header.incarnation, f"worker {event.worker} has been given up")
        except BadPeer as error:
            self._lose(error.worker, str(error))
        except ProtocolError as error:
            if self._hub.uses(event.worker, event.link):  # and it is not of a process that has no say
                self._lose(event.worker, str(error))

    def _take(self, header: Header, payload: Tensor, rest: Tensor, now: float) -> None:
        if header.op in (Op.READY, Op.LATE, Op.VOID):
            self._tally.observe(header, now)
        if header.op is Op.FAILURE:
            raise WorkerFailed(words(payload))
        if header.op is Op.READY:
            self._answer(header, self._tally.ready(header, payload, rest))
        elif header.op is Op.VOID:
            self._tally.refuse(header.worker, header.version)
        elif header.op is Op.LATE:
            self._tally.late()
        elif header.op is Op.SLICE:
            self._reduction.slice_arrived(header, payload)
        elif header.op is Op.SUM:
            self._reduction.sum_arrived(header, payload)
        elif header.op is Op.RESYNC:
            self._take_over(header.worker)
        elif header.op is Op.LEAVING:
            if len(rest):
                log.warning("Worker %d leaves:\n%s", header.worker, words(rest))
            self._lose(header.worker, words(payload))
        elif header.op is Op.MET:
            self._admission.met(header, words(payload))
            self._tally.count_ready()
        elif header.op is Op.LINKED:
            self._admission.linked(header)
            if self._tally.decision is None:
                self._reopen()
        elif header.op is Op.LACKING:
            self._admission.lacks(header, words(payload))
        elif header.op is Op.VALIDATED:
            self.shares.take(header, payload)
        elif header.op is Op.UNLINKED:
            self._unlinked(header, words(payload), now)
        elif header.op is not Op.MEMORY:  # which has come too late for the checkpoint that asked
            raise ProtocolError(f"{header.op.name} from a worker")

    def _answer(self, header: Header, agreement: Agreement) -> None:
        if agreement is Agreement.TOO_LARGE:
            self._publication.refuse(header.worker, header.version)
        elif agreement is not Agreement.SAME:
            diverged_at = header.version if agreement is Agreement.DIVERGED else None
            self._take_over(header.worker, diverged_at=diverged_at)

    def _take_over(self, worker: int, *, diverged_at: int | None = None) -> None:
        self._tally.open.resyncs += 1
        self._publication.take_over(worker, diverged_at=diverged_at)

    def _decide(self) -> None:
        decision = self._tally.decide()
        payload, rest = decision.pack()
        header = self._publication.header(Op.DECISION, self.version)
        header = header._replace(elements=len(decision.workers), decision=decision.number)
        self._reduction.sums.announce(decision.number)
        self._publication.send(self._admission.present, header, payload, rest)
        self._members.doubts.decided(decision.number, time.monotonic())
        try:
            self._reduction.begin(decision)
        except BadPeer as error:
            self._lose(error.worker, str(error))

    def _close(self, decision: Decision, started: float) -> Update:
        wait_s = time.monotonic() - started
        self._patience.observe(wait_s)
        self._members.doubts.carried_out(time.monotonic())
        self.decided = decision.number
        sent = self._publication.bytes_sent
        others, down = len(self._admission.present), sent - self._bytes_told
        closed = self._tally.close(wait_s=wait_s, others=others, bytes_down=down)
        self._bytes_told = sent
        return closed

    # Links and workers that are lost.

    def _unlinked(self, header: Header, reason: str, now: float) -> None:
        """A link between two workers ended: what was on it is lost, so the update is decided again."""
        if not self._admission.living(header.version):
            return  # its own link's end says the same
        given_up = self._admission.unlinked(header, reason, now)
        if given_up is not None:
            self._lose(*given_up)
        else:
            self._reopen()

    def _tell_who_missed(self) -> None:
        """Let workers whose queue was full ask for the state; decide again where one lacks what it was to add up."""
        for worker in sorted(self._hub.refused & set(self._admission.present)):
            self._hub.refused.discard(worker)
            self._publication.send([worker], self._publication.header(Op.MISSED))
            if worker not in self._hub.refused:  # as it is again where there is still no room
                self._reopen_if_needs(worker)

    def _lose(self, worker: int, reason: str | None = None) -> None:
        if self._admission.lose(worker, reason):
            self._tally.lose(worker)
            self._reopen_if_needs(worker)
            self._tally.count_ready()  # of those that count from now on: they were to meet the worker first

    def _reopen_if_needs(self, worker: int) -> None:
        """Decide again where something of the worker is needed that it may not give."""
        if self._tally.needs(worker):
            self._reopen()

    def _reopen(self) -> None:
        self._do_without_doubted()
        self._members.doubts.void()
        self._tally.reopen()

    def _do_without_doubted(self) -> bool:
        return self._tally.do_without(self._members.in_doubt())

    # Waiting.

    @property
    def _may_decide(self) -> bool:
        if self._tally.decision is not None or not self._rule.complete or self._members.broken(self._rule.counted):
            return False
        oldest = self._members.doubts.oldest
        return oldest is None or self._reduction.sums.apart(oldest)

    def _look_s(self, now: float) -> float:
        left_s = self._members.doubts.left_s(now)
        return _LOOK_S if left_s is None else min(_LOOK_S, left_s)

    def _ask_who_holds_up(self) -> None:
        """Where a decision is held up, find out by whom, and decide again without them where others are there."""
        decision, doubts = self._tally.decision, self._members.doubts
        if decision is None or self._reduction.complete(decision.number):
            return
        others = set(decision.workers) & set(self._admission.present)
        asked = doubts.ask(others, self._heard_at)
        if asked:
            header = self._publication.header(Op.LACKING)._replace(decision=decision.number)
            self._publication.send(sorted(asked), header)
        elif doubts.judge(self._reduction.missing(decision.number), self._heard_at) and self._do_without_doubted():
            held = listed(self._tally.open.held)
            log.info("Update %d does without workers %s, who hold it up", self.version, held)
            self._tally.reopen()

    def _give_up_who_holds_up(self) -> None:
        waiting_for = self._tally.holding_up
        if waiting_for[0] is None and self._rule.complete:  # for memory that a silent worker may still write to
            waiting_for = None, [*self._members.doubts.silent]
        if self._patience.over(waiting_for, time.monotonic()):
            for worker in set(waiting_for[1]) - {self._rule.own}:
                self._lose(worker, f"it held an update up for {self._patience.seconds:.3g} s")

    def _check_deadline(self, deadline: float, awaited: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {self._timeout_s:g} s for {awaited}.")
