"""Schedules of faults: drawn from a seed, and never more at a time than can be spared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.chaos.schedule import KINDS, LINKS, SIGNALS, schedule


@given(
    seed=st.integers(0, 1 << 30), workers=st.integers(3, 9), spare=st.integers(1, 4), count=st.integers(0, 12),
    seconds=st.floats(0.0, 60.0), kinds=st.sets(st.sampled_from(KINDS), min_size=1).map(sorted),
)  # fmt: skip
def test_what_overlaps_can_be_spared_and_befalls_each_worker_once(seed, workers, spare, count, seconds, kinds):
    faults = schedule(seed, workers, spare, seconds, count, kinds)
    assert [fault.number for fault in faults] == list(range(count))
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    for fault in faults:
        assert fault.kind in kinds
        assert 0 not in fault.suspects
        at_once = [other for other in faults if other.at_s <= fault.at_s < other.over_s or other is fault]
        assert sum(other.places for other in at_once) <= spare
        befallen = [worker for other in at_once for worker in other.workers]
        assert len(befallen) == len(set(befallen))
        assert all(0 <= worker < workers for worker in befallen)
        if fault.kind in ("kill", "stop", "isolate", "shun", "throttle"):
            assert len(fault.suspects) == 1
        if fault.kind in ("cut", "one_way"):
            assert 1 <= len(fault.suspects) <= 2


def test_a_seed_is_a_schedule():
    assert schedule(3, 8, 2, 60.0, 20) == schedule(3, 8, 2, 60.0, 20)
    assert schedule(3, 8, 2, 60.0, 20) != schedule(4, 8, 2, 60.0, 20)
    assert {fault.kind for fault in schedule(3, 8, 2, 600.0, 200)} == set(SIGNALS) | set(LINKS)


@pytest.mark.parametrize(("workers", "spare"), [(8, 0), (2, 1)])
def test_nothing_befalls_a_run_that_can_spare_nobody(workers, spare):
    with pytest.raises(ValueError, match="use 3 workers or more, and K below n"):
        schedule(0, workers, spare, 1.0, 1)
