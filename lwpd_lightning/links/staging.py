"""Bytes from a GPU to the host memory that sockets use, through a pinned buffer; nothing happens on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Moves flat byte tensors from ``device`` to the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: Tensor | None = None

    def to_host(self, payload: Tensor) -> Tensor:
        """``payload`` (uint8) on the host, valid until the next call; on a CPU the same tensor, not a copy."""
        if self._device.type != "cuda":
            return payload
        if self._pinned is None or self._pinned.numel() != payload.numel():
            self._pinned = torch.empty(payload.numel(), dtype=torch.uint8, pin_memory=True)
        return self._pinned.copy_(payload)
