"""Mutated messages cost who sent them its place at most."""

import random

import pytest

from experiments.bench.fuzz import fuzz, outcast

HOW = ("bits", "field", "op", "sizes", "cut", "longer", "frames", "payload")


@pytest.mark.slow
def test_two_thousand_mutated_messages_end_nothing():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    happened, grown, opened = fuzz(2000, seed)
    assert sum(happened[how] for how in HOW) == 2000
    assert happened["counted"] > happened["updates"]  # who was given up is back soon
    assert grown < 32 << 20
    assert opened == 0


def test_what_a_worker_says_that_was_given_up_changes_no_bit():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    happened, changed = outcast(2000, seed)
    assert sum(happened[how] for how in HOW) == 2000
    assert not changed
    assert happened["lost"] == 0
    assert happened["counted"] == 2 * happened["updates"]
