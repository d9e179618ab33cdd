"""What a run gets that leaves it to us: the code, and how it travels."""

from __future__ import annotations

from lwpd_lightning.coding import Code, lwpd_code

COMPRESSOR = "whitened"
COARSE = "ternary"  # of codewords that are rotated: the coarsest format that learned as float32 does, both ways


def default_code(workers: int) -> Code:
    """The code of a run that names none: the paper's with t = 2 where n is even, redundant from n = 8 on where 4 | n.

    Below that the paper's weight range t <= n/4 leaves no room for redundancy.

    >>> default_code(8)
    Code(family='lwpd', n=8, k=4, t=2, data_parts=2, blocks=2)
    """
    if workers % 4 == 0 and workers >= 8:
        return lwpd_code(workers, workers // 2, 2)
    if workers == 1:
        return lwpd_code(1, 1, 1)
    smallest_factor = next(f for f in range(2, workers + 1) if workers % f == 0)
    return lwpd_code(workers, workers, smallest_factor)
