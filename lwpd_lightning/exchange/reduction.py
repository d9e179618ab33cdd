"""One rank's share in adding codewords up: a reduce-scatter and all-gather among those who count.

The workers that count in an update have their codewords ready and nothing else to do, so they do the adding: each gets
one slice of positions of every counted codeword, adds it up with the decision's weights, and sends the result to all.
Nobody waits for a straggler, which is never asked, and no link carries more than about two codewords an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.feedback import ErrorFeedback
from lwpd_lightning.coding.wire import WireFormat, dtype_name
from lwpd_lightning.exchange.decision import Decision, Slice
from lwpd_lightning.exchange.received import Received
from lwpd_lightning.exchange.update import Codeword
from lwpd_lightning.links.header import COORDINATOR, Header, Op
from lwpd_lightning.links.message import Messages
from lwpd_lightning.links.transport import Payload


@dataclass(frozen=True)
class SharedMemory:
    """Where forked ranks leave what others would get as messages.

    Attributes:
        codewords: one packed codeword for each worker.
        parts: (window, bytes) the packed parts of the decision with number m in row m % window.
        newest: (1,) int64, the number of the newest decision, told here before anybody can write its parts.
    """

    codewords: list[Tensor]
    parts: Tensor
    newest: Tensor

    def holds(self, number: int) -> bool:
        """Whether nobody may have written over a decision's parts yet."""
        return int(self.newest) - number < len(self.parts)


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
class _Offered:
    """This rank's codeword, and what it held where this rank adds up, once the rest may have been taken off it."""

    codeword: Codeword
    own: Tensor | None = None


