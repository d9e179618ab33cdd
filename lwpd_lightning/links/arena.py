"""Memory that rank 0 shares with the workers that it forked, so that tensors need no socket on one machine.

The mapping is anonymous: it has no name in the system, and no process but rank 0 and its forks can reach it. Messages
still pass the authenticated link; they say where in the arena their payload lies instead of carrying it.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from lwpd_lightning.links.header import ProtocolError

_ALIGNMENT = 4096


class Arena:
    """One shared mapping, handed out front to back. Create it before forking.

    Args:
        slots: sizes in bytes of all the pieces that will be taken; only pages that are used cost memory.
    """

    def __init__(self, slots: list[int]) -> None:
        self._size = sum(_aligned(size) for size in slots)
        self._memory = mmap.mmap(-1, max(1, self._size))
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._taken = 0

    def take(self, nbytes: int) -> Tensor:
        """The next ``nbytes`` bytes, as a uint8 tensor that starts on a page."""
        start, self._taken = self._taken, self._taken + _aligned(nbytes)
        if self._taken > self._size:
            raise MemoryError(f"the arena has {self._size} bytes, {self._taken} are wanted")
        return self._bytes[start : start + nbytes]

    def offset(self, payload: Tensor) -> int | None:
        """Where in the arena ``payload`` begins; None where it lies elsewhere."""
        offset = payload.data_ptr() - self._bytes.data_ptr()
        return offset if 0 <= offset < self._size else None

    def at(self, offset: int, nbytes: int) -> Tensor:
        """The payload that a peer says begins at ``offset``; raises ProtocolError outside the arena."""
        if not 0 <= offset <= offset + nbytes <= self._size:
            raise ProtocolError(f"payload at {offset} with {nbytes} bytes lies outside the arena")
        return self._bytes[offset : offset + nbytes]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
