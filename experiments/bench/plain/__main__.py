"""DDP and PowerSGD without Lightning, to the race's targets, and what such ranks take alone.

``python -m experiments.bench.plain`` (root, Linux and iproute2 for shaped links). ``alone`` exchanges nothing: it is
what no exchange on these cores can be faster than. Each point of the race's grids can be had.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

from ..race.grids import POWERSGD
from .runs import options_of, run_all

MODES = ("alone", "ddp", *POWERSGD)


def main() -> None:
    """Run each mode once for each seed, and print a line for each run."""
    options = options_of(__package__, __doc__, MODES, "outputs/race-plain")
    from .loops import run_rank

    run_all(options, "plain", run_rank)


if __name__ == "__main__":
    main()
