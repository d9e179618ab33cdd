"""How a codeword looks as bytes: float64, float32, bfloat16, scaled int8 or ternary."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lwpd_lightning.coding import kernels
from lwpd_lightning.coding.ternary import DIGITS, dequantise, quantise

CHUNK = 1024  # values that share one scale or level: 0.4 % of int8, 2 % of ternary; an outlier coarsens its neighbours


class WireFormat(ABC):
    """One encoding of a (d,) codeword as bytes. All machines are taken to be little-endian.

    Attributes:
        name: as `wire_format` takes it.
        code: the byte that names the format in a header.

    >>> wire = wire_format("bfloat16")
    >>> payload = wire.pack(torch.tensor([1.0, -2.0]))
    >>> payload, wire.nbytes(2)
    (tensor([128,  63,   0, 192], dtype=torch.uint8), 4)
    >>> wire.unpack(payload, 2)
    tensor([ 1., -2.], dtype=torch.bfloat16)
    """

    name: str
    code: int

    @abstractmethod
    def nbytes(self, size: int) -> int:
        """Exact length in bytes of a packed codeword of ``size`` values."""

    @abstractmethod
    def pack(self, codeword: Tensor) -> Tensor:
        """(d,) of any float dtype -> (nbytes(d),) contiguous uint8, on the codeword's device.

        A codeword that already has the format's dtype is not copied: the bytes are a view of it.
        """

    def unpack(self, payload: Tensor, size: int) -> Tensor:
        """(nbytes(size),) uint8 -> (size,) codeword: float formats in their dtype, as a view where the payload is
        aligned; int8 and ternary as float32.

        Raises:
            ValueError: where the payload's length is not ``nbytes(size)``: sizes come from a peer.
        """
        self._check(payload, size)
        return self._read(payload, size)

    def _check(self, payload: Tensor, size: int) -> None:
        if payload.dtype != torch.uint8 or payload.shape != (self.nbytes(size),):
            raise ValueError(
                f"payload is {payload.dtype} of shape {tuple(payload.shape)}: "
                f"a {self.name} codeword of size={size} is uint8 of shape ({self.nbytes(size)},)."
            )

    def unpack_into(self, payload: Tensor, out: Tensor) -> None:
        """Write the values of a packed codeword to ``out``, (size,) of a float dtype and contiguous."""
        out.copy_(self.unpack(payload, out.numel()))

    def add_to(self, payload: Tensor, out: Tensor, scale: float) -> None:
        """Add ``scale`` times the values of a packed codeword to ``out``: (size,) of a float dtype and contiguous."""
        out.add_(self.unpack(payload, out.numel()).to(out.device), alpha=scale)

    def finite(self, payload: Tensor, size: int) -> bool:
        """Whether all values of a packed codeword are finite."""
        return math.isfinite(float(self.unpack(payload, size).sum()))

    @abstractmethod
    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        """The values ``start`` to ``stop`` of a packed codeword of ``size`` values, packed.

        Both ends are multiples of `CHUNK`, or ``size``. A view of ``payload`` where the format has nothing but values.
        """

    @abstractmethod
    def _read(self, payload: Tensor, size: int) -> Tensor: ...


class _Float(WireFormat):
    def __init__(self, name: str, code: int, dtype: torch.dtype) -> None:
        self.name, self.code, self._dtype = name, code, dtype

    def nbytes(self, size: int) -> int:
        return size * self._dtype.itemsize

    def pack(self, codeword: Tensor) -> Tensor:
        return codeword.detach().to(self._dtype).contiguous().view(torch.uint8)

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        return payload[start * self._dtype.itemsize : stop * self._dtype.itemsize]

    def _read(self, payload: Tensor, size: int) -> Tensor:
        # A slice behind an odd header cannot be viewed as wider values.
        aligned = payload if payload.storage_offset() % self._dtype.itemsize == 0 else payload.clone()
        return aligned.contiguous().view(self._dtype)


class _Int8(WireFormat):
    """ceil(d/1024) float32 scales (each chunk's absmax / 127), then d signed bytes.

    A chunk that holds a value that is not finite has an infinite or NaN scale and bytes of 0: all of it arrives as NaN.
    """

    name = "int8"
    code = 4

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator

    def nbytes(self, size: int) -> int:
        return 4 * -(-size // CHUNK) + size

    def pack(self, codeword: Tensor) -> Tensor:
        size = codeword.numel()
        header = self.nbytes(size) - size
        values = torch.nn.functional.pad(codeword.detach().float(), (0, -size % CHUNK)).view(-1, CHUNK)
        scales = values.abs().amax(dim=1) / 127
        levels = values / scales[:, None]
        if self._generator is None:
            levels.round_()
        else:
            noise = torch.rand(levels.shape, generator=self._generator, device=levels.device)
            levels.add_(noise).floor_()
        # The cast of anything else is undefined: 0/0 in a chunk of zeros, NaN, a quotient by a subnormal scale
        # (coarse), 127 plus noise.
        levels = levels.nan_to_num_(nan=0.0).clamp_(-127, 127)
        payload = torch.empty(self.nbytes(size), dtype=torch.uint8, device=codeword.device)
        payload[:header].view(torch.float32).copy_(scales)
        payload[header:].view(torch.int8).copy_(levels.view(-1)[:size])
        return payload

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        header = self.nbytes(size) - size
        scales = payload[4 * (start // CHUNK) : 4 * -(-stop // CHUNK)]
        return torch.cat([scales, payload[header + start : header + stop]])

    def _read(self, payload: Tensor, size: int) -> Tensor:
        header = self.nbytes(size) - size
        scales = payload[:header].clone().view(torch.float32)
        values = torch.zeros(scales.numel(), CHUNK, device=payload.device)
        values.view(-1)[:size] = payload[header:].view(torch.int8)
        return values.mul_(scales[:, None]).view(-1)[:size]


class _Ternary(WireFormat):
    """ceil(d/1024) float32 levels s, then each chunk's values -s, 0 and +s, five in a byte: about 1.6 bits a value.

    Biased: small values arrive as zeros until error feedback has made them large. `ternary.quantise` has the rule and
    the bound of what is lost; a chunk that holds a value that is not finite arrives as NaN, all of it.
    """

    name = "ternary"
    code = 5

    def __init__(self) -> None:
        kernels.compiled()  # before ranks are forked, so that they need not compile it again

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

    def _read(self, payload: Tensor, size: int) -> Tensor:
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


def dtype_name(dtype: torch.dtype) -> str:
    """The name of the format that carries values of ``dtype`` as they are.

    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")


def wire_format(name: str, rounding: str = "nearest", generator: torch.Generator | None = None) -> WireFormat:
    """The wire format of a name.

    Args:
        name: "float64", "float32", "bfloat16", "int8" (one float32 scale for each 1024 values) or "ternary" (five
            values a byte and one float32 level for each 1024 values; for use with error feedback).
        rounding: of int8: "nearest", or "stochastic", whose expectation is the codeword itself.
        generator: the randomness of stochastic rounding, on the codewords' device; training's own is left alone.

    Raises:
        ValueError: for an unknown name or rounding, and for a rounding and a generator that do not go together.
    """
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding={rounding!r}: use 'nearest' or 'stochastic'.")
    if rounding == "stochastic" and name != "int8":
        raise ValueError(f"rounding='stochastic' with wire format {name!r}: use it with 'int8'.")
    if (rounding == "stochastic") != (generator is not None):
        raise ValueError(
            f"rounding={rounding!r} with generator={generator}: give a generator exactly for 'stochastic'."
        )
    if name == "int8":
        return _Int8(generator)
    if name == "ternary":
        return _Ternary()
    floats = {"float64": (1, torch.float64), "float32": (2, torch.float32), "bfloat16": (3, torch.bfloat16)}
    if name not in floats:
        raise ValueError(f"wire format {name!r}: use 'float64', 'float32', 'bfloat16', 'int8' or 'ternary'.")
    return _Float(name, *floats[name])
