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


def decoded_noise(
    code: Code,
    live: Collection[int],
    *,
    always: int | None = None,
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

    - "projective", divided by inclusion probabilities: any m of the N live workers other than ``always`` are equally
      likely, so that the estimate of the sum of their ``z_i = D_i y_i`` (D: `live_coefficients`) has the variance
      ``N (N-m) / (m (N-1)) * (sum_i |z_i|^2 - |sum_i z_i|^2 / N)`` (Horvitz & Thompson, 1952). Of a tight frame with
      one data part, n live and no batch noise, v is ``(n-K)(k-1) / (K(n-1))``.
    - "least_squares", "exact": averaged over seeded random arrival sets.
    - A sketch with ``feedback``: what one version does not show comes later, so that only batch noise is left.

    Infinite for no codeword, for ``always``'s alone while others live, and for more than live.

    Raises:
        ValueError: where no worker lives, and for repeated or unknown workers.

    >>> from lwpd_lightning.coding.families import lwpd_code, uncoded
    >>> [round(v, 2) for v in decoded_noise(uncoded(4), range(4))]
    [inf, 4.0, 2.0, 1.33, 1.0]
    >>> [round(v, 2) for v in decoded_noise(lwpd_code(8, 4, 2), range(8))][4:]
    [1.57, 1.34, 1.19, 1.08, 1.0]
    """
    dual = live_coefficients(code, live, feedback=feedback)  # refuses live workers that are none
    first = [worker for worker in live if worker == always]
    others = [worker for worker in sorted(live) if worker != always]
    counts = range(min(1 + len(first), len(live)), len(live) + 1)
    if feedback and len(code.cycle) > 1:
        possible = [batch_noise * code.n / count for count in counts]
    elif decoder == "projective":
        possible = [_projective(code, dual, others, count - len(first), batch_noise) for count in counts]
    else:
        orders = _orders(code, first, others)
        possible = [_solved(code, orders[:, :count], batch_noise) for count in counts]
    noise = [math.inf] * (code.n + 1)
    noise[counts.start : counts.stop] = possible
    return noise


def _projective(code: Code, dual: Tensor, others: list[int], m: int, batch_noise: float) -> float:
    """v where all but ``others`` count, and ``m`` of them."""
    size, decoded, variance = len(others), dual.T @ code.generator, 0.0
    if m < size:
        each = torch.einsum("ib,ij->ibj", dual[others], code.generator[others])
        spread = float(_energy(code, each, batch_noise).sum() - _energy(code, each.sum(dim=0), batch_noise) / size)
        variance = size * (size - m) / (m * (size - 1)) * max(0.0, spread)
    return (float(_energy(code, decoded, batch_noise)) + variance) / _signal(code, decoded) ** 2 - 1


def _orders(code: Code, first: list[int], others: list[int]) -> Tensor:
    """Random orders of arrival, after those of ``first``: (sets, live) worker ids."""
    sets = max(1, min(_SETS, _SETS_BUDGET // code.n**2))
    shuffled = torch.rand(sets, len(others), generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    ids = torch.tensor([*first, *others])
    return torch.cat((ids[: len(first)].expand(sets, -1), ids[len(first) + shuffled]), dim=1)


def _solved(code: Code, arrivals: Tensor, batch_noise: float) -> float:
    """v of a solving decoder, averaged over arrival sets: (sets, count) worker ids."""
    rows = code.generator[arrivals]
    decoded = wanted(code) @ torch.linalg.pinv(rows, rtol=1e-9) @ rows
    return float(_energy(code, decoded, batch_noise).mean()) / _signal(code, decoded) ** 2 - 1


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
