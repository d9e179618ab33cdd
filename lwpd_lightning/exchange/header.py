"""The fixed binary header that opens every message, and the checks that a frame passes before it is used."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

MAGIC = b"LWPD"
PROTOCOL_VERSION = 1
COORDINATOR = 0xFFFF_FFFF
INLINE = -1

# magic, protocol, op, wire dtype, run id, worker, version, epoch, batch index, loss, compute seconds, samples,
# codeword elements, global step, the payload's offset in the arena, bytes of the first and of the second payload.
_LAYOUT = struct.Struct("<4sHBB16sIqIIddIQqqQQ")


class ProtocolError(RuntimeError):
    """A frame that does not belong to this run or is not what its header says."""


class Op(enum.IntEnum):
    """What a message asks or tells; the payload frames that follow the header stand in brackets."""

    JOIN = 1  # worker -> coordinator: ready [layout digest]
    STATE = 2  # coordinator -> worker: every parameter and buffer, once [state]
    PARAMETERS = 3  # coordinator -> worker: compute this batch at this version [state]
    CODEWORD = 4  # worker -> coordinator: the answer [codeword, statistics and touched parameters]
    FAILURE = 5  # worker -> coordinator: an exception ends the run [traceback, utf-8]
    STOP = 6  # coordinator -> worker: the fit is over


@dataclass(frozen=True)
class Header:
    """One message's header: who sends what, and which payload frames follow.

    Attributes:
        op: what the message asks or tells.
        run_id: 16 bytes that name the fit.
        worker: the sending worker (its row of the code); COORDINATOR for the coordinator.
        version: version of the parameters that are sent, or that a codeword was computed at.
        epoch: epoch of the batch.
        batch_index: index of the batch in its epoch.
        loss: mean loss over the worker's data parts.
        compute_s: seconds that the worker computed.
        samples: samples in one of its data parts.
        wire: wire dtype of the codeword (`WireFormat.code`).
        elements: elements of the codeword.
        global_step: optimizer steps taken when the version was published.
        offset: where the first payload lies in the arena that the peers share; INLINE: in its frame.
        sizes: bytes of the two payloads.
    """

    op: Op
    run_id: bytes
    worker: int
    version: int = 0
    epoch: int = 0
    batch_index: int = 0
    loss: float = 0.0
    compute_s: float = 0.0
    samples: int = 0
    wire: int = 0
    elements: int = 0
    global_step: int = 0
    offset: int = INLINE
    sizes: tuple[int, int] = (0, 0)

    def pack(self) -> bytes:
        """The header as little-endian bytes, always equally many.

        >>> header = Header(Op.STOP, run_id=bytes(16), worker=0)
        >>> Header.unpack(header.pack(), run_id=bytes(16)) == header
        True
        """
        return _LAYOUT.pack(
            MAGIC, PROTOCOL_VERSION, self.op, self.wire, self.run_id, self.worker, self.version, self.epoch,
            self.batch_index, self.loss, self.compute_s, self.samples, self.elements, self.global_step, self.offset,
            *self.sizes,
        )  # fmt: skip

    @classmethod
    def unpack(cls, frame: bytes, *, run_id: bytes) -> Header:
        """Read a header back; raises ProtocolError for another magic, protocol, run, op or length."""
        if len(frame) != _LAYOUT.size:
            raise ProtocolError(f"a header has {_LAYOUT.size} bytes, this one {len(frame)}")
        magic, protocol, op, wire, run, *fields, first, second = _LAYOUT.unpack(frame)
        if magic != MAGIC or protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"magic {magic!r} protocol {protocol}, expected {MAGIC!r} {PROTOCOL_VERSION}")
        if run != run_id:
            raise ProtocolError(f"message of run {run.hex()}, this is run {run_id.hex()}")
        try:
            known = Op(op)
        except ValueError:
            raise ProtocolError(f"unknown op {op}") from None
        worker, version, epoch, batch_index, loss, compute_s, samples, elements, global_step, offset = fields
        return cls(
            known, run, worker, version, epoch, batch_index, loss, compute_s, samples, wire, elements, global_step,
            offset, sizes=(first, second),
        )  # fmt: skip
