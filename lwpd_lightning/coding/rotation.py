"""The random rotation under which coarse values of a codeword stand for all of it alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.unit import Tables, Unit, UnitInPlace
from lwpd_lightning.coding.wire import CHUNK

_NOTHING = Tables(
    np.empty(0, np.uint64), np.empty(0, np.float32), np.empty((0, 3), np.int64), *np.empty((2, 1, 0), np.float32)
)
# Steps along the columns of a chunk that is a square of 32 by 32.
_WIDE = (32, 64, 128, 256, 512)


class Rotation:
    """``x -> M (s * x)`` in chunks of 1024 positions: s random signs of the version, M the Hadamard matrix / 32.

    Its rows are in such an order that M is one step made twice: each column of the chunk, taken as a square of 32 by
    32, times the Hadamard matrix of that side, and the square transposed in between. M is its own inverse.

    Orthogonal, and common to all ranks: the sum of rotated codewords is the rotated sum. In a rotated chunk no value
    stands out, so that one level says what all of them are worth (DRIVE: Vargaftik et al., NeurIPS 2021; one rotation
    for all, so that sums need no decoding: THC, Li et al., NSDI 2024). Chunks are those that wire formats have a level
    for, so that a slice of a codeword is of whole chunks.

    A last chunk of L < 1024 values is rotated twice, its first w and then its last w values, w being the largest power
    of two in L: nothing is padded, and no value is left alone.

    Coarse values are exactly unbiased under any rotation that is as likely as any other; under these, the mean of what
    arrives misses a 10^4th of the square of a chunk, also where values differ by thousands of times, and more only in
    chunks of a hundred values or less, or with few that are not zero.

    All ranks get the same bits: signs are numpy's Philox counter at the key (seed, version), whose raw numbers no
    version of numpy changes, and sums are in one order, compiled or not, on any device.

    Args:
        size: d, positions of a codeword.
        seed: of the run, below 2^64.
        dtype: of codewords.
        device: of codewords.

    >>> rotation = Rotation(5, seed=0, dtype=torch.float32, device=torch.device("cpu"))
    >>> values = torch.tensor([0.0, 0.0, 0.0, 0.0, 8.0])
    >>> rotation.turn(values, version=3)
    >>> values.abs()
    tensor([0., 4., 4., 4., 4.])
    >>> rotation.turn_back(values, version=3)
    >>> values.abs()
    tensor([0., 0., 0., 0., 8.])
    """

    def __init__(self, size: int, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._size, self._seed, self._dtype, self._device = size, seed, dtype, device
        self._random = np.random.Philox(key=0)
        self._start: Any = self._random.state
        self._drawn: tuple[int, np.ndarray[Any, np.dtype[np.uint8]]] | None = None
        self._values: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def turn(self, values: Tensor, version: int) -> None:
        """Rotate (d,) values of the dtype, on the device, in place."""
        if (fast := kernels.compiled_for(values)) is not None:
            fast.rotate(values.numpy(), self._bits(version))
            return
        signs = self._signs(version)
        for span, those in _spans(self._size):
            values[span] = _hadamard(values[span] * signs[those])

    @torch.no_grad()
    def turn_back(
        self,
        values: Tensor,
        version: int,
        out: Tensor | None = None,
        unit: Unit | UnitInPlace | None = None,
        b: int = 0,
    ) -> None:
        """The inverse of `turn`.

        Args:
            values: (d,) of the dtype.
            version: at which they were turned.
            out: where it is written, of the dtype and on the device; None: in place.
            unit: of (B, d), which it is taken times; None: nothing.
            b: the row of it.
        """
        out = values if out is None else out
        if not isinstance(unit, Unit) and (fast := kernels.compiled_for(values, out)) is not None:
            tables = _NOTHING if unit is None else unit.tables
            fast.rotate_back(values.numpy(), self._bits(version), b, *tables, out.numpy())
            return
        signs = self._signs(version)
        if out is not values:
            out.copy_(values)
        for span, those in reversed(_spans(self._size)):
            out[span] = _hadamard(out[span]) * signs[those]
        if unit is not None:
            out.mul_(unit.roots(b))

    def _bits(self, version: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A bit for each position, and for those of the last values that are rotated twice: set for -1."""
        if self._drawn is None or self._drawn[0] != version:
            # Another generator would ask the operating system for entropy first, whatever its key is.
            self._start["state"]["key"][:] = self._seed, version
            self._random.state = self._start
            words: Any = self._random.random_raw(-(-(self._size + CHUNK) // 64))
            self._drawn = version, words.astype("<u8", copy=False).view(np.uint8)
        return self._drawn[1]

    def _signs(self, version: int) -> Tensor:
        """The same as +-1."""
        if self._values is None or self._values[0] != version:
            bits = torch.from_numpy(np.unpackbits(self._bits(version), count=self._size + CHUNK)).to(self._device)
            self._values = version, 1 - 2 * bits.to(self._dtype)
        return self._values[1]


@lru_cache
def _spans(size: int) -> list[tuple[slice, slice]]:
    """What is rotated, one after the other, and by which signs: whole chunks at once, then what is left."""
    whole, rest = size - size % CHUNK, size % CHUNK
    spans = [(slice(0, whole), slice(0, whole))] if whole else []
    if rest:
        width = 1 << (rest.bit_length() - 1)
        spans.append((slice(whole, whole + width), slice(whole, whole + width)))
        if width < rest:
            spans.append((slice(size - width, size), slice(size, size + width)))
    return spans


def _hadamard(values: Tensor) -> Tensor:
    """Each 1024 of (m,) values, or all of fewer, by the matrix M of `Rotation`, which is its own inverse."""
    width = min(len(values), CHUNK)
    if width == CHUNK:
        mixed = _steps(values, _WIDE).view(-1, 32, 32).transpose(1, 2).reshape(-1)
        return _steps(mixed, _WIDE) / 32
    # Wide steps first: compiled, they are those that need no values from the same register.
    scale: float = width**-0.5
    return _steps(values, [h for h in (*_WIDE, 1, 2, 4, 8, 16) if h < width]) * scale


def _steps(values: Tensor, steps: Sequence[int]) -> Tensor:
    for h in steps:
        a, b = values.view(-1, 2, h).unbind(1)
        values = torch.stack((a + b, a - b), dim=1).view(-1)
    return values
