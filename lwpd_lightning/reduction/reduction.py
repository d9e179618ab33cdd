"""One rank's share in adding codewords up: a reduce-scatter and all-gather among those who count.

The workers that count in an update have their codewords ready and nothing else to do, so they do the adding: each gets
one slice of positions of every counted codeword, adds it up with the decision's weights, and sends the result to all.
Nobody waits for a straggler, which is never asked, and no link carries more than about two codewords an update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lwpd_lightning.coding.blocks import BlockMap, accumulate
from lwpd_lightning.coding.receiver import Receiver
from lwpd_lightning.coding.sender import Sender
from lwpd_lightning.links.header import Header
from lwpd_lightning.reduction.decision import Decision, Slice
from lwpd_lightning.reduction.sums import Ranks, Sums


class Codeword(NamedTuple):
    """A computed codeword: (d,) as it was computed, on its device, and (nbytes,) as it travels, on the host."""

    exact: Tensor
    packed: Tensor


@dataclass
class _Offered:
    """This rank's codeword, and what it held where this rank adds up, once the rest may have been taken off it."""

    codeword: Codeword
    own: Tensor | None = None


@dataclass
class Reduction:
    """Sends this rank's slices, adds up those it is asked to, and puts the sums of all together.

    Args:
        blocks: layout of the trainable parameters.
        sums: how slices and sums come from rank to rank.
        sender: makes this rank's codewords, and takes back what did not arrive; None: what is offered is all there is.
        receiver: makes gradients of decoded rows.
    """

    blocks: BlockMap
    sums: Sums
    sender: Sender | None
    receiver: Receiver

    _offered: _Offered | None = field(init=False, default=None)
    _residual: tuple[int, Slice, Tensor] | None = field(init=False, default=None)
    _scattered: int = field(init=False, default=0)  # number of the decision whose gradient is in ``grad`` already

    def __post_init__(self) -> None:
        self._size = self.blocks.block_size
        self._received = self.sums.received
        self._wire, self._sum_wire = self.sums.wire, self.sums.sum_wire
        self._decoded = torch.empty(0, dtype=self.blocks.dtype)

    @property
    def ranks(self) -> Ranks:
        """Who takes part."""
        return self.sums.ranks

    def offer(self, codeword: Codeword) -> None:
        """This rank's codeword, which must stay as it is until it is withdrawn."""
        self._offered = _Offered(codeword)
        self._scattered = 0  # ``grad`` is the codeword's

    def forget(self) -> None:
        """The codeword that was made last is too large to count: nothing of it may come with later ones."""
        if self.sender is not None:
            self.sender.forget()

    def withdraw(self) -> None:
        """The codeword that was offered last has been counted, or will never be."""
        self._offered = None

    def abandon(self) -> None:
        """This rank was given up: of what was decided until then it adds nothing up, whatever still comes of it."""
        self._offered = None
        self._received.forget(self._received.newest)

    @property
    def shares_memory(self) -> bool:
        """Whether codewords and sums lie in memory that all ranks share."""
        return self.sums.shared

    def begin(self, decision: Decision) -> None:
        """Do what a decision asks of this rank.

        Raises:
            BadPeer: when all is done that can be: what a worker had sent ahead of the decision does not fit it.
        """
        misfits = self._received.expect(decision)
        if self.ranks.me in decision.workers:
            assert self._offered is not None
            self.sums.hand_out(decision, self._offered.codeword.packed)
            self._settle(decision)
            self._reduce_if_ready(decision)
        elif self._offered is not None and self._offered.own is not None:
            assert self.sender is not None
            self.sender.unsettle(self._wire, self._offered.codeword.packed)  # the update is decided again, without it
            self._offered.own = None
        if misfits:
            # First one that counts: without it the update is decided again, while the others' were not needed.
            raise min(misfits, key=lambda misfit: misfit.worker not in decision.workers)

    def slice_arrived(self, header: Header, payload: Tensor) -> None:
        """A worker's codeword at the positions that this rank adds up; raises BadPeer where its size is wrong."""
        decision = self._received.take_slice(header, payload)
        if decision is not None:
            self._reduce_if_ready(decision)

    def sum_arrived(self, header: Header, payload: Tensor) -> None:
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
        owes = self.adds_up and self.ranks.me not in self._received.sums(newest)
        return newest - owes

    @property
    def adds_up(self) -> bool:
        """Whether this rank adds up a share in the newest decision."""
        return self._share_of(self._received.newest) is not None

    def depends_on(self, worker: int) -> bool:
        """Whether this rank's codeword counts in the newest decision, and the worker is still to add up its share."""
        newest = self._received.newest
        decision = self._received.decisions.get(newest)
        return decision is not None and self.ranks.me in decision.workers and worker in self.missing(newest)

    def missing(self, number: int) -> list[int]:
        """The workers whose sum of a decision is not here."""
        return self._received.missing(number)

    def lacking(self, number: int) -> set[int]:
        """The workers whose slices this rank is to add up for a decision, and has not got; none of one that is void."""
        decision, mine = self._received.decisions.get(number), self._share_of(number)
        if decision is None or mine is None or number != self._received.newest:
            return set()
        return self.sums.lacking(decision, mine)

    def complete(self, number: int) -> bool:
        """Whether all sums of a decision are here."""
        return self._received.complete(number)

    def hopeless(self, number: int) -> bool:
        """Whether what is missing of a decision will not come, or may not."""
        return self.sums.hopeless(number)

    def readable(self, number: int) -> bool:
        """Whether all sums of a decision whose version has been published are here."""
        return self.sums.readable(number)

    def prepare(self) -> None:
        """Do ahead what `scatter` will do for the newest decision, if its sums are here: rank 0 makes its step now."""
        newest = self._received.newest
        if self._scattered != newest and self.sums.stays(newest):
            self.scatter(newest)
            self._scattered = newest

    def scatter(self, number: int) -> bool:
        """Leave the decoded gradient of a decision whose sums are all here in the parameters' ``grad``.

        Returns whether it is that: others may have begun to write over shared memory meanwhile.
        """
        if self._scattered == number:
            return True
        self._scattered = 0
        decision = self._received.decisions[number]
        as_one = self.sums.as_one(decision, self.blocks.dtype)
        decoded = self._decode(decision) if as_one is None else as_one
        self.receiver.gradient(decoded, decision.version, decision.touched, views=as_one is None)
        return self.sums.intact(number)

    def _decode(self, decision: Decision) -> Tensor:
        decoded = self._buffer(decision.rows)
        for piece, packed in self.sums.packed(decision):
            into = decoded[:, piece.start : piece.stop]
            if decision.rows == 1:
                self._sum_wire.unpack_into(packed, into[0])
            else:
                into.copy_(self._sum_wire.unpack(packed, into.numel()).view(into.shape))
        return decoded

    def commit(self, number: int) -> None:
        """A decision's step has been made: what packing lost of it goes back, and what came before is forgotten."""
        if self._residual is not None and self._residual[0] == number:
            assert self.sender is not None
            _, piece, residual = self._residual
            self.sender.give_back(piece.start, piece.stop, residual)
        if self._residual is not None and self._residual[0] <= number:
            self._residual = None
        self._scattered = 0  # the step may have clipped it
        self._received.forget(number)

    def traffic(self, number: int, ranks: int) -> tuple[int, int]:
        """Payload bytes of a decision among ``ranks`` ranks: codewords to who adds up, and sums to everybody else."""
        decision = self._received.decisions[number]
        up = down = 0
        for piece in decision.slices(self._size):
            length = piece.stop - piece.start
            up += (len(decision.workers) - 1) * self._wire.nbytes(length)
            down += (ranks - 1) * self._sum_wire.nbytes(decision.rows * length)
        return up, down

    def _settle(self, decision: Decision) -> None:
        assert self._offered is not None
        if self.sender is not None:
            mine = decision.share_of(self.ranks.me, self._size)
            kept = slice(0, 0) if mine is None else slice(mine.start, mine.stop)
            self._offered.own = self.sender.settle(self._wire, self._offered.codeword.packed, kept)

    def _share_of(self, number: int) -> Slice | None:
        decision = self._received.decisions.get(number)
        return decision.share_of(self.ranks.me, self._size) if decision is not None else None

    def _buffer(self, rows: int) -> Tensor:
        if self._decoded.shape[0] != rows:
            self._decoded = torch.empty(rows, self._size, dtype=self.blocks.dtype)
        return self._decoded

    def _reduce_if_ready(self, decision: Decision) -> None:
        mine = decision.share_of(self.ranks.me, self._size)
        if mine is None or (arrived := self.sums.slices(decision, mine)) is None:
            return
        length = mine.stop - mine.start
        total = torch.zeros(decision.rows, length, dtype=self.blocks.dtype)
        weights = dict(zip(decision.workers, decision.weights.T.tolist(), strict=True))
        # In the order of their numbers, so that the sum does not depend on who was first.
        for worker in sorted(decision.workers):
            if worker == self.ranks.me:  # its own crosses no wire, so it need not be rounded
                accumulate(total, weights[worker], self._own(mine))
            elif decision.rows == 1:
                self._wire.add_to(arrived[worker], total[0], weights[worker][0])
            else:
                accumulate(total, weights[worker], self._wire.unpack(arrived[worker], length))
        self._sum_wire.begin(decision.version)
        packed = self._sum_wire.pack(total.flatten())
        if self.sender is not None and self.sender.takes_residuals and decision.rows == 1:
            lost = total[0].clone() if packed.data_ptr() == total.data_ptr() else total[0]
            self._sum_wire.add_to(packed, lost, -1.0)
            self._residual = decision.number, mine, lost / weights[mine.reducer][0]
        self.sums.publish(decision, mine, packed)

    def _own(self, mine: Slice) -> Tensor:
        assert self._offered is not None
        own = self._offered.own
        return (self._offered.codeword.exact[mine.start : mine.stop] if own is None else own).cpu()
