"""What is said to differ differs, and nothing is said where runs are too few to tell."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.comparison.statistics import LEVEL, adjusted, compare, spread

costs = st.floats(0.01, 1e6)
INF = float("inf")


def by_seed(values):
    return list(enumerate(values))


@given(st.lists(costs, min_size=4, max_size=7, unique=True), st.lists(costs, min_size=4, max_size=7, unique=True))
@settings(max_examples=40, deadline=None)
def test_unpaired_agrees_with_mann_whitney(mine, base):
    if len({*mine, *base}) < len(mine) + len(base):
        return  # its exact form knows no ties
    seeds = [("mine", index) for index in range(len(mine))]

    found = compare(list(zip(seeds, mine, strict=True)), by_seed(base))

    assert not found.paired
    assert found.n == (len(mine), len(base))
    assert found.p == pytest.approx(stats.mannwhitneyu(mine, base, method="exact").pvalue)


@given(st.lists(st.tuples(costs, costs), min_size=6, max_size=10))
@settings(max_examples=40, deadline=None)
def test_paired_agrees_with_wilcoxon(pairs):
    logs = np.array([math.log(mine / base) for mine, base in pairs])
    if len(set(np.abs(logs))) < len(logs) or not logs.all():
        return  # its exact form knows no ties

    found = compare(by_seed([mine for mine, _ in pairs]), by_seed([base for _, base in pairs]))

    assert found.paired
    assert found.p == pytest.approx(stats.wilcoxon(logs, method="exact").pvalue)
    assert found.ratio == pytest.approx(np.median([mine / base for mine, base in pairs]))


@given(st.lists(st.tuples(costs, costs), min_size=1, max_size=5))
@settings(deadline=None)
def test_five_pairs_are_too_few_whatever_comes_out(pairs):
    found = compare(by_seed([mine for mine, _ in pairs]), by_seed([base for _, base in pairs]))

    assert found.too_few
    assert not found.significant


@given(st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None)
def test_the_least_p_is_what_the_clearest_result_gives(n, m):
    found = compare([("mine", 1.0)] * n, [("base", 9.0)] * m) if n + m > 2 else None
    if found is None or found.paired or min(n, m) < 2:
        return

    clearest = compare([(("a", i), 1.0 + i) for i in range(n)], [(("b", i), 99.0 + i) for i in range(m)])

    assert clearest.p == pytest.approx(clearest.least)
    assert clearest.significant == (2 / math.comb(n + m, n) <= LEVEL)


def test_no_difference_is_found_in_noise_more_often_than_the_level_says():
    random = np.random.default_rng(0)
    draws = [random.lognormal(size=(2, 8)) for _ in range(400)]

    wrong = sum(compare(by_seed(mine), by_seed(base)).significant for mine, base in draws)

    # 400 tests at a level of at most 5%: more than 33 would come out with a chance below 0.2%.
    assert 0 < wrong <= 33


def test_seeds_pair_runs_only_where_they_are_told_apart():
    assert compare(by_seed([1, 2, 3]), by_seed([2, 4, 6])).paired
    assert compare(by_seed([1, 2, 3]), by_seed([2, 4])).n == (2,)  # the smaller group's seeds are all there
    assert not compare([(0, 1), (0, 2), (1, 3)], by_seed([2, 4, 6])).paired  # one seed twice
    assert not compare([(0, 1), (7, 2)], by_seed([2, 4])).paired


def test_a_run_that_missed_the_target_is_slower_than_all_that_met_it():
    met = [(("a", i), 5.0 + i) for i in range(5)]
    missed = [(("b", i), INF) for i in range(5)]

    found = compare(missed, met)

    assert found.significant
    assert found.ratio == INF
    assert spread([1.0, INF, INF]).median == INF
    assert spread([1.0, 2.0, INF]).median == 2.0
    assert compare(missed, missed) is None


def test_pairs_in_which_both_missed_tell_nothing():
    mine, base = [1.0] * 6 + [INF], [2.0] * 6 + [INF]

    found = compare(by_seed(mine), by_seed(base))

    assert found.ratio == 0.5
    assert found.p == pytest.approx(2 / 2**6)


def test_holm_adjusts_for_all_that_was_tested_together():
    def clear(n):
        return compare(by_seed([1.0 + i for i in range(n)]), by_seed([10.0 + 3 * i for i in range(n)]))

    together = adjusted({0: clear(8), 1: clear(6), 2: clear(3)})

    assert together[0].p == pytest.approx(2 * 2 / 2**8)
    assert together[1].p == pytest.approx(2 / 2**6)  # the three pairs are no test and are not counted
    assert together[1].significant
    assert together[2].too_few
    assert adjusted({0: clear(6), 1: clear(6)})[0].too_few  # two of that size could not both have told
    assert adjusted({0: clear(6)})[0].significant
