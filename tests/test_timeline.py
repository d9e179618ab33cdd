"""What is published next, and how, whatever has happened to the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwpd_lightning.exchange.update import How
from lwpd_lightning.timeline import Timeline

FIRST, SECOND, THIRD = (0, 0), (0, 1), (1, 0)


@pytest.fixture
def timeline():
    """At the first batch, the second of which was published ahead of a step."""
    timeline = Timeline(workers_ask=False)
    assert timeline.begins(FIRST) is How.FIRST
    assert timeline.ahead(SECOND) is How.AHEAD
    return timeline


def test_what_was_published_ahead_holds_once_rank_zero_has_stepped(timeline):
    timeline.stepped()
    assert timeline.begins(SECOND) is None


def test_another_batch_than_was_published_is_published_again(timeline):
    timeline.stepped()
    assert timeline.begins(THIRD) is How.AGAIN
    assert timeline.begins(THIRD) is None


def test_a_model_that_moved_is_published_again_and_only_once(timeline):
    timeline.stepped()
    timeline.moved()
    assert timeline.begins(SECOND) is How.AGAIN
    assert timeline.begins(SECOND) is None


@pytest.mark.parametrize("batch", [SECOND, THIRD])
@pytest.mark.parametrize("moved", [False, True])
def test_after_a_step_that_was_not_made_workers_need_whole_states(timeline, batch, moved):
    if moved:
        timeline.moved()
    assert timeline.begins(batch) is How.WHOLE
    assert timeline.begins(batch) is None


def test_a_step_that_workers_leave_out_too_changes_nothing():
    timeline = Timeline(workers_ask=True)
    timeline.begins(FIRST)
    timeline.ahead(SECOND)
    assert timeline.begins(SECOND) is None


@pytest.mark.parametrize("happens", [Timeline.stepped, Timeline.moved, lambda timeline: None])
def test_after_an_exchange_comes_the_first_version_of_another(timeline, happens):
    happens(timeline)
    timeline.interrupted()
    assert timeline.begins(SECOND) is How.FIRST
    assert timeline.begins(SECOND) is None


class Flags:
    """The rule once more, as the flags that say of a version what is sent and what counts."""

    def __init__(self, workers_ask):
        self.batch, self.stepping, self.steered, self.workers_ask = None, False, False, workers_ask

    def begins(self, batch):
        """Whether a version is published, older codewords are void, and workers get whole states."""
        moved = self.stepping and not self.workers_ask
        ahead, steered = self.batch, self.steered
        self.batch, self.stepping, self.steered = batch, False, False
        return (ahead != batch or steered or moved, ahead is not None, moved)

    def ahead(self, batch):
        self.batch, self.stepping = batch, True

    def stepped(self):
        self.stepping = False

    def moved(self):
        self.steered = True

    def interrupted(self):
        self.batch, self.stepping, self.steered = None, False, False


batches = st.sampled_from([FIRST, SECOND, THIRD])
happenings = st.one_of(
    st.tuples(st.sampled_from(["begins", "ahead"]), batches),
    st.tuples(st.sampled_from(["stepped", "moved", "interrupted"])),
)


@given(st.booleans(), st.lists(happenings, max_size=30))
def test_any_order_of_happenings_leads_to_what_flags_lead_to(workers_ask, happened):
    timeline, flags = Timeline(workers_ask=workers_ask), Flags(workers_ask)
    for name, *at in [*happened, ("begins", THIRD)]:
        how, of_flags = getattr(timeline, name)(*at), getattr(flags, name)(*at)
        if name == "begins":
            publishes, void_older, whole = of_flags
            assert (how is not None) == publishes
            if how is not None:
                assert (how.voids_older, how is How.WHOLE) == (void_older, whole)
