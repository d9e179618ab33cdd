"""Messages as frames: a header and two payloads of raw bytes, the first one by reference where peers share memory.

A large payload travels as several frames. ZeroMQ takes a link for alive when a whole frame came, and sends its own
heartbeats between frames, so that a slow link is not mistaken for a broken one while one codeword crosses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lwpd_lightning.exchange.arena import Arena
from lwpd_lightning.exchange.header import HEADER_BYTES, INLINE, Header, ProtocolError
from lwpd_lightning.exchange.transport import Payload

EMPTY = torch.empty(0, dtype=torch.uint8)
_NOTHING = memoryview(b"")
_FRAME_BYTES = 1 << 17


class Messages:
    """Packs and reads the messages of one fit; only a payload of several frames is copied, once, where it arrives.

    Args:
        run_id: 16 bytes that every header of this fit carries.
        arena: memory shared with the peer, or None.
    """

    def __init__(self, run_id: bytes, arena: Arena | None) -> None:
        self.run_id = run_id
        self.arena = arena

    def pack(self, header: Header, payload: Tensor = EMPTY, rest: Tensor = EMPTY) -> list[Payload]:
        """Frames for a header with two uint8 payloads; the first must stay as it is until the peer has read it.

        The second, meant for little things, is copied behind the header: most messages are one frame.
        """
        offset = self.arena.offset(payload) if self.arena is not None and payload.numel() else None
        header = replace(header, offset=INLINE if offset is None else offset, sizes=(payload.numel(), rest.numel()))
        head = header.pack() + rest.numpy().tobytes()
        return [head] if offset is not None or not payload.numel() else [head, *_pieces(payload)]

    def read(self, frames: Sequence[memoryview]) -> tuple[Header, Tensor, Tensor]:
        """A message's header and its two payloads as uint8 tensors over the received memory.

        Raises:
            ProtocolError: where frames and header disagree, or the header is not of this fit.
        """
        header = Header.unpack(bytes(frames[0][:HEADER_BYTES]), run_id=self.run_id)
        inline = header.offset == INLINE
        expected = 1 + (-(-header.sizes[0] // _FRAME_BYTES) if inline else 0)
        if len(frames) != expected:
            raise ProtocolError(f"{len(frames)} frames instead of {expected}")
        if inline:
            payload = torch.cat([_tensor(frame) for frame in frames[1:]]) if expected > 2 else _tensor(*frames[1:])
        elif self.arena is None:
            raise ProtocolError("payload by reference where no memory is shared")
        else:
            payload = self.arena.at(header.offset, header.sizes[0])
        rest = _tensor(frames[0][HEADER_BYTES:])
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


def _tensor(frame: memoryview = _NOTHING) -> Tensor:
    return torch.frombuffer(frame, dtype=torch.uint8) if frame.nbytes else EMPTY
