"""Codes that a scheme derives from the sizes in the `code` group."""

from __future__ import annotations

from lwpd_lightning import Code, gradient_code, local_code
from lwpd_lightning.coding.families import Repetition


def local_code_of_size(n: int, k: int, t: int) -> Code:
    """Local code with the size of `lwpd_code(n, k, t)`: as many workers, k/t data parts, t blocks.

    Both upload P/t numbers a codeword; a worker of the local one needs a single data part.

    Raises:
        ValueError: t does not divide k, or no local code has that size.

    >>> code = local_code_of_size(8, 4, 2)
    >>> code.n, code.data_parts, code.blocks
    (8, 2, 2)
    """
    if t < 1 or k % t:
        divisors = ", ".join(str(divisor) for divisor in range(1, k + 1) if k % divisor == 0)
        raise ValueError(f"t={t} does not divide k={k}: use t in {divisors}.")
    if n == k // t and t > 1:
        raise ValueError(f"n={n}, k={k}, t={t} leaves one worker a data part, which is a sketch: use scheme=sketch.")
    return local_code(n, data_parts=k // t, blocks=t)


def gradient_code_for(n: int, wait_for: int, repetition: Repetition = "cyclic") -> Code:
    """The gradient code that is exact from any K = wait_for of n codewords: s = n - K stragglers.

    Raises:
        ValueError: wait_for is not in 1..n, or there is no such code.

    >>> gradient_code_for(8, wait_for=6)
    Code(family='gradient', n=8, k=8, t=3, data_parts=8, blocks=1)
    """
    if not 1 <= wait_for <= n:
        raise ValueError(f"wait_for={wait_for} is outside 1..{n}, the number of workers.")
    return gradient_code(n, stragglers=n - wait_for, repetition=repetition)
