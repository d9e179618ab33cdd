"""Who holds a decision up is found by asking, after several times the time that the last ones took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwpd_lightning.rule.doubts import Doubts
from lwpd_lightning.rule.membership import Membership

HEARTBEAT_S = 5.0
ALL = {1, 2, 3, 4, 5}


def known(took_s=0.01):
    """Members that have seen decisions, each of which took so long; the next is number 100, decided at 100 s."""
    members = Membership(ALL, own=0, grace_s=1.0, join_s=60.0, doubts=Doubts(HEARTBEAT_S))
    for worker in ALL:
        members.join(worker, 10 * worker, "", 0.0)
    introduction = members.introduce()
    for worker in ALL:
        members.meets(worker, introduction.number)
    for number in range(20):
        members.doubts.decided(number, float(number))
        members.doubts.carried_out(number + took_s)
    members.doubts.decided(100, 100.0)
    return members


def asked(members, answers, missing, at=101.0):
    """Ask all, let some answer, and judge when the others have had their time."""
    assert members.doubts.ask(ALL, at) == ALL
    for worker, lacks in answers.items():
        members.lacks(worker, 100, set(lacks))
    return members.doubts.judge(missing, at + members.doubts.patience_s)


def test_nobody_is_asked_before_it_is_known_how_long_decisions_take_nor_before_one_takes_several_times_as_long():
    doubts = Doubts(HEARTBEAT_S)
    doubts.decided(1, 0.0)
    assert not doubts.ask(ALL, 4.9)
    assert doubts.ask(ALL, 5.0) == ALL
    assert known(took_s=0.1).doubts.patience_s == pytest.approx(0.4)
    assert known(took_s=0.01).doubts.patience_s == 0.2, "a machine's hiccup is held against nobody"
    assert known(took_s=3.0).doubts.patience_s == HEARTBEAT_S
    doubts = known(took_s=0.1).doubts
    assert doubts.left_s(100.0) == pytest.approx(0.4)
    assert not doubts.ask(ALL, 100.3)
    assert doubts.ask(ALL, 100.5) == ALL
    assert not doubts.ask(ALL, 100.5), "once"


def test_who_does_not_answer_and_is_missed_is_silent_until_it_does():
    members = known()
    doubts = members.doubts
    assert asked(members, {worker: {3} for worker in ALL - {3}}, missing=ALL)
    assert members.in_doubt() == {3}
    doubts.answered(3, 99, set())
    assert 3 in doubts.silent, "that was an older question"
    doubts.answered(3, 100, set())
    assert not doubts.silent
    assert members.in_doubt() == {3}, "nobody has heard of it yet"
    for worker in ALL - {3}:
        members.linked(worker, 3)
    assert not members.in_doubt()


def test_who_does_not_answer_and_is_not_missed_holds_nothing_up():
    members = known()
    doubts = members.doubts
    assert not asked(members, dict.fromkeys(ALL - {3}, ()), missing={4})
    assert not members.in_doubt()
    assert not doubts.ask(ALL, 101.2)
    assert doubts.ask(ALL, 102.0) == ALL, "it is asked again where that did not tell who holds it up"


def test_two_that_do_not_reach_each_other_cost_one_of_them():
    members = known()
    assert asked(members, dict.fromkeys(ALL, ()) | {2: {5}, 5: {2}}, missing={2, 5})
    assert len(members.in_doubt()) == 1
    assert members.in_doubt() < {2, 5}
    members.linked(2, 5)
    assert members.in_doubt(), "the other way it is not"
    members.linked(5, 2)
    assert not members.in_doubt()


def test_who_reaches_rank_0_alone_is_the_one_in_doubt():
    members = known()
    assert asked(members, {worker: {4} for worker in ALL} | {4: ALL - {4}}, missing=ALL)
    assert members.in_doubt() == {4}


def test_neither_rank_0_nor_anybody_that_is_not_in_is_in_doubt():
    members = known()
    assert not asked(members, dict.fromkeys(ALL, ()) | {2: {0, 9, -1}}, missing={2})
    assert not members.in_doubt()


def test_who_is_lost_is_in_doubt_no_more():
    members = known()
    doubts = members.doubts
    assert asked(members, {1: {3}, 2: {3}, 4: {3}, 5: {3}}, missing=ALL)
    members.lose(3)
    assert not members.in_doubt()
    assert doubts.oldest is None


def test_a_silent_worker_may_carry_out_the_first_decision_of_its_update_still():
    members = known()
    doubts = members.doubts
    doubts.decided(101, 100.1)  # the same update, decided again
    assert doubts.ask(ALL, 101.0) == ALL
    for worker in ALL - {3}:
        doubts.answered(worker, 101, {3})
    assert doubts.judge(ALL, 102.0)
    assert doubts.oldest == 100
    doubts.decided(102, 102.0)
    doubts.carried_out(102.01)
    assert doubts.oldest == 100


def test_a_decision_that_somebody_held_up_does_not_make_rank_0_more_patient_and_one_that_was_only_slow_does():
    members = known()
    doubts = members.doubts
    assert asked(members, {worker: {3} for worker in ALL - {3}}, missing=ALL)
    doubts.answered(3, 100, set())
    doubts.carried_out(103.0)
    assert doubts.patience_s == 0.2
    for number in (101, 102, 103, 104):
        assert doubts.patience_s == 0.2, "three slow ones change nothing"
        doubts.decided(number, 104.0)
        assert doubts.ask(ALL, 104.3) == ALL
        doubts.carried_out(104.5)
    assert doubts.patience_s == pytest.approx(2.0)


@given(st.dictionaries(st.sampled_from(sorted(ALL)), st.sets(st.integers(0, 5)), min_size=1))
def test_without_those_in_doubt_nobody_lacks_anything_of_anybody_and_all_have_answered(answers):
    members = known()
    asked(members, answers, missing=ALL)
    left = ({0} | ALL) - members.in_doubt()
    assert left - {0} <= answers.keys()
    assert not any(other in left - {0} for worker in left - {0} for other in answers[worker] - {worker})
