"""What values are divided by before they travel: roots, which kernels take in passing and nobody lays out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from lwpd_lightning.coding.wire import CHUNK


class Unit(NamedTuple):
    """D, by its squares: ``D^2 = squares + floors``, a floor for each chunk of 1024 columns.

    Roots take less time than reading them would, so that kernels make them in passing.

    Attributes:
        squares: (B, d), or one row of it, (d,).
        floors: (B, ceil(d/1024)), or (ceil(d/1024),).
    """

    squares: Tensor
    floors: Tensor

    def row(self, b: int) -> Unit:
        """Of one block."""
        return Unit(self.squares[b], self.floors[b])

    def roots(self) -> Tensor:
        """D in the shape of the squares, the same bits on any device."""
        found = self.squares + over_chunks(self.floors, self.squares.shape[-1])
        if found.device.type == "cpu":
            np.sqrt(found.numpy(), out=found.numpy())  # torch's is off by a last bit here and there
            return found
        return found.sqrt_()


def over_chunks(values: Tensor, size: int) -> Tensor:
    """(..., ceil(size/1024)) -> (..., size), the same at all positions of a chunk."""
    return values.repeat_interleave(CHUNK, dim=-1)[..., :size]
