"""Kernels for float32 on the host, compiled by numba: the bytes and values of `ternary`, and moves of `blocks`.

numpy passes over a codeword some twenty times to pack it, and how fast its byte arithmetic is differs much between
CPUs; these pass over each row three times while it is in the cache. torch's small matrix products and products with a
number take one pass over memory each, these one for all. Those of other modules are found here too.
"""

from __future__ import annotations

import math

import numpy as np

from lwpd_lightning.coding.compiling import REORDERED, compiled
from lwpd_lightning.coding.kernels_metric import chunk_means, chunk_sums, encode, roots
from lwpd_lightning.coding.kernels_rotation import rotate, rotate_back
from lwpd_lightning.coding.kernels_sign import add_signs, mean_square, pack_signs, unpack_signs
from lwpd_lightning.coding.ternary import BELOW_THE_MEAN, DIGITS, FLOAT32_MAX

__all__ = [
    "add", "add_along", "add_signs", "chunk_means", "chunk_sums", "encode", "pack", "pack_signs", "roots", "rotate",
    "rotate_back", "spread", "unpack", "unpack_signs",
]  # fmt: skip
_LANES = 32  # bytes that are packed at once, at least as many as values in a register of any CPU
_TILE = 1024  # values that stay in the cache while all blocks pass over them


@compiled(fastmath=REORDERED)
def _total(row, zero):  # type: ignore[no-untyped-def]
    total = zero
    for j in range(len(row)):
        total += abs(row[j])
    return total


@compiled(fastmath=REORDERED)
def _reaching(row, threshold, zero):  # type: ignore[no-untyped-def]
    """How many |x| reach the threshold, and the sum of what they have above it."""
    excess, count = zero, np.int32(0)
    for j in range(len(row)):
        magnitude = abs(row[j])
        count += np.int32(magnitude >= threshold)
        excess += max(magnitude, threshold) - threshold
    return count, excess


@compiled()
def _digit(x, threshold, place):  # type: ignore[no-untyped-def]
    zero, value = np.int32(0), np.int32(place)
    return (value if x >= threshold else zero) - (value if x <= -threshold else zero)


