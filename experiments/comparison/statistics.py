"""Median and spread over seeds, and whether two groups differ: exact, by ranks, and silent where runs are too few.

A run that missed the target counts as slower than every run that met it (an infinite cost), in medians and in ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the `n` values that were measured, of which `missed` are infinite."""

    median: float
    low: float
    high: float
    n: int
    missed: int


def spread(values: Sequence[float]) -> Spread | None:
    """Median and range of `values` without NaN; None where nothing is left.

    >>> spread([3.0, 1.0, float("inf")])
    Spread(median=3.0, low=1.0, high=inf, n=3, missed=1)
    """
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return None
    middle = known[(len(known) - 1) // 2], known[len(known) // 2]
    return Spread(sum(middle) / 2, known[0], known[-1], len(known), sum(map(math.isinf, known)))


@dataclass(frozen=True)
class Comparison:
    """Costs of one group against a baseline's.

    Attributes:
        ratio: cost divided by the baseline's: the median over pairs, or the medians' ratio; NaN where neither has one.
        paired: whether runs of the same seed were compared with each other.
        n: pairs, or runs of the group and of the baseline.
        p: two-sided p-value, adjusted for the number of comparisons by Holm's method once `adjusted` has seen it.
        least: the smallest p-value that so many runs could have led to.
    """

    ratio: float
    paired: bool
    n: tuple[int, ...]
    p: float
    least: float

    @property
    def significant(self) -> bool:
        """Whether the groups differ at the level of 5%."""
        return self.p <= LEVEL

    @property
    def too_few(self) -> bool:
        """Whether no result of so many runs could have been significant."""
        return not self.significant and self.least > LEVEL


def compare(costs: Sequence[tuple[Any, float]], baseline: Sequence[tuple[Any, float]]) -> Comparison | None:
    """Compare (seed, cost) of a group with a baseline's; None where one has no cost, or neither has a finite one.

    Paired by seed (Wilcoxon's signed-rank statistic of the log-ratios) where every seed of the smaller group is one of
    the larger, once in each; else Wilcoxon's rank-sum statistic. Both p-values are exact, ties included: of
    all sign changes or rearrangements.

    >>> half = compare([(seed, 1.0 + seed) for seed in range(6)], [(seed, 2.0 + 2 * seed) for seed in range(6)])
    >>> half.ratio, half.paired, half.n, half.p, half.significant
    (0.5, True, (6,), 0.03125, True)
    >>> compare([(0, 1.0), (1, 1.0)], [(0, 9.0), (1, 9.0)]).too_few
    True
    """
    mine, base = _measured(costs), _measured(baseline)
    if not mine or not base or not any(math.isfinite(cost) for _, cost in [*mine, *base]):
        return None
    pairs = _pairs(mine, base)
    if pairs is not None:
        return _paired(np.array(pairs))
    return _unpaired(np.array([cost for _, cost in mine]), np.array([cost for _, cost in base]))


def adjusted(comparisons: Mapping[int, Comparison]) -> dict[int, Comparison]:
    """Comparisons with p-values, and what they could have been, adjusted by Holm's method for being made together.

    Those that runs were too few for, whatever came out of them, are no tests and are not counted.
    """
    tests = {key: comparison for key, comparison in comparisons.items() if not comparison.too_few}
    order = sorted(tests, key=lambda key: tests[key].p)
    result, highest = dict(comparisons), 0.0
    for rank, key in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * tests[key].p))
        result[key] = replace(tests[key], p=highest, least=min(1.0, len(order) * tests[key].least))
    return result


def _measured(costs: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    return [(seed, cost) for seed, cost in costs if not math.isnan(cost)]


def _pairs(mine: Sequence[tuple[Any, float]], base: Sequence[tuple[Any, float]]) -> list[tuple[float, float]] | None:
    by_seed, base_by_seed = dict(mine), dict(base)
    if len(by_seed) < len(mine) or len(base_by_seed) < len(base):
        return None
    common = [seed for seed in by_seed if seed in base_by_seed]
    if len(common) < min(len(by_seed), len(base_by_seed)):
        return None
    return [(by_seed[seed], base_by_seed[seed]) for seed in common]


def _paired(pairs: NDArray[np.float64]) -> Comparison:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = pairs[:, 0] / pairs[:, 1]  # NaN where both missed the target: that pair tells nothing
        logs = np.log(ratios)
    told = np.nan_to_num(logs, nan=0.0, posinf=np.inf, neginf=-np.inf)
    # A difference of none is the same whatever its sign.
    ranks, up = np.where(told == 0, 0, _ranks(np.abs(told))), told > 0
    p = 1.0 if len(pairs) < 2 else _two_sided(_sums_of_subsets(ranks), int(ranks[up].sum()))
    known = ratios[~np.isnan(ratios)]
    ratio = float(np.median(known)) if known.size else float("nan")
    return Comparison(ratio, True, (len(pairs),), p, 2.0 ** (1 - len(pairs)))


def _unpaired(mine: NDArray[np.float64], base: NDArray[np.float64]) -> Comparison:
    ranks = _ranks(np.concatenate([mine, base]))
    alone = min(len(mine), len(base)) < 2  # one run says nothing of spread
    p = 1.0 if alone else _two_sided(_sums_of_subsets(ranks, len(mine)), int(ranks[: len(mine)].sum()))
    medians = spread(mine.tolist()), spread(base.tolist())
    ratio = medians[0].median / medians[1].median if medians[0] and medians[1] else float("nan")
    least = 1.0 if min(len(mine), len(base)) < 2 else 2.0 / math.comb(len(ranks), len(mine))
    return Comparison(ratio, False, (len(mine), len(base)), p, least)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Twice the rank of each value, which is whole also where ties share the mean of theirs.

    >>> _ranks(np.array([3.0, 1.0, np.inf, 3.0])).tolist()
    [5, 2, 8, 5]
    """
    below, same = (np.sum(compared, axis=1) for compared in (values[:, None] > values, values[:, None] == values))
    ranks: NDArray[np.int64] = 2 * below + same + 1
    return ranks


def _sums_of_subsets(ranks: NDArray[np.int64], size: int | None = None) -> dict[int, int]:
    """Sum -> how many subsets of the ranks have it, of all subsets or of those of one size.

    >>> _sums_of_subsets(np.array([2, 4]))
    {0: 1, 2: 1, 4: 1, 6: 1}
    >>> _sums_of_subsets(np.array([2, 4, 6]), size=2)
    {6: 1, 8: 1, 10: 1}
    """
    counts: dict[tuple[int, int], int] = {(0, 0): 1}  # (members, sum)
    for rank in ranks.tolist():
        for (members, total), count in list(counts.items()):
            if size is None or members < size:
                grown = (members + 1 if size is not None else 0, total + rank)
                counts[grown] = counts.get(grown, 0) + count
    wanted = {total: count for (members, total), count in counts.items() if size is None or members == size}
    return dict(sorted(wanted.items()))


def _two_sided(counts: Mapping[int, int], seen: int) -> float:
    """Twice the share of sums that are as far out as the one that was seen, on its side."""
    low = sum(count for total, count in counts.items() if total <= seen)
    high = sum(count for total, count in counts.items() if total >= seen)
    return min(1.0, 2 * min(low, high) / sum(counts.values()))
