"""A worker's side of the exchange: step as rank 0 steps, compute a codeword of the newest version, help to add up.

A worker holds model and optimizer as rank 0 does and makes the same steps from the same decoded gradients, at the same
time, so that no parameters travel. Rank 0's are the truth: a worker tells a checksum of those that its codeword was
computed at, and where they were others, or where it missed what it needed, it takes over rank 0's state.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lwpd_lightning.exchange.decision import Decision
from lwpd_lightning.exchange.received import BadPeer
from lwpd_lightning.exchange.reduction import Reduction
from lwpd_lightning.exchange.state import Checksum, Checksums, Stateful, StateLayout, digest, from_bytes, whole_state
from lwpd_lightning.exchange.update import Codeword, Contribution
from lwpd_lightning.links.header import COORDINATOR, NO_BATCH, Header, Op
from lwpd_lightning.links.mesh import CoordinatorLost, Missed, WorkerLinks
from lwpd_lightning.links.message import EMPTY, Messages, text, words
from lwpd_lightning.links.transport import LinkLost
from lwpd_lightning.rule.membership import Refused

log = logging.getLogger(__name__)

_SHARED_TENSORS = os.path.join("torch", "multiprocessing", "reductions.py")
# Between two tries to be let in; doubled each time that a worker is given up again.
_AGAIN_S, _LONGEST_PAUSE_S = 0.5, 30.0
# How long a process asks for a row that another one has: longer than it takes to notice that it is dead.
_INSIST_S = 15.0
# How long a worker tries to reach rank 0 again whose link has ended.
_RETURN_S = 60.0
# Versions that a worker lets pass while a part of an older one may still be on its way to it.
_PATIENCE = 32


@dataclass(frozen=True)
class Assignment:
    """Which batch to compute at which version; the model already is at the version."""

    version: int
    epoch: int
    batch_index: int
    global_step: int


class Replica(Protocol):
    """The model on a worker, as it is trained there."""

    @property
    def changed(self) -> bool:
        """Whether something else is to be trained than when the exchange began."""

    def enter(self, assignment: Assignment) -> None:
        """Training has come to this epoch, batch and step."""

    def compute(self, assignment: Assignment, settle: Callable[[], None]) -> tuple[Codeword, Contribution] | None:
        """The codeword of the assignment; None where the batch is left out.

        Args:
            assignment: what to compute, which `enter` was told of.
            settle: called when only the training step itself is still to come: the model is what it is computed at.
        """

    def skip(self, at: Assignment) -> None:
        """A step comes from ``at``, whose batch this worker has not computed."""

    def step(self, at: Assignment) -> None:
        """Make the optimizer's step from ``at`` with the gradients that lie in ``.grad``, as rank 0 makes it."""

    def steer(self, attributes: dict[str, object]) -> None:
        """Set what validation on rank 0 has changed."""


