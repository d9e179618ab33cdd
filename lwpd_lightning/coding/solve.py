"""The least-squares decoding of some of a code's workers, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lwpd_lightning.coding.groups import Split, rows_of

if TYPE_CHECKING:
    from lwpd_lightning.coding.code import Code

# A direction counts as spanned when its singular value is above RTOL of the largest, and a wanted gradient as
# recovered when what is left of it is below RESIDUAL. Rows are of unit norm and either structured or the best of
# several random draws: real singular values stay orders above the first, rounding stays orders below.
RTOL = 1e-9
RESIDUAL = 1e-8
# Likewise for squares of singular values, as a share of a tight frame's: `Code.is_tight` lets frames differ by 1e-9.
_SQUARED_RTOL = 1e-8


@dataclass(frozen=True)
class Solution:
    """What some workers' codewords can give.

    Attributes:
        dual: (n, blocks) float64, how each enters each block, as `decoders.least_squares_coefficients` says; zero for
            workers that were not chosen.
        spans: whether the gradient of every block is in their rows' span.
        rank: how many of the k task directions their rows span.
    """

    dual: Tensor
    spans: bool
    rank: int


def solve(code: Code, chosen: Sequence[int]) -> Solution:
    """The minimum-norm least-squares decoding from the chosen workers, different ones in 0..n-1."""
    there = torch.zeros(code.n, dtype=torch.bool)
    there[list(chosen)] = True
    frame = code.n / code.k if len(code.cycle) == 1 and code.is_tight else None
    dual, left, rank, covered = torch.zeros(code.n, code.blocks, dtype=torch.float64), 0.0, 0, 0
    for group in code.groups:
        for split in group.split(there):
            wanted = _wanted(code, split.columns)
            if frame is not None and split.others.shape[1] < split.chosen.shape[1]:
                its, residual, its_rank = _without(split, wanted, frame)
            else:
                its, residual, its_rank = _from(split, wanted)
            dual[split.rows] = its
            left, rank = max(left, float(residual.abs().max())), rank + its_rank
            covered += split.columns.numel()
    return Solution(dual, covered == code.k and left < RESIDUAL, rank)


def _wanted(code: Code, columns: Tensor) -> Tensor:
    """The gradient of every block, as far as it lies in these columns: (g, c) -> (g, c, blocks)."""
    return torch.nn.functional.one_hot(columns % code.blocks, code.blocks).double() / code.data_parts


def _from(split: Split, wanted: Tensor) -> tuple[Tensor, Tensor, int]:
    """Dual (g, m, blocks), what it misses of the wanted (g, c, blocks), and rank, by a singular value decomposition."""
    rows = rows_of(split.matrix, split.chosen)
    if not rows.shape[1]:
        return rows @ wanted, wanted, 0
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = values > RTOL * values[:, :1]
    seen = torch.where(kept[:, :, None], right @ wanted, 0.0)
    inverse = torch.where(kept, 1 / values, 0.0)
    return left @ (inverse[:, :, None] * seen), right.mT @ seen - wanted, int(kept.sum())


def _without(split: Split, wanted: Tensor, frame: float) -> tuple[Tensor, Tensor, int]:
    """The same where all rows are a tight frame, ``C^T C = frame * I``, by the few that are not there.

    With L the rows that are missing, those that are there have ``C^T C = frame * I - L^T L``, whose eigenvectors
    besides those to ``frame`` itself are combinations of the rows of L: a problem of their number.
    """
    missing = rows_of(split.matrix, split.others)
    squares, vectors = torch.linalg.eigh(missing @ missing.mT)
    lost = frame - squares < _SQUARED_RTOL * frame
    seen = vectors.mT @ (missing @ wanted)
    back = missing.mT @ vectors
    factor = torch.where(lost, -1 / squares, 1 / (frame - squares)) / frame
    dual = rows_of(split.matrix @ (wanted / frame + back @ (factor[:, :, None] * seen)), split.chosen)
    residual = -back @ (torch.where(lost, 1 / squares, 0.0)[:, :, None] * seen)
    groups, tasks = split.columns.shape
    return dual, residual if missing.shape[1] else torch.zeros_like(wanted), groups * tasks - int(lost.sum())
