"""What the K-of-n rule costs rank 0 an update: ``python -m experiments.bench.rule``.

Everything between the opening of an update and its close but links and gradients: who counts, with what weight. Three
quarters of the workers count, others in each update. The first update is apart: it finds out what the code can do.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence

from lwpd_lightning.coding import Code, local_code, lwpd_code, uncoded
from lwpd_lightning.rule.arrivals import ArrivalRule

SIZES = (8, 64, 256, 512, 1024)
UPDATES = 20


def cost_ms(code: Code, updates: int = UPDATES, seed: int = 0) -> tuple[float, float]:
    """Milliseconds of the first update, and the median of those after it."""
    draw, wait_for = random.Random(seed), max(2, 3 * code.n // 4)
    rule = ArrivalRule(code, wait_for, always=0)
    times = []
    for version in range(updates + 1):
        order = [0, *draw.sample(range(1, code.n), wait_for - 1)]
        start = time.perf_counter()
        rule.open(version, 0.0)
        for worker in order:
            rule.counts(worker, version, 0.0)
        assert rule.complete
        rule.decide(0.0)
        rule.close()
        times.append(1e3 * (time.perf_counter() - start))
    return times[0], statistics.median(times[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="What the K-of-n rule costs rank 0 an update.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of workers, multiples of 4")
    print(f"{'code':>8} {'n':>5} {'first update':>13} {'an update':>10}")
    for n in parser.parse_args(arguments).sizes:
        for code in (uncoded(n), local_code(n, data_parts=n // 4, blocks=2), lwpd_code(n, n // 2, 2)):
            first, later = cost_ms(code)
            print(f"{code.family:>8} {n:>5} {first:>10.1f} ms {later:>7.2f} ms", flush=True)


if __name__ == "__main__":
    main()
