"""How a codeword looks as bytes: float64, float32, bfloat16, scaled int8 or ternary."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # values that share one scale: 0.4 % overhead of int8, and an outlier coarsens only its neighbours
_DIGITS = 5  # ternary values in a byte: 3^5 = 243
_CHUNK_BYTES = -(-CHUNK // _DIGITS)


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
        aligned; int8 as float32.

        Raises:
            ValueError: where the payload's length is not ``nbytes(size)``: sizes come from a peer.
        """
        if payload.dtype != torch.uint8 or payload.shape != (self.nbytes(size),):
            raise ValueError(
                f"payload is {payload.dtype} of shape {tuple(payload.shape)}: "
                f"a {self.name} codeword of size={size} is uint8 of shape ({self.nbytes(size)},)."
            )
        return self._read(payload, size)

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
    """ceil(d/1024) float32 levels s, then the values -s, 0 and s of each chunk, five in a byte in base 3.

    A value x of a chunk with mean magnitude m becomes ``s * sign(x)`` where ``|x| >= m`` and 0 elsewhere, with s the
    mean magnitude of those: the best level for them, so that of c such values ``|x - Q(x)|^2 = |x|^2 - c s^2``. That is
    less than ``|x|^2``, which is what error feedback needs; without it, the format is biased (the ternary weights of Li
    et al., 2016, have a threshold of 0.7 m).

    A chunk that holds a value that is not finite arrives as NaN; one of subnormal values as zeros.
    """

    name = "ternary"
    code = 5

    def nbytes(self, size: int) -> int:
        full, rest = divmod(size, CHUNK)
        return 4 * -(-size // CHUNK) + full * _CHUNK_BYTES + -(-rest // _DIGITS)

    def pack(self, codeword: Tensor) -> Tensor:
        size = codeword.numel()
        values = codeword.detach().float()
        full = size - size % CHUNK
        chunks = values[:full].view(-1, CHUNK), values[full:].view(-1, size % CHUNK or CHUNK)  # all but the last, it
        levels, packed = zip(*(_ternary(part) for part in chunks), strict=True)
        payload = torch.empty(self.nbytes(size), dtype=torch.uint8, device=codeword.device)
        header = 4 * -(-size // CHUNK)
        torch.cat(levels, out=payload[:header].view(torch.float32))
        payload[header:].copy_(torch.cat(packed))
        return payload

    def cut(self, payload: Tensor, size: int, start: int, stop: int) -> Tensor:
        chunks = -(-size // CHUNK)
        first, last = start // CHUNK, -(-stop // CHUNK)
        end = self.nbytes(size) if stop == size else 4 * chunks + last * _CHUNK_BYTES
        return torch.cat([payload[4 * first : 4 * last], payload[4 * chunks + first * _CHUNK_BYTES : end]])

    def _read(self, payload: Tensor, size: int) -> Tensor:
        chunks = -(-size // CHUNK)
        levels = payload[: 4 * chunks].clone().view(torch.float32)
        packed = payload[4 * chunks :]
        values = torch.zeros(chunks * _CHUNK_BYTES, _DIGITS, device=payload.device)
        # NumPy gathers short rows several times faster than torch does.
        rows = torch.from_numpy(np.take(_TRITS, packed.cpu().numpy(), axis=0))
        values[: len(rows)] = rows.to(payload.device)
        return values.view(chunks, -1)[:, :CHUNK].mul(levels[:, None]).reshape(-1)[:size]


def _ternary(values: Tensor) -> tuple[Tensor, Tensor]:
    """(chunks, length) values -> (chunks,) levels and (chunks * ceil(length / 5),) bytes, still as floats."""
    chunks, length = values.shape
    if not chunks:
        return values.new_empty(0), values.new_empty(0)
    # A little less than the mean, so that equal magnitudes do not all fall below it by rounding.
    means = values.abs().sum(dim=1).mul_((1 - 2.0**-10) / length)
    if not means.isfinite().all():
        return _huge(values)
    digits = values.new_empty(chunks, -(-length // _DIGITS) * _DIGITS)
    digits[:, length:] = 0.0
    signs = digits[:, :length]
    torch.div(values, means.clamp(min=torch.finfo().tiny)[:, None], out=signs)
    signs.trunc_().clamp_(-1, 1)
    levels = (values * signs).sum(dim=1).div_(signs.square().sum(dim=1).clamp_(min=1))
    weights = 3.0 ** torch.arange(_DIGITS, device=values.device)
    return levels, torch.mv(digits.view(-1, _DIGITS), weights).add_(weights.sum())


def _huge(values: Tensor) -> tuple[Tensor, Tensor]:
    """`_ternary` of values whose sum is too large for a float32, or that are not finite."""
    finite = values.isfinite().all(dim=1)
    levels, packed = _ternary(torch.where(finite[:, None], values, 0.0) * 2.0**-12)
    return torch.where(finite, levels * 2.0**12, torch.nan), packed


# Row by byte: its five digits less 1. What no sender writes, 243 to 255, is read as zeros.
_TRITS = ((np.arange(256)[:, None] // 3 ** np.arange(_DIGITS)) % 3 - 1).astype(np.float32)
_TRITS[3**_DIGITS :] = 0.0


def wire_format(name: str, rounding: str = "nearest", generator: torch.Generator | None = None) -> WireFormat:
    """The wire format of a name.

    Args:
        name: "float64", "float32", "bfloat16", "int8" or "ternary" (both with one float32 scale for each 1024 values).
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
