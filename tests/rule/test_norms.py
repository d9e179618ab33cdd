"""How large a codeword may be, by what a user allows and by those that counted."""

import math

import numpy as np
import pytest

from lwpd_lightning.rule.norms import NormGuard, NormLimit


@pytest.mark.parametrize(
    ("given", "limit"),
    [(2, NormLimit(2.0)), (0.5, NormLimit(0.5)), ("10x", NormLimit(10.0, True)), ("3", NormLimit(3.0))],
)
def test_what_works_is_read(given, limit):
    assert NormLimit.read(given) == limit


@pytest.mark.parametrize("given", [0, -1, True, math.inf, math.nan, "x", "1x", "0.5x", "infx", "ten", [3], None])
def test_what_does_not_is_not(given):
    assert NormLimit.read(given) is None


def test_a_fixed_bound_holds_from_the_first_codeword_on():
    guard = NormGuard(NormLimit(2.0))
    assert [guard.admits(norm) for norm in (0.0, 2.0, 2.1, math.inf)] == [True, True, False, False]


def test_without_a_limit_everything_is_admitted():
    guard = NormGuard(None)
    assert guard.admits(math.inf)
    assert guard.bound == math.inf


def test_a_codeword_whose_norm_nobody_took_is_admitted_and_moves_nothing():
    guard = NormGuard(NormLimit(10.0, True))
    for _ in range(20):
        guard.counted(None)
    assert guard.admits(None)
    assert guard.bound == math.inf


def test_the_bound_follows_the_median_of_the_last_that_counted():
    guard, norms = NormGuard(NormLimit(10.0, True)), np.random.default_rng(0).lognormal(size=1000)
    for number, norm in enumerate(norms):
        if number < 8:
            assert guard.bound == math.inf
        else:
            recent = np.sort(norms[max(0, number - 256) : number])
            assert guard.bound == 10 * recent[len(recent) // 2]
        guard.counted(float(norm))


def test_zeros_bound_nothing():
    guard = NormGuard(NormLimit(10.0, True))
    for _ in range(20):
        guard.counted(0.0)
    assert guard.admits(1.0)
    assert not guard.admits(math.inf)
