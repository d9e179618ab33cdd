"""Codewords as a level for each chunk and a few digits a value: what the coarse formats have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.wire import CHUNK, WireFormat


class LevelFormat(WireFormat):
    """ceil(d/1024) float32 levels, then each chunk's digits, several in a byte.

    A chunk's digits fill bytes of their own, so that whole chunks can be cut out. One that holds a value that is not
    finite arrives as NaN, all of it. Coarse: most of a gradient is lost unless that is fed back, or spread evenly.

    Args:
        unbiased: levels by which values that were rotated at random arrive in expectation; else those that lose least.

    Attributes:
        digits: in a byte.
    """

    digits: int
    needs_feedback = True

    def __init__(self, unbiased: bool = False) -> None:
        self._unbiased = unbiased
        self.warm_up()

    @classmethod
    def warm_up(cls) -> str | None:
        """Load the compiled kernels."""
        if kernels.compiled() is not None:
            return None
        return f"numpy packs the {cls.name} values; numba is many times as fast: pip install 'lwpd-lightning[fast]'"

    @classmethod
    def unbiased(cls, device: torch.device, seed: int) -> WireFormat:
        """With unbiased levels; nothing is drawn at random, and readers need not know."""
        return cls(unbiased=True)

    def nbytes(self, size: int) -> int:
        """Of the levels and of the digits."""
        return _level_bytes(size) + self._digit_bytes(size)

    def pack(self, codeword: Tensor) -> Tensor:
        """Levels and digits of each chunk, by the compiled kernels on the host."""
        size = codeword.numel()
        values = codeword.detach().float().contiguous()
        payload = torch.empty(self.nbytes(size), dtype=torch.uint8, device=codeword.device)
        if (fast := kernels.compiled_for(values)) is not None:
            self._pack_fast(fast, values, payload)
            return payload
        header = _level_bytes(size)
        levels, packed = payload[:header].view(torch.float32), payload[header:]
        for chunks, bytes_, span, shape in self._same_lengths(size):
            level, row = self._quantise(values[span].view(shape))
            levels[chunks].copy_(level)
            packed[bytes_].copy_(row.flatten())
        return payload

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        """Levels and digits of whole chunks, copied together."""
        header = _level_bytes(size)
        levels = payload[4 * (start // CHUNK) : 4 * -(-stop // CHUNK)]
        return torch.cat([levels, payload[header + self._digit_bytes(start) : header + self._digit_bytes(stop)]])

    def unpack_into(self, payload: Tensor, out: Tensor) -> None:
        """In one pass on the host."""
        if out.dtype == torch.float32 and out.device.type == payload.device.type == "cpu":
            self._check(payload, out.numel())
            self._write(payload, out)
        else:
            super().unpack_into(payload, out)

    def add_to(self, payload: Tensor, out: Tensor, scale: float) -> None:
        """In one pass on the host."""
        fast = kernels.compiled_for(out)
        if fast is None:
            super().add_to(payload, out, scale)
            return
        self._check(payload, out.numel())
        self._add_fast(fast, payload.cpu(), out, scale)

    def finite(self, payload: Tensor, size: int) -> bool:
        """Levels tell."""
        levels = payload[: _level_bytes(size)].cpu().numpy().view(np.float32)
        return bool(np.isfinite(levels).all())

    def read(self, payload: Tensor, size: int) -> Tensor:
        """Values are made on the host."""
        values = torch.empty(size)
        self._write(payload, values)
        return values.to(payload.device)

    def _write(self, payload: Tensor, values: Tensor) -> None:
        payload, size = payload.cpu(), values.numel()
        if (fast := kernels.compiled()) is not None:
            self._unpack_fast(fast, payload, values)
            return
        header = _level_bytes(size)
        # A slice behind an odd header cannot be viewed as wider values.
        levels, packed = payload[:header].clone().view(torch.float32), payload[header:]
        for chunks, bytes_, span, shape in self._same_lengths(size):
            self._dequantise(levels[chunks], packed[bytes_].view(shape[0], -1), values[span].view(shape))

    @abstractmethod
    def _quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(m, L) float32 rows on any device -> (m,) levels and (m, ceil(L/digits)) bytes."""

    @abstractmethod
    def _dequantise(self, levels: Tensor, packed: Tensor, out: Tensor) -> None:
        """Write (m, L) values to ``out`` on the host, from what `_quantise` made."""

    @abstractmethod
    def _pack_fast(self, fast: ModuleType, values: Tensor, payload: Tensor) -> None:
        """`pack` by the compiled kernels."""

    @abstractmethod
    def _unpack_fast(self, fast: ModuleType, payload: Tensor, values: Tensor) -> None:
        """`unpack_into` by the compiled kernels."""

    @abstractmethod
    def _add_fast(self, fast: ModuleType, payload: Tensor, out: Tensor, scale: float) -> None:
        """`add_to` by the compiled kernels."""

    def _digit_bytes(self, size: int) -> int:
        """Bytes without levels: those of whole chunks, and of a shorter last one."""
        return -(-CHUNK // self.digits) * (size // CHUNK) + -(-(size % CHUNK) // self.digits)

    def _same_lengths(self, size: int) -> Iterator[tuple[slice, slice, slice, tuple[int, int]]]:
        """Where whole chunks, and then a shorter last one, have their levels, their bytes and their values, and the
        shape of these."""
        chunks, rest = divmod(size, CHUNK)
        whole, bytes_ = chunks * CHUNK, self._digit_bytes(chunks * CHUNK)
        if chunks:
            yield slice(0, chunks), slice(0, bytes_), slice(0, whole), (chunks, CHUNK)
        if rest:
            yield slice(chunks, chunks + 1), slice(bytes_, None), slice(whole, size), (1, rest)


def _level_bytes(size: int) -> int:
    return 4 * -(-size // CHUNK)
