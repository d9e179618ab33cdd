"""Whatever happens to processes and links, in any order: who is in is decided once, with a cause, in bounded time."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lwpd_lightning.rule.cover import connected, smallest_cover
from lwpd_lightning.rule.doubts import Doubts
from lwpd_lightning.rule.membership import RETRIES, Membership, Refused

GRACE_S, JOIN_S = 1.0, 5.0
WORKERS = range(1, 6)
workers = st.sampled_from(WORKERS)
pairs = st.sets(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda pair: pair[0] != pair[1]).map(frozenset), max_size=9
)


def started(count=4):
    """All workers have joined and met."""
    members = Membership(range(1, count), own=0, grace_s=GRACE_S, join_s=JOIN_S, doubts=Doubts(GRACE_S))
    for worker in range(1, count):
        members.join(worker, 10 * worker, f"address {worker}", 0.0)
    introduction = members.introduce()
    for worker in range(1, count):
        members.meets(worker, introduction.number)
    return members


def cut_for(members, seconds, at=0.0):
    """Who is cut off after so long, in which rank 0 looks often."""
    for look in range(int(10 * seconds) + 1):
        members.greetings()
        gone = members.cut_off(at + look / 10)
    return gone


def test_workers_are_told_of_each_other_when_all_have_joined():
    members = Membership([1, 2], own=0, grace_s=GRACE_S, join_s=JOIN_S, doubts=Doubts(GRACE_S))
    members.join(2, 20, "two", 0.0)
    assert members.introduce() is None
    assert (members.vacant, members.expected, members.live) == ({1}, {1, 2}, {0})
    members.join(1, 10, "one", 0.0)
    introduction = members.introduce()
    assert introduction.addresses == {1: (10, "one"), 2: (20, "two")}
    assert (introduction.newcomers, introduction.elders) == ([1, 2], [])
    assert members.introduce() is None
    assert members.meets(1, introduction.number) == {1}
    assert members.meets(2, introduction.number) == {2}
    assert members.live == {0, 1, 2}


def test_who_dies_before_all_have_joined_is_not_waited_for():
    members = Membership([1, 2], own=None, grace_s=GRACE_S, join_s=JOIN_S, doubts=Doubts(GRACE_S))
    members.join(2, 20, "two", 0.0)
    members.lose(1)
    assert members.introduce().addresses == {2: (20, "two")}


def test_of_one_link_that_ended_the_end_is_to_blame_from_whom_others_lack_something_too():
    members = started(5)
    members.lose(1)
    members.join(1, 11, "again", 1.0)
    number = members.introduce().number
    for worker in (1, 2, 3, 4):
        members.meets(worker, number)
    doubts = members.doubts
    doubts.decided(1, 2.0)
    assert doubts.ask({1, 2, 3, 4}, 2.0 + GRACE_S) == {1, 2, 3, 4}
    for worker in (1, 2, 3, 4):
        members.lacks(worker, 1, {2} if worker == 3 else set())
    assert doubts.judge({3}, 3.5)
    members.unlinked(1, 2, 4.0, stands=False)
    members.greetings(), members.greetings()
    assert members.cut_off(4.1 + 2 * GRACE_S) == {2: [1]}, "which was never lost before, where 1 was"


def test_a_process_that_comes_later_is_live_when_it_has_met_all_and_all_have_met_it():
    members = started()
    members.lose(2)
    members.join(2, 21, "again", 7.0)
    introduction = members.introduce()
    assert (introduction.newcomers, introduction.elders) == ([2], [1, 3])
    assert introduction.addresses.keys() == {1, 2, 3}
    assert members.meets(2, introduction.number) == set()
    assert members.meets(1, introduction.number) == set()
    assert members.live == {0, 1, 3}
    assert members.meets(3, introduction.number) == {2}
    assert members.live == {0, 1, 2, 3}


def test_nobody_waits_for_ever_for_one_that_meets_nobody():
    members = started()
    members.lose(2)
    members.join(2, 21, "again", 7.0)
    members.introduce()
    assert members.late(7.0 + JOIN_S) == set()
    assert members.late(7.1 + JOIN_S) == {2}


def test_one_that_meets_nobody_keeps_no_other_newcomer_out():
    members = started(5)
    for worker in (2, 3):
        members.lose(worker)
    members.join(2, 21, "stuck", 7.0)
    assert members.introduce().joining == set()
    members.join(3, 31, "again", 8.0)
    introduction = members.introduce()
    assert (introduction.newcomers, introduction.elders, introduction.joining) == ([3], [1, 2, 4], {2})
    for worker in (1, 3):
        assert members.meets(worker, introduction.number, {2}) == set()
    assert members.meets(4, introduction.number, {2}) == {3}
    # Who was stuck needs to have met all that count by now, and they it.
    for worker in (1, 4):
        members.meets(worker, introduction.number)
    assert members.meets(2, introduction.number - 1) == set()
    assert members.meets(2, introduction.number) == set()
    assert members.meets(3, introduction.number) == {2}


def test_of_two_newcomers_that_have_not_met_one_counts():
    members = started(5)
    for worker in (2, 3):
        members.lose(worker)
        members.join(worker, 10 * worker + 1, "again", 7.0)
    number = members.introduce().number
    members.meets(2, number, {3})
    members.meets(3, number, {2})
    members.meets(1, number)
    assert members.meets(4, number) == {2}
    members.meets(2, number)
    assert members.meets(3, number) == {3}


def test_who_has_not_met_a_newcomer_and_is_lost_holds_it_up_no_longer():
    members = started()
    members.lose(2)
    members.join(2, 21, "again", 7.0)
    number = members.introduce().number
    members.meets(1, number)
    members.meets(2, number)
    assert members.lose(3) == {2}


def test_a_living_worker_is_not_replaced_and_a_lost_process_never_returns():
    members = started()
    with pytest.raises(Refused, match="worker 1 is in this run already: another process with its rank answers"):
        members.join(1, 11, "elsewhere", 3.0)
    assert members.holds(1, 10)
    members.lose(1)
    assert not members.holds(1, 10)
    with pytest.raises(Refused, match="worker 1 has been given up: training goes on without this process"):
        members.join(1, 10, "address 1", 3.0)
    members.join(1, 11, "elsewhere", 3.0)
    assert members.holds(1, 11)
    assert not members.holds(1, 10)


def test_a_link_that_comes_back_costs_nobody():
    members = started()
    assert members.unlinked(1, 2, 0.0, stands=False)
    assert members.broken({1, 2, 3})
    assert not members.broken({1, 3})
    members.linked(1, 2)
    assert not members.broken({1, 2, 3})
    assert cut_for(members, 2 * GRACE_S) == {}


def test_one_of_two_that_both_reach_rank_0_is_given_up():
    members = started()
    members.unlinked(1, 2, 0.0, stands=False)
    members.unlinked(2, 1, 0.1, stands=False)
    assert cut_for(members, 0.9 * GRACE_S) == {}
    assert cut_for(members, GRACE_S) == {2: [1]}


def test_who_reaches_no_other_worker_is_given_up_and_nobody_else():
    """However often who says it of whom."""
    members = started(6)
    for other in (1, 2, 4, 5):
        members.unlinked(other, 3, 0.0, stands=False)
        for _ in range(RETRIES):
            members.unlinked(3, other, 0.0, stands=False)
    assert cut_for(members, GRACE_S) == {3: [1, 2, 4, 5]}


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 4, 5))))
def test_who_reaches_no_other_worker_is_given_up_however_its_links_end_one_after_another(order):
    members = started(6)
    gone, now = {}, 0.0
    for other in order:
        members.unlinked(other, 3, now, stands=False)
        for _ in range(3):
            now += 0.1 * GRACE_S
            members.greetings()
            gone = gone or members.cut_off(now)
    assert gone == {3: [1, 2, 4, 5]}  # soon after the first of them


def test_of_two_the_one_that_was_lost_before_is_given_up_or_else_the_one_that_says_nothing():
    members = started()
    members.unlinked(2, 1, 0.0, stands=False)
    assert cut_for(members, GRACE_S) == {1: [2]}  # the higher number said so first
    members.lose(1)
    members.join(1, 11, "again", 3.0)
    number = members.introduce().number
    for worker in (1, 2, 3):
        members.meets(worker, number)
    members.unlinked(1, 2, 3.0, stands=False)
    assert cut_for(members, GRACE_S, 3.0) == {1: [2]}
    members.lose(2)
    members.join(2, 21, "again", 5.0)
    members.introduce()
    members.unlinked(2, 1, 5.0, stands=False)
    assert cut_for(members, GRACE_S, 5.0) == {2: [1]}  # which does not count yet


def test_who_counts_is_not_given_up_at_once_where_only_newcomers_do_not_reach_it():
    members = started(5)
    for worker in (1, 3):
        members.lose(worker)
        members.join(worker, 10 * worker + 1, "again", 3.0)
    members.introduce()
    for worker in (1, 3):
        members.unlinked(4, worker, 3.0, stands=False)
    assert cut_for(members, 2 * GRACE_S, 3.0) == {}
    assert cut_for(members, 6 * GRACE_S, 3.0) == {4: [1, 3]}


def test_links_that_go_on_breaking_put_nothing_off_for_ever():
    members = started(8)
    for one in range(1, 7):
        members.unlinked(one, one + 1, 0.5 * one * GRACE_S, stands=False)
        members.greetings()
        members.greetings()
        if gone := members.cut_off(0.5 * one * GRACE_S):
            break
    assert one == 5
    assert 1 in gone or 2 in gone


def test_a_link_is_not_cut_because_rank_0_was_busy_elsewhere():
    members = started()
    members.unlinked(1, 2, 0.0, stands=False)
    assert members.cut_off(25.0) == {}
    assert members.greetings() == [(1, 2), (2, 1)]
    members.linked(2, 1)
    assert members.cut_off(25.2) == {}


def test_a_link_that_breaks_again_and_again_in_one_update_is_taken_for_cut():
    members = started()
    for _ in range(RETRIES):
        members.unlinked(1, 2, 0.0, stands=True)
    assert members.cut_off(0.0) == {}
    members.unlinked(1, 2, 0.0, stands=True)
    assert members.cut_off(0.0) == {2: [1]}


def test_that_it_broke_in_another_update_does_not_count():
    members = started()
    for _ in range(2 * RETRIES):
        members.update_begins()
        members.unlinked(1, 2, 0.0, stands=True)
    assert members.cut_off(9.0) == {}


def test_reports_of_who_is_not_in_have_no_effect():
    members = started()
    members.lose(2)
    assert not members.unlinked(1, 2, 0.0, stands=False)
    assert not members.broken({1, 2, 3})


@settings(deadline=None)
@given(pairs)
def test_a_smallest_cover_covers_and_none_is_smaller(pairs):
    cover = smallest_cover(pairs)
    assert all(pair & cover for pair in pairs)
    everybody = {worker for pair in pairs for worker in pair}
    smaller = itertools.combinations(everybody, max(0, len(cover) - 1))
    assert not cover or not any(all(pair & set(few) for pair in pairs) for few in smaller)


@pytest.mark.parametrize("half", [4, 200])
def test_two_halves_that_do_not_reach_each_other(half):
    """A switch between two racks: one of them goes, however many there are."""
    cut = {frozenset((one, half + other)) for one in range(half) for other in range(half)}
    assert len(smallest_cover(cut)) == half


class Story(RuleBasedStateMachine):
    """Processes come and go, links break, rank 0 looks now and then; the truth about links is kept beside."""

    def __init__(self):
        super().__init__()
        self.members = Membership(WORKERS, own=0, grace_s=GRACE_S, join_s=JOIN_S, doubts=Doubts(GRACE_S))
        self.now = 0.0
        self.alive = {}  # worker -> incarnation of its process
        self.incarnations = itertools.count(1)
        self.told = dict.fromkeys(WORKERS, 0)  # the newest introduction that reached a process
        self.cut = set()  # pairs whose link is down
        self.lost = set()  # incarnations

    def _lose(self, worker):
        self.lost |= {self.alive.pop(worker, None)} - {None}
        self.members.lose(worker)

    @rule(worker=workers)
    def start(self, worker):
        if worker in self.alive:
            with pytest.raises(Refused):
                self.members.join(worker, next(self.incarnations), "", self.now)
        else:
            incarnation = next(self.incarnations)
            self.members.join(worker, incarnation, f"{incarnation}", self.now)
            self.alive[worker], self.told[worker] = incarnation, 0

    @rule(worker=workers)
    def die(self, worker):
        if worker in self.alive:
            self._lose(worker)

    @rule()
    def introduce(self):
        introduction = self.members.introduce()
        if introduction is not None:
            assert introduction.addresses.keys() == self.alive.keys()
            for worker in (*introduction.newcomers, *introduction.elders):
                self.told[worker] = introduction.number

    @rule(worker=workers)
    def meet(self, worker):
        reached = not any(frozenset((worker, other)) in self.cut for other in self.alive)
        if worker in self.alive and self.told[worker] and reached:
            self.members.meets(worker, self.told[worker])

    @rule(one=workers, other=workers)
    def cut_link(self, one, other):
        if one != other and frozenset((one, other)) not in self.cut:
            self.cut.add(frozenset((one, other)))
            for reporter, worker in ((one, other), (other, one)):
                if reporter in self.alive:
                    self.members.unlinked(reporter, worker, self.now, stands=False)

    @rule(data=st.data())
    @precondition(lambda self: self.cut)
    def mend_link(self, data):
        pair = data.draw(st.sampled_from(sorted(self.cut, key=sorted)))
        self.cut.discard(pair)
        self.members.update_begins()  # a link that breaks too often is another test's
        one, other = sorted(pair)
        if pair <= self.alive.keys():
            self.members.linked(one, other)

    @rule(seconds=st.floats(0.01, 3.0))
    def look(self, seconds):
        self.now += seconds
        self.members.greetings()
        for worker, others in self.members.cut_off(self.now).items():
            assert others
            assert all(frozenset((worker, other)) in self.cut for other in others), "lost although its links stand"
            self._lose(worker)
        for worker in self.members.late(self.now):
            assert worker not in self.members.live
            self._lose(worker)

    @rule(worker=workers)
    def late_word(self, worker):
        """What an older process says has no effect, nor may it come back."""
        for incarnation in self.lost:
            assert not self.members.holds(worker, incarnation)
        if self.lost and worker not in self.alive:
            newest = max(self.lost)
            if self.members._members[worker].incarnation == newest:
                with pytest.raises(Refused):
                    self.members.join(worker, newest, "", self.now)

    @invariant()
    def who_is_in_lives(self):
        assert self.members.present == self.alive.keys()
        assert self.members.live <= self.alive.keys() | {0}
        assert 0 in self.members.live

    def teardown(self):
        """No wait is without a bound: if rank 0 goes on looking, the longest bound ends them all."""
        for worker in self.members.vacant:
            self._lose(worker)
        self.introduce()
        for _ in range(3):
            self.look(max(GRACE_S, JOIN_S) + 0.1)
        assert not self.members.broken(self.members.live)
        assert self.members.expected == set()


Story.TestCase.settings = settings(deadline=None, max_examples=80, stateful_step_count=40)
TestStory = Story.TestCase


@given(pairs)
def test_links_hang_together_where_a_worker_leads_from_one_to_the_other(pairs):
    groups = connected(pairs)
    assert set().union(*groups) == pairs
    assert sum(map(len, groups)) == len(pairs)
    workers = [set().union(*group) for group in groups]
    assert not any(one & other for one, other in itertools.combinations(workers, 2))
    for group in groups:
        reached = {min(group, key=sorted)}
        while more := {pair for pair in group - reached if any(pair & other for other in reached)}:
            reached |= more
        assert reached == group
