"""How long workers take, told by when their word comes."""

import pytest

from lwpd_lightning.rule.delays import Delays


@pytest.fixture
def delays():
    return Delays()


def test_of_a_worker_that_was_free_it_is_the_time_since_the_version_was_published(delays):
    delays.published(7, [1, 2], now=100.0)
    assert delays.of(1, 7, computed_s=0.25, now=101.5) == 1.5  # its link took the rest
    assert delays.of(2, 7, computed_s=0.25, now=100.125) == 0.25  # the clocks' grain, or a word read late
    assert delays.of(3, 7, computed_s=0.25, now=101.5) == 0.25


def test_of_a_worker_that_was_busy_it_is_what_it_says(delays):
    delays.published(7, [1], now=100.0)
    delays.published(8, [1], now=110.0)
    assert delays.of(1, 7, computed_s=0.25, now=112.0) == 12.0  # asked for it at 100
    assert delays.of(1, 8, computed_s=0.25, now=113.0) == 0.25  # whenever it came to that
    delays.published(9, [1], now=120.0)
    assert delays.of(1, 9, computed_s=0.25, now=121.0) == 1.0


def test_of_a_version_that_it_chose_itself_it_is_what_it_says(delays):
    delays.published(7, [1], now=100.0)
    assert delays.of(1, 6, computed_s=0.25, now=101.0) == 0.25
    assert delays.of(1, 7, computed_s=0.25, now=102.0) == 0.25


def test_a_word_that_had_not_come_yet_takes_at_least_as_long(delays):
    delays.published(7, [1, 2], now=100.0)
    assert delays.of(1, 7, computed_s=0.25, now=100.5) == 0.5
    assert delays.of(2, 7, computed_s=0.25, now=99.0) == 0.25  # nobody has looked since


def test_the_dead_are_forgotten(delays):
    delays.published(7, [1], now=100.0)
    delays.forget(1)
    delays.forget(2)
    assert delays.of(1, 7, computed_s=0.25, now=101.5) == 0.25
