"""The constructions: each returns a `Code` whose generator is a unit-norm tight frame, ``C^T C = (n/k) I``."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lwpd_lightning.coding.code import Code


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
      which gives coherence 1/sqrt(B), and ``sqrt(2/B)`` for the other powers of two.

    Raises:
        ValueError: where data_parts does not divide n, or there is no such frame of n/data_parts rows.

    >>> code = local_code(8, data_parts=2, blocks=2)
    >>> [code.parts(worker) for worker in range(8)]
    [(0,), (0,), (0,), (0,), (1,), (1,), (1,), (1,)]
    """
    if data_parts < 1 or n < 1 or n % data_parts:
        raise ValueError(f"data_parts={data_parts} does not divide n={n}: use data_parts in {_divisors(n)}.")
    frame = _tight_frame(n // data_parts, blocks)
    generator = torch.kron(torch.eye(data_parts, dtype=torch.float64), frame)
    return Code(generator, data_parts=data_parts, blocks=blocks, family="local")


def uncoded(n: int) -> Code:
    """Worker i sends the whole gradient of data part i: the identity, n data parts, one block, no redundancy.

    >>> uncoded(2).generator.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if n < 1:
        raise ValueError(f"n={n}: use at least 1 worker.")
    return Code(torch.eye(n, dtype=torch.float64), data_parts=n, blocks=1, family="uncoded")


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
        f"or as many workers as blocks, or twice as many."
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
