"""torchft's per-step DDP and its DiLoCo, to the race's targets: ``python -m experiments.bench.torchft``.

Needs the extra ``torchft`` (Linux, root, iproute2 for shaped links). Its own lighthouse, managers, Gloo group, DDP and
DiLoCo; model, batches, optimizer, links, target and bytes are the race's, for which each point of the grids of ``ddp``
and ``diloco`` can be had. The loop is plain torch's: there is no Lightning in it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

from ..plain.runs import options_of, run_all


def main() -> None:
    """Run each mode once for each seed, and print a line for each run."""
    options = options_of(__package__, __doc__, ("ddp", "diloco"), "outputs/race-torchft")
    if find_spec("torchft") is None:
        sys.exit("torchft is not installed: pip install -e '.[torchft]'.")
    from .loops import run_rank

    run_all(options, "torchft", run_rank)


if __name__ == "__main__":
    main()
