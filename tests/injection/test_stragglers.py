"""Delays are what their distributions say, the same for the same key, and refused where they make no sense."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lwpd_lightning.injection.stragglers import (
    Pareto,
    ShiftedExponential,
    SlowTail,
    SlowWorkers,
    StragglerModel,
    Trace,
    uniform,
)

RANDOM = {
    "exponential": lambda seed: ShiftedExponential(mean_s=0.25, shift_s=0.125, seed=seed),
    "pareto": lambda seed: Pareto(least_s=0.05, shape=2.5, seed=seed),
    "tail": lambda seed: SlowTail(probability=0.25, seconds=1.5, seed=seed),
}
keys = st.tuples(st.integers(0, 2**63), st.integers(0, 10_000), st.integers(0, 10**9))


def drawn(model: StragglerModel, workers: int = 8, steps: int = 500) -> np.ndarray:
    """(workers, steps) delays."""
    return np.array([[model.delay_s(worker, step, 0.01) for step in range(steps)] for worker in range(workers)])


@given(keys)
def test_uniform_numbers_never_reach_their_bounds(key):
    assert 0 < uniform(*key) < 1


@pytest.mark.parametrize("kind", RANDOM)
@given(key=keys, compute_s=st.floats(0, 10))
def test_a_delay_depends_on_its_key_alone(kind, key, compute_s):
    seed, worker, step = key
    first = RANDOM[kind](seed).delay_s(worker, step, compute_s)
    RANDOM[kind](seed).delay_s(worker + 1, step, compute_s)  # what others ask between

    assert RANDOM[kind](seed).delay_s(worker, step, 0.0) == first
    assert 0 <= first < math.inf


def test_delays_follow_their_distributions():
    exponential = drawn(RANDOM["exponential"](3)).ravel()
    pareto = drawn(RANDOM["pareto"](3)).ravel()

    assert stats.kstest(exponential, stats.expon(loc=0.125, scale=0.25).cdf).pvalue > 0.01
    assert stats.kstest(pareto, stats.pareto(2.5, scale=0.05).cdf).pvalue > 0.01
    # The test has the power to tell a neighbour apart.
    assert stats.kstest(exponential, stats.expon(loc=0.125, scale=0.3).cdf).pvalue < 1e-6
    assert stats.kstest(pareto, stats.pareto(3.0, scale=0.05).cdf).pvalue < 1e-6


def test_a_tail_is_as_frequent_as_it_says():
    late = drawn(RANDOM["tail"](3))

    assert set(np.unique(late)) == {0.0, 1.5}
    assert stats.binomtest(int((late > 0).sum()), late.size, 0.25).pvalue > 0.01
    assert set(np.unique(drawn(SlowTail(0.0, 1.0), 2, 50))) == {0.0}
    assert set(np.unique(drawn(SlowTail(1.0, 1.0), 2, 50))) == {1.0}


@pytest.mark.parametrize("kind", RANDOM)
def test_workers_steps_and_seeds_are_unrelated(kind):
    delays = drawn(RANDOM[kind](0))
    other = drawn(RANDOM[kind](1))

    def rank_correlation(a, b):
        return abs(stats.spearmanr(a.ravel(), b.ravel()).statistic)

    assert rank_correlation(delays[0], delays[1]) < 0.15
    assert rank_correlation(delays[:, 1:], delays[:, :-1]) < 0.06
    assert rank_correlation(delays, other) < 0.06


def test_slow_workers_pay_for_what_they_compute():
    model = SlowWorkers(slowdown={2: 3.0, 3: 1.0}, delays={1: 0.25, 2: 0.5})

    assert [model.delay_s(worker, 7, compute_s=2.0) for worker in range(5)] == [0.0, 0.25, 4.5, 0.0, 0.0]


def test_a_trace_is_replayed_and_starts_again(tmp_path):
    (tmp_path / "trace.csv").write_text("0.5,0,0.25\n0,1.5,0\n")
    trace = Trace.from_file(str(tmp_path / "trace.csv"))

    assert drawn(trace, workers=2, steps=5).tolist() == [[0.5, 0, 0.25, 0.5, 0], [0, 1.5, 0, 0, 1.5]]
    trace.check(2)
    with pytest.raises(ValueError, match=r"the trace holds 2 workers but the run has 3"):
        trace.check(3)


@pytest.mark.parametrize("text", ["", "0.5,-1\n", "0.5,nan\n", "0.5,inf\n", "a,b\n", "1,2\n3\n"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_file_that_is_no_trace_is_refused(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)

    with pytest.raises(ValueError, match=r"trace.csv is no trace: "):
        Trace.from_file(str(path))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SlowWorkers(slowdown={3: 0.9}), "slowdown[3]=0.9 would be faster than real: use a factor >= 1."),
        (lambda: SlowWorkers(delays={2: -0.5}), "delays[2]=-0.5 is no delay: use seconds >= 0."),
        (lambda: SlowWorkers(slowdown={1: math.nan}), "slowdown[1]=nan would be faster than real: use a factor >= 1."),
        (lambda: ShiftedExponential(mean_s=0.0), "mean_s=0.0 is not positive: use a number above 0."),
        (lambda: ShiftedExponential(1.0, shift_s=-1.0), "shift_s=-1.0 is no delay: use seconds >= 0."),
        (lambda: Pareto(least_s=-1.0), "least_s=-1.0 is not positive: use a number above 0."),
        (lambda: Pareto(least_s=1.0, shape=0), "shape=0 is not positive: use a number above 0."),
        (lambda: SlowTail(1.5, 1.0), "probability=1.5 is none: use a number from 0 to 1."),
        (lambda: SlowTail(0.5, math.inf), "seconds=inf is no delay: use seconds >= 0."),
        (
            lambda: Trace.from_file("nowhere.csv"),
            "path=nowhere.csv is no file: use one with a line of delays in seconds for each worker.",
        ),
        (
            lambda: SlowWorkers(slowdown={8: 2.0}).check(8),
            "slowdown names worker 8, but the run has workers 0 to 7.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=r"\.$") as caught:
        make()
    assert str(caught.value) == sentence
