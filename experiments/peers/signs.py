"""One bit a value: signs, and a magnitude for each segment of a vector; what that loses is added to the next values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Segment(NamedTuple):
    """Positions of a vector that share a magnitude.

    Attributes:
        start: the first.
        size: how many there are, a multiple of 8.
        used: how many of them, from the first on, stand for something; the others are padding, and 0.
    """

    start: int
    size: int
    used: int


class Signs:
    """Packs vectors of float32 with error feedback.

    A segment's magnitude is the root of its mean square, as in DeepSpeed's 1-bit Adam. 0 counts as positive.

    Args:
        segments: one after the other, of the whole vector.

    Attributes:
        error: what has not been sent yet, by position.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.error = torch.zeros(sum(segment.size for segment in segments))
        self._segments = [self.error[start : start + size] for start, size, _ in segments]
        self._used = [self.error[start : start + used] for start, _, used in segments]
        self._padding = [self.error[start + used : start + size] for start, size, used in segments if used < size]
        self._roots = torch.tensor([max(1, used) for _, _, used in segments]).sqrt()

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes, float32 (segments,), and bits, uint8 (positions / 8,), of the values and the error so far."""
        self.error.add_(values)
        if self._padding:
            torch._foreach_zero_(self._padding)
        magnitudes = torch.stack(torch._foreach_norm(self._used)).div_(self._roots)
        positive = self.error >= 0
        sent = positive.to(torch.float32).mul_(2).sub_(1)
        torch._foreach_mul_(sent.split([len(segment) for segment in self._segments]), magnitudes.tolist())
        self.error.sub_(sent)
        if self._padding:
            torch._foreach_zero_(self._padding)
        return magnitudes, torch.from_numpy(np.packbits(positive.numpy()))


def signs(bits: Tensor) -> Tensor:
    """+1 and -1, float32 (rows, 8 * bytes), of bits (rows, bytes).

    >>> signs(torch.tensor([[0b10100000]], dtype=torch.uint8))
    tensor([[ 1., -1.,  1., -1., -1., -1., -1., -1.]])
    """
    unpacked = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1))
    return unpacked.to(torch.float32).mul_(2).sub_(1)
