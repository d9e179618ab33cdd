"""What the K-of-n rule costs rank 0 an update: ``python -m experiments.bench.rule``.

Everything between the opening of an update and its close but links and gradients: who counts, with what weight. Three
quarters of the workers count, others in each update. Two updates are apart: the first, which finds out what the code
can do, and the one after a worker was lost, in which the others' weights change. K that adapts judges each number of
codewords anew where other workers live than before: "noise".
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from lwpd_lightning.coding import Code, local_code, lwpd_code, uncoded
from lwpd_lightning.coding.noise import decoded_noise
from lwpd_lightning.rule.arrivals import ArrivalRule

SIZES = (8, 64, 256, 512, 1024)
UPDATES = 20


class Cost(NamedTuple):
    """Milliseconds of an update: the first, the one after a loss, the median of the others; and of `decoded_noise`."""

    first: float
    after_loss: float
    later: float
    noise: float


def cost_ms(code: Code, updates: int = UPDATES, seed: int = 0) -> Cost:
    """What the rule costs with a code."""
    draw, wait_for = random.Random(seed), max(2, 3 * code.n // 4)
    rule = ArrivalRule(code, wait_for, own=0)
    times = []
    for version in range(updates + 2):
        if version == updates + 1:
            rule.lose(code.n - 1)
        order = [0, *draw.sample(range(1, code.n - 1), wait_for - 1)]
        start = time.perf_counter()
        rule.open(version, 0.0)
        for worker in order:
            rule.counts(worker, version, 0.0)
        assert rule.complete
        rule.decide(0.0)
        rule.close()
        times.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    decoded_noise(code, rule.live, own=0)
    return Cost(times[0], times[-1], statistics.median(times[1:-1]), 1e3 * (time.perf_counter() - start))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="What the K-of-n rule costs rank 0 an update.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of workers, multiples of 4")
    print(f"{'code':>8} {'n':>5} {'first update':>13} {'after a loss':>13} {'an update':>11} {'noise':>11}")
    for n in parser.parse_args(arguments).sizes:
        for code in (uncoded(n), local_code(n, data_parts=n // 4, blocks=2), lwpd_code(n, n // 2, 2)):
            cost = cost_ms(code)
            print(
                f"{code.family:>8} {n:>5} {cost.first:>10.1f} ms {cost.after_loss:>10.1f} ms {cost.later:>8.2f} ms "
                f"{cost.noise:>8.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
