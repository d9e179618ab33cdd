"""Kernels of `rotation`, for float32 on the host: the same sums in the same order as in torch, bit for bit."""

from __future__ import annotations

import numpy as np

from lwpd_lightning.coding.compiling import compiled

_SIDE = 32  # a chunk of 1024 is a square of this side
_CHUNK = _SIDE * _SIDE


@compiled()
def _butterflies(x, first, end):  # type: ignore[no-untyped-def]
    """Sums and differences of values that are ``first``, 2 ``first``, ... up to below ``end`` places apart."""
    h = first
    while h < end:
        for start in range(0, len(x), 2 * h):
            a, b = x[start : start + h], x[start + h : start + 2 * h]
            for j in range(h):
                u, v = a[j], b[j]
                a[j], b[j] = u + v, u - v
        h *= 2


@compiled()
def _transpose(x, out):  # type: ignore[no-untyped-def]
    for i in range(_SIDE):
        for j in range(_SIDE):
            out[j * _SIDE + i] = x[i * _SIDE + j]


@compiled()
def _chunk(x, scratch):  # type: ignore[no-untyped-def]
    """1024 values: along the columns of a square, transposed along its rows, so that neighbours are summed in lanes."""
    _butterflies(x, _SIDE, _CHUNK)
    _transpose(x, scratch)
    _butterflies(scratch, _SIDE, _CHUNK)
    _transpose(scratch, x)


@compiled()
def _short(x):  # type: ignore[no-untyped-def]
    """A power of two below 1024: wide steps first, as for a whole chunk."""
    _butterflies(x, _SIDE, len(x))
    _butterflies(x, 1, min(_SIDE, len(x)))


@compiled()
def _turn(x, signs, scratch):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        x[j] *= signs[j]
    if len(x) == _CHUNK:
        _chunk(x, scratch)
    else:
        _short(x)
    scale = np.float32(len(x) ** -0.5)
    for j in range(len(x)):
        x[j] *= scale


@compiled()
def _turn_back(x, signs, scratch):  # type: ignore[no-untyped-def]
    if len(x) == _CHUNK:
        _chunk(x, scratch)
    else:
        _short(x)
    scale = np.float32(len(x) ** -0.5)
    for j in range(len(x)):
        x[j] *= scale * signs[j]


@compiled()
def _power(size):  # type: ignore[no-untyped-def]
    power = 1
    while 2 * power <= size:
        power *= 2
    return power


@compiled("void(f4[::1], f4[::1])")
def rotate(values, signs):  # type: ignore[no-untyped-def]
    """Rotate (d,) values in place; ``signs`` has d + 1024, of which the last are for the end of a shorter chunk."""
    size, scratch = len(values), np.empty(_CHUNK, np.float32)
    for start in range(0, size, _CHUNK):
        rest = values[start : min(size, start + _CHUNK)]
        width = _power(len(rest))
        _turn(rest[:width], signs[start : start + width], scratch)
        if width < len(rest):
            _turn(rest[len(rest) - width :], signs[size : size + width], scratch)


@compiled("void(f4[::1], f4[::1])")
def rotate_back(values, signs):  # type: ignore[no-untyped-def]
    """The inverse of `rotate`, in place."""
    size, scratch = len(values), np.empty(_CHUNK, np.float32)
    for start in range(0, size, _CHUNK):
        rest = values[start : min(size, start + _CHUNK)]
        width = _power(len(rest))
        if width < len(rest):
            _turn_back(rest[len(rest) - width :], signs[size : size + width], scratch)
        _turn_back(rest[:width], signs[start : start + width], scratch)
