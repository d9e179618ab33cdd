"""Codewords as ternary digits, five in a byte."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.ternary import DIGITS, dequantise, quantise
from lwpd_lightning.coding.wire import CHUNK, WireFormat, register


@register
class _Ternary(WireFormat):
    """ceil(d/1024) float32 levels s, then each chunk's values -s, 0 and +s, five in a byte: about 1.6 bits a value.

    Biased: small values arrive as zeros until error feedback has made them large. `ternary.quantise` has the rule and
    the bound of what is lost; a chunk that holds a value that is not finite arrives as NaN, all of it.
    """

    name = "ternary"
    needs_feedback = True

    def __init__(self) -> None:
        self.warm_up()

    @classmethod
    def warm_up(cls) -> str | None:
        """Load the compiled kernels."""
        if kernels.compiled() is not None:
            return None
        return "numpy packs the ternary values; numba is many times as fast: pip install 'lwpd-lightning[fast]'"

    def nbytes(self, size: int) -> int:
        return _level_bytes(size) + _ternary_bytes(size)

    def pack(self, codeword: Tensor) -> Tensor:
        size = codeword.numel()
        values = codeword.detach().float().contiguous()
        payload = torch.empty(self.nbytes(size), dtype=torch.uint8, device=codeword.device)
        if values.device.type == "cpu" and (fast := kernels.compiled()) is not None:
            fast.pack(values.numpy(), CHUNK, payload.numpy())
            return payload
        header = _level_bytes(size)
        levels, packed = payload[:header].view(torch.float32), payload[header:]
        for chunks, bytes_, span, shape in _same_lengths(size):
            level, row = quantise(values[span].view(shape))
            levels[chunks].copy_(level)
            packed[bytes_].copy_(row.flatten())
        return payload

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        header = _level_bytes(size)
        levels = payload[4 * (start // CHUNK) : 4 * -(-stop // CHUNK)]
        return torch.cat([levels, payload[header + _ternary_bytes(start) : header + _ternary_bytes(stop)]])

    def unpack_into(self, payload: Tensor, out: Tensor) -> None:
        if out.dtype == torch.float32 and out.device.type == payload.device.type == "cpu":
            self._check(payload, out.numel())
            self._write(payload, out)
        else:
            super().unpack_into(payload, out)

    def add_to(self, payload: Tensor, out: Tensor, scale: float) -> None:
        fast = kernels.compiled()
        if fast is None or out.dtype != torch.float32 or out.device.type != "cpu":
            super().add_to(payload, out, scale)
            return
        self._check(payload, out.numel())
        fast.add(payload.cpu().numpy(), CHUNK, out.numpy(), scale)

    def finite(self, payload: Tensor, size: int) -> bool:
        levels = payload[: _level_bytes(size)].cpu().numpy().view(np.float32)
        return bool(np.isfinite(levels).all())

    def read(self, payload: Tensor, size: int) -> Tensor:
        values = torch.empty(size)
        self._write(payload, values)
        return values.to(payload.device)

    def _write(self, payload: Tensor, values: Tensor) -> None:
        payload, size = payload.cpu(), values.numel()
        if (fast := kernels.compiled()) is not None:
            fast.unpack(payload.numpy(), CHUNK, values.numpy())
            return
        levels, packed = self._levels(payload, size), payload[_level_bytes(size) :]
        for chunks, bytes_, span, shape in _same_lengths(size):
            dequantise(levels[chunks], packed[bytes_].view(shape[0], -1), values[span].view(shape))

    def _levels(self, payload: Tensor, size: int) -> Tensor:
        # A slice behind an odd header cannot be viewed as wider values.
        return payload[: _level_bytes(size)].clone().view(torch.float32)


def _level_bytes(size: int) -> int:
    return 4 * -(-size // CHUNK)


def _ternary_bytes(size: int) -> int:
    """Bytes without levels: those of whole chunks, and of a shorter last one."""
    return -(-CHUNK // DIGITS) * (size // CHUNK) + -(-(size % CHUNK) // DIGITS)


def _same_lengths(size: int) -> Iterator[tuple[slice, slice, slice, tuple[int, int]]]:
    """Where whole chunks, and then a shorter last one, have their levels, their bytes and their values, and the shape
    of these."""
    chunks, rest = divmod(size, CHUNK)
    whole, bytes_ = chunks * CHUNK, _ternary_bytes(chunks * CHUNK)
    if chunks:
        yield slice(0, chunks), slice(0, bytes_), slice(0, whole), (chunks, CHUNK)
    if rest:
        yield slice(chunks, chunks + 1), slice(bytes_, None), slice(whole, size), (1, rest)
