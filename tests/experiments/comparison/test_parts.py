"""Runs that were continued are one run: one place in the table, one curve from its first update to its last."""

import math

import numpy as np

from experiments.comparison.parts import join, remarks, repeated_seeds
from tests.experiments.comparison.runs import run

NAN = float("nan")


def log(first, last, wall_from=0.0):
    """Series of the updates `first` to `last`, each of 10 bytes, with a validation after every second one."""
    rows = []
    for update in range(first, last + 1):
        rows.append((update, 0.5, 10.0, NAN, NAN))
        if update % 2 == 0:
            rows.append((update - 1, NAN, NAN, update / 10, NAN))
            rows.append((update, NAN, NAN, NAN, wall_from + update))
    names = ("step", "exchange/update_s", "exchange/bytes_up", "val_acc", "val_wall_s")
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def part(name, first, last, *, after=None, killed=False, **summary):
    config = {"paths": {"run_dir": f"/ran/{name}"}, "resumed_from": after and f"/ran/{after}"}
    if after and not killed:
        summary = {
            "resumed_at_update": first - 1,
            "resumed_at_s": 1.0,
            "resumed_at_bytes": 10.0 * (first - 1),
            **summary,
        }
    if killed:
        summary["resumed_at_update"] = None
    made = run(config=config, series=log(first, last), summary=summary)
    object.__setattr__(made, "source", f"here/{name}")
    return made


def test_a_continued_run_and_the_one_it_continues_are_one():
    first, other, second = part("first", 1, 6), part("other", 1, 10), part("second", 7, 10, after="first")

    whole = join([first, other, second], [])

    assert [one.source for one in whole] == ["here/other", "here/second"]
    for axis in ("value", "updates", "wall", "bytes"):
        np.testing.assert_array_equal(getattr(whole[1].curve, axis), getattr(other.curve, axis))
    assert whole[1].to_target("updates") == other.to_target("updates") == 10
    assert remarks(whole) == ["One run: here/first and here/second, which continues it."]


def test_what_was_made_after_the_checkpoint_and_lost_does_not_count():
    first, second = part("first", 1, 9), part("second", 5, 10, after="first")

    (whole,) = join([first, second], [])

    assert whole.curve.updates.tolist() == [2, 4, 6, 8, 10]
    assert whole.curve.bytes.tolist() == [20, 40, 60, 80, 100]


def test_parts_that_were_killed_are_joined_by_their_logs():
    first, second = part("first", 1, 5, killed=True), part("second", 3, 8, after="first", killed=True)
    third = part("third", 7, 10, after="second")

    (whole,) = join([third], [first, second])

    assert whole.parts == ("here/first", "here/second")
    assert whole.curve.updates.tolist() == [2, 4, 6, 8, 10]
    assert whole.curve.bytes[-1] == 100


def test_without_the_first_log_the_costs_are_still_those_of_the_whole_run():
    (alone,) = join([part("second", 7, 10, after="first", time_to_target_s=10.0)], [])

    assert alone.curve.updates.tolist() == [8, 10]
    assert (alone.to_target("updates"), alone.to_target("bytes"), alone.to_target("wall")) == (10, 100, 10.0)
    assert remarks([alone]) == [
        "here/second continues /ran/first, whose log is not here: its curves begin in the middle."
    ]


def test_a_target_reached_in_a_log_that_is_lost_has_only_its_time():
    early = part("second", 7, 10, after="first", time_to_target_s=3.0, target={"metric": "val_acc", "value": 0.1})

    (alone,) = join([early], [])

    assert alone.to_target("wall") == 3.0
    assert math.isnan(alone.to_target("updates"))
    assert math.isnan(alone.to_target("bytes"))


def test_a_run_that_wrote_over_its_own_log_is_not_joined_with_itself():
    (alone,) = join([part("first", 7, 10, after="first")], [])

    assert (alone.parts, alone.lost) == ((), "/ran/first")


def test_a_checkpoint_that_tells_no_time_leaves_none():
    untimed = part("second", 7, 10, after="first", resumed_at_s=None, resumed_at_bytes=None)

    (alone,) = join([untimed], [])

    assert math.isnan(alone.to_target("wall"))
    assert math.isnan(alone.to_target("bytes"))
    assert alone.to_target("updates") == 10
    assert "here/second has no time: its checkpoint does not tell the seconds before it." in remarks([alone])


def test_a_seed_that_a_group_has_twice_is_said():
    runs = [run(seed=0), run(seed=1), run(seed=0)]

    assert repeated_seeds("lwpd", runs) == [
        "lwpd has seed 0 2 times (/runs/lwpd/0, /runs/lwpd/0): its spread is not over seeds alone."
    ]
    assert repeated_seeds("lwpd", runs[:2]) == []
