"""Runs of loops that are not Lightning's, one after the other, a line for each."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..race.grids import shown
from ..race.plan import WORKLOADS, Regime, grid_of, links_of
from ..race.testbed import refuse_missing_tools


def options_of(prog: str, description: str | None, schemes: tuple[str, ...], out: str) -> argparse.Namespace:
    """The command line: which workload, links, schemes and seeds."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--workload", choices=WORKLOADS, default="gpt")
    parser.add_argument("--links", default="even", help="unshaped, even (100), asymmetric, or a number of Mbit/s")
    parser.add_argument("--modes", nargs="+", choices=schemes, default=list(schemes))
    parser.add_argument("--point", type=int, help="of the grid; default 1")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser.parse_args()


def run_all(options: argparse.Namespace, kind: str, run_rank: Callable[[], None]) -> None:
    """Run each mode once for each seed; ``kind`` stands before its scheme's name."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # no host and no rank is left behind
    try:
        if links_of(options.links).mbit is not None:
            refuse_missing_tools()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    from ... import job  # noqa: F401 - imported here, once, for all ranks
    from ..race.bound import bytes_of_update, update_s
    from ..race.ranks import run

    options.out.mkdir(parents=True, exist_ok=True)
    regime = Regime(options.workload, options.links, "none", options.ranks)
    for seed in options.seeds:
        for mode in options.modes:
            point = options.point if options.point is not None else 1
            race = regime.race(mode, seed, point)
            directory = options.out / "runs" / f"{kind}-{race.name}"
            shutil.rmtree(directory, ignore_errors=True)
            row = run(race, directory, WORKLOADS[options.workload].limit_s, run_rank)
            with (options.out / "results.jsonl").open("a") as file:
                file.write(json.dumps({**row, "scheme": f"{kind}_{mode}"}) + "\n")
            words = [f"{kind} {mode}", shown(grid_of(options.workload, mode)[point]), f"seed {seed}"]
            if row["failed"]:
                print(*words, row["failed"], sep=", ", flush=True)
                continue
            reached = f"{row['time_to_target_s']:.1f} s" if row["reached"] else "target not reached"
            words += [reached, f"{row['updates']} updates", f"{1000 * update_s(row):.0f} ms/update"]
            if row.get("first_sent"):
                sent = [way[0] for way in bytes_of_update(row)]
                words.append(f"{sum(sent) / len(sent) / 1000:.0f} KB/rank")
            print(*words, sep=", ", flush=True)
