"""The constructions: unit-norm tight frames, ``C^T C = (n/k) I``, but for a gradient code by cyclic repetition."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.sketch import SketchCode

Repetition = Literal["cyclic", "fractional"]

# Cyclic repetition: draws of H to choose from, and the arrival sets they are judged by (fewer where n is large, to
# stay within about a second).
_DRAWS = 20
_ARRIVAL_SETS = 400


def lwpd_code(n: int, k: int, t: int) -> Code:
    """The lightweight projective derivative code of Soto et al. (ICML 2022): n workers, k tasks, rows of weight t.

    The model is cut into t blocks and the batch into m = k/t data parts. Rows come in n/k classes; each class is an
    orthonormal basis made of m copies of one t x t orthogonal matrix Q without zero entries, each on its own *line* of
    t tasks, one from every block:

        C[s*k + y*t + q, (y + s*x)*t + x] = Q[q, x],   0 <= s < n/k,  0 <= y < m,  0 <= q, x < t

    where ``y + s*x`` (with x reduced to x mod m) is taken in the integers mod m for up to two classes, and for more
    in the field GF(m) if m is a prime power. Classes s and s + m are the same rows again.

    The coherence is the largest ``sum_{x in S} Q[q, x]^2`` over the sets S of blocks in which two lines of different
    classes meet. With more than one class it is therefore

    - max|Q|^2 for t <= m and two lines meeting at most once (n/k <= m; m a prime power or n/k <= 2): 1/t for t a
      power of two, ``max(1 - 2/o, 2/o)^2 / 2^e`` for t = 2^e * o with o odd, o > 1;
    - ceil(t/m)/t for such classes with t > m, t a power of two;
    - 1 for n/k > m (rows are repeated), for t = 1 and for t = k;
    - for three classes or more and m no prime power, as the lines happen to meet.

    Raises:
        ValueError: where k does not divide n, or t does not divide k.

    >>> code = lwpd_code(8, 4, 2)
    >>> (code.generator * 2**0.5).round().int().tolist()  # doctest: +NORMALIZE_WHITESPACE
    [[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1], [0, 0, 1, -1],
     [1, 0, 0, 1], [1, 0, 0, -1], [0, 1, 1, 0], [0, -1, 1, 0]]
    >>> round(lwpd_code(32, 16, 4).projective_distance, 3)
    0.968
    """
    if k < 1 or n < 1 or n % k:
        raise ValueError(f"k={k} does not divide n={n}: use k in {_divisors(n)}.")
    if t < 1 or k % t:
        raise ValueError(f"t={t} does not divide k={k}: use t in {_divisors(k)}.")
    m, classes, q = k // t, n // k, _flat_orthogonal(t)
    on_line = _lines(m, classes)
    generator = torch.zeros(n, k, dtype=torch.float64)
    for s, y, x in itertools.product(range(classes), range(m), range(t)):
        row = s * k + y * t
        generator[row : row + t, on_line(y, s, x % m) * t + x] = q[:, x]
    return Code(generator, data_parts=m, blocks=t, family="lwpd")


def local_code(n: int, data_parts: int, blocks: int) -> Code:
    """A code whose workers need one data part each: ``C = I_A (x) F`` for A data parts and B blocks.

    The N = n/A workers of a part mix that part's B block gradients by the rows of F, an N x B unit-norm tight frame:

    - B = 2, any N >= 2: rows ``(cos phi_i, sin phi_i)``, ``phi_i = pi (i + 1/2) / N``, coherence ``cos(pi/N)``;
    - N = B: an orthogonal matrix without zero entries (Hadamard for powers of two): no redundancy;
    - N = 2B: that matrix Q above ``Q diag(s)``; the signs s are a quadratic bent function for B a power of four,
      which gives coherence 1/sqrt(B), and ``sqrt(2/B)`` for the other powers of two;
    - N = 1, any B >= 2 (data_parts = n): no redundancy at all, a `SketchCode`: all workers mix by the same row of Q,
      another one in every version.

    Raises:
        ValueError: where data_parts does not divide n, or there is no such frame of n/data_parts rows.

    >>> code = local_code(8, data_parts=2, blocks=2)
    >>> [code.parts(worker) for worker in range(8)]
    [(0,), (0,), (0,), (0,), (1,), (1,), (1,), (1,)]
    """
    if data_parts < 1 or n < 1 or n % data_parts:
        raise ValueError(f"data_parts={data_parts} does not divide n={n}: use data_parts in {_divisors(n)}.")
    if data_parts == n and blocks > 1:
        return SketchCode.of_rows(n, _flat_orthogonal(blocks))
    frame = _tight_frame(n // data_parts, blocks)
    generator = torch.kron(torch.eye(data_parts, dtype=torch.float64), frame)
    return Code(generator, data_parts=data_parts, blocks=blocks, family="local")


def gradient_code(n: int, stragglers: int, repetition: Repetition = "cyclic") -> Code:
    """A gradient code of Tandon et al. (ICML 2017): whole gradients, exact from any n - s codewords, s = stragglers.

    One block; every worker sends P values and computes the share (s+1)/n of the batch.

    - "cyclic" (their Algorithm 2), any s: n data parts, worker i mixes parts i, ..., i+s (mod n) by a row of the null
      space of an s x n Gaussian matrix H whose rows sum to 0. That space has dimension n - s and holds the row of ones,
      and almost surely any n - s of the rows span it. No tight frame: decoded by a solve (decoder="exact").
    - "fractional", (s+1) | n: the workers form n/(s+1) groups of s+1, each of which would add up the same s+1 parts of
      n; that sum is one data part here, so A = n/(s+1). A tight frame; decoding averages the arrivals of a group.

    Rows are scaled to unit norm, which changes no span. Decoding cyclic repetition multiplies the rounding of codewords
    by its weights, against plain averaging about 3-fold at n = 8 for most arrival sets and up to 50-fold for the worst,
    at n = 16 to 32 about 30-fold and 10,000-fold: little to float32 codewords, too much to bfloat16 and int8 ones, for
    which "fractional" is there, which averages. H is the best by that measure of several draws, all functions of (n, s)
    alone.

    Raises:
        ValueError: where stragglers is not in 0..n-1, repetition is unknown, or "fractional" with (s+1) not dividing n.

    >>> [gradient_code(5, stragglers=2).parts(worker) for worker in range(5)]
    [(0, 1, 2), (1, 2, 3), (2, 3, 4), (0, 3, 4), (0, 1, 4)]
    >>> gradient_code(6, stragglers=1, repetition="fractional")
    Code(family='gradient', n=6, k=3, t=1, data_parts=3, blocks=1)
    """
    if not 0 <= stragglers < n:
        raise ValueError(f"stragglers={stragglers} with n={n} workers: use 0..{n - 1}.")
    if repetition not in get_args(Repetition):
        raise ValueError(f"repetition={repetition!r}: use {' or '.join(map(repr, get_args(Repetition)))}.")
    if repetition == "cyclic":
        generator = _cyclic_repetition(n, stragglers)
    elif n % (stragglers + 1) == 0:
        generator = torch.eye(n // (stragglers + 1), dtype=torch.float64).repeat_interleave(stragglers + 1, dim=0)
    else:
        dividing = ", ".join(str(s) for s in range(n) if n % (s + 1) == 0)
        raise ValueError(
            f"repetition='fractional' with stragglers={stragglers}: groups of {stragglers + 1} do not divide n={n} "
            f"workers; use stragglers in {dividing}, or repetition='cyclic'."
        )
    return Code(
        generator,
        data_parts=generator.shape[1],
        blocks=1,
        family="gradient",
        recovery_threshold=n - stragglers,
    )


def uncoded(n: int) -> Code:
    """Worker i sends the whole gradient of data part i: the identity, n data parts, one block, no redundancy.

    >>> uncoded(2).generator.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if n < 1:
        raise ValueError(f"n={n}: use at least 1 worker.")
    return Code(torch.eye(n, dtype=torch.float64), data_parts=n, blocks=1, family="uncoded")


