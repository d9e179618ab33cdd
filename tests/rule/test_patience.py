"""Who holds an update up is given up after a bound that the user sets, or that follows from measured times."""

from lwpd_lightning.rule.patience import Patience


def test_what_was_set_holds_but_never_longer_than_the_last_resort():
    assert Patience(3.0, 1800.0).seconds == 3.0
    assert Patience(3000.0, 1800.0).seconds == 1800.0


def test_the_default_follows_the_longest_of_the_last_waits():
    patience = Patience(None, 1800.0)
    for _ in range(19):
        patience.observe(0.1)
    assert patience.seconds == 1800.0
    patience.observe(0.1)
    assert patience.seconds == 60.0
    patience.observe(7.0)
    assert patience.seconds == 140.0
    patience.observe(500.0)
    assert patience.seconds == 1800.0
    for _ in range(256):
        patience.observe(0.1)
    assert patience.seconds == 60.0


def test_anything_new_begins_the_wait_again():
    patience = Patience(3.0, 1800.0)
    assert not patience.over((1, [2, 3]), 10.0)
    assert not patience.over((1, [2, 3]), 13.0)
    assert patience.over((1, [2, 3]), 13.1)
    assert not patience.over((1, [3]), 13.2)
    assert not patience.over((1, [3]), 16.1)
    assert patience.over((1, [3]), 16.3)