@dataclass
class Reduction:
    """Sends this rank's slices, adds up those it is asked to, and puts the parts of the decoded gradient together.

    Args:
        ranks: who takes part.
        blocks: layout of the trainable parameters.
        code: the code.
        wire: how codewords are packed.
        update_wire: how the decoded gradient is packed.
        messages: packs this fit's messages.
        send: sends a message to the rank of an address.
        memory: shared with all other ranks; None: slices and parts travel as messages.
        feedback: what did not arrive of this rank's codewords, and of what it added up.
        along_direction: the decoded gradient has one row, along the code's `direction`: all that count must be of the
            update's own version.
    """

    ranks: Ranks
    blocks: BlockMap
    code: Code
    wire: WireFormat
    update_wire: WireFormat
    messages: Messages
    send: Callable[[int, Sequence[Payload]], None]
    memory: SharedMemory | None
    feedback: ErrorFeedback | None
    along_direction: bool

    _received: Received = field(init=False)
    _offered: _Offered | None = field(init=False, default=None)
    _residual: tuple[int, Slice, Tensor] | None = field(init=False, default=None)
    _scattered: int = field(init=False, default=0)  # number of the decision whose gradient is in ``grad`` already

    def __post_init__(self) -> None:
        self._size = self.blocks.block_size
        self._received = Received(self.ranks.me, self._size, self.wire, self.update_wire)
        self._decoded = torch.empty(0, dtype=self.blocks.dtype)

    def offer(self, codeword: Codeword) -> None:
        """This rank's codeword, which must stay as it is until it is withdrawn."""
        self._offered = _Offered(codeword)
        self._scattered = 0  # ``grad`` is the codeword's

    def withdraw(self) -> None:
        """The codeword that was offered last has been counted, or will never be."""
        self._offered = None

    @property
    def shares_memory(self) -> bool:
        """Whether codewords and parts lie in memory that all ranks share."""
        return self.memory is not None

    @property
    def rows(self) -> int:
        """Rows of a decoded gradient."""
        return 1 if self.along_direction else self.code.blocks

    def announce(self, number: int) -> None:
        """A decision is about to be sent: from now on its parts may be written over older ones."""
        if self.memory is not None:
            self.memory.newest.fill_(number)

    def begin(self, decision: Decision) -> None:
        """Do what a decision asks of this rank.

        Raises:
            BadPeer: when all is done that can be: what a worker had sent ahead of the decision does not fit it.
        """
        misfits = self._received.expect(decision)
        if self.ranks.me in decision.workers:
            if self.memory is None:
                self._send_slices(decision)
            self._settle(decision)
            self._reduce_if_ready(decision)
        if misfits:
            # First one that counts: without it the update is decided again, while the others' were not needed.
            raise min(misfits, key=lambda misfit: misfit.worker not in decision.workers)

    def slice_arrived(self, header: Header, payload: Tensor) -> None:
        """A worker's codeword at the positions that this rank adds up; raises BadPeer where its size is wrong."""
        decision = self._received.take_slice(header, payload)
        if decision is not None:
            self._reduce_if_ready(decision)

    def part_arrived(self, header: Header, payload: Tensor) -> None:
        """The decoded gradient at the positions that another rank adds up; raises BadPeer where its size is wrong."""
        self._received.take_part(header, payload)

    def heard(self, worker: int, number: int) -> None:
        """A worker says that it has sent all that it ever will for decisions up to this one."""
        self._received.heard(worker, number)

    def unlinked(self, worker: int) -> None:
        """The link from a worker ended, with what was on it."""
        self._received.unlinked(worker)

    @property
    def sent(self) -> int:
        """Number of the newest decision for which this rank has nothing more to send, nor for any before it."""
        newest = self._received.newest
        owes = self._share_of(newest) is not None and self.ranks.me not in self._received.parts(newest)
        return newest - owes

    def depends_on(self, worker: int) -> bool:
        """Whether this rank's codeword counts in the newest decision, and the worker is still to add up its share."""
        newest = self._received.newest
        decision = self._received.decisions.get(newest)
        return decision is not None and self.ranks.me in decision.workers and worker in self.missing(newest)

    def missing(self, number: int) -> list[int]:
        """The workers whose part of a decision is not here."""
        return self._received.missing(number)

    def complete(self, number: int) -> bool:
        """Whether all parts of a decision are here."""
        return self._received.complete(number)

    def hopeless(self, number: int) -> bool:
        """Whether what is missing of a decision will not come, or may not: messages of one sender keep their order."""
        return self.memory is not None or self._received.hopeless(number, self.ranks.workers)

    def readable(self, number: int) -> bool:
        """Whether all parts of a decision whose version has been published are here, as messages or in memory."""
        if self.memory is None:
            return self.complete(number)
        return number in self._received.decisions and self.memory.holds(number)

    def prepare(self) -> None:
        """Do ahead what `scatter` will do for the newest decision, if its parts are here: rank 0 makes its step now."""
        newest = self._received.newest
        if self.memory is None and self._scattered != newest and self.complete(newest):
            self.scatter(newest)
            self._scattered = newest

    def scatter(self, number: int) -> bool:
        """Leave the decoded gradient of a decision whose parts are all here in the parameters' ``grad``.

        Returns whether it is that: others may have begun to write over shared memory meanwhile.
        """
        if self._scattered == number:
            return True
        self._scattered = 0
        decision = self._received.decisions[number]
        direction = self.code.at(decision.version).direction if self.along_direction else None
        decoded = self._decode(decision)
        self.blocks.scatter(
            decoded.to(self.blocks.device),
            decision.touched,
            None if direction is None else direction.tolist(),
            views=decoded is self._decoded,  # and not memory that others read
        )
        return self.memory is None or self.memory.holds(number)

    def _decode(self, decision: Decision) -> Tensor:
        if self.memory is not None and decision.rows == 1 and self.update_wire.name == dtype_name(self.blocks.dtype):
            # The parts lie one after the other and are not packed at all.
            row = self.memory.parts[decision.number % len(self.memory.parts)]
            return row[: self.update_wire.nbytes(self._size)].view(self.blocks.dtype)[None]
        decoded = self._buffer(decision.rows)
        here = self._packed_parts(decision)
        for part, packed in here:
            into = decoded[:, part.start : part.stop]
            if decision.rows == 1:
                self.update_wire.unpack_into(packed, into[0])
            else:
                into.copy_(self.update_wire.unpack(packed, into.numel()).view(into.shape))
        return decoded

    def commit(self, number: int) -> None:
        """A decision's step has been made: what packing lost of it goes back, and what came before is forgotten."""
        if self._residual is not None and self._residual[0] == number:
            assert self.feedback is not None
            _, part, residual = self._residual
            self.feedback.give_back(part.start, part.stop, residual)
        if self._residual is not None and self._residual[0] <= number:
            self._residual = None
        self._scattered = 0  # the step may have clipped it
        self._received.forget(number)

    def traffic(self, number: int, ranks: int) -> tuple[int, int]:
        """Payload bytes of a decision among ``ranks`` ranks: codewords to who adds up, and parts to everybody else."""
        decision = self._received.decisions[number]
        up = down = 0
        for part in decision.slices(self._size):
            length = part.stop - part.start
            up += (len(decision.workers) - 1) * self.wire.nbytes(length)
            down += (ranks - 1) * self.update_wire.nbytes(decision.rows * length)
        return up, down

    def _send_slices(self, decision: Decision) -> None:
        assert self._offered is not None
        for part in decision.slices(self._size):
            if part.reducer == self.ranks.me:
                continue
            header = self._header(Op.SLICE, decision, part)
            packed = self.wire.cut(self._offered.codeword.packed, self._size, part.start, part.stop)
            self.send(self.ranks.address(part.reducer), self.messages.pack(header, packed))

    def _settle(self, decision: Decision) -> None:
        assert self._offered is not None
        if self.feedback is not None:
            mine = decision.share_of(self.ranks.me, self._size)
            whole = slice(0, 0) if mine is None else slice(mine.start, mine.stop)
            self._offered.own = self.feedback.settle(self.wire, self._offered.codeword.packed, whole)

    def _share_of(self, number: int) -> Slice | None:
        decision = self._received.decisions.get(number)
        return decision.share_of(self.ranks.me, self._size) if decision is not None else None

    def _buffer(self, rows: int) -> Tensor:
        if self._decoded.shape[0] != rows:
            self._decoded = torch.empty(rows, self._size, dtype=self.blocks.dtype)
        return self._decoded

    def _reduce_if_ready(self, decision: Decision) -> None:
        mine = decision.share_of(self.ranks.me, self._size)
        arrived = self._received.slices(decision.number)
        others = [worker for worker in sorted(decision.workers) if worker != self.ranks.me]
        if mine is None or (self.memory is None and not arrived.keys() >= set(others)):
            return
        length = mine.stop - mine.start
        total = torch.zeros(decision.rows, length, dtype=self.blocks.dtype)
        weights = dict(zip(decision.workers, decision.weights.T.tolist(), strict=True))
        # In the order of their numbers, so that the sum does not depend on who was first.
        for worker in sorted(decision.workers):
            if worker == self.ranks.me:  # its own crosses no wire, so it need not be rounded
                accumulate(total, weights[worker], self._own(mine))
            elif decision.rows == 1:
                self.wire.add_to(self._slice(worker, mine, arrived), total[0], weights[worker][0])
            else:
                accumulate(total, weights[worker], self.wire.unpack(self._slice(worker, mine, arrived), length))
        packed = self.update_wire.pack(total.flatten())
        if self.feedback is not None and self.feedback.takes_residuals and decision.rows == 1:
            lost = total[0].clone() if packed.data_ptr() == total.data_ptr() else total[0]
            self.update_wire.add_to(packed, lost, -1.0)
            self._residual = decision.number, mine, lost / weights[mine.reducer][0]
        self._publish(decision, mine, packed)

    def _own(self, mine: Slice) -> Tensor:
        assert self._offered is not None
        own = self._offered.own
        return (self._offered.codeword.exact[mine.start : mine.stop] if own is None else own).cpu()

    def _slice(self, worker: int, mine: Slice, arrived: dict[int, Tensor]) -> Tensor:
        if self.memory is None:
            return arrived[worker]
        return self.wire.cut(self.memory.codewords[worker], self._size, mine.start, mine.stop)

    def _publish(self, decision: Decision, mine: Slice, packed: Tensor) -> None:
        header = self._header(Op.PART, decision, mine)
        recipients = self.ranks.others
        if self.memory is not None:
            recipients = [address for address in recipients if address == COORDINATOR]
            packed = self._place(decision, mine.reducer).copy_(packed)
        message = self.messages.pack(header, packed)
        for address in recipients:
            self.send(address, message)
        self._received.keep_part(decision.number, mine.reducer, packed)

    def _packed_parts(self, decision: Decision) -> list[tuple[Slice, Tensor]]:
        here = self._received.parts(decision.number)
        return [
            (part, here[part.reducer] if part.reducer in here else self._place(decision, part.reducer))
            for part in decision.slices(self._size)
        ]

    def _place(self, decision: Decision, reducer: int) -> Tensor:
        assert self.memory is not None
        offset = 0
        for part in decision.slices(self._size):
            nbytes = self.update_wire.nbytes(decision.rows * (part.stop - part.start))
            if part.reducer == reducer:
                return self.memory.parts[decision.number % len(self.memory.parts), offset : offset + nbytes]
            offset += -(-nbytes // 8) * 8
        raise KeyError(reducer)

    def _header(self, op: Op, decision: Decision, part: Slice) -> Header:
        assert self.ranks.me is not None
        return Header(
            op, self.messages.run_id, self.ranks.me, decision.version, elements=part.stop - part.start,
            decision=decision.number,
        )  # fmt: skip


def parts_bytes(blocks: BlockMap, code: Code, rows: int, update_wire: WireFormat) -> int:
    """The most that the packed parts of one decision take in shared memory, a multiple of 8."""
    # One scale more, and eight bytes of alignment, for each reducer.
    return -(-(update_wire.nbytes(rows * blocks.block_size) + 16 * code.n) // 8) * 8
