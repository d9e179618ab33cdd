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


@compiled("void(u8[::1], f4[::1], i8[:, ::1], i8, f4[:, ::1])")
def chunk_sums(addresses, factors, layout, chunk, sums):  # type: ignore[no-untyped-def]
    """The sum, by halves, of each chunk of factors times values, zeros in between: (B, ceil(d/chunk)).

    Args:
        addresses: (n,), of each parameter's values; 0: it has none.
        factors: (n,).
        layout: (n, 3), as in `blocks.BlockMap`.
        chunk: columns.
        sums: is written to.
    """
    size = layout[-1, 0] + layout[-1, 1]
    scaled, halves = np.empty(chunk, np.float32), np.empty(chunk // 2 + 1, np.float32)
    for b in range(len(sums)):
        for p in range(len(addresses)):
            first, width, factor, values = layout[p, 0], layout[p, 1], factors[p], values_at(addresses[p], layout[p, 2])
            piece = values[min(len(values), b * width) : min(len(values), (b + 1) * width)]
            done, stop = first, first + width
            while done < stop:
                begins = done // chunk * chunk
                ends = min(size, begins + chunk)
                until = min(stop, ends)
                some, into = (
                    piece[min(len(piece), done - first) : min(len(piece), until - first)],
                    scaled[done - begins : until - begins],
                )
                for j in range(len(some)):
                    into[j] = some[j] * factor
                into[len(some) :] = 0
                if until == ends:
                    sums[b, done // chunk] = _by_halves(scaled[: ends - begins], halves)
                done = until


@compiled(
    "void(u8[::1], f4[::1], u8[::1], f4[::1], i8[:, ::1], f4[:, ::1], f4[:, ::1], i8, f4[::1], b1)",
    error_model="numpy",
)
def encode(grads, weights, addresses, factors, layout, means, floors, chunk, out, fresh):  # type: ignore[no-untyped-def]
    """``out += sum_b weights[b] * G[b] / D[b]``, where G (B, d) is laid out of the gradients at (n,) addresses.

    D is that of `unit.UnitInPlace`. ``fresh``: what ``out`` (d,) holds of parameters that have a gradient does not
    count.
    """
    for p in range(len(grads)):
        first, width, grad = layout[p, 0], layout[p, 1], values_at(grads[p], layout[p, 2])
        values, factor = values_at(addresses[p], layout[p, 2]), factors[p]
        done, stop = first, first + width if grads[p] else first
        while done < stop:
            until = min(stop, (done // chunk + 1) * chunk)
            into = out[done:until]
            if fresh:
                into[:] = 0
            for b in range(len(weights)):
                weight, floor, start = weights[b], floors[b, done // chunk], b * width - first
                if weight == 0:
                    continue
                piece = grad[min(len(grad), start + done) : min(len(grad), start + until)]
                if addresses[p]:
                    square = values[min(len(grad), start + done) : min(len(grad), start + until)]
                    for j in range(len(piece)):
                        into[j] += weight * piece[j] / math.sqrt(square[j] * factor + floor)
                else:
                    root = math.sqrt(means[b, done // chunk] + floor)
                    for j in range(len(piece)):
                        into[j] += weight * piece[j] / root
            done = until


@compiled()
def times_roots(x, p, b, start, addresses, factors, layout, means, floors, chunk, out):  # type: ignore[no-untyped-def]
    """``out = x * D`` at columns ``start`` to ``start + len(x)``, in one chunk, of row b of `unit.UnitInPlace`.

    ``p``: the parameter that ``start`` lies in, or one before it. Returns that of the last column.
    """
    mean, floor, done, stop = means[b, start // chunk], floors[b, start // chunk], start, start + len(x)
    while True:
        first, values, factor = layout[p, 0], values_at(addresses[p], layout[p, 2]), factors[p]
        ends, skipped = first + layout[p, 1], b * layout[p, 1] - first
        until = max(done, min(stop, ends))
        given, into = x[done - start : until - start], out[done - start : until - start]
        square = values[min(len(values), skipped + done) : min(len(values), skipped + until)]
        for j in range(len(square)):
            into[j] = given[j] * math.sqrt(square[j] * factor + floor)
        root = math.sqrt(floor if addresses[p] else mean + floor)
        for j in range(len(square), len(given)):
            into[j] = given[j] * root
        done = until
        if done == stop:
            return p
        p += 1


@compiled("void(u8[::1], f4[::1], i8[:, ::1], f4[:, ::1], f4[:, ::1], i8, f4[:, ::1])")
def roots(addresses, factors, layout, means, floors, chunk, out):  # type: ignore[no-untyped-def]
    """Write D of `unit.UnitInPlace`, (B, d)."""
    out[:] = 1
    for b in range(len(out)):
        p = 0
        for start in range(0, out.shape[1], chunk):
            x = out[b, start : min(out.shape[1], start + chunk)]
            p = times_roots(x, p, b, start, addresses, factors, layout, means, floors, chunk, x)


@compiled("void(f4[:, ::1], f4[:, ::1], f4, f4, f4[:, ::1])")
def chunk_means(sums, counts, smallest, otherwise, means):  # type: ignore[no-untyped-def]
    """(B, c) sums of so many values -> their means, that of all where there is none; ``otherwise`` where that is 0."""
    halves = np.empty(sums.size // 2 + 1, np.float32)
    overall = _by_halves(sums.ravel(), halves) / _by_halves(counts.ravel(), halves)
    for b in range(len(sums)):
        for i in range(sums.shape[1]):
            mean = sums[b, i] / max(counts[b, i], np.float32(1)) if counts[b, i] > 0 else overall
            means[b, i] = max(mean, smallest) if mean > 0 else otherwise
