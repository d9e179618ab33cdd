"""The fixed binary header that opens every message, and the checks that a frame passes before it is used."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

MAGIC = b"LWPD"
PROTOCOL_VERSION = 11
COORDINATOR = 0xFFFF_FFFF
INLINE = -1
NO_BATCH = 0xFFFF_FFFF
UNMEASURED = -1.0

# magic, protocol, op, run id, worker, incarnation, version, epoch, batch index, loss, norm, compute seconds, samples,
# elements, global step, decision, oldest version, two checksums, the payload's offset in the arena, bytes of both
# payloads.
_LAYOUT = struct.Struct("<4sHH16sIqqIIdddIQqQqqqqQQ")
HEADER_BYTES = _LAYOUT.size


class ProtocolError(RuntimeError):
    """A frame that does not belong to this run or is not what its header says."""


class Op(enum.IntEnum):
    """What a message asks or tells; the payload frames that follow the header stand in brackets."""

    JOIN = 1  # worker -> coordinator: here I am [fingerprint and digest of its state, address of its inbox]
    STATE = 2  # coordinator -> worker: everything at a version [`state.whole_state`; nothing: you have it]
    PEERS = 3  # coordinator -> worker: these have joined, says introduction `version` [whom to meet first, inboxes]
    MEET = 4  # worker -> worker: the first message of a link, also of one that has come back
    MET = 5  # worker -> coordinator: links from all whom introductions up to `version` told of are there, but [these]
    VERSION = 6  # coordinator -> worker: step to this version and compute this batch [buffers, optimizer settings]
    READY = 7  # worker -> coordinator: my codeword is computed [statistics, touched parameters]
    LATE = 8  # worker -> coordinator: my codeword is computed, but counts no more
    DECISION = 9  # coordinator -> worker: who counts, who adds up [workers and weights, touched parameters]
    SLICE = 10  # worker -> reducer: my codeword's share of your positions [packed slice]
    SUM = 11  # reducer -> all: the decoded gradient at its positions [packed sum]
    RESYNC = 12  # worker -> coordinator: I missed what I need to step as you did, send STATE
    UNLINKED = 13  # worker -> coordinator: my link from worker `version` ended; `elements`: another has taken its place
    LOST = 14  # coordinator -> worker: the worker named by `version` is an erasure from now on
    FAILURE = 15  # worker -> coordinator: an exception ends the run [traceback, utf-8]
    STOP = 16  # coordinator -> worker: the fit is over
    MISSED = 17  # anybody -> worker: your queue was full, so something is lost, of decisions up to `decision`
    LEAVING = 18  # worker -> coordinator: what I need is gone, so go on without me [what, its traceback if any, utf-8]
    REFUSED = 19  # coordinator -> worker: its incarnation `version` has no say, or none any more [why, utf-8]
    LINKED = 20  # worker -> coordinator: worker `version`, from whom my link had ended, has greeted
    GREET = 21  # coordinator -> worker: greet worker `version`, whose link from you has ended
    VOID = 22  # worker -> coordinator: my codeword of `version` holds what is no finite number, so it goes nowhere;
    #            coordinator -> worker: yours is too large, so forget it
    MEMORY = 23  # coordinator -> worker: what does your sender remember at `version`?, or: go on with this [its state];
    #              worker -> coordinator: that [its state]
    LACKING = 24  # coordinator -> worker: what do you lack of this decision?; worker -> coordinator: of decision
    #               `version` what is to come from [these workers, utf-8]
    VALIDATED = 25  # worker -> coordinator: what my share of the validation at `version` came to [that]


_OPS = {op.value: op for op in Op}  # a look-up takes a fraction of `Op(value)`'s time


class Header(NamedTuple):
    """One message's header: who sends what, and which payload frames follow.

    Attributes:
        op: what the message asks or tells.
        run_id: 16 bytes that name the fit.
        worker: the sending worker (its row of the code); COORDINATOR for the coordinator.
        incarnation: which process of that worker it is; 0 for the coordinator's.
        version: version of the parameters that are meant, or that a codeword was computed at.
        epoch: epoch of the batch.
        batch_index: index of the batch in its epoch; NO_BATCH: there is none to compute. In READY and LATE, how many
            batches the worker has skipped since it took over rank 0's state.
        loss: mean loss over the worker's data parts.
        norm: in READY, the codeword's Euclidean norm; UNMEASURED: nobody took it.
        compute_s: seconds that the worker computed.
        samples: samples in one of its data parts.
        elements: codewords in a decision.
        global_step: optimizer steps taken when the version was published.
        decision: number of the decision that is meant; in VERSION the one to step by, 0 where there is none; in STATE
            the newest that no one at that version needs any more.
        oldest: codewords of older versions than this do not count any more.
        checksum: in READY and VALIDATED, of the trainable parameters that it was computed at (`state.checksum`).
        rest: in READY and VALIDATED, of the frozen parameters and the buffers that it was computed at.
        offset: where the first payload lies in the arena that the peers share; INLINE: in its frames.
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
    elements: int = 0
    global_step: int = 0
    decision: int = 0
    oldest: int = 0
    checksum: int = 0
    rest: int = 0
    offset: int = INLINE
    sizes: tuple[int, int] = (0, 0)
    incarnation: int = 0
    norm: float = UNMEASURED

    def pack(self) -> bytes:
        """The header as little-endian bytes, always equally many.

        >>> header = Header(Op.STOP, run_id=bytes(16), worker=0)
        >>> Header.unpack(header.pack(), run_id=bytes(16)) == header
        True
        """
        return _LAYOUT.pack(
            MAGIC, PROTOCOL_VERSION, self.op, self.run_id, self.worker, self.incarnation, self.version, self.epoch,
            self.batch_index, self.loss, self.norm, self.compute_s, self.samples, self.elements, self.global_step,
            self.decision, self.oldest, self.checksum, self.rest, self.offset, *self.sizes,
        )  # fmt: skip

    @classmethod
    def unpack(cls, frame: bytes | memoryview, *, run_id: bytes) -> Header:
        """Read a header back; raises ProtocolError for another magic, protocol, run, op or length."""
        if len(frame) != _LAYOUT.size:
            raise ProtocolError(f"a header has {_LAYOUT.size} bytes, this one {len(frame)}")
        magic, protocol, op, run, *fields, first, second = _LAYOUT.unpack(frame)
        if magic != MAGIC or protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"magic {magic!r} protocol {protocol}, expected {MAGIC!r} {PROTOCOL_VERSION}")
        if run != run_id:
            raise ProtocolError(f"message of run {run.hex()}, this is run {run_id.hex()}")
        known = _OPS.get(op)
        if known is None:
            raise ProtocolError(f"unknown op {op}")
        worker, incarnation, *fields = fields
        version, epoch, batch_index, loss, norm, compute_s, samples, elements, step, decision, oldest, *rest = fields
        return cls(
            known, run, worker, version, epoch, batch_index, loss, compute_s, samples, elements, step, decision,
            oldest, checksum=rest[0], rest=rest[1], offset=rest[2], sizes=(first, second),
            incarnation=incarnation, norm=norm,
        )  # fmt: skip
