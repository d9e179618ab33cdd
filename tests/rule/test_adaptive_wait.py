"""K that follows the weather: against every fixed K under a simulated clock, and against any observations."""

import functools
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.noise import decoded_noise
from lwpd_lightning.injection.stragglers import Pareto, ShiftedExponential, SlowTail, SlowWorkers
from lwpd_lightning.rule.adaptive_wait import AdaptiveWait
from tests.rule.weather import Exchange

N, UPDATES, SETTLED = 8, 500, 100
CODES = {"uncoded": uncoded(N), "lwpd": lwpd_code(N, 4, 2), "sketch": local_code(N, N, 4)}
WEATHERS = {
    "none": None,
    "slow tail": SlowTail(0.1, 1.0, seed=3),
    "one slow": SlowWorkers({1: 5.0}),
    "pareto": Pareto(0.05, 2.0, seed=5),
    "exponential": ShiftedExponential(0.05, seed=5),
}
SCHEMES = [("uncoded", "apply", 0), ("lwpd", "apply", 0), ("uncoded", "drop", None), ("sketch", "drop", 0)]


def late_by(weather):
    return lambda worker, version: weather.delay_s(worker, version, Exchange.COMPUTE_S) if weather else 0.0


def adaptive(code, stale="apply", own=0, least=2, most=None, **options):
    return AdaptiveWait(
        code, least, most or code.n, own=own, feedback=code.family == "sketch",
        max_staleness=0 if stale == "drop" else None, **options,
    )  # fmt: skip


@functools.cache
def rate_of(scheme, wait_for, weather):
    """Progress per second once settled, and the last K: of a fixed K, or of "adaptive"."""
    family, stale, own = scheme
    code, feedback = CODES[family], family == "sketch"
    chooses = adaptive(code, stale, own) if wait_for == "adaptive" else wait_for
    exchange = Exchange(code, late_by(WEATHERS[weather]), chooses, own=own, stale=stale)
    exchange.run(UPDATES)
    noise = decoded_noise(code, range(N), own=own, feedback=feedback)
    rate = exchange.progress_per_second(noise.__getitem__, since=SETTLED, feedback=feedback)
    return rate, exchange.chosen[-1]


@pytest.mark.slow
@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_ends_where_trying_every_fixed_k_ends(scheme, weather):
    fixed = {wait_for: rate_of(scheme, wait_for, weather)[0] for wait_for in range(2, N + 1)}
    best = max(fixed, key=fixed.get)
    rate, chosen = rate_of(scheme, "adaptive", weather)
    assert abs(chosen - best) <= 1
    assert fixed[chosen] > 0.93 * fixed[best]
    assert rate > 0.9 * fixed[best]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_weathers_ask_for_different_k(scheme):
    """So that the test above could not be passed by any constant."""
    chosen = {weather: rate_of(scheme, "adaptive", weather)[1] for weather in WEATHERS}
    assert chosen["none"] == N
    assert chosen["one slow"] == N - 1
    assert chosen["slow tail"] <= 5


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_falls_in_a_storm_and_recovers_when_it_clears(scheme, seed):
    family, stale, own = scheme
    storm = SlowTail(0.1, 1.0, seed=seed)
    exchange = Exchange(
        CODES[family],
        lambda worker, version: storm.delay_s(worker, version, 0.1) if 100 <= version < 400 else 0.0,
        adaptive(CODES[family], stale, own),
        own=own,
        stale=stale,
        seed=seed,
    )
    exchange.run(650)
    chosen = exchange.chosen
    assert set(chosen[20:100]) == {N}
    assert max(chosen[250:400]) <= 5
    assert chosen[-1] == N


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_is_steady(scheme):
    family, stale, own = scheme
    weather = late_by(SlowTail(0.1, 1.0, seed=7))
    exchange = Exchange(CODES[family], weather, adaptive(CODES[family], stale, own), own=own, stale=stale)
    exchange.run(500)
    settled = exchange.chosen[100:]
    assert max(settled) - min(settled) <= 2
    assert sum(a != b for a, b in itertools.pairwise(settled)) <= 12


def test_it_estimates_the_progress_per_second_that_each_k_brings():
    """Of all K, while it is one of them that runs."""
    scheme = ("lwpd", "apply", 0)
    exchange = Exchange(CODES["lwpd"], late_by(WEATHERS["pareto"]), adaptive(CODES["lwpd"]))
    exchange.run(UPDATES)
    for wait_for, estimate in exchange.adaptive.rates.items():
        assert estimate == pytest.approx(rate_of(scheme, wait_for, "pareto")[0], rel=0.25)


def test_the_dead_are_not_waited_for():
    choice = adaptive(CODES["uncoded"])
    exchange = Exchange(CODES["uncoded"], late_by(None), choice)
    exchange.run(50)
    for dead in (3, 5, 6):
        exchange.rule.lose(dead)
    exchange.run(50)
    assert exchange.chosen[20:50] == [8] * 30
    assert exchange.chosen[50:] == [5] * 50
    assert list(choice.rates) == [2, 3, 4, 5]


