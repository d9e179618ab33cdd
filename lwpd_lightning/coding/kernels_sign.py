"""Kernels of the wire format "sign", for float32 on the host."""

from __future__ import annotations

import math

import numpy as np

from lwpd_lightning.coding.compiling import REORDERED, compiled
from lwpd_lightning.coding.ternary import FLOAT32_MAX

_BITS = 8


@compiled(fastmath=REORDERED)
def _sum(row, zero):  # type: ignore[no-untyped-def]
    total = zero
    for j in range(len(row)):
        total += abs(row[j])
    return total


@compiled(fastmath=REORDERED)
def energy(row, scale, zero):  # type: ignore[no-untyped-def]
    """The sum of squares of the scaled values."""
    total = zero
    for j in range(len(row)):
        unit = row[j] * scale
        total += unit * unit
    return total


@compiled()
def mean_square(row, level, wide, count):  # type: ignore[no-untyped-def]
    """``sum x^2 / count`` in units of the level's square, so scaled that squares are neither lost nor infinite."""
    inverse = 1 / level
    if wide or inverse > FLOAT32_MAX:
        return energy(row, inverse, np.float64(0)) / count
    return np.float64(energy(row, np.float32(inverse), np.float32(0))) / count


@compiled()
def _level(row, unbiased):  # type: ignore[no-untyped-def]
    total = np.float64(_sum(row, np.float32(0)))
    wide = not math.isfinite(total)
    if wide:
        total = _sum(row, np.float64(0))
    if not math.isfinite(total):
        return np.float32(math.nan)
    level = total / len(row)
    if unbiased and level > 0:
        level *= mean_square(row, level, wide, len(row))
    return np.float32(min(level, FLOAT32_MAX))


@compiled("void(f4[::1], i8, u1[::1], b1)")
def pack_signs(values, chunk, payload, unbiased):  # type: ignore[no-untyped-def]
    """(d,) values -> the (nbytes(d),) bytes of `wire.wire_format("sign")` with one level for each ``chunk``."""
    size = len(values)
    levels = np.empty(-(-size // chunk), np.float32)
    offset = 4 * len(levels)
    for i in range(len(levels)):
        row = values[i * chunk : min(size, (i + 1) * chunk)]
        columns = -(-len(row) // _BITS)
        levels[i] = _level(row, unbiased)
        packed = payload[offset : offset + columns]
        packed[:] = 0
        for p in range(_BITS):
            bits = row[p * columns : (p + 1) * columns]
            for j in range(len(bits)):
                packed[j] |= np.uint8(bits[j] >= 0) << np.uint8(p)
        offset += columns
    payload[: 4 * len(levels)] = levels.view(np.uint8)


@compiled()
def _read(payload, chunk, out, scale, adding):  # type: ignore[no-untyped-def]
    size = len(out)
    levels = payload[: 4 * -(-size // chunk)].copy().view(np.float32)  # behind an odd header they are not aligned
    offset = 4 * len(levels)
    for i in range(len(levels)):
        row = out[i * chunk : min(size, (i + 1) * chunk)]
        columns = -(-len(row) // _BITS)
        packed = payload[offset : offset + columns]
        offset += columns
        level = levels[i] * scale
        for p in range(_BITS):
            part = row[p * columns : (p + 1) * columns]
            for j in range(len(part)):
                value = level if (packed[j] >> np.uint8(p)) & np.uint8(1) else -level
                part[j] = part[j] + value if adding else value


@compiled("void(u1[::1], i8, f4[::1])")
def unpack_signs(payload, chunk, out):  # type: ignore[no-untyped-def]
    """Write the (d,) values of what `pack_signs` made."""
    _read(payload, chunk, out, np.float32(1), False)


@compiled("void(u1[::1], i8, f4[::1], f8)")
def add_signs(payload, chunk, out, scale):  # type: ignore[no-untyped-def]
    """Add ``scale`` times what `unpack_signs` would write to ``out``, and write it nowhere else."""
    _read(payload, chunk, out, np.float32(scale), True)
