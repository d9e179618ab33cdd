"""Kernels of `rotation`, for float32 on the host: the same sums in the same order as in torch, bit for bit."""

from __future__ import annotations

import numpy as np

from lwpd_lightning.coding.compiling import compiled
from lwpd_lightning.coding.kernels_lanes import sign_eight, transpose_eight
from lwpd_lightning.coding.kernels_metric import times_roots

_SIDE = 32  # a chunk of 1024 is a square of this side
_CHUNK = _SIDE * _SIDE
# For each byte of eight signs, the first in its highest bit: a bit that is set stands for -1.
_EIGHT = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) == 1, -1, 1).astype(np.float32)


@compiled(inline="always")
def _four_rows(x, first, apart):  # type: ignore[no-untyped-def]
    """Sums and differences of rows that are ``apart``, then of those twice as far: in one pass, as it is memory's."""
    a, b = first * _SIDE, (first + apart) * _SIDE
    c, d = (first + 2 * apart) * _SIDE, (first + 3 * apart) * _SIDE
    for j in range(_SIDE):
        ab, ba = x[a + j] + x[b + j], x[a + j] - x[b + j]
        cd, dc = x[c + j] + x[d + j], x[c + j] - x[d + j]
        x[a + j], x[b + j], x[c + j], x[d + j] = ab + cd, ba + dc, ab - cd, ba - dc


@compiled(inline="always")
def _columns(x):  # type: ignore[no-untyped-def]
    """Each column of the square times the Hadamard matrix: in lanes, as neighbours are of one row."""
    for first in range(0, _SIDE, 4):
        _four_rows(x, first, 1)
    for half in range(0, _SIDE, _SIDE // 2):
        for first in range(half, half + 4):
            _four_rows(x, first, 4)
    for j in range(_CHUNK // 2):
        u, v = x[j], x[j + _CHUNK // 2]
        x[j], x[j + _CHUNK // 2] = u + v, u - v


@compiled(inline="always")
def _mix(x, scratch):  # type: ignore[no-untyped-def]
    """1024 values into ``scratch``: along the columns of the square, and, transposed, along its rows."""
    _columns(x)
    for i in range(0, _SIDE, 8):
        for j in range(0, _SIDE, 8):
            transpose_eight(x, i * _SIDE + j, scratch, j * _SIDE + i, _SIDE)
    _columns(scratch)


@compiled()
def _short(x):  # type: ignore[no-untyped-def]
    """A power of two below 1024: wide steps first, which are in lanes."""
    for narrow in (False, True):
        h, end = (1, min(_SIDE, len(x))) if narrow else (_SIDE, len(x))
        while h < end:
            for start in range(0, len(x), 2 * h):
                a, b = x[start : start + h], x[start + h : start + 2 * h]
                for j in range(h):
                    u, v = a[j], b[j]
                    a[j], b[j] = u + v, u - v
            h *= 2
    scale = np.float32(len(x) ** -0.5)
    for j in range(len(x)):
        x[j] *= scale


@compiled(inline="always")
def _signed_chunk(x, bits, out):  # type: ignore[no-untyped-def]
    """1024 values times the signs; ``out`` may be ``x``."""
    for i in range(_CHUNK // 8):
        sign_eight(x, 8 * i, bits[i], out)


@compiled()
def _signed(x, signs, first):  # type: ignore[no-untyped-def]
    """Times the signs from bit ``first`` on."""
    for j in range(len(x)):
        bit = first + j
        x[j] *= _EIGHT[signs[bit >> 3], bit & 7]


@compiled()
def _power(size):  # type: ignore[no-untyped-def]
    power = 1
    while 2 * power <= size:
        power *= 2
    return power


@compiled("void(f4[::1], u1[::1])")
def rotate(values, signs):  # type: ignore[no-untyped-def]
    """Rotate (d,) values in place; of the d + 1024 bits of ``signs`` the last are for the end of a shorter chunk."""
    size, scale = len(values), np.float32(1 / _SIDE)
    chunk, mixed, whole = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32), size - size % _CHUNK
    for start in range(0, whole, _CHUNK):
        x = values[start : start + _CHUNK]
        _signed_chunk(x, signs[start >> 3 : (start + _CHUNK) >> 3], chunk)
        _mix(chunk, mixed)
        for j in range(_CHUNK):
            x[j] = mixed[j] * scale
    if whole < size:
        width = _power(size - whole)
        _signed(values[whole : whole + width], signs, whole)
        _short(values[whole : whole + width])
        if whole + width < size:
            _signed(values[size - width :], signs, size)
            _short(values[size - width :])


@compiled("void(f4[::1], u1[::1], i8, u8[::1], f4[::1], i8[:, ::1], f4[:, ::1], f4[:, ::1], f4[::1])")
def rotate_back(values, signs, b, addresses, factors, layout, means, floors, out):  # type: ignore[no-untyped-def]
    """Write to ``out`` the inverse of `rotate`, times row b of D of `unit.UnitInPlace`.

    Without addresses times nothing. ``out`` may be ``values``.
    """
    size, scale, p = len(values), np.float32(1 / _SIDE), 0
    chunk, mixed, whole = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32), size - size % _CHUNK
    for start in range(0, whole, _CHUNK):
        x = out[start : start + _CHUNK]
        for j in range(_CHUNK):  # an assignment of slices, which might overlap, would copy them twice
            chunk[j] = values[start + j]
        _mix(chunk, mixed)
        _signed_chunk(mixed, signs[start >> 3 : (start + _CHUNK) >> 3], mixed)
        if len(addresses):
            for j in range(_CHUNK):
                chunk[j] = mixed[j] * scale
            p = times_roots(chunk, p, b, start, addresses, factors, layout, means, floors, _CHUNK, x)
        else:
            for j in range(_CHUNK):
                x[j] = mixed[j] * scale
    if whole < size:
        width = _power(size - whole)
        out[whole:] = values[whole:]
        if whole + width < size:
            _short(out[size - width :])
            _signed(out[size - width :], signs, size)
        _short(out[whole : whole + width])
        _signed(out[whole : whole + width], signs, whole)
        if len(addresses):
            x = out[whole:]
            times_roots(x, p, b, whole, addresses, factors, layout, means, floors, _CHUNK, x)