def _cyclic_repetition(n: int, s: int) -> Tensor:
    if s == 0:
        return torch.eye(n, dtype=torch.float64)
    draws = random.Random(f"cyclic repetition for n={n}, s={s}")
    sets = max(1, min(_ARRIVAL_SETS, 100_000 // n**2))
    arrivals = torch.tensor([draws.sample(range(n), n - s) for _ in range(sets)])
    candidates = [_cyclic_draw(n, s, draws) for _ in range(_DRAWS)]
    return min(candidates, key=lambda rows: float(torch.linalg.pinv(rows[arrivals]).sum(dim=1).abs().max()))


def _cyclic_draw(n: int, s: int, draws: random.Random) -> Tensor:
    """Rows of unit norm in the null space of an s x n matrix H with H 1 = 0, row i on columns i..i+s (mod n)."""
    h = torch.tensor([[draws.gauss(0, 1) for _ in range(n)] for _ in range(s)], dtype=torch.float64)
    h[:, -1] = -h[:, :-1].sum(dim=1)
    columns = (torch.arange(n)[:, None] + torch.arange(s + 1)) % n
    first, *others = h[:, columns].permute(2, 1, 0)  # each (n, s): column i+j of H for row i
    solved = torch.linalg.solve(torch.stack(others, dim=2), -first)
    rows = torch.zeros(n, n, dtype=torch.float64)
    rows.scatter_(1, columns, torch.cat((torch.ones(n, 1, dtype=torch.float64), solved), dim=1))
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def _tight_frame(rows: int, blocks: int) -> Tensor:
    if blocks == 2 and rows >= 2:
        phi = math.pi * (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
        frame = torch.stack((phi.cos(), phi.sin()), dim=1)
        return frame.masked_fill_(frame.abs() < 1e-15, 0)  # cos(pi/2), a task that the worker need not have
    if blocks >= 1 and rows in (blocks, 2 * blocks):
        q = _flat_orthogonal(blocks)
        return q if rows == blocks else torch.cat((q, q * _signs(blocks)))
    raise ValueError(
        f"blocks={blocks} with n/data_parts={rows} workers a data part: use blocks=2 with two workers or more, "
        f"or as many workers as blocks, or twice as many, or one worker a data part."
    )


def _flat_orthogonal(t: int) -> Tensor:
    """``kron(Hadamard(2^e)/sqrt(2^e), I_o - (2/o) J_o)``, t = 2^e * o: (t, t) orthogonal, no zero entry."""
    odd = t // (t & -t)
    # Kept positive for o = 1, where the reflection is -1.
    q = torch.eye(odd, dtype=torch.float64) - 2 / odd if odd > 1 else torch.ones(1, 1, dtype=torch.float64)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    sylvester = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(hadamard) < t // odd:
        hadamard = torch.kron(hadamard, sylvester)
    return torch.kron(hadamard / math.sqrt(t // odd), q)


def _signs(blocks: int) -> Tensor:
    """Signs s for which the rows of Q and of Q diag(s) have small inner products.

    On the 2^e part, ``(-1)^(x0 x1 + x2 x3 + ...)`` in the bits of x: its Walsh transform is flat (bent) for e even. On
    the odd part Q treats all coordinates alike, so only the number of minus signs matters: the best of all.
    """
    odd = blocks // (blocks & -blocks)
    pairs = [(x & x >> 1 & 0x55555555).bit_count() for x in range(blocks // odd)]
    bent = torch.tensor([(-1.0) ** count for count in pairs], dtype=torch.float64)
    q = _flat_orthogonal(odd)
    candidates = [torch.tensor([-1.0] * c + [1.0] * (odd - c), dtype=torch.float64) for c in range(odd)]
    best = min(candidates, key=lambda s: float((q * s @ q.T).abs().max()))
    return torch.kron(bent, best)


def _lines(m: int, classes: int) -> Callable[[int, int, int], int]:
    """(y, s, x) -> ``y + s*x`` in GF(m) for more than two classes and m a prime power, else in the integers mod m."""
    p = next((d for d in range(2, m + 1) if m % d == 0), 1)
    degree = round(math.log(m, p)) if p > 1 else 0
    if classes <= 2 or degree < 2 or p**degree != m:
        return lambda y, s, x: (y + s * x) % m

    # Elements of GF(p^degree) are polynomials over the integers mod p, written as the base-p digits of 0..m-1.
    modulus = next(
        f
        for f in _monic(degree, p)
        if all(any(_remainder(f, g, p)) for e in range(1, degree // 2 + 1) for g in _monic(e, p))
    )

    def line(y: int, s: int, x: int) -> int:
        product = [0] * (2 * degree - 1)
        for (i, a), (j, b) in itertools.product(enumerate(_digits(s % m, p, degree)), enumerate(_digits(x, p, degree))):
            product[i + j] += a * b
        total = zip(_digits(y, p, degree), _remainder(product, modulus, p), strict=True)
        return sum((a + b) % p * p**i for i, (a, b) in enumerate(total))

    return line


def _digits(value: int, p: int, degree: int) -> list[int]:
    return [value // p**i % p for i in range(degree)]


def _monic(degree: int, p: int) -> Iterator[list[int]]:
    """All monic polynomials of a degree over the integers mod p, lowest coefficient first."""
    return ([*_digits(value, p, degree), 1] for value in range(p**degree))


def _remainder(poly: list[int], divisor: list[int], p: int) -> list[int]:
    """The remainder of ``poly`` by a monic ``divisor``, as many coefficients as the divisor's degree."""
    rest, degree = list(poly), len(divisor) - 1
    while len(rest) > degree:
        lead = rest.pop() % p
        for i in range(degree):
            rest[len(rest) - degree + i] -= lead * divisor[i]
    return [a % p for a in rest]


def _divisors(value: int) -> str:
    return ", ".join(str(d) for d in range(1, value + 1) if value % d == 0)
