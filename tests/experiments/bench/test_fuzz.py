"""Mutated messages cost who sent them its place at most."""

import random

from experiments.bench.fuzz import fuzz


def test_two_thousand_mutated_messages_end_nothing():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    happened, grown = fuzz(2000, seed)
    assert sum(happened[how] for how in ("bits", "field", "op", "sizes", "cut", "longer", "frames", "payload")) == 2000
    assert grown < 32 << 20