def test_bounds_are_kept_when_the_best_lies_outside():
    tail = late_by(WEATHERS["slow tail"])
    for least, most, ends in ((6, 8, 6), (2, 3, 3), (7, 7, 7)):
        exchange = Exchange(CODES["uncoded"], tail, adaptive(CODES["uncoded"], least=least, most=most))
        exchange.run(150)
        assert set(exchange.chosen) <= set(range(least, most + 1))
        assert exchange.chosen[-1] == ends


def test_a_worker_that_never_answers_does_not_keep_others_from_being_judged():
    choice = adaptive(CODES["uncoded"], most=7)
    for update in range(60):
        chosen = choice.choose(range(N))
        for worker in range(7):
            choice.observe(worker, 1.0 if worker == 6 and update else 0.1)
    assert chosen <= 6  # six are equally fast
    assert list(choice.rates) == [2, 3, 4, 5, 6, 7]


def test_an_exact_decoder_waits_for_no_more_than_it_needs():
    code = gradient_code(N, stragglers=2)
    choice = AdaptiveWait(code, 6, N, own=0, feedback=False, decoder="exact", max_staleness=0)
    exchange = Exchange(code, late_by(WEATHERS["pareto"]), choice, stale="drop")
    exchange.run(100)
    assert exchange.chosen[-1] == 6


def test_the_first_delay_is_warm_up():
    exchange = Exchange(
        CODES["uncoded"], lambda worker, version: 0.5 * worker if version == 0 else 0.1, adaptive(CODES["uncoded"])
    )
    exchange.run(100)
    assert exchange.chosen[0] == N // 2
    assert set(exchange.chosen[50:]) == {N}


def test_it_chooses_the_same_from_the_same():
    def chosen():
        exchange = Exchange(CODES["lwpd"], late_by(WEATHERS["pareto"]), adaptive(CODES["lwpd"]))
        exchange.run(100)
        return exchange.chosen

    assert chosen() == chosen()


seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
workers = st.integers(0, 5)


@settings(deadline=None, max_examples=60)
@given(
    bounds=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    own=st.none() | workers,
    feedback=st.booleans(),
    max_staleness=st.none() | st.integers(0, 2),
    code=st.sampled_from([uncoded(6), lwpd_code(6, 3, 3), local_code(6, 6, 2)]),
    events=st.lists(st.lists(st.tuples(workers, seconds), max_size=12) | st.sets(workers, min_size=1), max_size=60),
)
@pytest.mark.filterwarnings("error")
def test_whatever_is_observed_k_is_within_its_bounds(bounds, own, feedback, max_staleness, code, events):
    least, most = bounds
    choice = AdaptiveWait(code, least, most, own=own, feedback=feedback, max_staleness=max_staleness)
    live = set(range(6))
    for event in events:
        if isinstance(event, set):
            live = event
        else:
            for worker, delay in event:
                choice.observe(worker, delay)
        for _ in range(3):
            chosen = choice.choose(live)
            assert isinstance(chosen, int)
            assert min(least, len(live)) <= chosen <= min(most, len(live))
        assert all(math.isfinite(rate) and rate >= 0 for rate in choice.rates.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9])
def test_what_is_no_delay_is_refused(value):
    choice = adaptive(CODES["uncoded"])
    with pytest.raises(ValueError, match="is no delay: use a finite number >= 0"):
        choice.observe(1, value)


@pytest.mark.parametrize("worker", [-1, 8])
def test_an_unknown_worker_is_refused(worker):
    choice = adaptive(CODES["uncoded"])
    with pytest.raises(ValueError, match=f"worker {worker} with n=8"):
        choice.observe(worker, 0.1)
    with pytest.raises(ValueError, match="n=8"):
        choice.choose({worker})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"least": 0}, r"wait_for_bounds=\(0, 8\): use 1 <= least <= most <= 8"),
        ({"least": 5, "most": 4}, r"wait_for_bounds=\(5, 4\)"),
        ({"most": 9}, r"wait_for_bounds=\(2, 9\)"),
        ({"own": 8}, "own=8 with n=8"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        adaptive(CODES["uncoded"], **options)


def test_none_to_wait_for_is_refused():
    with pytest.raises(ValueError, match="workers"):
        adaptive(CODES["uncoded"]).choose([])


def test_among_many_workers_some_k_stand_for_all():
    """From the least to the most, and each K where they are few."""
    many = AdaptiveWait(uncoded(200), 3, 200, own=None, feedback=False)
    few = AdaptiveWait(uncoded(20), 3, 20, own=None, feedback=False)
    for adaptive, n in ((many, 200), (few, 20)):
        for worker in range(n):
            adaptive.observe(worker, 1.0)
            adaptive.observe(worker, 1.0)
        adaptive.choose(range(n))
    choices = list(many.rates)
    assert (choices[0], choices[-1], len(choices)) == (3, 200, 32)
    assert list(few.rates) == list(range(3, 21))
