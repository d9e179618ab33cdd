"""Kernels of `metric`, for float32 on the host: the same sums in the same order as in torch, bit for bit."""

from __future__ import annotations

import math

import numpy as np

from lwpd_lightning.coding.compiling import compiled
from lwpd_lightning.coding.kernels_pointers import values_at


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


@compiled("void(u8[::1], f4[::1], i8[:, ::1], i8, f4[:, ::1], f4[:, ::1])")
def lay_out(addresses, factors, layout, chunk, rows, sums):  # type: ignore[no-untyped-def]
    """Write each parameter's factor times its values to where they lie in (B, d) rows, and zeros elsewhere.

    Each chunk's sum, by halves, goes to (B, ceil(d/chunk)): it is added up while it is in the cache.

    Args:
        addresses: (n,), of each parameter's values; 0: it has none.
        factors: (n,).
        layout: (n, 3), as in `blocks.BlockMap`.
        chunk: columns.
        rows: (B, d).
        sums: (B, ceil(d/chunk)).
    """
    size, halves = rows.shape[1], np.empty(chunk // 2 + 1, np.float32)
    for b in range(len(rows)):
        row = rows[b]
        for p in range(len(addresses)):
            first, width, factor, values = layout[p, 0], layout[p, 1], factors[p], values_at(addresses[p], layout[p, 2])
            piece = values[min(len(values), b * width) : min(len(values), (b + 1) * width)]
            done, stop = first, first + width
            while done < stop:
                chunk_ends = min(size, (done // chunk + 1) * chunk)
                until = min(stop, chunk_ends)
                some, into = piece[min(len(piece), done - first) : min(len(piece), until - first)], row[done:until]
                for j in range(len(some)):
                    into[j] = some[j] * factor
                into[len(some) :] = 0
                if until == chunk_ends:
                    sums[b, done // chunk] = _by_halves(row[done // chunk * chunk : chunk_ends], halves)
                done = until


@compiled("void(u8[::1], i8[:, ::1], i8, f4[::1], f4[:, ::1], f4[:, ::1], f4[::1], b1)", error_model="numpy")
def encode(addresses, layout, chunk, weights, squares, floors, out, fresh):  # type: ignore[no-untyped-def]
    """``out += sum_b weights[b] * G[b] / D[b]``, where the parameters' gradients are G (B, d), as `lay_out` has them.

    ``D^2 = squares + floors``, (B, d) and (B, ceil(d/chunk)). ``fresh``: what ``out`` (d,) holds of parameters that
    have a gradient does not count.
    """
    for p in range(len(addresses)):
        first, width, grad = layout[p, 0], layout[p, 1], values_at(addresses[p], layout[p, 2])
        done, stop = first, first + width if addresses[p] else first
        while done < stop:
            until = min(stop, (done // chunk + 1) * chunk)
            into = out[done:until]
            if fresh:
                into[:] = 0
            for b in range(len(weights)):
                weight, floor, start = weights[b], floors[b, done // chunk], b * width - first
                if weight != 0:
                    piece, square = (
                        grad[min(len(grad), start + done) : min(len(grad), start + until)],
                        squares[b, done:until],
                    )
                    for j in range(len(piece)):
                        into[j] += weight * piece[j] / math.sqrt(square[j] + floor)
            done = until


@compiled("void(f4[:, ::1], f4[:, ::1], f4, f4, f4[:, ::1])")
def chunk_means(sums, counts, smallest, otherwise, means):  # type: ignore[no-untyped-def]
    """(B, c) sums of so many values -> their means, that of all where there is none; ``otherwise`` where that is 0."""
    halves = np.empty(sums.size // 2 + 1, np.float32)
    overall = _by_halves(sums.ravel(), halves) / _by_halves(counts.ravel(), halves)
    for b in range(len(sums)):
        for i in range(sums.shape[1]):
            mean = sums[b, i] / max(counts[b, i], np.float32(1)) if counts[b, i] > 0 else overall
            means[b, i] = max(mean, smallest) if mean > 0 else otherwise
