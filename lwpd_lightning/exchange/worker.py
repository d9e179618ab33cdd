"""A worker's side of the exchange: step as rank 0 steps, compute a codeword of the newest version, help to add up.

A worker holds model and optimizer as rank 0 does and makes the same steps from the same decoded gradients, at the same
time, so that no parameters travel. Rank 0's are the truth: a worker tells a checksum of those that its codeword was
computed at, and where they were others, or where it missed what it needed, it takes over rank 0's state.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.decision import Decision
from lwpd_lightning.exchange.header import COORDINATOR, Header, Op
from lwpd_lightning.exchange.mesh import WorkerLinks
from lwpd_lightning.exchange.message import EMPTY, Messages, text, words
from lwpd_lightning.exchange.received import BadPeer
from lwpd_lightning.exchange.reduction import Reduction
from lwpd_lightning.exchange.state import StateLayout, checksum, digest, from_bytes, whole_state
from lwpd_lightning.exchange.transport import LinkLost
from lwpd_lightning.exchange.update import Codeword, Contribution

# Versions that a worker lets pass while a part of an older one may still be on its way to it.
_PATIENCE = 32


@dataclass(frozen=True)
class Assignment:
    """Which batch to compute at which version; the model already is at the version."""

    version: int
    epoch: int
    batch_index: int
    global_step: int


@dataclass(frozen=True)
class _Version:
    """A published version that the worker has not reached yet, or is at."""

    header: Header
    settings: Tensor
    buffers: Tensor


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
        step: makes an optimizer step with the gradients that lie in ``.grad``, as rank 0 makes it.
        messages: packs and reads this fit's messages.
        fingerprint: 32 bytes that all ranks of the fit must share: its model, code, batches and seed.
        timeout_s: longest wait for the coordinator's answer when joining; later only the link's heartbeat ends it.
    """

    def __init__(
        self,
        *,
        links: WorkerLinks,
        reduction: Reduction,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: Callable[[], None],
        messages: Messages,
        fingerprint: bytes,
        timeout_s: float,
    ) -> None:
        self._links, self._reduction, self._optimizer, self._make_step = links, reduction, optimizer, step
        self._messages, self._fingerprint, self._timeout_s = messages, fingerprint, timeout_s
        assert reduction.ranks.me is not None
        self._worker = reduction.ranks.me
        self._device = reduction.blocks.device
        self._everything = StateLayout.everything(model, self._device)
        self._buffers = StateLayout.buffers(model, self._device)
        self._buffer_values = self._buffers.buffer()
        self._at = -1  # the version that the model is at
        self._newest = -1  # the newest version that was published
        self._versions: dict[int, _Version] = {}
        self._resyncing = False
        self._codeword: _Fate | None = None
        self._unmet: set[int] | None = None

    def run(self, compute: Callable[[Assignment], tuple[Codeword, Contribution] | None]) -> None:
        """Join, then compute until the coordinator stops the fit; an exception is reported to it and raised.

        Args:
            compute: gives a version's codeword and what is told of it; None: there is no such batch, so that another
                version will come.

        Raises:
            CoordinatorLost: the link ended without a word.
        """
        self._unmet = set(self._links.peers)
        join = Header(Op.JOIN, self._messages.run_id, self._worker)
        state = digest(whole_state(self._everything, self._optimizer.state_dict()))
        fingerprint = torch.tensor(list(self._fingerprint + state), dtype=torch.uint8)
        self._links.send(COORDINATOR, self._messages.pack(join, fingerprint, text(self._links.address)))
        try:
            self._receive(self._timeout_s)
            self._buffers.pack(self._buffer_values)
            while True:
                caught_up = self._catch_up()
                if not caught_up or self._codeword is not None or self._at not in self._versions:
                    if caught_up:
                        self._reduction.prepare()
                    if not self._receive(None):
                        return
                    continue
                computed = compute(self._assignment())
                self._codeword = _Fate(self._at, counted=computed is None)
                if computed is None:
                    continue
                codeword, contribution = computed
                self._reduction.offer(codeword)
                # It may have come too late meanwhile: then it never leaves.
                while self._links.waiting:
                    if not self._receive(None):
                        return
                self._say(Op.LATE if self._codeword is None else Op.READY, contribution)
        except BaseException:
            self._post(Op.FAILURE, text(f"worker {self._worker} failed:\n{traceback.format_exc()}"))
            raise

    def _assignment(self) -> Assignment:
        header = self._versions[self._at].header
        return Assignment(header.version, header.epoch, header.batch_index, header.global_step)

    # What comes in.

    def _receive(self, timeout_s: float | None) -> bool:
        """Take one message; False when the fit is over."""
        event = self._links.receive(timeout_s)
        if isinstance(event, LinkLost):
            if event.worker in self._reduction.ranks.workers:
                self._post(Op.UNLINKED, version=event.worker)
            return True
        header, payload, rest = self._messages.read(event.frames)
        try:
            if event.worker == COORDINATOR and header.worker == COORDINATOR:
                return self._told(header, payload, rest)
            if event.worker in (header.worker, COORDINATOR):  # rank 0 may be a worker too
                self._asked(header, payload)
        except BadPeer as error:
            self._post(Op.UNLINKED, text(str(error)), version=error.worker)
        return True

    def _asked(self, header: Header, payload: Tensor) -> None:
        if header.op is Op.SLICE:
            self._reduction.slice_arrived(header, payload)
        elif header.op is Op.PART:
            self._reduction.part_arrived(header, payload)
        elif header.op is Op.MEET:
            self._met(header.worker)

    def _told(self, header: Header, payload: Tensor, rest: Tensor) -> bool:
        if header.op is Op.STOP:
            return False
        if header.op is Op.STATE:
            self._take_over(header, payload)
        elif header.op is Op.PEERS:
            self._meet(words(payload))
        elif header.op is Op.VERSION:
            self._published(_Version(header, settings=rest, buffers=payload))
        elif header.op is Op.DECISION:
            decision = Decision.unpack(header, payload, rest, self._reduction.rows)
            if self._worker in decision.workers and self._codeword is not None:
                self._codeword.counted = True
            self._reduction.begin(decision)
        elif header.op is Op.LOST:
            self._reduction.ranks.workers.discard(header.version)
            self._met(header.version)
        return True

    def _published(self, version: _Version) -> None:
        number = version.header.version
        self._versions[number] = version
        self._newest = max(self._newest, number)
        if self._codeword is not None and self._codeword.counted:
            self._withdraw()
        self._forget_older(version.header.oldest)

    def _forget_older(self, oldest: int) -> None:
        if self._codeword is not None and self._codeword.version < oldest:
            self._withdraw()

    def _withdraw(self) -> None:
        self._codeword = None
        self._reduction.withdraw()

    # Among workers.

    def _meet(self, peers: str) -> None:
        addresses = dict(line.split(" ", 1) for line in peers.splitlines())
        self._links.connect({int(w): address for w, address in addresses.items() if int(w) in self._links.peers})
        for worker in self._links.peers:
            self._links.send(worker, self._messages.pack(Header(Op.MEET, self._messages.run_id, self._worker)))
        self._say_met()

    def _met(self, worker: int) -> None:
        if self._unmet is not None:
            self._unmet.discard(worker)
            self._say_met()

    def _say_met(self) -> None:
        """Tell rank 0, once, when links from all other workers are there and to all are opened."""
        if self._unmet is not None and not self._unmet and self._links.connected:
            self._unmet = None
            self._post(Op.MET)

    # From version to version.

    def _catch_up(self) -> bool:
        """Step to the newest published version as far as what came allows; whether the model is there."""
        while self._at < self._newest:
            following = self._versions.get(self._at + 1)
            if following is None:
                self._ask_for_state()
                return False
            if following.header.decision and not self._step(following):
                return False
            self._arrive(following)
        return not self._resyncing

    def _step(self, version: _Version) -> bool:
        number, reduction = version.header.decision, self._reduction
        if not reduction.readable(number):
            if reduction.hopeless(number) or version.header.version + _PATIENCE < self._newest:
                self._ask_for_state()
            return False
        if not reduction.scatter(number):
            self._ask_for_state()
            return False
        if version.settings.numel():
            for group, settings in zip(
                self._optimizer.param_groups, from_bytes(version.settings, self._device), strict=True
            ):
                group.update(settings)
        self._make_step()
        reduction.commit(number)
        return True

    def _arrive(self, version: _Version) -> None:
        if version.buffers.numel():
            self._buffer_values = version.buffers
        self._buffers.unpack(self._buffer_values)
        self._reach(version.header.version)

    def _reach(self, version: int) -> None:
        self._at = version
        self._versions = {number: kept for number, kept in self._versions.items() if number >= version}

    def _ask_for_state(self) -> None:
        if not self._resyncing:
            self._resyncing = True
            self._post(Op.RESYNC)

    def _take_over(self, header: Header, state: Tensor) -> None:
        if state.numel():
            self._load(state)
        self._buffers.pack(self._buffer_values)
        self._resyncing = False
        self._reach(header.version)
        self._forget_older(header.oldest)

    def _load(self, state: Tensor) -> None:
        values, optimizer = state[: self._everything.nbytes], state[self._everything.nbytes :]
        self._everything.unpack(values)
        try:
            self._optimizer.load_state_dict(from_bytes(optimizer, self._device))
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"the state of {type(self._optimizer).__name__} holds more than tensors, numbers and plain containers, "
                "which is all that may travel: coded exchange needs an optimizer that workers can hold too."
            ) from error

    # What goes out.

    def _say(self, op: Op, contribution: Contribution) -> None:
        header = Header(
            op, self._messages.run_id, self._worker, contribution.version, loss=contribution.loss,
            compute_s=contribution.compute_s, samples=contribution.samples,
            checksum=checksum(self._reduction.blocks.parameters) if op is Op.READY else 0,
        )  # fmt: skip
        touched = torch.tensor(contribution.touched, dtype=torch.uint8)
        self._links.send(COORDINATOR, self._messages.pack(header, contribution.statistics, touched))

    def _post(self, op: Op, payload: Tensor = EMPTY, *, version: int = 0) -> None:
        header = Header(op, self._messages.run_id, self._worker, version)
        self._links.send(COORDINATOR, self._messages.pack(header, payload))
