"""Bytes between a GPU and the host memory that sockets use, through a pinned buffer; nothing happens on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Moves flat byte tensors between ``device`` and the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: Tensor | None = None

    def to_device(self, payload: Tensor) -> Tensor:
        """``payload`` (uint8, host) on the device; on a CPU the same tensor, not a copy."""
        if self._device.type != "cuda":
            return payload
        return self._buffer(payload.numel()).copy_(payload).to(self._device)

    def to_host(self, payload: Tensor) -> Tensor:
        """``payload`` (uint8) on the host, valid until the next call; on a CPU the same tensor, not a copy."""
        if self._device.type != "cuda":
            return payload
        return self._buffer(payload.numel()).copy_(payload)

    def _buffer(self, size: int) -> Tensor:
        if self._pinned is None or self._pinned.numel() != size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._pinned