@compiled()
def _pack(row, threshold, packed):  # type: ignore[no-untyped-def]
    length, columns = len(row), len(packed)
    full = max(0, length - 4 * columns)  # bytes of which all five digits are values
    done = full if full >= _LANES else 0
    # In blocks of one size, the last of which laps over the one before: what would be left takes a third of the time.
    for block in range(-(-done // _LANES)):
        start = min(block * _LANES, done - _LANES)
        values, into = row[start:], packed[start : start + _LANES]
        first, second, third, fourth, fifth = (
            values[:_LANES], values[columns : columns + _LANES], values[2 * columns : 2 * columns + _LANES],
            values[3 * columns : 3 * columns + _LANES], values[4 * columns : 4 * columns + _LANES],
        )  # fmt: skip
        for j in range(_LANES):
            digits = _digit(first[j], threshold, 1) + _digit(second[j], threshold, 3) + _digit(third[j], threshold, 9)
            digits += _digit(fourth[j], threshold, 27) + _digit(fifth[j], threshold, 81)
            into[j] = np.uint8(digits + 121)  # 1 + 3 + 9 + 27 + 81: each digit plus one
    for j in range(done, columns):
        digits, place = 121, 1
        for start in range(0, length - j, columns):
            digits += _digit(row[start + j], threshold, place)
            place *= 3
        packed[j] = np.uint8(digits)


@compiled()
def _level_and_threshold(row, unbiased):  # type: ignore[no-untyped-def]
    length = len(row)
    total = np.float64(_total(row, np.float32(0)))
    wide = not math.isfinite(total)  # values so large that float32 cannot add them up, or not finite themselves
    if wide:
        total = _total(row, np.float64(0))
    threshold = np.float32(total * (BELOW_THE_MEAN / length))
    if wide:
        count, excess = _reaching(row, np.float64(threshold), np.float64(0))
    else:
        count, narrow = _reaching(row, threshold, np.float32(0))
        excess = np.float64(narrow)
    level = np.float64(threshold) + excess / max(count, 1)
    if unbiased and level > 0:
        level *= mean_square(row, level, wide, max(count, 1))
    level = min(level, FLOAT32_MAX)
    return np.float32(level) if math.isfinite(total) else np.float32(math.nan), threshold


@compiled("void(f4[::1], i8, u1[::1], b1)")
def pack(values, chunk, payload, unbiased):  # type: ignore[no-untyped-def]
    """(d,) values -> the (nbytes(d),) bytes of `wire.wire_format("ternary")` with one level for each ``chunk``.

    ``unbiased``: as in `ternary.quantise`.
    """
    size = len(values)
    levels = np.empty(-(-size // chunk), np.float32)
    offset = 4 * len(levels)
    for i in range(len(levels)):
        row = values[i * chunk : min(size, (i + 1) * chunk)]
        columns = -(-len(row) // DIGITS)
        levels[i], threshold = _level_and_threshold(row, unbiased)
        _pack(row, threshold, payload[offset : offset + columns])
        offset += columns
    payload[: 4 * len(levels)] = levels.view(np.uint8)


@compiled()
def _unpack(packed, digits):  # type: ignore[no-untyped-def]
    """The digits of a row's bytes, in the order of its values; ``digits`` has room for five a byte."""
    columns = len(packed)
    for j in range(columns):
        digits[4 * columns + j] = packed[j]
    rest = digits[4 * columns :]
    for place in range(4):
        into = digits[place * columns : (place + 1) * columns]
        for j in range(columns):
            third = np.uint8((np.uint16(rest[j]) * np.uint16(171)) >> np.uint16(9))
            into[j] = np.uint8(rest[j] - np.uint8(third * np.uint8(3)))
            rest[j] = third


@compiled()
def _levels(payload, size, chunk):  # type: ignore[no-untyped-def]
    # Copied: behind an odd header they are not aligned.
    return payload[: 4 * -(-size // chunk)].copy().view(np.float32)


@compiled()
def _read(payload, chunk, out, scale, adding):  # type: ignore[no-untyped-def]
    size = len(out)
    levels = _levels(payload, size, chunk)
    digits = np.empty(DIGITS * -(-chunk // DIGITS), np.uint8)
    offset = 4 * len(levels)
    for i in range(len(levels)):
        row = out[i * chunk : min(size, (i + 1) * chunk)]
        columns = -(-len(row) // DIGITS)
        _unpack(payload[offset : offset + columns], digits)
        offset += columns
        level = levels[i] * scale
        for j in range(len(row)):
            value = level * np.float32(np.int8(digits[j] - np.uint8(1)))
            row[j] = row[j] + value if adding else value


@compiled("void(u1[::1], i8, f4[::1])")
def unpack(payload, chunk, out):  # type: ignore[no-untyped-def]
    """Write the (d,) values of what `pack` made."""
    _read(payload, chunk, out, np.float32(1), False)


@compiled("void(u1[::1], i8, f4[::1], f8)")
def add(payload, chunk, out, scale):  # type: ignore[no-untyped-def]
    """Add ``scale`` times what `unpack` would write to ``out``, and write it nowhere else."""
    _read(payload, chunk, out, np.float32(scale), True)


@compiled("void(f4[:, ::1], f4[::1], i8, f4[:, ::1], i8)", fastmath={"contract"})
def add_along(rows, grad, chunk, into, offset):  # type: ignore[no-untyped-def]
    """``into[:, offset : offset + chunk] += rows @ G``, where G (B, chunk) is ``grad``, padded with zeros."""
    for start in range(0, chunk, _TILE):
        for b in range(rows.shape[1]):
            first = b * chunk + start
            piece = grad[first : min(first + _TILE, (b + 1) * chunk)]
            for i in range(len(rows)):
                weight, out = rows[i, b], into[i, offset + start : offset + start + len(piece)]
                for j in range(len(piece)):
                    out[j] += weight * piece[j]


@compiled("void(f4[::1], f4[::1], f4[::1])")
def spread(part, direction, grad):  # type: ignore[no-untyped-def]
    """``G = direction (x) part``, where G (B, chunk) is ``grad`` and what it is padded with."""
    chunk = len(part)
    for start in range(0, chunk, _TILE):
        for b in range(len(direction)):
            first = b * chunk + start
            weight, out = direction[b], grad[first : min(first + _TILE, (b + 1) * chunk)]
            for j in range(len(out)):
                out[j] = weight * part[start + j]
