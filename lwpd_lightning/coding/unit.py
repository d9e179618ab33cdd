"""What values are divided by before they travel: roots, of squares that are laid out, or as the optimizer has them."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lwpd_lightning.coding.wire import CHUNK


class Unit(NamedTuple):
    """D, by its squares: ``D^2 = squares + floors``, a floor for each chunk of 1024 columns.

    Attributes:
        squares: (B, d).
        floors: (B, ceil(d/1024)).
    """

    squares: Tensor
    floors: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, d)."""
        return tuple(self.squares.shape)

    def roots(self, b: int | None = None) -> Tensor:
        """D, (B, d), or row b of it, (d,); the same bits on any device."""
        squares, floors = self if b is None else (self.squares[b], self.floors[b])
        found = squares + over_chunks(floors, squares.shape[-1])
        if found.device.type == "cpu":
            np.sqrt(found.numpy(), out=found.numpy())  # torch's is off by a last bit here and there
            return found
        return found.sqrt_()


class Tables(NamedTuple):
    """What kernels are given of D, in their order: where the squares of n parameters are, and what they are times.

    Where a parameter has none they are the mean of the chunk.

    Attributes:
        addresses: (n,), as of `addresses.addresses`.
        factors: (n,) float32.
        layout: (n, 3), as in `blocks.BlockMap`.
        means: (B, ceil(d/1024)) float32.
        floors: (B, ceil(d/1024)) float32.
    """

    addresses: np.ndarray[Any, np.dtype[np.uint64]]
    factors: np.ndarray[Any, np.dtype[np.float32]]
    layout: np.ndarray[Any, np.dtype[np.int64]]
    means: np.ndarray[Any, np.dtype[np.float32]]
    floors: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class UnitInPlace:
    """The same D as a `Unit`'s, for the compiled kernels, which read its squares where the optimizer has them.

    They take roots in passing, in less time than laid out ones would take to be read. It is the D of the state that it
    was made of as long as nothing is written there.

    Attributes:
        tables: what kernels are given.
        held: the tensors at the addresses, which must not be freed.
        fast: the kernels.
    """

    tables: Tables
    held: list[Tensor]
    fast: ModuleType

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, d)."""
        return len(self.tables.means), int(self.tables.layout[-1, :2].sum())

    def roots(self, b: int | None = None) -> Tensor:
        """D laid out, (B, d), or row b of it, (d,)."""
        found = torch.empty(self.shape)
        self.fast.roots(*self.tables, CHUNK, found.numpy())
        return found if b is None else found[b]


def over_chunks(values: Tensor, size: int) -> Tensor:
    """(..., ceil(size/1024)) -> (..., size), the same at all positions of a chunk."""
    return values.repeat_interleave(CHUNK, dim=-1)[..., :size]
