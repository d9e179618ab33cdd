"""How noisy a gradient decoded from some codewords is, for each number of codewords."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from lwpd_lightning.coding.code import Code
from lwpd_lightning.coding.decoders import Decoder, live_coefficients, wanted

# Arrival sets that a solving decoder is averaged over; fewer where n is large, to stay well within a second.
_SETS = 64
_SETS_BUDGET = 20_000
_RTOL = 1e-9  # a row of which less than this is new adds no direction


def decoded_noise(
    code: Code,
    live: Collection[int],
    *,
    own: int | None = None,
    decoder: Decoder = "projective",
    feedback: bool = False,
    batch_noise: float = 1.0,
) -> list[float]:
    """``v(c) = E|g|^2 |G|^2 / (E<g, G>)^2 - 1`` of the gradient g decoded from c of the live workers: n + 1 floats.

    G is the gradient of the expected loss; for an unbiased g this is its relative variance. A step along g of the best
    length gains ``1 / (1 + v)`` of what one along G does, by the descent lemma. Batch noise and erasures are one sum in
    v, not two factors: c parts of an uncoded batch have ``v(c) = batch_noise * n / c``, which is both.

    The model: the blocks of G are of one size, their directions independent; data part a's gradient is G plus noise of
    its own, such that the whole batch's has ``v = batch_noise`` (1: the batch is as large as the gradient noise scale,
    McCandlish et al., 2018, eq. 2.8), and that of one of A parts A times as much.

    - "projective", divided by inclusion probabilities: any m of the N live workers other than ``own`` are equally
      likely, so that the estimate of the sum of their ``z_i = D_i y_i`` (D: `live_coefficients`) has the variance
      ``N (N-m) / (m (N-1)) * (sum_i |z_i|^2 - |sum_i z_i|^2 / N)`` (Horvitz & Thompson, 1952). Of a tight frame with
      one data part, n live and no batch noise, v is ``(n-K)(k-1) / (K(n-1))``.
    - "least_squares", "exact": averaged over seeded random arrival sets.
    - A sketch with ``feedback``: what one version does not show comes later, so that only batch noise is left.

    Infinite for no codeword, for ``own``'s alone while others live, and for more than live.

    Raises:
        ValueError: where no worker lives, and for repeated or unknown workers.

    >>> from lwpd_lightning.coding.families import lwpd_code, uncoded
    >>> [round(v, 2) for v in decoded_noise(uncoded(4), range(4))]
    [inf, 4.0, 2.0, 1.33, 1.0]
    >>> [round(v, 2) for v in decoded_noise(lwpd_code(8, 4, 2), range(8))][4:]
    [1.57, 1.34, 1.19, 1.08, 1.0]
    """
    dual = live_coefficients(code, live, feedback=feedback)  # refuses live workers that are none
    first = [worker for worker in live if worker == own]
    others = [worker for worker in sorted(live) if worker != own]
    counts = range(min(1 + len(first), len(live)), len(live) + 1)
    if feedback and len(code.cycle) > 1:
        possible = [batch_noise * code.n / count for count in counts]
    elif decoder == "projective":
        possible = _projective(code, dual, others, [count - len(first) for count in counts], batch_noise)
    else:
        possible = _solved(code, _orders(code, first, others), batch_noise)[counts.start - 1 :]
    noise = [math.inf] * (code.n + 1)
    noise[counts.start : counts.stop] = possible
    return noise


def _projective(code: Code, dual: Tensor, others: list[int], counts: list[int], batch_noise: float) -> list[float]:
    """v where all but ``others`` count, and m of them, for each m of ``counts``."""
    size, decoded = len(others), dual.T @ code.generator
    energy, signal = float(_energy(code, decoded, batch_noise)), _signal(code, decoded)
    # Of z_i = D_i y_i, an outer product: its energy is that of its factors.
    shown = _of_blocks(code, code.generator).square().sum(dim=1) + batch_noise * code.data_parts
    each = float((dual.square().sum(dim=1) * shown)[others].sum()) / code.blocks
    without = dual.clone()
    without[others] = 0.0
    together = float(_energy(code, decoded - without.T @ code.generator, batch_noise))
    spread = max(0.0, each - together / max(1, size))

    def variance(m: int) -> float:
        return size * (size - m) / (m * (size - 1)) * spread if m < size else 0.0

    return [(energy + variance(m)) / signal**2 - 1 for m in counts]


def _orders(code: Code, first: list[int], others: list[int]) -> Tensor:
    """Random orders of arrival, after those of ``first``: (sets, live) worker ids."""
    sets = max(1, min(_SETS, _SETS_BUDGET // code.n**2))
    shuffled = torch.rand(sets, len(others), generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    ids = torch.tensor([*first, *others])
    return torch.cat((ids[: len(first)].expand(sets, -1), ids[len(first) + shuffled]), dim=1)


def _solved(code: Code, orders: Tensor, batch_noise: float) -> list[float]:
    """v of a solving decoder after each of the arrivals of (sets, live) worker ids, averaged over the sets.

    What is decoded is the wanted gradient's projection on the arrived rows, to which each arrival adds a direction, or
    none: one pass of Gram and Schmidt, repeated for what rounding left, instead of a solve for each number of arrivals.
    """
    sets, live = orders.shape
    target = wanted(code)
    basis = torch.zeros(sets, live, code.k, dtype=torch.float64)
    shown = torch.zeros(sets, code.blocks, code.blocks, dtype=torch.float64)  # `_of_blocks` of what is decoded
    squares = torch.zeros(sets, dtype=torch.float64)
    noise = []
    for count, arrived in enumerate(orders.T.tolist()):
        row = code.generator[arrived][:, :, None]
        for _ in range(2):
            row = row - basis[:, :count].mT @ (basis[:, :count] @ row)
        length = torch.linalg.vector_norm(row, dim=1, keepdim=True)
        direction = torch.where(length > _RTOL, row / length, 0.0)[:, :, 0]
        basis[:, count] = direction
        seen = direction @ target.T
        shown += seen[:, :, None] * _of_blocks(code, direction)[:, None, :]
        squares += seen.square().sum(dim=1)
        energy = (shown.square().sum(dim=(1, 2)) + batch_noise * code.data_parts * squares).mean() / code.blocks
        signal = float(shown.diagonal(dim1=1, dim2=2).mean())
        noise.append(float(energy) / signal**2 - 1 if signal else math.inf)
    return noise


def _energy(code: Code, decoded: Tensor, batch_noise: float) -> Tensor:
    """Expected ``|decoded @ tasks|^2 / |G|^2``, blocks summed up: (..., blocks, k) -> (...)."""
    of_signal = _of_blocks(code, decoded).square().sum(dim=(-2, -1))
    of_noise = batch_noise * code.data_parts * decoded.square().sum(dim=(-2, -1))
    return (of_signal + of_noise) / code.blocks


def _signal(code: Code, decoded: Tensor) -> float:
    """Expected ``<decoded @ tasks, G> / |G|^2``, averaged over leading dimensions."""
    return float(_of_blocks(code, decoded).diagonal(dim1=-2, dim2=-1).mean())


def _of_blocks(code: Code, decoded: Tensor) -> Tensor:
    """With what each block of G enters each decoded block: (..., blocks, k) -> (..., blocks, blocks)."""
    return decoded.view(*decoded.shape[:-1], code.data_parts, code.blocks).sum(dim=-2)
