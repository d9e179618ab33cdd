"""Kernels of `metric`, for float32 on the host: the same sums in the same order as in torch, bit for bit."""

from __future__ import annotations

import math

import numpy as np

from lwpd_lightning.coding.compiling import compiled


@compiled()
def _by_halves(values, halves):  # type: ignore[no-untyped-def]
    """The sum of at least one value; ``halves`` has room for half of them, and one more.

    The first half is not copied there before: sums of a (2, 538,005) took 1.6 times as long.
    """
    length = len(values)
    half = length // 2
    if not half:
        return values[0]
    for j in range(half):
        halves[j] = values[j] + values[half + j]
    if length % 2:
        halves[half] = values[length - 1]
    length = half + length % 2
    while length > 1:
        half = length // 2
        for j in range(half):
            halves[j] += halves[half + j]
        if length % 2:
            halves[half] = halves[length - 1]
        length = half + length % 2
    return halves[0]


@compiled("void(f4[:, ::1], i8, f4[:, ::1])")
def chunk_sums(rows, chunk, sums):  # type: ignore[no-untyped-def]
    """(B, d) -> (B, ceil(d/chunk)): each chunk's sum, by halves."""
    size, halves = rows.shape[1], np.empty(chunk // 2 + 1, np.float32)
    for b in range(len(rows)):
        for i in range(sums.shape[1]):
            sums[b, i] = _by_halves(rows[b, i * chunk : min(size, (i + 1) * chunk)], halves)


@compiled("void(f4[:, ::1], f4[:, ::1], f4, f4, f4[:, ::1])")
def chunk_means(sums, counts, smallest, otherwise, means):  # type: ignore[no-untyped-def]
    """(B, c) sums of so many values -> their means, that of all where there is none; ``otherwise`` where that is 0."""
    halves = np.empty(sums.size // 2 + 1, np.float32)
    overall = _by_halves(sums.ravel(), halves) / _by_halves(counts.ravel(), halves)
    for b in range(len(sums)):
        for i in range(sums.shape[1]):
            mean = sums[b, i] / max(counts[b, i], np.float32(1)) if counts[b, i] > 0 else overall
            means[b, i] = max(mean, smallest) if mean > 0 else otherwise


@compiled("void(f4[:, ::1], i8, f4[:, ::1])")
def floored_roots(rows, chunk, floors):  # type: ignore[no-untyped-def]
    """The roots of (B, d) squares, to which (B, ceil(d/chunk)) floors are added, in place."""
    size = rows.shape[1]
    for b in range(len(rows)):
        for i in range(floors.shape[1]):
            part, floor = rows[b, i * chunk : min(size, (i + 1) * chunk)], floors[b, i]
            for j in range(len(part)):
                part[j] = math.sqrt(part[j] + floor)
