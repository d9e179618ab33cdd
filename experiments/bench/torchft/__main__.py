"""torchft's per-step DDP and its DiLoCo, to the race's targets: ``python -m experiments.bench.torchft``.

Needs the extra ``torchft`` (Linux, root, iproute2 for shaped links). Its own lighthouse, managers, Gloo group, DDP and
DiLoCo; model, batches, optimizer, links, target and bytes are the race's, for which each point of the grids of ``ddp``
and ``diloco`` can be had. The loop is plain torch's: there is no Lightning in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: one thread a rank, whatever the machine

from ..race.grids import shown
from ..race.plan import WORKLOADS, Regime, grid_of, links_of
from ..race.testbed import refuse_missing_tools

MODES = ("ddp", "diloco")


def main() -> None:
    """Run each mode once for each seed, and print a line for each run."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # no host and no rank is left behind
    if find_spec("torchft") is None:
        sys.exit("torchft is not installed: pip install -e '.[torchft]'.")
    try:
        if links_of(options.links).mbit is not None:
            refuse_missing_tools()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    from ... import job  # noqa: F401 - imported here, once, for all ranks
    from ..race.bound import bytes_of_update, update_s
    from ..race.ranks import run
    from .rank import train

    options.out.mkdir(parents=True, exist_ok=True)
    regime = Regime(options.workload, options.links, "none", options.ranks)
    for seed in options.seeds:
        for mode in options.modes:
            point = options.point if options.point is not None else 1
            race = regime.race(mode, seed, point)
            directory = options.out / "runs" / f"torchft-{race.name}"
            shutil.rmtree(directory, ignore_errors=True)
            row = run(race, directory, WORKLOADS[options.workload].limit_s, train)
            with (options.out / "results.jsonl").open("a") as file:
                file.write(json.dumps({**row, "scheme": f"torchft_{mode}"}) + "\n")
            words = [f"torchft {mode}", shown(grid_of(options.workload, mode)[point]), f"seed {seed}"]
            if row["failed"]:
                print(*words, row["failed"], sep=", ", flush=True)
                continue
            reached = f"{row['time_to_target_s']:.1f} s" if row["reached"] else "target not reached"
            words += [reached, f"{row['updates']} updates", f"{1000 * update_s(row):.0f} ms/update"]
            if row.get("first_sent"):
                sent = [way[0] for way in bytes_of_update(row)]
                words.append(f"{sum(sent) / len(sent) / 1000:.0f} KB/rank")
            print(*words, sep=", ", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="gpt")
    parser.add_argument("--links", default="even", help="unshaped, even (100), asymmetric, or a number of Mbit/s")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--point", type=int, help="of the grid; default 1")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("outputs/race-torchft"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
