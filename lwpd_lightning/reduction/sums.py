"""How codewords come to who adds them up, and what is added up to all: as messages, or in memory that ranks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lwpd_lightning.coding.wire import WireFormat
from lwpd_lightning.links.arena import Arena
from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import Payload
from lwpd_lightning.reduction.decision import Decision, Slice
from lwpd_lightning.reduction.received import Received


@dataclass
class Ranks:
    """Who takes part.

    Attributes:
        me: this rank's worker; None for a dedicated coordinator.
        coordinator: rank 0's worker; None where it is a dedicated coordinator.
        workers: live workers.
    """

    me: int | None
    coordinator: int | None
    workers: set[int]

    def address(self, worker: int) -> int:
        """Whom to send what is meant for ``worker``."""
        return COORDINATOR if worker == self.coordinator else worker

    @property
    def others(self) -> list[int]:
        """The addresses of all ranks but this one."""
        workers = [worker for worker in sorted(self.workers) if worker not in (self.me, self.coordinator)]
        return workers if self.me == self.coordinator else [COORDINATOR, *workers]


@dataclass
class Sums(ABC):
    """One rank's way to slices of codewords and to their sums.

    Args:
        ranks: who takes part.
        size: values in a codeword.
        wire: how codewords are packed.
        sum_wire: how the decoded gradient is packed.
        messages: packs this fit's messages.
        send: sends a message to the rank of an address.

    Attributes:
        received: what came as messages.
        shared: whether they lie in memory that all ranks share.
    """

    ranks: Ranks
    size: int
    wire: WireFormat
    sum_wire: WireFormat
    messages: Messages
    send: Callable[[int, Sequence[Payload]], None]

    received: Received = field(init=False)
    shared: ClassVar[bool]

    def __post_init__(self) -> None:
        self.received = Received(self.ranks.me, self.size, self.wire, self.sum_wire)

    @abstractmethod
    def announce(self, number: int) -> None:
        """A decision is about to be sent: from now on its sums may be written over older ones."""

    @abstractmethod
    def hand_out(self, decision: Decision, packed: Tensor) -> None:
        """Let others have this rank's packed codeword at the positions that they add up."""

    @abstractmethod
    def slices(self, decision: Decision, mine: Slice) -> dict[int, Tensor] | None:
        """The packed codewords of all others that count, at this rank's positions; None: some are still to come."""

    @abstractmethod
    def lacking(self, decision: Decision, mine: Slice) -> set[int]:
        """The workers whose codewords at this rank's positions are still to come."""

    @abstractmethod
    def apart(self, number: int) -> bool:
        """Whether what a rank may yet do for a decision of this number, or later ones, cannot harm the next."""

    @abstractmethod
    def publish(self, decision: Decision, mine: Slice, packed: Tensor) -> None:
        """Let all have the decoded gradient at the positions that this rank has added up."""

    @abstractmethod
    def packed(self, decision: Decision) -> list[tuple[Slice, Tensor]]:
        """All sums of a decision that is `readable`."""

    @abstractmethod
    def as_one(self, decision: Decision, dtype: torch.dtype) -> Tensor | None:
        """The decoded gradient, (1, size) of ``dtype``, where that is how it lies in memory that others read too."""

    @abstractmethod
    def readable(self, number: int) -> bool:
        """Whether all sums of a decision whose version has been published are here."""

    @abstractmethod
    def stays(self, number: int) -> bool:
        """Whether all sums of a decision are here and will stay, so that they can be read ahead of its version."""

    @abstractmethod
    def intact(self, number: int) -> bool:
        """Whether nobody may have written over a decision's sums yet."""

    @abstractmethod
    def hopeless(self, number: int) -> bool:
        """Whether what is missing of a decision will not come, or may not."""

    def _header(self, op: Op, decision: Decision) -> Header:
        assert self.ranks.me is not None
        return Header(op, self.messages.run_id, self.ranks.me, decision.version, decision=decision.number)


@dataclass
class MessageSums(Sums):
    """Slices and sums travel as messages between workers."""

    shared = False

    def announce(self, number: int) -> None:
        """Messages are written over nowhere."""

    def hand_out(self, decision: Decision, packed: Tensor) -> None:
        """Send each reducer its slice."""
        for piece in decision.slices(self.size):
            if piece.reducer != self.ranks.me:
                slice_ = self.wire.cut(packed, self.size, piece.start, piece.stop)
                message = self.messages.pack(self._header(Op.SLICE, decision), slice_)
                self.send(self.ranks.address(piece.reducer), message)

    def slices(self, decision: Decision, mine: Slice) -> dict[int, Tensor] | None:
        """What came, once all has."""
        return None if self.lacking(decision, mine) else self.received.slices(decision.number)

    def lacking(self, decision: Decision, mine: Slice) -> set[int]:
        """All that count but those from whom one came."""
        return set(decision.workers) - {self.ranks.me} - self.received.slices(decision.number).keys()

    def apart(self, number: int) -> bool:
        """Messages name their decision."""
        return True

    def publish(self, decision: Decision, mine: Slice, packed: Tensor) -> None:
        """Send the sum to all."""
        message = self.messages.pack(self._header(Op.SUM, decision), packed)
        for address in self.ranks.others:
            self.send(address, message)
        self.received.keep_part(decision.number, mine.reducer, packed)

    def packed(self, decision: Decision) -> list[tuple[Slice, Tensor]]:
        """What came."""
        here = self.received.sums(decision.number)
        return [(piece, here[piece.reducer]) for piece in decision.slices(self.size)]

    def as_one(self, decision: Decision, dtype: torch.dtype) -> Tensor | None:
        """Parts come apart."""
        return None

    def readable(self, number: int) -> bool:
        """Whether all have come."""
        return self.received.complete(number)

    def stays(self, number: int) -> bool:
        """Whether all have come: nobody writes over them."""
        return self.received.complete(number)

    def intact(self, number: int) -> bool:
        """They are nobody else's."""
        return True

    def hopeless(self, number: int) -> bool:
        """Whether something will not come: messages of one sender keep their order."""
        return self.received.hopeless(number, self.ranks.workers)