@dataclass(frozen=True)
class _Version:
    """A published version that the worker has not reached yet, or is at."""

    header: Header
    told: Tensor  # `to_bytes` of a dictionary: the optimizer's "settings", "attributes" that validation changed
    buffers: Tensor

    @property
    def assignment(self) -> Assignment:
        header = self.header
        return Assignment(header.version, header.epoch, header.batch_index, header.global_step)


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
    ) -> None:
        self._links, self._reduction, self._replica = links, reduction, replica
        self._optimizer, self._precision = optimizer, precision
        self._messages, self._fingerprint, self._timeout_s = messages, fingerprint, timeout_s
        assert reduction.ranks.me is not None
        self._worker = reduction.ranks.me
        self._device = reduction.blocks.device
        self._everything = StateLayout.everything(model, self._device)
        self._buffers = StateLayout.buffers(model, self._device)
        self._buffer_values = self._buffers.buffer()
        self._checksums = Checksums(model, reduction.blocks.parameters)
        self._skipped = 0  # batches that other workers computed since this one had rank 0's state
        self._taken_over: tuple[int, Tensor] | None = None  # the state that came last, and of which version
        self._at = -1  # the version that the model is at
        self._newest = -1  # the newest version that was published
        self._versions: dict[int, _Version] = {}
        self._resyncing = False
        self._codeword: _Fate | None = None
        self._done = -1  # the version whose batch has been computed or left out
        self._computed_at = Checksum(0, 0)
        self._end: Assignment | None = None
        self._proof: Tensor | None = None  # that it belongs to this fit, and of the state that it came with
        self._entered = False  # whether rank 0 has given its state to this incarnation
        self._pause_s = _AGAIN_S
        # Who is in besides: which process of each worker rank 0 told of, and which one has greeted last.
        self._introduction = 0
        self._incarnations: dict[int, int] = {}
        self._greeted: dict[int, int] = {}
        self._unmet: set[int] | None = None  # who is yet to greet; None: rank 0 knows that all have
        self._unlinked: set[int] = set()  # workers whose link to this one ended

    def run(self) -> Assignment:
        """Join, then compute until the coordinator stops the fit; an exception is reported to it and raised.

        Returns where training ended.

        Raises:
            CoordinatorLost: the link ended without a word.
            Refused: rank 0 does not let this process in.
        """
        try:
            self._enter(self._timeout_s)
            self._buffers.pack(self._buffer_values)
            while self._end is None:
                try:
                    self._follow()
                except (CoordinatorLost, Refused) as error:
                    self._come_back(error)
            return self._end
        except (CoordinatorLost, Refused):
            raise  # a report would open the link anew, and reach a rank 0 that has gone on without this worker
        except BaseException as error:
            if _lacks_a_process(error):
                self._post(Op.LEAVING, text(f"a process of its DataLoader was killed: {error}".strip()))
                raise
            self._post(Op.FAILURE, text(f"worker {self._worker} failed:\n{traceback.format_exc()}"))
            raise

    def _follow(self) -> None:
        caught_up = self._catch_up()
        # Whoever is yet to meet the others does that first: nobody waits for its codeword until it has.
        if caught_up and self._codeword is None and self._has_batch and self._introduction and self._unmet is None:
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
            state = digest(whole_state(self._everything, self._optimizer, self._precision, {}))
            self._proof = torch.tensor(list(self._fingerprint + state), dtype=torch.uint8)
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
                time.sleep(max(0.0, until - time.monotonic()))
            except Refused:
                pass  # said again

    def _forget(self) -> None:
        """What was going on when the link ended."""
        self._links.renew()
        self._withdraw()
        self._versions, self._newest, self._at, self._done, self._resyncing = {}, -1, -1, -1, False
        self._introduction, self._incarnations, self._unmet = 0, {}, None
        self._unlinked.clear()

    @property
    def _has_batch(self) -> bool:
        version = self._versions.get(self._at)
        return version is not None and self._at != self._done and version.header.batch_index != NO_BATCH

    def _compute(self) -> None:
        computed = self._replica.compute(self._versions[self._at].assignment, self._settle)
        self._done = self._at
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
        self._codeword = _Fate(self._at)
        self._reduction.offer(codeword)
        # It may have come too late meanwhile: then it never leaves.
        while self._links.waiting and self._end is None:
            self._receive(None)
        self._say(Op.LATE if self._codeword is None else Op.READY, contribution)

    def _settle(self) -> None:
        if self._taken_over is not None and self._taken_over[0] == self._at:
            # Rank 0's state is that of after its hooks, which this rank has run on top of it.
            self._load(self._taken_over[1])
            self._buffers.unpack(self._buffer_values)
        self._taken_over = None
        self._computed_at = self._checksums.take()

    # What comes in.

    def _receive(self, timeout_s: float | None) -> None:
        """Take one message."""
        event = self._links.receive(timeout_s)
        if isinstance(event, LinkLost):
            self._link_ended(event)
            return
        if isinstance(event, Missed):
            self._has_missed(event.worker)
            return
        header, payload, rest = self._messages.read(event.frames)
        try:
            if event.worker == COORDINATOR and header.worker == COORDINATOR:
                self._told(header, payload, rest)
            elif event.worker in (header.worker, COORDINATOR):  # rank 0 may be a worker too
                if event.worker == COORDINATOR or self._incarnations.get(header.worker) == header.incarnation:
                    self._asked(header, payload)
                if header.op is Op.MEET:  # which may come before rank 0 has told of it
                    self._greeted[header.worker] = header.incarnation
                    self._say_met()
        except BadPeer as error:
            self._post(Op.UNLINKED, text(str(error)), version=error.worker)

    def _asked(self, header: Header, payload: Tensor) -> None:
        if header.op is Op.SLICE:
            self._reduction.slice_arrived(header, payload)
        elif header.op is Op.PART:
            self._reduction.part_arrived(header, payload)
        elif header.op is Op.MEET and header.worker in self._unlinked:
            self._unlinked.discard(header.worker)
            self._post(Op.LINKED, version=header.worker)
        elif header.op is Op.MISSED:
            self._reduction.heard(header.worker, header.decision)

    def _has_missed(self, worker: int) -> None:
        """Tell a worker that read nothing for long, and rank 0 where the worker lacks what it was to add up."""
        header = Header(Op.MISSED, self._messages.run_id, self._worker, decision=self._reduction.sent)
        self._links.send(worker, self._messages.pack(header))
        if self._reduction.depends_on(worker):
            self._post(Op.UNLINKED, version=worker, elements=1)

    def _link_ended(self, event: LinkLost) -> None:
        """Tell rank 0, which lets both ends greet until the link is back, or gives one of the two up."""
        self._reduction.unlinked(event.worker)
        if event.worker not in self._reduction.ranks.workers:
            return
        if not event.stands:
            self._unlinked.add(event.worker)
        self._post(Op.UNLINKED, version=event.worker, elements=int(event.stands))

    def _told(self, header: Header, payload: Tensor, rest: Tensor) -> None:
        if header.op is Op.STOP:
            self._end = Assignment(self._at, header.epoch, header.batch_index, header.global_step)
        elif header.op is Op.STATE:
            self._take_over(header, payload)
        elif header.op is Op.MISSED:
            self._resyncing = False  # the state that it asked for may be what is lost
            self._ask_for_state()
        elif header.op is Op.PEERS:
            self._meet(header.version, words(payload))
        elif header.op is Op.GREET:
            self._greet(header.version)
        elif header.op is Op.REFUSED:
            raise Refused(words(payload))
        elif header.op is Op.VERSION:
            self._published(_Version(header, told=rest, buffers=payload))
        elif header.op is Op.DECISION:
            decision = Decision.unpack(header, payload, rest, self._reduction.receiver.rows)
            if self._worker in decision.workers and self._codeword is not None:
                self._codeword.counted = True
            self._reduction.begin(decision)
        elif header.op is Op.LOST:
            self._lost(header.version)

    def _published(self, version: _Version) -> None:
        number = version.header.version
        self._versions[number] = version
        if number == self._at:  # the state of it came before
            self._listen(version)
        # Not where a version comes again behind a state: its update is open, and a codeword counts once.
        if number > self._newest and self._codeword is not None and self._codeword.counted:
            self._withdraw()
        self._newest = max(self._newest, number)
        self._forget_older(version.header.oldest)

    def _forget_older(self, oldest: int) -> None:
        if self._codeword is not None and self._codeword.version < oldest:
            self._withdraw()

    def _withdraw(self) -> None:
        self._codeword = None
        self._reduction.withdraw()

    # Among workers.

    def _meet(self, introduction: int, peers: str) -> None:
        """Rank 0 tells of others: at first of all that are in, later of those that come."""
        told = dict[int, str]()
        for line in peers.splitlines():
            number, incarnation, address = line.split(" ", 2)
            if int(number) != self._worker:
                self._incarnations[int(number)], told[int(number)] = int(incarnation), address
        ranks = self._reduction.ranks
        if not self._introduction:
            ranks.workers &= told.keys() | {self._worker} | ({ranks.coordinator} - {None})  # others are lost by now
        ranks.workers |= told.keys()
        self._introduction, self._unmet = introduction, told.keys() & set(self._links.peers)
        self._links.connect({worker: told[worker] for worker in self._unmet})
        for worker in self._unmet:
            self._greet(worker)
        self._say_met()

    def _greet(self, worker: int) -> None:
        self._links.send(worker, self._messages.pack(Header(Op.MEET, self._messages.run_id, self._worker)))

    def _lost(self, worker: int) -> None:
        self._reduction.ranks.workers.discard(worker)
        self._incarnations.pop(worker, None)
        self._unlinked.discard(worker)
        self._links.disconnect(worker)
        if self._unmet is not None:
            self._unmet.discard(worker)
            self._say_met()

    def _say_met(self) -> None:
        """Tell rank 0, once, when everybody that it told of has greeted."""
        if self._unmet is None:
            return
        self._unmet = {w for w in self._unmet if self._greeted.get(w) != self._incarnations[w]}
        if not self._unmet:
            self._unmet = None
            self._post(Op.MET, version=self._introduction)

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
        at = self._versions[self._at]
        if self._done != self._at:
            self._skipped += 1
            self._replica.skip(at.assignment)
        # Rank 0 tells of a version before it steps to it: buffers are those of before the hooks around the step.
        self._listen(version)
        self._replica.step(at.assignment)
        reduction.commit(number)
        return True

    def _listen(self, version: _Version) -> None:
        """Take over what is told beside the step to a version."""
        if version.buffers.numel():
            self._buffer_values = version.buffers
        self._buffers.unpack(self._buffer_values)
        if not version.told.numel():
            return
        told = from_bytes(version.told, self._device)
        if (settings := told.get("settings")) is not None:
            groups = self._optimizer.param_groups
            if len(groups) != len(settings):
                raise RuntimeError(
                    f"rank 0's optimizer has {len(settings)} parameter groups, worker {self._worker}'s has "
                    f"{len(groups)}: add groups where every rank does, in a hook of the module or in "
                    "configure_optimizers."
                )
            for group, values in zip(groups, settings, strict=True):
                group.update(values)
        if attributes := told.get("attributes"):
            self._replica.steer(attributes)

    def _arrive(self, version: _Version) -> None:
        if not version.header.decision:
            self._listen(version)
        self._reach(version.header.version)
        self._replica.enter(version.assignment)

    def _reach(self, version: int) -> None:
        self._at = version
        self._versions = {number: kept for number, kept in self._versions.items() if number >= version}

    def _ask_for_state(self) -> None:
        if not self._resyncing:
            self._resyncing = True
            self._post(Op.RESYNC)

    def _take_over(self, header: Header, state: Tensor) -> None:
        if header.batch_index != NO_BATCH:
            # Hooks first, whose work on rank 0 is in its state.
            self._replica.enter(Assignment(header.version, header.epoch, header.batch_index, header.global_step))
        if state.numel():
            self._load(state)
            self._taken_over = header.version, state
        self._buffer_values = self._buffers.buffer()
        self._buffers.pack(self._buffer_values)
        self._entered, self._resyncing, self._skipped, self._done = True, False, 0, -1
        self._reduction.commit(header.decision)
        self._reach(header.version)
        self._versions.pop(header.version, None)  # it comes again, with the buffers that its batch is computed on
        self._forget_older(header.oldest)

    def _load(self, state: Tensor) -> None:
        values, rest = state[: self._everything.nbytes], state[self._everything.nbytes :]
        self._everything.unpack(values)
        try:
            told = from_bytes(rest, self._device)
            self._optimizer.load_state_dict(told["optimizer"])
            self._precision.load_state_dict(told["precision"])
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"the state of {type(self._optimizer).__name__} holds more than tensors, numbers and plain containers, "
                "which is all that may travel: coded exchange needs an optimizer that workers can hold too."
            ) from error
        self._reduction.receiver.forget()
        if attributes := told["attributes"]:
            self._replica.steer(attributes)

    # What goes out.

    def _say(self, op: Op, contribution: Contribution) -> None:
        header = Header(
            op, self._messages.run_id, self._worker, contribution.version, loss=contribution.loss,
            compute_s=contribution.compute_s, samples=contribution.samples, batch_index=self._skipped,
            checksum=self._computed_at.trainable, rest=self._computed_at.rest,
        )  # fmt: skip
        touched = torch.tensor(contribution.touched, dtype=torch.uint8)
        told = torch.cat([touched, text(contribution.logged)]) if contribution.logged else touched
        self._links.send(COORDINATOR, self._messages.pack(header, contribution.statistics, told))

    def _post(
        self, op: Op, payload: Tensor = EMPTY, rest: Tensor = EMPTY, *, version: int = 0, elements: int = 0
    ) -> None:
        header = Header(op, self._messages.run_id, self._worker, version, elements=elements)
        self._links.send(COORDINATOR, self._messages.pack(header, payload, rest))


def _lacks_a_process(error: BaseException) -> bool:
    """Whether a process that fetches batches was killed, as where memory is short: nothing that other workers do."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return True
    # Or it is found out by a tensor that the process shared, and nobody has buried the process yet.
    frames = traceback.extract_tb(error.__traceback__)
    shared = any(frame.filename.endswith(_SHARED_TENSORS) for frame in frames)
    return shared and isinstance(error, ConnectionError | EOFError | FileNotFoundError)
