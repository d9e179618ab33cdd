"""The coordinator's side of the exchange: publish a version, decode codewords as they arrive, close after K of n.

An update runs `publish` -> `contribute` (the coordinator's own codeword, if it computes one) -> `collect`. Everything
happens in the caller's thread: messages queue in ZeroMQ while it computes, and are decoded one by one while it waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.wire import WireFormat
from lwpd_lightning.exchange.header import COORDINATOR, Header, Op, ProtocolError
from lwpd_lightning.exchange.message import Messages, words
from lwpd_lightning.exchange.rule import ArrivalRule
from lwpd_lightning.exchange.staging import Staging
from lwpd_lightning.exchange.state import StateLayout
from lwpd_lightning.exchange.transport import Hub, LinkLost, Message
from lwpd_lightning.exchange.update import Contribution, Failure, TooFewWorkers, Update, WorkerFailed

log = logging.getLogger(__name__)

# How often a waiting coordinator looks whether processes died before they joined, and says whom it waits for.
_LOOK_S = 0.2
_REPORT_S = 60.0
# How long workers on other machines may take to hear that the fit is over and hang up.
_FAREWELL_S = 10.0
# A killed process' sockets close a moment before its exit status can be read.
_EXIT_S = 0.5


@dataclass
class _Open:
    """What has been gathered for the open update."""

    epoch: int
    batch_index: int
    held: dict[int, Tensor] = field(default_factory=dict)
    touched: Tensor | None = None
    losses: list[float] = field(default_factory=list)
    compute_s: list[float] = field(default_factory=list)
    samples: int = 0
    statistics: list[Tensor] = field(default_factory=list)
    dropped: int = 0


class Coordinator:
    """Owns the hub, the K-of-n rule and the decoded gradient.

    Args:
        hub: links to the workers.
        rule: which codewords count.
        blocks: layout of the trainable parameters.
        model: the module that is trained.
        wire: how codewords are packed.
        parameter_wire: how each version's parameters are packed; None: bit for bit.
        messages: packs and reads this fit's messages.
        fingerprint: 32 bytes that all ranks of the fit must share: its model, code, batches and seed.
        first_version: number of the first version that is published.
        min_workers: fewer live workers than this, the coordinator's own included, end the run.
        timeout_s: longest wait for one update.
        exited: how a worker's process ended, None where it lives or is not known; waits up to the given seconds.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        rule: ArrivalRule,
        blocks: BlockMap,
        model: nn.Module,
        wire: WireFormat,
        parameter_wire: WireFormat | None,
        messages: Messages,
        fingerprint: bytes,
        first_version: int,
        min_workers: int,
        timeout_s: float,
        exited: Callable[[int, float], str | None],
    ) -> None:
        self.failures: list[Failure] = []
        self._hub, self._rule, self._blocks, self._wire, self._messages = hub, rule, blocks, wire, messages
        self.version = first_version - 1
        self._fingerprint = fingerprint
        self._min_workers, self._timeout_s, self._exited = min_workers, timeout_s, exited
        device = blocks.device
        self._everything = StateLayout.everything(model, device)
        self._per_version = StateLayout.per_version(model, device, parameter_wire)
        self._statistics = StateLayout.statistics(model, device)
        self._now = self._per_version.buffer()
        self._flat = blocks.zeros()
        self._staging = Staging(device)
        self._idle: set[int] = set()
        # A worker reads a snapshot until its codeword is here, so there are at most n + 1 of them.
        self._snapshots: list[Tensor] = []
        self._reading: dict[int, Tensor] = {}
        self._published: tuple[Header, Tensor] | None = None
        self._open: _Open | None = None
        self._decoded: tuple[float, list[bool]] = (1.0, [])
        self._bytes_up = self._bytes_down = self._uploads = 0

    def admit(self) -> None:
        """Start-up barrier: wait until every live worker has joined, and send each the whole state."""
        everything = self._buffer(self._everything)
        self._everything.pack(everything)
        others = self._rule.live - {self._rule.always}
        deadline = time.monotonic() + self._timeout_s
        while not others & self._rule.live <= self._idle:
            waiting = sorted(others & self._rule.live - self._idle)
            self._check_deadline(deadline, f"workers {waiting} to join")
            for worker in waiting:
                if (reason := self._exited(worker, 0.0)) is not None:
                    raise WorkerFailed(f"worker {worker} {reason} before it joined; its output is above.")
            for event in self._hub.events(_LOOK_S):
                if isinstance(event, LinkLost):
                    self._lose(event.worker)
                    continue
                header, payload, _ = self._messages.read(event.frames)
                if header.op is Op.FAILURE:
                    raise WorkerFailed(words(payload))
                if header.op is not Op.JOIN or bytes(payload.tolist()) != self._fingerprint:
                    raise WorkerFailed(
                        f"worker {event.worker} came to another fit than rank 0: its model's shapes, its code, its "
                        "batches or its seed differ."
                    )
                self._send(event.worker, Op.STATE, everything)
                self._idle.add(event.worker)
            self._check_enough_live()

    def publish(self, epoch: int, batch_index: int, global_step: int, *, void_older: bool = False) -> None:
        """Open the next update: take a snapshot of the model and send it to every worker that waits for one.

        Args:
            epoch: epoch of the update's batch.
            batch_index: its index in the epoch.
            global_step: optimizer steps taken so far.
            void_older: nothing computed on older versions may count (the model changed outside the optimizer step).
        """
        self.version += 1
        snapshot = self._free_snapshot()
        self._per_version.pack(snapshot)
        header = Header(
            Op.PARAMETERS, self._messages.run_id, COORDINATOR, self.version, epoch, batch_index, global_step=global_step
        )
        self._published = header, snapshot
        self._flat.zero_()
        self._open = _Open(epoch, batch_index)
        self._rule.open(self.version, time.monotonic(), void_older=void_older)
        for worker in sorted(self._idle):
            self._send_published(worker)

    def unchanged_since_publication(self) -> bool:
        """Whether the model, packed again, still gives the bytes that were published last."""
        assert self._published is not None
        self._per_version.pack(self._now)
        return torch.equal(self._now, self._published[1])

    def contribute(self, contribution: Contribution) -> None:
        """Count the coordinator's own codeword."""
        assert self._rule.always is not None
        self._count(self._rule.always, self.version, contribution)

    def collect(self) -> Update:
        """Wait until the update may close, and close it; `deliver` hands out its gradient.

        Raises:
            WorkerFailed: a worker raised an exception.
            TooFewWorkers: fewer than ``min_workers`` live.
            TimeoutError: the update did not close in ``timeout_s``; names the workers that it waited for.
        """
        started = time.monotonic()
        deadline, report = started + self._timeout_s, started + _REPORT_S
        while True:
            for event in self._hub.events(0.0 if self._rule.complete else _LOOK_S):
                self._handle(event)
            self._check_enough_live()
            if self._rule.complete:
                return self._close(started)
            self._check_deadline(deadline, f"codewords of workers {self._rule.awaited}")
            if time.monotonic() > report:
                report += _REPORT_S
                log.warning("Update %d still waits for workers %s", self.version, self._rule.awaited)

    def deliver(self) -> None:
        """Leave the gradient of the update that was closed last in the parameters' ``.grad``."""
        self._blocks.scatter(self._flat, *self._decoded)

    def stop(self, *, await_farewell: bool) -> None:
        """Tell every worker that the fit is over and close the links.

        Args:
            await_farewell: first read on until the workers have hung up, but not for ever. A socket that is closed with
                codewords unread takes back what it has sent, and a worker behind a slow link would not hear the end.
        """
        staying = self._rule.live - {self._rule.always}
        for worker in staying:
            self._send(worker, Op.STOP)
        deadline = time.monotonic() + _FAREWELL_S
        while await_farewell and staying and time.monotonic() < deadline:
            staying -= {event.worker for event in self._hub.events(_LOOK_S) if isinstance(event, LinkLost)}
        self._hub.close()

    def _handle(self, event: Message | LinkLost) -> None:
        if isinstance(event, LinkLost):
            self._lose(event.worker)
            return
        try:
            header, payload, rest = self._messages.read(event.frames)
            if header.op is Op.FAILURE:  # also from a worker whose link has ended since
                raise WorkerFailed(words(payload))
            if event.worker not in self._rule.live:
                self._send(event.worker, Op.STOP)
                return
            contribution = self._contribution(header, payload, rest)
        except ProtocolError as error:
            self._lose(event.worker, str(error))
            return
        self._bytes_up += event.frames[0].nbytes + payload.numel() + rest.numel()
        self._uploads += 1
        self._reading.pop(event.worker, None)
        self._idle.add(event.worker)
        if not self._count(event.worker, header.version, contribution):
            assert self._open is not None
            self._open.dropped += 1
            self._send_published(event.worker)  # it gets fresh parameters at once

    def _contribution(self, header: Header, payload: Tensor, rest: Tensor) -> Contribution:
        expected = (Op.CODEWORD, self._wire.code, self._blocks.block_size)
        if (header.op, header.wire, header.elements) != expected:
            raise ProtocolError(f"op {header.op} with {header.elements} elements of wire dtype {header.wire}")
        sizes = [self._statistics.nbytes, len(self._blocks.parameters)]
        if payload.numel() != self._wire.nbytes(self._blocks.block_size) or rest.numel() != sum(sizes):
            raise ProtocolError(f"a codeword of {payload.numel()} bytes with {rest.numel()} bytes beside it")
        statistics, touched = torch.split(rest, sizes)
        return Contribution(
            codeword=self._wire.unpack(self._staging.to_device(payload), self._blocks.block_size),
            touched=touched.bool().tolist(),
            loss=header.loss,
            samples=header.samples,
            compute_s=header.compute_s,
            statistics=statistics,
        )

    def _count(self, worker: int, version: int, contribution: Contribution) -> bool:
        update = self._open
        assert update is not None
        if not self._rule.counts(worker, version, time.monotonic()):
            return False
        coefficients = self._rule.coefficients(worker)
        if coefficients is None:
            update.held[worker] = contribution.codeword
        else:
            self._blocks.accumulate(self._flat, coefficients, contribution.codeword)
        touched = torch.tensor(contribution.touched)
        update.touched = touched if update.touched is None else update.touched | touched
        update.losses.append(contribution.loss)
        update.compute_s.append(contribution.compute_s)
        update.samples = contribution.samples
        if self._statistics.nbytes:
            update.statistics.append(contribution.statistics)
        return True

    def _close(self, started: float) -> Update:
        update, rule = self._open, self._rule
        assert update is not None and update.touched is not None
        arrivals = rule.arrivals
        parts = {part for arrival in arrivals for part in rule.code.parts(arrival.worker)}
        decoding = rule.close()
        for worker, codeword in update.held.items():
            self._blocks.accumulate(self._flat, decoding.held[worker], codeword)
        self._decoded = decoding.scale, update.touched.tolist()
        self._statistics.average(update.statistics)
        closed = Update(
            version=self.version,
            epoch=update.epoch,
            batch_index=update.batch_index,
            arrivals=arrivals,
            loss=sum(update.losses) / len(update.losses),
            samples=update.samples * len(parts),
            wait_s=time.monotonic() - started,
            compute_s=sum(update.compute_s) / len(update.compute_s),
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            uploads=self._uploads,
            decoded_share=decoding.decoded_share,
            dropped=update.dropped,
            live=len(rule.live),
            inclusion=[rule.inclusion_rate(worker) for worker in range(rule.code.n)],
        )
        self._open = None
        self._bytes_up = self._bytes_down = self._uploads = 0
        return closed

    def _lose(self, worker: int, reason: str | None = None) -> None:
        if worker not in self._rule.live:
            return
        self._rule.lose(worker)
        self._idle.discard(worker)
        self._reading.pop(worker, None)
        reason = reason or self._exited(worker, _EXIT_S) or "its link ended"
        self.failures.append(Failure(worker, self._rule.updates, reason))
        log.warning(
            "Worker %d is lost after update %d (%s): an erasure from now on", worker, self._rule.updates, reason
        )

    def _check_enough_live(self) -> None:
        if len(self._rule.live) < self._min_workers:
            raise TooFewWorkers(
                f"{len(self._rule.live)} live workers are fewer than min_workers={self._min_workers}; "
                f"lost: {[failure.worker for failure in self.failures]}."
            )

    def _send(self, worker: int, op: Op, payload: Tensor | None = None) -> None:
        header = Header(op, self._messages.run_id, COORDINATOR)
        self._hub.send(worker, self._messages.pack(header) if payload is None else self._messages.pack(header, payload))

    def _send_published(self, worker: int) -> None:
        assert self._published is not None
        header, snapshot = self._published
        frames = self._messages.pack(header, snapshot)
        self._bytes_down += len(frames[0]) + snapshot.numel()
        self._hub.send(worker, frames)
        self._idle.discard(worker)
        self._reading[worker] = snapshot

    def _buffer(self, layout: StateLayout) -> Tensor:
        return layout.buffer() if self._messages.arena is None else self._messages.arena.take(layout.nbytes)

    def _free_snapshot(self) -> Tensor:
        read = {id(snapshot) for snapshot in self._reading.values()}
        for snapshot in self._snapshots:
            if id(snapshot) not in read:
                return snapshot
        self._snapshots.append(self._buffer(self._per_version))
        return self._snapshots[-1]

    def _check_deadline(self, deadline: float, awaited: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {self._timeout_s:g} s for {awaited}.")
