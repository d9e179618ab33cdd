"""The K-of-n rule alone: what closes an update, what counts, and that the decoded gradient is unbiased.

Unbiasedness is enumerated through the rule itself: a gradient is assembled as the coordinator does it, for every
arrival set, and averaged.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwpd_lightning.coding import gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.decoders import decodable, spanned_share
from lwpd_lightning.rule.arrivals import _WEIGHT_CLIP, Arrival, ArrivalRule

CODES = [
    lwpd_code(8, 4, 2),
    lwpd_code(6, 3, 3),
    lwpd_code(4, 4, 2),
    local_code(6, 2, 2),
    local_code(8, 1, 4),
    uncoded(5),
]
over_codes = pytest.mark.parametrize("code", CODES, ids=repr)
over_own = pytest.mark.parametrize("own", [None, 0])
quick = settings(deadline=None, max_examples=60)


def tasks(code, seed=0):
    return torch.randn(code.k, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truth(code, theta):
    return theta.view(code.data_parts, code.blocks, -1).mean(dim=0)


def update(rule, version, arrived, theta, now=0.0):
    """Open, let ``arrived`` count in that order, decide, assemble the gradient, close: (blocks, d)."""
    rule.open(version, now)
    for worker in arrived:
        assert rule.counts(worker, version, now)
    gradient = decoded(rule, {worker: rule.code.at(version).generator[worker] @ theta for worker in arrived})
    rule.close()
    return gradient


def decoded(rule, codewords):
    """The gradient of a complete update, (blocks, d)."""
    assert rule.complete
    coefficients = rule.decide(0.0).coefficients
    assert coefficients.keys() == codewords.keys()
    return sum(
        torch.outer(torch.tensor(coefficients[worker], dtype=torch.float64), codeword)
        for worker, codeword in codewords.items()
    )


def arrival_sets(n, count, own):
    """All sets of ``count`` workers that contain ``own``."""
    return [s for s in itertools.combinations(range(n), count) if own is None or own in s]


# What closes an update.


@quick
@given(st.permutations(range(8)), st.integers(1, 8), st.sampled_from([None, 0, 5]))
def test_an_update_closes_with_the_kth_arrival_and_with_its_own(order, wait_for, own):
    rule = ArrivalRule(lwpd_code(8, 4, 2), wait_for, own=own)
    rule.open(0, 0.0)
    for count, worker in enumerate(order):
        done = count >= wait_for and (own is None or own in order[:count])
        assert rule.complete == done
        assert rule.awaited == sorted(order[count:])
        assert rule.counts(worker, 0, 1.0 + count)
    assert rule.complete
    assert [a.worker for a in rule.arrivals] == order
    assert rule.awaited == []


def test_delays_run_from_the_opening_and_are_never_negative():
    rule = ArrivalRule(uncoded(3), 3)
    rule.open(4, 10.0)
    for worker, now in enumerate((9.5, 10.0, 12.5)):
        rule.counts(worker, 4, now)
    assert rule.arrivals == [Arrival(0, 0, 0.0), Arrival(1, 0, 0.0), Arrival(2, 0, 2.5)]


def test_a_worker_counts_once_in_an_update_and_again_in_the_next():
    rule = ArrivalRule(uncoded(3), 2)
    rule.open(0, 0.0)
    assert rule.counts(1, 0, 0.0)
    assert not rule.counts(1, 0, 0.0)
    assert len(rule.arrivals) == 1
    assert not rule.complete
    rule.counts(2, 0, 0.0)
    rule.close()
    rule.open(1, 0.0)
    assert rule.counts(1, 0, 0.0)


@given(worker=st.integers(3, 2**32 - 1) | st.just(-1))
def test_a_worker_that_the_code_lacks_never_counts(worker):
    rule = ArrivalRule(uncoded(3), 2)
    rule.open(0, 0.0)
    assert not rule.counts(worker, 0, 0.0)


# What is too stale.


@pytest.mark.parametrize(
    ("stale", "max_staleness", "allowed"),
    [("drop", None, 0), ("apply", 0, 0), ("apply", 2, 2), ("apply", None, 9)],
)
def test_staleness_is_bounded_as_asked(stale, max_staleness, allowed):
    rule = ArrivalRule(uncoded(12), 12, stale=stale, max_staleness=max_staleness)
    rule.open(9, 0.0)
    counted = {s for s in range(10) if rule.counts(s, 9 - s, 0.0)}
    assert counted == set(range(allowed + 1))
    assert rule.oldest == 9 - allowed
    assert [a.staleness for a in rule.arrivals] == list(range(allowed + 1))


def test_nothing_counts_from_the_future():
    rule = ArrivalRule(uncoded(3), 2)
    rule.open(4, 0.0)
    assert not rule.counts(0, 5, 0.0)


def test_voided_versions_stay_void():
    rule = ArrivalRule(uncoded(3), 1)
    rule.open(4, 0.0)
    rule.open(5, 0.0, void_older=True)
    assert rule.oldest == 5
    assert not rule.counts(0, 4, 0.0)
    assert rule.counts(0, 5, 0.0)
    rule.close()
    rule.open(6, 0.0)
    assert not rule.counts(1, 4, 0.0)
    assert rule.counts(1, 5, 0.0)


# Losses.


def test_an_update_waits_for_all_that_live_when_fewer_than_k_do():
    rule = ArrivalRule(uncoded(4), 3)
    rule.lose(0)
    rule.lose(1)
    rule.open(0, 0.0)
    assert rule.needed == 2
    assert rule.awaited == [2, 3]
    rule.counts(2, 0, 0.0)
    assert not rule.complete
    rule.counts(3, 0, 0.0)
    assert rule.complete


def test_a_loss_in_an_open_update_is_no_longer_waited_for():
    rule = ArrivalRule(uncoded(3), 3)
    rule.open(0, 0.0)
    rule.counts(0, 0, 0.0)
    rule.counts(1, 0, 0.0)
    assert not rule.complete
    rule.lose(2)
    assert rule.complete


def test_what_a_dead_worker_had_ready_counts_no_more():
    """It may be asked to add up, so it must live until the end of the update."""
    rule = ArrivalRule(uncoded(3), 2)
    rule.open(0, 0.0)
    rule.counts(0, 0, 0.0)
    rule.counts(2, 0, 0.0)
    assert rule.complete
    rule.lose(2)
    assert [arrival.worker for arrival in rule.arrivals] == [0]
    assert not rule.complete
    assert not rule.counts(2, 0, 0.0)
    rule.counts(1, 0, 0.0)
    assert rule.complete
    assert rule.decide(0.0).coefficients.keys() == {0, 1}
    rule.close()
    assert [rule.inclusions[worker] for worker in range(3)] == [1, 1, 0]
    rule.open(1, 0.0)
    assert not rule.counts(2, 0, 0.0)


@over_codes
@over_own
def test_an_update_that_is_decided_twice_is_decoded_as_if_the_dead_worker_had_never_come(code, own):
    theta = tasks(code)
    dead = code.n - 1
    for others in ([], [dead]):
        rule = ArrivalRule(code, code.n - 1, own=own)
        rule.open(0, 0.0)
        for worker in [*others, *range(code.n - 1)]:
            rule.counts(worker, 0, 0.0)
        if others:
            assert dead in rule.decide(0.0).coefficients
            rule.lose(dead)
        gradient = decoded(rule, {worker: code.generator[worker] @ theta for worker in range(code.n - 1)})
        if not others:
            expected = gradient
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_deciding_changes_nothing_and_closing_counts_once():
    rule = ArrivalRule(lwpd_code(8, 4, 2), 5, own=0)
    rule.open(0, 0.0)
    for worker in (3, 0, 7, 1, 2):
        rule.counts(worker, 0, 0.0)
    assert rule.decide(0.0) == rule.decide(0.0)
    assert rule.updates == 0
    rule.close()
    assert rule.updates == 1
    assert sorted(rule.inclusions) == [0, 1, 2, 3, 7]


@over_codes
@over_own
def test_with_one_dead_worker_the_others_decode_exactly_where_they_span(code, own):
    theta, exact = tasks(code), 0
    for dead in range(1, code.n):
        rule = ArrivalRule(code, code.n, own=own)
        update(rule, 0, range(code.n), theta)
        rule.lose(dead)
        live = sorted(rule.live)
        gradient = update(rule, 1, live, theta)
        if decodable(code, live):
            exact += 1
            torch.testing.assert_close(gradient, truth(code, theta), rtol=0, atol=1e-12)
    assert exact == (code.n - 1 if code.k < code.n else 0)


@over_own
def test_everyone_but_one_may_die(own):
    code = lwpd_code(4, 4, 2)
    rule = ArrivalRule(code, 4, own=own)
    for worker in (1, 2, 3):
        rule.lose(worker)
    gradient = update(rule, 0, [0], tasks(code))
    assert torch.isfinite(gradient).all()


# Weights.


@over_codes
@over_own
@pytest.mark.parametrize("decoder", ["projective", "least_squares"])
def test_all_arrivals_give_the_exact_gradient(code, own, decoder):
    theta = tasks(code)
    for order in (range(code.n), range(code.n)[::-1]):
        gradient = update(ArrivalRule(code, code.n, decoder, own=own), 0, order, theta)
        torch.testing.assert_close(gradient, truth(code, theta), rtol=0, atol=1e-12)


@over_codes
@over_own
def test_the_mean_over_all_arrival_sets_is_the_gradient(code, own):
    """Even inclusion: every K-set that contains ``own`` is as likely as any other."""
    theta = tasks(code)
    for wait_for in range(2, code.n + 1):
        gradients = [
            update(ArrivalRule(code, wait_for, own=own), 0, arrived, theta)
            for arrived in arrival_sets(code.n, wait_for, own)
        ]
        mean = torch.stack(gradients).mean(dim=0)
        torch.testing.assert_close(mean, truth(code, theta), rtol=0, atol=1e-12)


@over_own
def test_the_mean_is_the_gradient_when_more_than_k_are_there_at_the_close(own):
    code = lwpd_code(8, 4, 2)
    theta = tasks(code)
    for count in range(3, 9):
        gradients = [
            update(ArrivalRule(code, 3, own=own), 0, arrived, theta) for arrived in arrival_sets(8, count, own)
        ]
        torch.testing.assert_close(torch.stack(gradients).mean(dim=0), truth(code, theta), rtol=0, atol=1e-12)


@over_own
def test_the_mean_over_the_survivors_sets_is_the_gradient(own):
    code = lwpd_code(8, 4, 2)
    theta, dead = tasks(code), {3, 6}
    live = [w for w in range(8) if w not in dead]
    assert decodable(code, live)
    for wait_for in range(2, 7):
        gradients = []
        for chosen in arrival_sets(len(live), wait_for, own):
            rule = ArrivalRule(code, wait_for, own=own)
            for worker in dead:
                rule.lose(worker)
            gradients.append(update(rule, 0, [live[i] for i in chosen], theta))
        torch.testing.assert_close(torch.stack(gradients).mean(dim=0), truth(code, theta), rtol=0, atol=1e-12)


@over_own
def test_least_squares_is_exact_wherever_the_arrivals_span(own):
    code, exact = lwpd_code(8, 4, 2), 0
    theta = tasks(code)
    for arrived in arrival_sets(8, 4, own):
        gradient = update(ArrivalRule(code, 4, "least_squares", own=own), 0, arrived, theta)
        if decodable(code, arrived):
            exact += 1
            torch.testing.assert_close(gradient, truth(code, theta), rtol=0, atol=1e-12)
    assert exact > 20


@quick
@given(st.sampled_from(CODES), st.data())
def test_the_spanned_share_is_the_rank_of_the_arrivals(code, data):
    arrived = data.draw(st.lists(st.integers(0, code.n - 1), min_size=1, unique=True))
    rank = int(torch.linalg.matrix_rank(code.generator[arrived]))
    assert spanned_share(code, frozenset(arrived)) == pytest.approx(rank / code.k)


# Uneven arrival.


def long_run(code, wait_for, own, speeds, updates, tilted, theta, seed=0):
    """Mean decoded gradient when faster workers arrive more often, and the rule that decoded it."""
    random = torch.Generator().manual_seed(seed)
    rule = ArrivalRule(code, wait_for, own=own)
    total = torch.zeros(code.blocks, theta.shape[1], dtype=torch.float64)
    others = [w for w in range(code.n) if w != own]
    weights = torch.tensor([speeds[w] for w in others], dtype=torch.float64)
    for version in range(updates):
        drawn = torch.multinomial(weights, wait_for - (own is not None), generator=random)
        arrived = [others[i] for i in drawn.tolist()] + ([own] if own is not None else [])
        if not tilted:
            rule._rates = None
        total += update(rule, version, arrived, theta)
    return total / updates, rule


@over_own
@pytest.mark.parametrize("code", [lwpd_code(8, 4, 2), uncoded(8)], ids=repr)
def test_the_tilt_brings_uneven_arrivals_nearer_to_the_truth(code, own):
    theta = tasks(code)
    speeds = [1.0, 1.0, 1.0, 1.0, 0.3, 1.0, 1.0, 0.3]
    errors = {}
    for tilted in (False, True):
        mean, _ = long_run(code, 5, own, speeds, 800, tilted, theta)
        errors[tilted] = float((mean - truth(code, theta)).norm() / truth(code, theta).norm())
    assert errors[True] < errors[False] / 2


def test_a_rare_worker_is_weighted_up_by_the_clip_at_most():
    code = uncoded(8)
    theta = tasks(code)
    _, rule = long_run(code, 5, None, [1.0] * 7 + [1e-9], 400, True, theta)
    rule.open(400, 0.0)
    even = ArrivalRule(code, 8)
    even.open(0, 0.0)
    for worker in range(8):
        rule.counts(worker, 400, 0.0)
        even.counts(worker, 0, 0.0)
    tilted, level = rule.decide(0.0).coefficients, even.decide(0.0).coefficients
    ratios = [tilted[w][0] / level[w][0] for w in range(8)]
    assert ratios[7] == pytest.approx(_WEIGHT_CLIP)
    assert all(1 / _WEIGHT_CLIP <= ratio < 1 for ratio in ratios[:7])


@over_own
def test_a_worker_that_has_recovered_is_weighted_as_the_others_after_some_hundred_updates(own):
    """It was slow for 3000 updates."""
    code, theta, random = uncoded(8), tasks(uncoded(8)), torch.Generator().manual_seed(0)
    rule = ArrivalRule(code, 6, own=own)
    slow, others = 7, [w for w in range(8) if w != own]
    for version in range(3500):
        speeds = torch.tensor([1e-3 if w == slow and version < 3000 else 1.0 for w in others])
        drawn = torch.multinomial(speeds, 6 - (own is not None), generator=random)
        arrived = [others[i] for i in drawn.tolist()] + ([own] if own is not None else [])
        update(rule, version, arrived, theta)
        if version == 2999:
            rule.open(version + 1, 0.0)
            assert rule.tilt[slow] == _WEIGHT_CLIP
    rule.open(3500, 0.0)
    assert rule.tilt[slow] == pytest.approx(1, abs=0.1)


def test_nothing_is_tilted_when_everyone_is_waited_for():
    code = lwpd_code(8, 4, 2)
    theta = tasks(code)
    _, rule = long_run(code, 5, None, [1.0] * 7 + [1e-9], 50, True, theta)
    rule.wait_for = 8
    gradient = update(rule, 50, range(8), theta)
    torch.testing.assert_close(gradient, truth(code, theta), rtol=0, atol=1e-12)


def test_inclusion_rates_are_shares_of_all_updates():
    rule = ArrivalRule(uncoded(3), 2)
    assert rule.inclusion_rate(0) == 0.0
    theta = tasks(rule.code)
    for version, arrived in enumerate(([0, 1], [0, 2], [0, 1, 2], [0, 1])):
        update(rule, version, arrived, theta)
    assert [rule.inclusion_rate(w) for w in range(3)] == [1.0, 0.75, 0.5]
    assert math.isclose(rule.updates, 4)


# Codes whose rows change, and exact decoding.


@over_own
@pytest.mark.parametrize("feedback", [False, True])
def test_a_late_codeword_of_a_sketch_is_decoded_by_the_row_that_it_was_made_with(own, feedback):
    code = local_code(3, data_parts=3, blocks=4)
    rule = ArrivalRule(code, 3, own=own, feedback=feedback)
    scale = (1 if feedback else code.blocks) / code.n
    for version, stale in ((5, 0), (6, 1), (7, 2), (9, 4)):
        rule.open(version, 0.0)
        assert rule.counts(2, version - stale, 0.0)
        rule.counts(0, version, 0.0)
        rule.counts(1, version, 0.0)
        coefficients = rule.decide(0.0).coefficients
        for worker, made_at in ((0, version), (1, version), (2, version - stale)):
            row = code.at(made_at).coefficients(worker)[worker]
            torch.testing.assert_close(torch.tensor(coefficients[worker], dtype=torch.float64), scale * row)
        rule.close()


def test_the_mean_over_a_cycle_and_all_arrival_sets_of_a_sketch_is_the_gradient():
    code = local_code(4, data_parts=4, blocks=3)
    theta = tasks(code)
    gradients = [
        update(ArrivalRule(code, 3, own=0), version, arrived, theta)
        for version in range(3)
        for arrived in arrival_sets(4, 3, 0)
    ]
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), truth(code, theta), rtol=0, atol=1e-12)


@over_own
@pytest.mark.parametrize("repetition", ["cyclic", "fractional"])
def test_a_gradient_code_is_exact_for_every_arrival_set_and_with_s_dead(own, repetition):
    code = gradient_code(6, stragglers=2, repetition=repetition)
    theta = tasks(code)
    for wait_for in (4, 5, 6):
        for arrived in arrival_sets(6, wait_for, own):
            rule = ArrivalRule(code, wait_for, "exact", stale="drop", own=own)
            torch.testing.assert_close(update(rule, 0, arrived, theta), truth(code, theta), rtol=0, atol=1e-11)
    rule = ArrivalRule(code, 6, "exact", stale="drop", own=own)
    rule.lose(3)
    rule.lose(4)
    torch.testing.assert_close(update(rule, 0, [0, 5, 2, 1], theta), truth(code, theta), rtol=0, atol=1e-11)


def test_what_comes_back_later_is_not_made_up_for_now():
    """All four compute every version and two count: each of the others brings the rest of its gradient another time."""
    code = local_code(4, data_parts=4, blocks=2)
    rule = ArrivalRule(code, 2, stale="drop", feedback=True)
    for version in range(50):
        rule.open(version, float(version))
        counted = [(version + i) % 4 for i in range(2)]
        for worker in range(4):
            rule.observe(worker, 0.1)
        for worker in counted:
            assert rule.counts(worker, version, float(version))
        coefficients = rule.decide(float(version)).coefficients
        row = code.at(version).direction
        for worker in counted:  # a quarter of the worker's gradient, however few count
            torch.testing.assert_close(torch.tensor(coefficients[worker]), row.double() / 4, check_dtype=False)
        rule.close()


def test_a_worker_that_comes_back_counts_in_the_open_update_like_the_others():
    rule = ArrivalRule(uncoded(4), wait_for=4, own=0)
    for version in range(200):
        if version == 50:
            rule.lose(3)
        if version == 150:
            rule.open(version, 0.0)
            rule.join(3)
        else:
            rule.open(version, 0.0)
        for worker in sorted(rule.live - {3} if version < 150 else rule.live):
            assert rule.counts(worker, version, 0.0)
        if version < 50:
            rule.counts(3, version, 0.0)
        assert rule.complete
        coefficients = rule.decide(0.0).coefficients
        assert len(coefficients) == (3 if 50 <= version < 150 else 4)
        if version >= 150:
            assert coefficients == {worker: [0.25] for worker in range(4)}
        rule.close()


def test_it_is_waited_for_and_no_heavier_for_its_absence():
    rule = ArrivalRule(uncoded(4), wait_for=3, own=0)
    rule.lose(3)
    for version in range(400):
        rule.open(version, 0.0)
        for worker in (0, 1, 2):
            rule.counts(worker, version, 0.0)
        rule.decide(0.0)
        rule.close()
    rule.open(400, 0.0)
    rule.join(3)
    assert rule.tilt.tolist() == [1.0] * 4


@pytest.mark.parametrize("refused", [0, 2])
def test_an_update_goes_on_without_a_refused_codeword_as_if_its_worker_were_lost(refused):
    rule, lost = (ArrivalRule(lwpd_code(4, 2, 2), wait_for=4, own=0) for _ in range(2))
    lost.own = None
    lost.lose(refused)
    for each in (rule, lost):
        each.open(0, 0.0)
        for worker in set(range(4)) - {refused}:
            assert not each.complete
            each.counts(worker, 0, 0.0)
    assert not rule.complete
    rule.refuse(refused)
    assert (rule.complete, rule.awaited) == (True, [])
    assert rule.decide(0.0) == lost.decide(0.0)
    rule.close()
    rule.open(1, 0.0)
    assert rule.awaited == [0, 1, 2, 3]
    rule.refuse(refused)
    assert rule.tilt.tolist() == [1.0] * 4  # it is waited for: no chance is involved


def test_workers_can_be_spared_where_as_many_others_as_the_update_waits_for_can_still_count():
    rule = ArrivalRule(uncoded(5), wait_for=3, own=0)
    rule.open(0, 0.0)
    assert rule.spares({1, 2})
    assert not rule.spares({1, 2, 3})
    rule.lose(4)
    assert rule.spares({1, 4})
    rule.refuse(3)
    assert not rule.spares({1})
    assert not ArrivalRule(uncoded(5), wait_for=5, own=0).spares({1}), "where all are waited for, nobody can be"
