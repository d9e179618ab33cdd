"""Room for links is made up to the hard limit, and refused beyond in words that say what would work."""

import resource

import pytest

from lwpd_lightning.links import room
from lwpd_lightning.links.room import TooFewFiles, make_room


@pytest.fixture
def limits(monkeypatch):
    """What this process may open: [soft, hard], of which ten are open."""
    now = [100, 1000]

    def set_limits(which, limits):
        now[:] = limits

    monkeypatch.setattr(room, "_open_files", lambda: 10)
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    return now


def test_what_is_there_is_left_alone(limits):
    limits[:] = [2000, 5000]
    make_room(8, 3)
    assert limits == [2000, 5000]


def test_the_soft_limit_is_raised_as_far_as_it_must_with_room_for_strangers(limits):
    limits[1] = 5000
    make_room(200, 3)
    assert limits == [10 + 600 + 256 + 1024, 5000]


def test_strangers_room_is_nothing_to_refuse_for(limits):
    make_room(200, 3)
    assert limits == [1000, 1000]


def test_beyond_the_hard_limit_it_is_refused_and_said_what_would_work(limits):
    with pytest.raises(TooFewFiles, match=r"links to 511 other ranks need 1799 open files, and .* may have 1000"):
        make_room(511, 3)
    with pytest.raises(TooFewFiles, match=r"245 ranks at most"):
        make_room(511, 3)
    make_room(244, 3)
    with pytest.raises(TooFewFiles):
        make_room(245, 3)


@pytest.mark.parametrize("limit", [0, 1])
def test_no_limit_is_none(limits, limit):
    limits[limit] = resource.RLIM_INFINITY
    make_room(300, 3)
