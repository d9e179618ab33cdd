"""From the workers that arrived to how much each of their codewords counts in each block of the gradient.

Every decoder ends in the same operation, which `blocks.BlockMap.accumulate` does as codewords arrive: codeword i is
added to block b with some weight. The functions here compute those weights, in float64.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from lwpd_lightning.coding.solve import RESIDUAL, RTOL, solve

if TYPE_CHECKING:
    from lwpd_lightning.coding.code import Code

Decoder = Literal["projective", "least_squares", "exact"]


def refuse_decoder(code: Code, decoder: str) -> None:
    """What a decoder asks of a code.

    Raises:
        ValueError: for an unknown decoder; for "projective" where the code is no tight frame; for "least_squares" where
            rows change with the version; for "exact" where the construction guarantees no recovery threshold.

    >>> from lwpd_lightning.coding.families import uncoded
    >>> refuse_decoder(uncoded(3), "exact")
    Traceback (most recent call last):
    ...
    ValueError: decoder='exact' with Code(family='uncoded', n=3, k=3, t=1, data_parts=3, blocks=1): its construction \
promises the exact gradient from no number of codewords; use a gradient_code, or decoder='least_squares'.
    """
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder={decoder!r}: use {', '.join(map(repr, get_args(Decoder)))}.")
    if decoder == "projective" and not code.is_tight:
        raise ValueError(
            f"decoder='projective' with {code!r}: its rows are no tight frame, so that adding codewords up gives no "
            f"gradient; use decoder={'least_squares' if code.recovery_threshold is None else 'exact'!r}."
        )
    if decoder == "least_squares" and len(code.cycle) > 1:
        raise ValueError(
            f"decoder='least_squares' with {code!r}: one version's codewords of a sketch never span the gradient; use "
            "decoder='projective'."
        )
    if decoder == "exact" and code.recovery_threshold is None:
        raise ValueError(
            f"decoder='exact' with {code!r}: its construction promises the exact gradient from no number of codewords; "
            "use a gradient_code, or decoder='least_squares'."
        )


def wanted(code: Code) -> Tensor:
    """The gradient of every block as combinations of the tasks: (blocks, k) float64.

    Row b is 1/A at each coordinate ``a * blocks + b``: the mean over the A data parts.

    >>> from lwpd_lightning.coding.families import lwpd_code
    >>> wanted(lwpd_code(8, 4, 2)).tolist()
    [[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]]
    """
    return torch.eye(code.blocks, dtype=torch.float64).repeat(1, code.data_parts) / code.data_parts


def block_coefficients(code: Code, worker: int) -> Tensor:
    """How worker i's codeword enters each block at weight 1: (blocks,) float64.

    ``(1/A) * sum_a C[i, a*B + b]``: the row's backprojection ``C_i^T y_i``, averaged over the data parts.
    """
    return code.coefficients(worker).mean(dim=0)


def projective_weights(code: Code, arrived: Sequence[int], inclusion: Sequence[float] | None = None) -> Tensor:
    """Weights of the projective decoder (Soto et al., ICML 2022): (len(arrived),) float64, no solve.

    Codeword i counts ``(k/n) / p_i``, where p_i is the probability that worker i is among the arrivals (Horvitz &
    Thompson, 1952). For a tight frame the decoded gradient is then unbiased over the arrivals: it is the sum over all
    n workers at weight k/n, with each term divided by its chance of being seen.

    Args:
        code: a tight frame.
        arrived: distinct worker ids.
        inclusion: p_i of all n workers, each in (0, 1]; by default len(arrived)/n, every worker alike, which gives
            the paper's k/K.

    Raises:
        ValueError: for repeated or unknown workers, and for probabilities outside (0, 1].

    >>> from lwpd_lightning.coding.families import lwpd_code
    >>> projective_weights(lwpd_code(8, 4, 2), [0, 1, 2, 3, 4, 5, 6, 7])
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000],
           dtype=torch.float64)
    """
    chosen = _checked(code, arrived)
    if inclusion is None:
        inclusion = even_inclusion(code.n, len(chosen), own=None)
    if len(inclusion) != code.n:
        raise ValueError(f"inclusion has {len(inclusion)} probabilities for n={code.n}: give one for each worker.")
    weights = []
    for worker in chosen:
        p = inclusion[worker]
        if not 0 < p <= 1:
            raise ValueError(f"inclusion[{worker}]={p}: a worker that arrived has a probability in (0, 1].")
        weights.append(code.k / code.n / p)
    return torch.tensor(weights, dtype=torch.float64)


def even_inclusion(n: int, K: int, own: int | None) -> list[float]:
    """The n inclusion probabilities when the first K of n count and all workers are equally fast.

    Args:
        n: number of workers.
        K: arrivals counted in each step, 1..n.
        own: a worker that counts in every step (the coordinator's own): 1 for it, (K-1)/(n-1) for the others;
            None where there is no such worker: K/n for all.

    Raises:
        ValueError: where K is not in 1..n or ``own`` is not one of the workers.

    >>> even_inclusion(5, 3, own=0)
    [1.0, 0.5, 0.5, 0.5, 0.5]
    """
    if not 1 <= K <= n:
        raise ValueError(f"K={K} with n={n} workers: use K in 1..{n}.")
    if own is None:
        return [K / n] * n
    if not 0 <= own < n:
        raise ValueError(f"own={own} with n={n} workers: use None or a worker in 0..{n - 1}.")
    return [1.0 if worker == own else (K - 1) / (n - 1) for worker in range(n)]


def least_squares_coefficients(code: Code, arrived: Sequence[int]) -> Tensor:
    """How each arrived codeword enters each block: (len(arrived), blocks) float64.

    The minimum-norm D for which ``D^T C_S`` is closest to `wanted`, C_S the arrived rows: exact wherever the arrivals
    span the wanted gradient (`decodable`). For a gradient code with one block these are the decoding weights a_S with
    ``a_S C_S = 1/A`` (Tandon et al., ICML 2017), of minimum norm where several solve it.

    Raises:
        ValueError: for repeated or unknown workers.
    """
    chosen = _checked(code, arrived)
    return solve(code, chosen).dual[chosen]


def decodable(code: Code, arrived: Sequence[int]) -> bool:
    """Whether the gradient of every block lies in the span of the arrived rows.

    >>> from lwpd_lightning.coding.families import uncoded
    >>> decodable(uncoded(3), [0, 1]), decodable(uncoded(3), [2, 0, 1])
    (False, True)
    """
    return solve(code, _checked(code, arrived)).spans


def spans_wanted(code: Code, sets: Tensor) -> Tensor:
    """`decodable` for many arrival sets of one size at once: (sets, K) int64 worker ids -> (sets,) bool."""
    rows = code.generator[sets]
    target = wanted(code)
    nearest = target @ torch.linalg.pinv(rows, rtol=RTOL) @ rows
    return torch.lt((nearest - target).abs().amax(dim=(1, 2)), RESIDUAL)


@lru_cache(maxsize=4096)
def spanned_share(code: Code, arrived: frozenset[int]) -> float:
    """The share of the k task directions that the arrived rows span: their rank over k. Remembers what it was asked.

    >>> from lwpd_lightning.coding.families import lwpd_code
    >>> spanned_share(lwpd_code(8, 4, 2), frozenset({0, 1, 2}))
    0.75
    """
    return solve(code, sorted(arrived)).rank / code.k


def live_coefficients(code: Code, live: Collection[int], *, feedback: bool = False) -> Tensor:
    """How each codeword enters each block when only the ``live`` workers still send: (n, blocks) float64.

    The canonical dual frame of the live rows: the sum over all live codewords is the exact gradient whenever the live
    rows span it, and while all n live it is ``(k/n) * block_coefficients`` for a tight frame. Dead workers' rows are
    zero. Divide by inclusion probabilities among the live to count only some of them.

    Where the live rows do not span the gradient, the nearest decodable one is scaled by k/rank, since rank of the k
    task directions are left. For `uncoded` this is ``n / len(live)``: the mean over the data parts that are left. On
    average over which workers died this restores the gradient: exactly for orthonormal codes, within 5 % of its length
    for lwpd_code(8, 4, 2).

    Raises:
        ValueError: where no worker lives, and for repeated or unknown workers.

    >>> from lwpd_lightning.coding.families import uncoded
    >>> live_coefficients(uncoded(4), {0, 2}).flatten().tolist()
    [0.5, 0.0, 0.5, 0.0]
    """
    chosen = _checked(code, sorted(live))
    # A tight frame is its own dual, without a solve.
    if len(chosen) == code.n and len(code.cycle) == 1 and code.is_tight:
        return code.k / code.n * code.generator.view(code.n, code.data_parts, code.blocks).mean(dim=1)
    solved = solve(code, chosen)
    if solved.spans:
        return solved.dual
    return solved.dual * (code.k / solved.rank / (len(code.cycle) if feedback else 1))


def _checked(code: Code, workers: Sequence[int]) -> list[int]:
    chosen = list(workers)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= worker < code.n for worker in chosen):
        raise ValueError(f"workers {chosen} with n={code.n}: give one or more different workers in 0..{code.n - 1}.")
    return chosen
