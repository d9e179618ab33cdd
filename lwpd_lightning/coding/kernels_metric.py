"""Kernels of `metric`, for float32 on the host: the same sums in the same order as in torch, bit for bit."""

from __future__ import annotations

import math

import numpy as np

from lwpd_lightning.coding.compiling import compiled


@compiled("void(f4[:, ::1], i8, f4[:, ::1])")
def chunk_sums(rows, chunk, sums):  # type: ignore[no-untyped-def]
    """(B, d) -> (B, ceil(d/chunk)): each chunk's sum, by halves."""
    size, halves = rows.shape[1], np.empty(chunk, np.float32)
    for b in range(len(rows)):
        for i in range(sums.shape[1]):
            part = rows[b, i * chunk : min(size, (i + 1) * chunk)]
            length = len(part)
            halves[:length] = part
            while length > 1:
                half = length // 2
                for j in range(half):
                    halves[j] += halves[half + j]
                if length % 2:
                    halves[half] = halves[length - 1]
                length = half + length % 2
            sums[b, i] = halves[0]


@compiled("void(f4[:, ::1], i8, f4[:, ::1])")
def floored_roots(rows, chunk, floors):  # type: ignore[no-untyped-def]
    """The roots of (B, d) squares, to which (B, ceil(d/chunk)) floors are added, in place."""
    size = rows.shape[1]
    for b in range(len(rows)):
        for i in range(floors.shape[1]):
            part, floor = rows[b, i * chunk : min(size, (i + 1) * chunk)], floors[b, i]
            for j in range(len(part)):
                part[j] = math.sqrt(part[j] + floor)