@dataclass(frozen=True)
class SharedMemory:
    """Where forked ranks leave what others would get as messages.

    Attributes:
        arena: all of it.
        codewords: one packed codeword for each worker.
        sums: (window, bytes) the packed sums of the decision with number m in row m % window.
        newest: (1,) int64, the number of the newest decision, told here before anybody can write its sums.
    """

    arena: Arena
    codewords: list[Tensor]
    sums: Tensor
    newest: Tensor

    @classmethod
    def take(cls, workers: int, codeword: int, update: int, window: int) -> SharedMemory:
        """Take memory, before ranks are forked.

        Args:
            workers: n.
            codeword: bytes of a packed codeword.
            update: bytes of a packed decoded gradient.
            window: decisions whose sums are kept.
        """
        # One scale more, and eight bytes of alignment, for each reducer.
        row = -(-(update + 16 * workers) // 8) * 8
        arena = Arena([codeword] * workers + [window * row, torch.int64.itemsize])
        codewords = [arena.take(codeword) for _ in range(workers)]
        sums = arena.take(window * row).view(window, row)
        return cls(arena, codewords, sums, newest=arena.take(torch.int64.itemsize).view(torch.int64))

    def holds(self, number: int) -> bool:
        """Whether nobody may have written over a decision's sums yet."""
        return int(self.newest) - number < len(self.sums)


@dataclass
class SharedSums(Sums):
    """Codewords and sums lie in memory that all ranks share; rank 0 alone is told when a sum is there.

    Args:
        memory: that memory.
    """

    shared = True

    memory: SharedMemory

    def announce(self, number: int) -> None:
        """Tell it in memory, before the decision's message."""
        self.memory.newest.fill_(number)

    def hand_out(self, decision: Decision, packed: Tensor) -> None:
        """It lies where others read it."""

    def slices(self, decision: Decision, mine: Slice) -> dict[int, Tensor] | None:
        """All that count lay there before they were counted."""
        return {
            worker: self.wire.cut(self.memory.codewords[worker], self.size, mine.start, mine.stop)
            for worker in decision.workers
            if worker != self.ranks.me
        }

    def lacking(self, decision: Decision, mine: Slice) -> set[int]:
        """None."""
        return set()

    def apart(self, number: int) -> bool:
        """Sums of the two have each their place."""
        return self.received.newest + 1 - number < len(self.memory.sums)

    def publish(self, decision: Decision, mine: Slice, packed: Tensor) -> None:
        """Put the sum in its place, and tell rank 0."""
        placed = self._place(decision, mine.reducer).copy_(packed)
        if self.ranks.me != self.ranks.coordinator:
            self.send(COORDINATOR, self.messages.pack(self._header(Op.SUM, decision), placed))
        self.received.keep_part(decision.number, mine.reducer, placed)

    def packed(self, decision: Decision) -> list[tuple[Slice, Tensor]]:
        """Each in its place."""
        return [(piece, self._place(decision, piece.reducer)) for piece in decision.slices(self.size)]

    def as_one(self, decision: Decision, dtype: torch.dtype) -> Tensor | None:
        """The sums of one row lie one after the other, and may not be packed at all."""
        if decision.rows > 1 or not self.sum_wire.carries(dtype):
            return None
        return self._row(decision)[: self.sum_wire.nbytes(self.size)].view(dtype)[None]

    def readable(self, number: int) -> bool:
        """Whether they are still there: a version is published after all sums of the step to it."""
        return number in self.received.decisions and self.memory.holds(number)

    def stays(self, number: int) -> bool:
        """No one but rank 0 knows when all are there."""
        return False

    def intact(self, number: int) -> bool:
        """Whether nobody may have begun to write over them."""
        return self.memory.holds(number)

    def hopeless(self, number: int) -> bool:
        """What is not there any more never will be."""
        return True

    def _row(self, decision: Decision) -> Tensor:
        return self.memory.sums[decision.number % len(self.memory.sums)]

    def _place(self, decision: Decision, reducer: int) -> Tensor:
        offset = 0
        for piece in decision.slices(self.size):
            nbytes = self.sum_wire.nbytes(decision.rows * (piece.stop - piece.start))
            if piece.reducer == reducer:
                return self._row(decision)[offset : offset + nbytes]
            offset += -(-nbytes // 8) * 8
        raise KeyError(reducer)
