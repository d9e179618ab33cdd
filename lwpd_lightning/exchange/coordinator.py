"""The coordinator's side of the exchange: publish a version, count codewords as they become ready, decide after K of n.

An update runs `publish` -> `contribute` (the coordinator's own codeword, if it computes one) -> `collect` -> `publish`
of the version that it leads to, so that workers step while the coordinator does -> `deliver` -> `arrived`. Everything
happens in the caller's thread: messages queue in ZeroMQ while it computes. The coordinator decides who counts and keeps
the one true state; the adding up is shared among those who count (`reduction`).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.admission import Admission
from lwpd_lightning.exchange.publication import Publication
from lwpd_lightning.exchange.state import Checksum, StateLayout
from lwpd_lightning.exchange.update import (
    Contribution,
    Failure,
    How,
    NotFinite,
    Step,
    Update,
    WorkerFailed,
)
from lwpd_lightning.links.header import HEADER_BYTES, NO_BATCH, Header, Op, ProtocolError
from lwpd_lightning.links.hub import Hub
from lwpd_lightning.links.message import Messages, words
from lwpd_lightning.links.transport import LinkLost, Message
from lwpd_lightning.reduction.decision import Decision
from lwpd_lightning.reduction.received import BadPeer
from lwpd_lightning.reduction.reduction import Codeword, Reduction
from lwpd_lightning.rule.arrivals import Arrival, ArrivalRule
from lwpd_lightning.rule.delays import Delays
from lwpd_lightning.rule.patience import Patience

log = logging.getLogger(__name__)

# How often a waiting coordinator looks whether processes died before they joined, and says whom it waits for.
_LOOK_S = 0.2
_REPORT_S = 60.0
_START_REPORT_S = 10.0
# How long workers on other machines may take to hear that the fit is over and hang up.
_FAREWELL_S = 10.0
# Versions whose checksum is kept: a codeword of an older one, were it to count, is taken for that of other parameters.
_REMEMBERED = 4096
# Bytes of logged values that one codeword may bring.
_MOST_LOGGED = 1 << 16


@dataclass
class _Open:
    """What has been gathered for the open update."""

    epoch: int
    batch_index: int
    counted: dict[int, Contribution] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)  # those that were decided on
    decision: Decision | None = None
    dropped: int = 0
    resyncs: int = 0
    refused: list[int] = field(default_factory=list)


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
    ) -> None:
        self.version = first_version - 1
        self._hub, self._publication, self._rule, self._reduction = hub, publication, rule, reduction
        self._admission, self._members = admission, admission.members
        self._messages, self._timeout_s, self._patience = messages, timeout_s, patience
        self._tensors = len(reduction.blocks.parameters)
        self._statistics = StateLayout.statistics(model, reduction.blocks.device)
        self._ready: dict[int, Contribution] = {}  # codewords that may count in this update or a later one
        self._delays, self._heard_at = Delays(), 0.0  # and when all that had come was read
        self._decisions = 0
        self._open: _Open | None = None
        self.decided = 0  # the decision of the update that was closed last
        self._checksums: dict[int, Checksum] = {}  # of the model at versions whose codewords may still come
        self._bytes_up = self._bytes_told = 0

    @property
    def _others(self) -> list[int]:
        return self._admission.present

    @property
    def failures(self) -> list[Failure]:
        """Workers that became erasures, in the order in which they were lost."""
        return self._admission.failures

    @property
    def updates(self) -> int:
        """Updates that were closed."""
        return self._rule.updates

    # Start-up.

    def admit(self) -> None:
        """Start-up barrier: wait until every live worker has rank 0's state and has met those it will talk to."""
        self._admission.start(self.version)
        deadline, report = time.monotonic() + self._timeout_s, time.monotonic() + _START_REPORT_S
        while not self._admission.started():
            self._admission.refuse_ended()
            self._check_deadline(deadline, self._admission.awaited)
            if time.monotonic() > report:
                report += _START_REPORT_S
                log.warning("Waiting for %s", self._admission.awaited)
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
        """
        self.version += 1
        self._open = _Open(epoch, batch_index)
        self._members.update_begins()
        self._rule.open(self.version, time.monotonic(), void_older=how.voids_older)
        position = self._publication.header(Op.VERSION, self.version)._replace(
            epoch=epoch,
            batch_index=batch_index,
            global_step=global_step,
            decision=step.decision if step is not None else 0,
            oldest=self._rule.oldest,
        )
        self._tell_who_missed()
        whole = how is How.WHOLE
        self._publication.publish(self._others, position, step, attributes, decided=self.decided, moved=whole)
        holding = {worker for worker, kept in self._ready.items() if kept.version >= self._rule.oldest}
        self._delays.published(self.version, set(self._others) - holding, time.monotonic())

    def arrived(self, checksum: Checksum) -> None:
        """The model is at the version that was published last: what it is computed at has this checksum."""
        self._checksums[self.version] = checksum
        self._checksums.pop(self.version - _REMEMBERED, None)
        self._publication.arrived()
        self._count_ready()

    def contribute(self, codeword: Codeword, contribution: Contribution) -> None:
        """Count the coordinator's own codeword, which stays as it is until the update is closed."""
        assert self._rule.always is not None
        self._rule.observe(self._rule.always, contribution.compute_s)
        if not contribution.finite:
            self._refuse(self._rule.always, self.version)
            return
        self._reduction.offer(codeword)
        self._count(self._rule.always, contribution)

    def collect(self) -> Update:
        """Wait until the update's gradient has been decoded; `deliver` hands it out.

        Raises:
            WorkerFailed: a worker raised an exception.
            NotFinite: too few codewords of this update are finite.
            TooFewWorkers: fewer than ``min_workers`` live.
            TimeoutError: the update did not close in ``timeout_s``; names the workers that it waited for.
        """
        started = time.monotonic()
        deadline, report = started + self._timeout_s, started + _REPORT_S
        update = self._open
        assert update is not None
        waits = False
        while True:
            for event in self._hub.events(_LOOK_S if waits else 0.0):
                self._handle(event, time.monotonic() if waits else self._heard_at)
            self._heard_at = time.monotonic()
            self._tell_who_missed()
            for worker, reason in self._admission.cut_off(self._heard_at).items():
                self._lose(worker, reason)
            if self._admission.enough_live() and update.decision is None and self._may_decide:
                self._decide(update)
            if update.decision is not None and self._reduction.complete(update.decision.number):
                return self._close(update, started)
            if waits:
                self._give_up_who_holds_up(update)
            waits = True
            if time.monotonic() > min(report, deadline):
                self._check_deadline(deadline, self._awaited(update))
                report += _REPORT_S
                log.warning("Update %d still waits for %s", self.version, self._awaited(update))

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
        staying = set(self._others)
        end = self._publication.header(Op.STOP, self.version)
        end = end._replace(epoch=epoch, batch_index=batch_index, global_step=global_step)
        self._publication.send(sorted(self._members.workers), end)  # those that were given up too
        deadline = time.monotonic() + _FAREWELL_S
        while True:
            for event in self._hub.events(_LOOK_S if await_farewell else 0.0):
                if isinstance(event, LinkLost):
                    staying.discard(event.worker)
                elif not self._hub.uses(event.worker, event.link):  # that of one which wants to come back
                    self._hub.answer(event.link, self._messages.pack(end))
            if not await_farewell or not staying or time.monotonic() > deadline:
                break
            for worker in self._hub.refused & staying:
                self._hub.refused.discard(worker)
                self._publication.send([worker], end)
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
                self._admission.refuse(event.link, f"worker {event.worker} has been given up")
        except BadPeer as error:
            self._lose(error.worker, str(error))
        except ProtocolError as error:
            if self._hub.uses(event.worker, event.link):  # and it is not of a process that has no say
                self._lose(event.worker, str(error))

    def _take(self, header: Header, payload: Tensor, rest: Tensor, now: float) -> None:
        if header.op in (Op.READY, Op.LATE, Op.VOID):
            self._observe(header, now)
        if header.op is Op.FAILURE:
            raise WorkerFailed(words(payload))
        if header.op is Op.READY:
            contribution = self._contribution(header, payload, rest)
            self._bytes_up += HEADER_BYTES + payload.numel() + rest.numel()
            if header.version >= self._rule.oldest and not self._agrees(header):
                return
            self._ready[header.worker] = contribution
            self._count(header.worker, contribution)
        elif header.op is Op.VOID:
            self._refuse(header.worker, header.version)
        elif header.op is Op.LATE:
            assert self._open is not None
            self._open.dropped += 1
        elif header.op is Op.SLICE:
            self._reduction.slice_arrived(header, payload)
        elif header.op is Op.PART:
            self._reduction.part_arrived(header, payload)
        elif header.op is Op.RESYNC:
            self._take_over(header.worker)
        elif header.op is Op.LEAVING:
            self._lose(header.worker, words(payload))
        elif header.op is Op.MET:
            self._admission.met(header)
            if self._open is not None:
                self._count_ready()
        elif header.op is Op.LINKED:
            self._admission.linked(header)
        elif header.op is Op.UNLINKED:
            self._unlinked(header, words(payload), now)
        else:
            raise ProtocolError(f"{header.op.name} from a worker")

    def _agrees(self, header: Header) -> bool:
        """Whether a codeword was computed where rank 0 was; if not, its worker takes over rank 0's state."""
        mine = self._checksums.get(header.version)
        skipped = header.batch_index > 0
        if mine is not None and mine.trainable == header.checksum:
            if mine.rest == header.rest:
                return True
            if skipped:  # what its hooks would have done then (a moving average) it has missed, and no weight
                self._take_over(header.worker)
                return True
        self._take_over(header.worker, diverged_at=header.version)
        return False

    def _take_over(self, worker: int, *, diverged_at: int | None = None) -> None:
        assert self._open is not None
        self._open.resyncs += 1
        self._publication.take_over(worker, diverged_at=diverged_at)

    def _observe(self, header: Header, now: float) -> None:
        if not 0 <= header.compute_s < math.inf:
            raise ProtocolError(f"{header.op.name} after {header.compute_s} s")
        self._rule.observe(header.worker, self._delays.of(header.worker, header.version, header.compute_s, now))

    def _contribution(self, header: Header, payload: Tensor, rest: Tensor) -> Contribution:
        if payload.numel() != self._statistics.nbytes or not 0 <= rest.numel() - self._tensors <= _MOST_LOGGED:
            raise ProtocolError(f"READY with {payload.numel()} and {rest.numel()} bytes")
        return Contribution(
            version=header.version,
            touched=[has != 0 for has in rest[: self._tensors].tolist()],
            loss=header.loss,
            samples=header.samples,
            compute_s=header.compute_s,
            statistics=payload,
            logged=words(rest[self._tensors :]),
        )

    def _refuse(self, worker: int, version: int) -> None:
        """A worker's codeword holds what is no finite number: it goes nowhere, and nobody waits for it."""
        assert self._open is not None
        self._open.refused.append(worker)
        log.warning("Worker %d's codeword of version %d is not finite: it does not count", worker, version)
        if version == self.version and self._open.decision is None:
            self._rule.refuse(worker)

    def _refuse_too_few_finite(self, update: _Open) -> None:
        least = self._rule.code.recovery_threshold if self._rule.decoder == "exact" else 1
        if update.refused and len(self._rule.counted) < (least or 1):
            raise NotFinite(
                f"update {self.version} cannot be made: the codewords of workers {sorted(set(update.refused))} are not "
                f"finite, and {len(self._rule.counted)} are left; lower the learning rate, clip gradients, or look for "
                "what divides by zero."
            )

    def _count(self, worker: int, contribution: Contribution) -> None:
        update = self._open
        assert update is not None
        if update.decision is not None:
            return  # it may count in the next one
        if self._rule.counts(worker, contribution.version, time.monotonic()):
            update.counted[worker] = contribution
            self._ready.pop(worker, None)
        elif contribution.version < self._rule.oldest:
            self._ready.pop(worker, None)  # the worker knows by the version's header, and goes on
            update.dropped += 1

    def _count_ready(self) -> None:
        for worker, contribution in list(self._ready.items()):
            self._count(worker, contribution)

    def _decide(self, update: _Open) -> None:
        self._refuse_too_few_finite(update)
        decoding, rule = self._rule.decide(time.monotonic()), self._rule
        # By number, not by who was first: the same workers then add up the same slices, to the same bits. The
        # coordinator, which has enough to do, comes last, and adds up only where nobody else can.
        arrivals = sorted(rule.arrivals, key=lambda arrival: (arrival.worker == rule.always, arrival.worker))
        coefficients = torch.tensor([decoding.coefficients[a.worker] for a in arrivals], dtype=torch.float64)
        touched = zip(*(update.counted[arrival.worker].touched for arrival in arrivals), strict=True)
        self._decisions += 1
        update.arrivals = arrivals
        update.decision = Decision(
            number=self._decisions,
            version=self.version,
            workers=[arrival.worker for arrival in arrivals],
            reducers=max(1, sum(arrival.worker != rule.always for arrival in arrivals)),
            weights=self._reduction.receiver.weights(coefficients, self.version),
            touched=[any(column) for column in touched],
        )
        payload, rest = update.decision.pack()
        header = self._publication.header(Op.DECISION, self.version)
        header = header._replace(elements=len(arrivals), decision=self._decisions)
        self._reduction.parts.announce(self._decisions)
        self._publication.send(self._others, header, payload, rest)
        try:
            self._reduction.begin(update.decision)
        except BadPeer as error:
            self._lose(error.worker, str(error))

    def _close(self, update: _Open, started: float) -> Update:
        rule, decision = self._rule, update.decision
        assert decision is not None
        rule.close()
        self._patience.observe(time.monotonic() - started)
        self.decided = decision.number
        counted = [update.counted[arrival.worker] for arrival in update.arrivals]
        if self._statistics.nbytes:
            self._statistics.average([contribution.statistics for contribution in counted])
        if rule.always is not None:
            self._reduction.withdraw()
        up, down = self._reduction.traffic(decision.number, 1 + len(self._others))
        closed = Update(
            version=self.version,
            epoch=update.epoch,
            batch_index=update.batch_index,
            arrivals=update.arrivals,
            wait_for=rule.wait_for,
            loss=sum(contribution.loss for contribution in counted) / len(counted),
            samples=counted[0].samples * len({p for a in update.arrivals for p in rule.code.parts(a.worker)}),
            wait_s=time.monotonic() - started,
            compute_s=sum(contribution.compute_s for contribution in counted) / len(counted),
            bytes_up=self._bytes_up + up,
            bytes_down=self._publication.bytes_sent - self._bytes_told + down,
            uploads=len(counted) - 1,  # each position is added up by one that has its own of it
            code=rule.code,
            dropped=update.dropped,
            refused=update.refused,
            resyncs=update.resyncs,
            live=len(rule.live),
            inclusion=[rule.inclusion_rate(worker) for worker in range(rule.code.n)],
            logged=[contribution.logged for contribution in counted],
        )
        self._bytes_up, self._bytes_told = 0, self._publication.bytes_sent
        return closed

    # Links and workers that are lost.

    def _unlinked(self, header: Header, reason: str, now: float) -> None:
        """A link between two workers ended: what was on it is lost, so the update is decided again."""
        if not self._admission.living(header.version):
            return  # its own link's end says the same
        given_up = self._admission.unlinked(header, reason, now)
        if given_up is not None:
            self._lose(*given_up)
        elif self._open is not None and self._open.decision is not None:
            self._reopen(self._open)

    def _tell_who_missed(self) -> None:
        """Let workers whose queue was full ask for the state; decide again where one lacks what it was to add up."""
        for worker in sorted(self._hub.refused & set(self._others)):
            self._hub.refused.discard(worker)
            self._publication.send([worker], self._publication.header(Op.MISSED))
            if worker not in self._hub.refused:  # as it is again where there is still no room
                self._reopen_if_needs(worker)

    def _lose(self, worker: int, reason: str | None = None) -> None:
        if self._admission.lose(worker, reason):
            self._ready.pop(worker, None)
            self._delays.forget(worker)
            self._reopen_if_needs(worker)

    def _reopen_if_needs(self, worker: int) -> None:
        """Decide again where something of the worker is needed that it may not give."""
        decision = self._open.decision if self._open is not None else None
        if decision is not None and worker in decision.workers and not self._reduction.complete(decision.number):
            assert self._open is not None
            self._reopen(self._open)

    def _reopen(self, update: _Open) -> None:
        update.decision = None
        self._count_ready()  # those that came after it: nobody else may come

    # Waiting.

    def _holding_up(self, update: _Open) -> tuple[int | None, list[int]]:
        """The decision that waits to be carried out, None before there is one, and for whom."""
        if update.decision is None:
            return None, self._rule.awaited
        return update.decision.number, self._reduction.missing(update.decision.number)

    def _awaited(self, update: _Open) -> str:
        number, workers = self._holding_up(update)
        return f"codewords of workers {workers}" if number is None else f"workers {workers} to add codewords up"

    def _give_up_who_holds_up(self, update: _Open) -> None:
        waiting_for = self._holding_up(update)
        if self._patience.over(waiting_for, time.monotonic()):
            for worker in set(waiting_for[1]) - {self._rule.always}:
                self._lose(worker, f"it held an update up for {self._patience.seconds:.3g} s")

    @property
    def _may_decide(self) -> bool:
        return self._rule.complete and not self._members.broken(self._rule.counted)

    def _check_deadline(self, deadline: float, awaited: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {self._timeout_s:g} s for {awaited}.")
