"""What a rank has received for each decision, checked against it as soon as both are here."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lwpd_lightning.coding.wire import WireFormat
from lwpd_lightning.links.header import Header, ProtocolError
from lwpd_lightning.reduction.decision import Decision

# Decisions by which a peer may be ahead of what this rank has heard from rank 0: more than may be under way to it.
_MOST_AHEAD = 1024


class BadPeer(ProtocolError):
    """A worker sent what it should not have."""

    def __init__(self, worker: int, reason: str) -> None:
        super().__init__(reason)
        self.worker = worker


@dataclass
class Received:
    """Slices of codewords that this rank adds up, and the sums of all slices; both may come ahead of the decision.

    Args:
        me: this rank's worker; None for a dedicated coordinator.
        size: values in a codeword.
        wire: how slices are packed.
        sum_wire: how sums are packed.

    Attributes:
        newest: number of the newest decision that is known.
        decisions: those whose step is still to be made, by number.
    """

    me: int | None
    size: int
    wire: WireFormat
    sum_wire: WireFormat

    newest: int = field(init=False, default=0)
    decisions: dict[int, Decision] = field(init=False, default_factory=dict)
    # Of each worker the newest, with its decision's number: who sends one has heard that the decisions before are void.
    _slices: dict[int, tuple[int, Tensor]] = field(init=False, default_factory=dict)
    _sums: dict[int, dict[int, Tensor]] = field(init=False, default_factory=dict)
    _forgotten: int = field(init=False, default=0)  # decisions up to this one are wanted no more
    _done: dict[int, int] = field(init=False, default_factory=dict)  # worker -> decision up to which it has sent all
    _unlinked: set[int] = field(init=False, default_factory=set)  # workers not heard of since their link ended

    def expect(self, decision: Decision) -> list[BadPeer]:
        """What belongs to ``decision`` is wanted from now on; returns who sent what does not fit it, now forgotten."""
        number = self.newest = decision.number
        self.decisions[number] = decision
        self._slices = {worker: kept for worker, kept in self._slices.items() if kept[0] >= number}
        misfits = []
        for worker, packed in self.slices(number).items():
            try:
                self._check_slice(decision, worker, packed)
            except BadPeer as misfit:
                misfits.append(misfit)
                del self._slices[worker]
        for worker, packed in list(self.sums(number).items()):
            try:
                self._check_part(decision, worker, packed)
            except BadPeer as misfit:
                misfits.append(misfit)
                del self._sums[number][worker]
        return misfits

    def take_slice(self, header: Header, payload: Tensor) -> Decision | None:
        """A worker's codeword at this rank's positions; returns the decision that wants it, once known.

        Raises:
            BadPeer: its size is wrong.
        """
        self._check_number(header)
        self.heard(header.worker, header.decision - 1)
        if header.decision < self.newest:
            return None
        decision = self.decisions.get(header.decision)
        if decision is not None:
            self._check_slice(decision, header.worker, payload)
        self._slices[header.worker] = header.decision, payload
        return decision

    def take_part(self, header: Header, payload: Tensor) -> None:
        """The decoded gradient at another rank's positions; raises BadPeer where its size is wrong."""
        self._check_number(header)
        self.heard(header.worker, header.decision)
        decision = self.decisions.get(header.decision)
        if decision is not None:
            self._check_part(decision, header.worker, payload)
        self.keep_part(header.decision, header.worker, payload)

    def keep_part(self, number: int, reducer: int, packed: Tensor) -> None:
        """A sum that this rank has made itself."""
        if number > self._forgotten:
            self._sums.setdefault(number, {})[reducer] = packed

    def heard(self, worker: int, number: int) -> None:
        """A worker's message says that it has sent all that it ever will for decisions up to this one."""
        self._done[worker] = max(number, self._done.get(worker, 0))
        self._unlinked.discard(worker)

    def unlinked(self, worker: int) -> None:
        """The link from a worker ended, with what was on it."""
        self._unlinked.add(worker)

    def slices(self, number: int) -> dict[int, Tensor]:
        """The slices that are here, by worker."""
        return {worker: packed for worker, (other, packed) in self._slices.items() if other == number}

    def sums(self, number: int) -> dict[int, Tensor]:
        """The sums that are here, by reducer."""
        return self._sums.get(number, {})

    def missing(self, number: int) -> list[int]:
        """The workers whose sum of a decision is not here."""
        sums = self.sums(number)
        return [piece.reducer for piece in self.decisions[number].slices(self.size) if piece.reducer not in sums]

    def complete(self, number: int) -> bool:
        """Whether a decision and all its sums are here."""
        return number in self.decisions and not self.missing(number)

    def hopeless(self, number: int, live: set[int]) -> bool:
        """Whether what is missing of a decision will not come, or may not: messages of one sender keep their order."""
        if number not in self.decisions:
            return True
        missing = set(self.missing(number))
        lost = {worker for worker in missing if worker in self._unlinked or self._done.get(worker, 0) >= number}
        return bool(lost) or not missing <= live

    def forget(self, number: int) -> None:
        """A decision's step has been made: it and all before it are wanted no more."""
        self._forgotten = max(number, self._forgotten)
        self._slices = {worker: kept for worker, kept in self._slices.items() if kept[0] > number}
        self.decisions = {other: decision for other, decision in self.decisions.items() if other > number}
        self._sums = {other: sums for other, sums in self._sums.items() if other > number}

    def _check_number(self, header: Header) -> None:
        """What is kept ahead of its decision must not grow without a bound."""
        newest = max(self.newest, self._forgotten)
        if header.decision > newest + _MOST_AHEAD and newest:
            raise BadPeer(header.worker, f"worker {header.worker} sent of decision {header.decision} after {newest}")

    def _check_slice(self, decision: Decision, worker: int, packed: Tensor) -> None:
        mine = decision.share_of(self.me, self.size) if worker in decision.workers else None
        _check(self.wire, worker, packed, mine.stop - mine.start if mine is not None else 0)

    def _check_part(self, decision: Decision, worker: int, packed: Tensor) -> None:
        theirs = decision.share_of(worker, self.size)
        positions = theirs.stop - theirs.start if theirs is not None else 0
        _check(self.sum_wire, worker, packed, decision.rows * positions)


def _check(wire: WireFormat, worker: int, packed: Tensor, size: int) -> None:
    if packed.numel() != wire.nbytes(size):
        raise BadPeer(worker, f"worker {worker} sent {packed.numel()} bytes for {size} values")
