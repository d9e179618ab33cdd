"""How soon a lost worker's process is started again, and when no more."""

from lwpd_lightning.rule.restarts import LIMIT, Restarts


def test_at_once_then_ever_later_and_not_for_ever():
    restarts, now, pauses = Restarts(60.0), 100.0, []
    for _ in range(LIMIT):
        started = now
        while not restarts.may(3, now, ended=True):
            now += 0.25
        pauses.append(now - started)
        restarts.started(3, now)
        restarts.lost(3, now)
    assert pauses == [0, 1, 2, 4, 8, 16]
    assert not restarts.may(3, now + 1e9, ended=True)
    assert restarts.hopeless(3)
    assert restarts.may(2, now, ended=True)  # another worker


def test_who_has_lived_for_long_begins_anew():
    restarts = Restarts(60.0)
    for _ in range(LIMIT):
        restarts.started(1, 0.0)
    restarts.lost(1, 59.0)
    assert restarts.hopeless(1)
    restarts.lost(1, 60.0)
    assert restarts.may(1, 60.0, ended=True)


def test_who_cannot_be_started_is_given_up():
    restarts = Restarts(60.0)
    restarts.give_up(1)
    restarts.lost(1, 1e9)
    assert not restarts.may(1, 1e9, ended=True)
    assert restarts.hopeless(1)


def test_a_process_that_lives_on_is_waited_for():
    restarts = Restarts(60.0)
    restarts.lost(1, 100.0)
    assert not restarts.may(1, 159.0, ended=False)
    assert restarts.may(1, 160.0, ended=False)
    restarts.started(1, 160.0)
    restarts.lost(1, 170.0)
    assert not restarts.may(1, 200.0, ended=False)
    assert restarts.may(1, 200.0, ended=True)
