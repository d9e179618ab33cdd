"""The sketch: a code without redundancy whose one row, the same for all workers, changes from version to version."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from lwpd_lightning.coding.code import Code


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SketchCode(Code):
    """Worker i mixes the B blocks of data part i by a row h of an orthogonal B x B matrix Q: ``C = I_n (x) h^T``.

    All workers use the same row, so that the sum of codewords is the codeword of the sum. One version shows the
    gradient along h only; versions r*B .. r*B + B - 1 use each of the B rows once, in an order that is drawn anew for
    every r (a fixed cyclic order can resonate with the optimizer and keep it from converging). The order is a function
    of B and the version alone, so every rank knows it. Averaged over a cycle ``C^T C = I/B = (n/k) I``, and that is
    what `frame_bounds` and `is_tight` speak of; `generator` is one row's, by `tasks` and `parts` the same in structure
    for all. `recovery_profile` speaks of one version: nothing is recovered exactly.

    Attributes:
        rows: Q, (B, B) float64, orthogonal and without zero entries.
        row: which row of Q `generator` is made of.

    >>> from lwpd_lightning.coding.families import local_code
    >>> code = local_code(2, data_parts=2, blocks=2)
    >>> [(code.at(v).generator[0, :2] * 2**0.5).round().int().tolist() for v in range(6)]
    [[1, 1], [1, -1], [1, 1], [1, -1], [1, -1], [1, 1]]
    >>> code.is_tight, code.at(0).recovery_profile()
    (True, {1: 0.0, 2: 0.0})
    """

    rows: Tensor
    row: int

    @classmethod
    def of_rows(cls, n: int, rows: Tensor, row: int = 0) -> SketchCode:
        """The sketch for n workers over the rows of an orthogonal matrix."""
        generator = torch.kron(torch.eye(n, dtype=torch.float64), rows[row : row + 1])
        return cls(generator, data_parts=n, blocks=len(rows), family="sketch", rows=rows, row=row)

    @cached_property
    def cycle(self) -> tuple[Code, ...]:
        """The sketch with each of the B rows, which is the cycle of each of them too."""
        codes = tuple(SketchCode.of_rows(self.n, self.rows, row) for row in range(self.blocks))
        for code in codes:
            vars(code)["cycle"] = codes  # or B codes would each make B of their own: B^3 n^2 numbers
        return codes

    @property
    def direction(self) -> Tensor:
        """h, the row of this version."""
        return self.rows[self.row]

    def at(self, version: int) -> Code:
        """The sketch with the row of that version."""
        turn, position = divmod(version, self.blocks)
        return self.cycle[_order(self.blocks, turn)[position]]


@lru_cache(maxsize=16)
def _order(blocks: int, turn: int) -> tuple[int, ...]:
    """In which order the versions of a turn use the rows."""
    return tuple(random.Random(f"sketch of {blocks} blocks, cycle {turn}").sample(range(blocks), blocks))
