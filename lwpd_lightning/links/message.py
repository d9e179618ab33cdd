"""Messages as frames: a header and two payloads of raw bytes, the first one by reference where peers share memory.

Most messages are one frame: what a second one costs on its way is more than copying a short payload. A large one
travels as several. ZeroMQ takes a link for alive when a whole frame came, and sends its own heartbeats between frames,
so that a slow link is not mistaken for a broken one while one codeword crosses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lwpd_lightning.links.arena import Arena
from lwpd_lightning.links.header import HEADER_BYTES, INLINE, Header, ProtocolError
from lwpd_lightning.links.transport import Payload

EMPTY = torch.empty(0, dtype=torch.uint8)
_FRAME_BYTES = 1 << 17
_SHORT_BYTES = 1 << 15  # that are copied behind the header


class Messages:
    """Packs and reads the messages of one fit.

    A payload of one frame is copied nowhere, one of several once, where it arrives, and a short one once, where it is
    packed.

    Args:
        run_id: 16 bytes that every header of this fit carries.
        arena: memory shared with the peer, or None.
        incarnation: of this process, which every message that it packs carries; 0: it is the coordinator's.
    """

    def __init__(self, run_id: bytes, arena: Arena | None, incarnation: int = 0) -> None:
        self.run_id = run_id
        self.arena = arena
        self.incarnation = incarnation

    def pack(self, header: Header, payload: Tensor = EMPTY, rest: Tensor = EMPTY) -> list[Payload]:
        """Frames for a header with two uint8 payloads; the first must stay as it is until the peer has read it.

        The second is meant for little things, and copied.
        """
        offset = self.arena.offset(payload) if self.arena is not None and payload.numel() else None
        header = header._replace(
            offset=INLINE if offset is None else offset,
            sizes=(payload.numel(), rest.numel()),
            incarnation=self.incarnation,
        )
        head = header.pack() + rest.numpy().tobytes()
        if offset is not None:
            return [head]
        if payload.numel() <= _SHORT_BYTES:
            return [head + payload.numpy().tobytes()]
        return [head, *_pieces(payload)]

    def read(self, frames: Sequence[memoryview]) -> tuple[Header, Tensor, Tensor]:
        """A message's header and its two payloads as uint8 tensors over the received memory.

        Raises:
            ProtocolError: where frames and header disagree, or the header is not of this fit.
        """
        header = Header.unpack(frames[0][:HEADER_BYTES], run_id=self.run_id)
        inline, (length, behind) = header.offset == INLINE, header.sizes
        short = inline and length <= _SHORT_BYTES
        expected = 1 + (-(-length // _FRAME_BYTES) if inline and not short else 0)
        if len(frames) != expected:
            raise ProtocolError(f"{len(frames)} frames instead of {expected}")
        end = HEADER_BYTES + behind if short else None
        rest = _tensor(frames[0][HEADER_BYTES:end])
        if short:
            payload = _tensor(frames[0][end:])
        elif inline:
            payload = torch.cat([_tensor(frame) for frame in frames[1:]]) if expected > 2 else _tensor(frames[1])
        elif self.arena is None:
            raise ProtocolError("payload by reference where no memory is shared")
        else:
            payload = self.arena.at(header.offset, length)
        if header.sizes != (payload.numel(), rest.numel()):
            raise ProtocolError(f"payloads of {payload.numel()} and {rest.numel()} bytes, not {header.sizes}")
        return header, payload, rest


def text(message: str) -> Tensor:
    """A message in words, as a payload; what UTF-8 cannot say (a file name's stray bytes) becomes a question mark."""
    return torch.tensor(list(message.encode(errors="replace")), dtype=torch.uint8)


def words(payload: Tensor) -> str:
    """The words of a payload."""
    return bytes(payload.tolist()).decode(errors="replace")


def _pieces(payload: Tensor) -> list[Payload]:
    return [piece.numpy().data for piece in torch.split(payload, _FRAME_BYTES)]


def _tensor(frame: memoryview) -> Tensor:
    return torch.frombuffer(frame, dtype=torch.uint8) if frame.nbytes else EMPTY
